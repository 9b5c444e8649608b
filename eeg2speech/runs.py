"""The run folder: its layout, its name, and the record of what is already done.

A step (data, a training stage, the evaluation) is done when its folder holds a `done.json` that
carries the hash of what the step depended on and the hashes of the files it made. So a second call
does nothing, a changed configuration redoes only what depends on it, and a damaged file is noticed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eeg2speech.errors import UserError
from eeg2speech.files import digest, sha256, write_atomically

DONE = "done.json"
LOCK = ".lock"


SUBMISSION = "submission"
"""The row of a scored submission, which no run has."""


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/`: where each part of a run lies."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def pipeline(self) -> Path:
        """What `EEG2SpeechPipeline.from_pretrained` reads."""
        return self.path / "pipeline"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def require_own(self) -> None:
        """Raises UserError where a submission was scored here, which a run would replace."""
        if (self.evaluation / SUBMISSION).exists():
            raise UserError(
                f"{self.path} holds a scored submission, which this run would replace: give the run another --name, or "
                "move that folder"
            )

    def stage(self, name: str) -> Path:
        """The folder of a training stage: weights, metrics log, checkpoint while it trains."""
        return self.path / name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the operating system lets go when the process ends, however it ends.

        Of a multi-process launch only the first process takes it. Raises UserError where another
        process has the run, or the folder may not be written.
        """
        import filelock

        if not is_first_process():
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(self.path / LOCK, timeout=0, is_singleton=True).acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"{self.path}: another process is writing this run; wait for it, or give this one another --name"
            ) from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be written to ({error.strerror}); choose another place") from error
        with held:
            yield


def is_first_process() -> bool:
    """Of those that torchrun or accelerate started together; the one that speaks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def run_name(yaml_path: Path, overrides: Sequence[str], name: str | None, resolved: Any) -> str:
    """`name` where given; else the YAML's stem, and with overrides six digits of the hash of `resolved`.

    `resolved` is the whole configuration as plain data, overrides included: what differs gets a
    folder of its own. Raises UserError where the name is no plain folder name.
    """
    chosen = name or (f"{yaml_path.stem}-{digest(resolved)[:6]}" if overrides else yaml_path.stem)
    if not re.fullmatch(r"[\w][\w.+-]*", chosen):
        raise UserError(f"run name {chosen!r}: give a --name of letters, digits, '.', '_', '+' and '-', a letter first")
    return chosen


@dataclass
class StepRecord:
    """What a step puts into its `done.json`."""

    files: list[str] = field(default_factory=list)
    """Paths relative to the folder whose hashes are kept; empty: every file in it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain data for whoever reads the record: counts, sizes."""


@contextmanager
def step(folder: Path, depends: str) -> Iterator[StepRecord]:
    """Does a step: the folder counts as done only when the block has succeeded.

    >>> if not is_done(folder, depends):
    ...     with step(folder, depends) as record:
    ...         record.facts["windows"] = write_windows(folder)
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DONE).unlink(missing_ok=True)
    record, begun = StepRecord(), time.monotonic()
    yield record
    write_done(folder, depends, record.files or _files_in(folder), {"wall_s": time.monotonic() - begun} | record.facts)


def write_done(folder: Path, depends: str, files: Iterable[str], facts: dict[str, Any]) -> None:
    """Declares the step in `folder` done, atomically; `files` are relative to it."""
    hashes = {name: sha256(folder / name) for name in files}
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    done = {"depends": depends, **facts, "finished": finished, "files": hashes}
    write_atomically(folder / DONE, json.dumps(done, indent=1))


def read_done(folder: Path) -> dict[str, Any] | None:
    """The record of a finished step, or None. Raises UserError where `done.json` cannot be read."""
    path = folder / DONE
    if not path.exists():
        return None
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(done["depends"], str) and isinstance(done["files"], dict):
            return done
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise UserError(f"{path} is damaged: delete the folder {folder} to do this step again")


def is_done(folder: Path, depends: str) -> bool:
    """True where the step is done for `depends` and its files are as they were made.

    False where it was never finished or depended on something else: it is then to be redone.
    Raises UserError naming the file that is missing or was changed since.
    """
    done = read_done(folder)
    if done is None or done["depends"] != depends:
        return False
    for name, wanted in done["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing ({DONE} lists it): restore it or delete {folder} to do this step again")
        if sha256(path) != wanted:
            raise UserError(f"{path} does not match the hash in {DONE}: restore it or delete {folder} to redo it")
    return True


def changed_files(folder: Path) -> list[Path] | None:
    """What is missing or no longer as the finished steps in and below `folder` left it; None where there is none.

    Raises UserError where a `done.json` cannot be read.
    """
    records = {done.parent: read_done(done.parent) for done in sorted(folder.rglob(DONE))}
    files = [
        (place / name, wanted) for place, done in records.items() if done for name, wanted in done["files"].items()
    ]
    return [path for path, wanted in files if not path.is_file() or sha256(path) != wanted] if records else None


def _files_in(folder: Path) -> list[str]:
    relative = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    # A model card is written beside a pipeline later, from results that the pipeline does not depend on.
    return [name for name in relative if name not in (DONE, "README.md") and not name.endswith(".partial")]
