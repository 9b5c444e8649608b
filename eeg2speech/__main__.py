"""`python -m eeg2speech train | studies | ladder | import`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eeg2speech import studies
from eeg2speech.cli import add_run_arguments, execute


def train(arguments: argparse.Namespace) -> None:
    from eeg2speech import config
    from eeg2speech.runs import RunFolder, is_first_process
    from eeg2speech.training import run

    experiment = config.load(arguments.config, arguments.overrides, arguments.name)
    folder = RunFolder(arguments.runs / experiment.name)
    trained = run.train(experiment, folder)
    if is_first_process():
        print(f"trained: {folder.path if trained.pipeline is None else folder.pipeline}")


def ladder(arguments: argparse.Namespace) -> None:
    from eeg2speech.data.ladder import publish

    print(publish(arguments.output, arguments.sentences, arguments.seed).round(3).to_string(index=False))


def import_audioldm(arguments: argparse.Namespace) -> None:
    from eeg2speech.importers.audioldm import convert

    ema = arguments.weights == "average"
    for fact, value in convert(arguments.source, arguments.to, ema=ema, head_dim=arguments.head_dim).items():
        print(f"{fact}: {value}")


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m eeg2speech", description="Speech from EEG: train the models.")
    commands = root.add_subparsers(required=True, metavar="command")
    text = "train every stage of a config, continuing an interrupted run; does nothing where all is done"
    command = commands.add_parser("train", help=text, description=text)
    add_run_arguments(command)
    command.set_defaults(handler=train)
    studies.add_parser(commands)
    text = "decode the simulated EEG by ridge regression at several SNRs, before any network is trained"
    command = commands.add_parser("ladder", help=text, description=text)
    command.add_argument("--sentences", type=int, default=300, help="how many are heard (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of speech and listener (default: %(default)s)")
    command.add_argument("--output", type=Path, default=Path("reports/published/ladder"), help="default: %(default)s")
    command.set_defaults(handler=ladder)
    text = "write published weights as a folder from which a training starts (training.autoencoder.init)"
    sources = commands.add_parser("import", help=text, description=text).add_subparsers(required=True, metavar="source")
    text = "a checkpoint of AudioLDM or AudioLDM-training-finetuning, or a folder in diffusers' layout"
    command = sources.add_parser("audioldm", help=text, description=text)
    command.add_argument("source", type=Path, help="the .ckpt or the folder")
    command.add_argument("--to", type=Path, required=True, help="the folder to write, which must not exist")
    text = "which UNet: its moving average (default), where there is one, or the last step's"
    command.add_argument("--weights", choices=("average", "last"), default="average", help=text)
    text = "width of the UNet's attention heads, which a checkpoint does not tell (default: 64 for AudioLDM-L, else "
    text += "32; what a folder's config says, where diffusers' script for AudioLDM says nothing)"
    command.add_argument("--head-dim", type=int, help=text)
    command.set_defaults(handler=import_audioldm)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    return execute(arguments.handler, arguments)


if __name__ == "__main__":
    sys.exit(main())
