"""`python -m reports build` and `python -m reports verify`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eeg2speech.cli import add_run_arguments, execute
from eeg2speech.errors import UserError


class MismatchError(Exception):
    """A stored value that its own examples do not give, or a file that was changed after the evaluation."""


def named(arguments: argparse.Namespace) -> str:
    """The name of the run, for which only a change without a --name needs the config and all that it imports."""
    from eeg2speech.runs import run_name

    if arguments.name or not arguments.overrides:
        return run_name(arguments.config, (), arguments.name, None)
    from eeg2speech import config

    return config.load(arguments.config, arguments.overrides).name


def build(arguments: argparse.Namespace) -> None:
    from reports.build import build as render

    folders = arguments.folders
    if not folders:
        folders = [arguments.runs / named(arguments)]
    elif arguments.overrides or arguments.name:
        raise UserError(f"{folders[0]}: name run folders, or what --set and --name make of --config, and not both")
    print(
        render(
            folders,
            arguments.output,
            embed=arguments.sounds == "embedded",
            benchmark_results=arguments.benchmarks,
            calibration_results=arguments.calibration,
        )
    )


def verify(arguments: argparse.Namespace) -> None:
    from eeg2speech.runs import RunFolder, changed_files
    from reports.verify import verify as recompute

    checks = recompute(arguments.run, arguments.cell, arguments.sounds)
    for check in checks:
        stored = "" if check.result.value is None else f"  stored {check.result.value!r}"
        again = "" if check.recomputed is None else f"  re-computed {check.recomputed!r}"
        print(f"{check.outcome:9}  {check.cell}{stored}{again}" + (f"  ({check.detail})" if check.detail else ""))
    number = {outcome: sum(c.outcome == outcome for c in checks) for outcome in ("match", "mismatch", "unchecked")}
    print(", ".join(f"{n} {outcome}" for outcome, n in number.items()))
    changed = changed_files(RunFolder(arguments.run).evaluation)
    for path in changed or []:
        print(f"changed    {os.path.relpath(path, arguments.run)} is not as the evaluation left it")
    print("files: no evaluation left a record here" if changed is None else f"files: {len(changed)} changed")
    if number["mismatch"] or changed:
        raise MismatchError
    if arguments.cell and not number["match"]:
        how = "name a per-example metric" + ("" if arguments.sounds else ", or add --sounds")
        raise UserError(f"none of the named cells can be re-computed from what was read; {how}")


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m reports", description="Render results, and check them.")
    commands = root.add_subparsers(required=True, metavar="command")
    text = "render run folders as one self-contained page with its tables"
    command = commands.add_parser("build", help=text, description=text)
    which = "a folder that holds results.json; several make a page over all (default: the run of --config)"
    command.add_argument("folders", type=Path, nargs="*", metavar="RUN_FOLDER", help=which)
    add_run_arguments(command)
    where = "where index.html goes (default: %(default)s)"
    command.add_argument("--output", type=Path, default=Path("reports"), help=where)
    how = "sounds inside the page, or as files beside its tables (default: %(default)s)"
    command.add_argument("--sounds", choices=("embedded", "files"), default="embedded", help=how)
    measured = "folder of `nox -s bench` results, shown as benchmarks.html where it holds any (default: %(default)s)"
    command.add_argument("--benchmarks", type=Path, default=Path("benchmarks/results"), help=measured)
    known = "folder of `nox -s calibrate` results, shown as calibration.html where it holds any (default: %(default)s)"
    command.add_argument("--calibration", type=Path, default=Path("reports/published/calibration"), help=known)
    command.set_defaults(handler=build)
    text = "re-compute stored values from the per-example table; exit code 1 where one differs"
    command = commands.add_parser("verify", help=text, description=text)
    command.add_argument("run", type=Path, metavar="RUN_FOLDER")
    which = "a cell to check; may be repeated (default: all)"
    command.add_argument("--cell", action="append", default=[], metavar="SYSTEM/METRIC", help=which)
    how = "score the stored sounds once more for what single examples do not give, such as FAD (minutes)"
    command.add_argument("--sounds", action="store_true", help=how)
    command.set_defaults(handler=verify)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return execute(arguments.handler, arguments)
    except MismatchError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
