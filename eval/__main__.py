"""`python -m eval run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from eeg2speech.cli import add_run_arguments, execute


def run(arguments: argparse.Namespace) -> None:
    from eeg2speech import config
    from eeg2speech.runs import RunFolder
    from eval import runner

    experiment = config.load(arguments.config, arguments.overrides, arguments.name)
    runner.run(experiment, RunFolder(arguments.runs / experiment.name))


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m eval", description="Score generated speech against its controls.")
    commands = root.add_subparsers(required=True, metavar="command")
    text = "generate speech for every test window of a trained run, score it, and write results.json"
    command = commands.add_parser("run", help=text, description=text)
    add_run_arguments(command)
    command.set_defaults(handler=run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    return execute(arguments.handler, arguments)


if __name__ == "__main__":
    sys.exit(main())
