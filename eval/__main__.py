"""`python -m eval run | folds | manifest | score | rescore | sweep | ablate | calibrate | push | pull`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeg2speech.cli import add_run_arguments, as_typed, execute
from eeg2speech.errors import UserError

if TYPE_CHECKING:
    from eval.yardstick import Yardstick


def run(arguments: argparse.Namespace) -> None:
    from eeg2speech import config
    from eeg2speech.runs import RunFolder
    from eval import runner

    experiment = config.load(arguments.config, arguments.overrides, arguments.name)
    typed = as_typed("nox -s evaluate --", arguments.config, arguments.overrides, arguments.name)
    runner.run(experiment, RunFolder(arguments.runs / experiment.name), typed)


def folds(arguments: argparse.Namespace) -> None:
    from eval.folds import folds as run_folds

    run_folds(arguments.config, arguments.overrides, arguments.name, arguments.runs)


def rescore(arguments: argparse.Namespace) -> None:
    from eval.rescore import rescore as score_again

    for again in score_again(arguments.run, arguments.cell):
        print(json.dumps(asdict(again)))


def yardstick(arguments: argparse.Namespace) -> Yardstick:
    """What --run, else --config, else the one evaluated run of --study gives; all three must agree."""
    from eeg2speech import config
    from eval.yardstick import find_run, of_config, of_run

    if arguments.config is not None and arguments.run is not None:
        raise UserError("--config and --run: give one; a run knows its config")
    if arguments.config is None and arguments.overrides:
        raise UserError("--set changes a config: name one by --config")
    if arguments.config is not None:
        # The name is of the folder that is written, not of the config that is read.
        found = of_config(config.load(arguments.config, arguments.overrides), arguments.runs)
    elif arguments.run is not None or arguments.study is not None:
        found = of_run(arguments.run or find_run(arguments.runs, arguments.study))
    else:
        raise UserError("name what to score against: --study NAME, --run RUN_FOLDER or --config YAML")
    if arguments.study not in (None, found.study):
        raise UserError(f"--study {arguments.study}: {found.name} is of study {found.study}; correct one of them")
    return found


def manifest(arguments: argparse.Namespace) -> None:
    from eval.submission import write_template

    for path in write_template(yardstick(arguments), arguments.output):
        print(path)


def score(arguments: argparse.Namespace) -> None:
    from eeg2speech.runs import RunFolder, run_name
    from eval import submission

    against, wavs = yardstick(arguments), arguments.wavs
    name = run_name(wavs.resolve(), (), arguments.name or wavs.resolve().name, None)
    metrics = against.metrics(arguments.runs / "cache" / "weights")
    listed = arguments.manifest or wavs / submission.MANIFEST
    submission.score(against, wavs, listed, RunFolder(arguments.runs / name), metrics)


def push(arguments: argparse.Namespace) -> None:
    from eval import hub

    print(hub.push(arguments.run, arguments.target))


def pull(arguments: argparse.Namespace) -> None:
    from eval import hub

    print(hub.pull(arguments.source, arguments.folder))


def sweep(arguments: argparse.Namespace) -> None:
    from eeg2speech import config
    from eeg2speech.runs import RunFolder
    from eval.sweep import Plan, subset
    from eval.sweep import sweep as run_sweep

    experiment = config.load(arguments.config, arguments.overrides, arguments.name)
    plan = Plan(arguments.schedulers, arguments.steps, arguments.guidance, arguments.rescale, arguments.temperatures)
    chosen = subset(experiment, arguments.stimuli, arguments.metrics)
    run_sweep(chosen, RunFolder(arguments.runs / experiment.name), plan, arguments.split)


def ablate(arguments: argparse.Namespace) -> None:
    from eval.ablation import ablate as run_ablation

    run_ablation(arguments.config, arguments.runs)


def calibrate(arguments: argparse.Namespace) -> None:
    from eval import calibration

    ladder = calibration.LADDER_DB if arguments.snr_db is None else arguments.snr_db
    folder = arguments.runs / arguments.config.stem
    found = calibration.calibrate(arguments.config, folder, ladder, arguments.drawn, arguments.trained)
    print(found.save(arguments.output))


def listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """An argument that is values between commas; empty: none."""

    def values(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(",")) if text else ()

    values.__name__ = f"list of {kind.__name__}"  # what argparse calls it where it is wrong
    return values


def add_yardstick_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments that name what a submission is scored against."""
    text = "what was listened to; alone: the one evaluated run of it under --runs"
    command.add_argument("--study", metavar="NAME", help=text)
    command.add_argument("--run", type=Path, metavar="RUN_FOLDER", help="an evaluated run, whose rows stand beside it")
    text = "instead of a run: score on the test set of a config, which needs the study's data and no training"
    command.add_argument("--config", type=Path, metavar="YAML", help=text)
    text = "override one value of the config; may be repeated"
    command.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help=text)
    command.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where run folders live (default: %(default)s)"
    )


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m eval", description="Score generated speech against its controls.")
    commands = root.add_subparsers(required=True, metavar="command")
    text = "generate speech for every test window of a trained run, score it, and write results.json"
    command = commands.add_parser("run", help=text, description=text)
    add_run_arguments(command)
    command.set_defaults(handler=run)
    text = "run every fold of a config with splits.n_folds, and pool them into one results.json and a table"
    command = commands.add_parser("folds", help=text, description=text)
    add_run_arguments(command)
    command.set_defaults(handler=folds)
    text = "score the sounds that a run has stored once more; prints a line of JSON for each cell, and writes nothing"
    command = commands.add_parser("rescore", help=text, description=text)
    command.add_argument("run", type=Path, metavar="RUN_FOLDER")
    which = "a cell to score; may be repeated (default: all)"
    command.add_argument("--cell", action="append", default=[], metavar="SYSTEM/METRIC", help=which)
    command.set_defaults(handler=rescore)
    text = "write the list of examples that a submission answers, and of the windows it may be trained on"
    command = commands.add_parser("manifest", help=text, description=text)
    add_yardstick_arguments(command)
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="where manifest.csv goes")
    command.set_defaults(handler=manifest)
    text = "score the sounds of another system beside the rows of an evaluated run, and write results.json"
    command = commands.add_parser("score", help=text, description=text)
    command.add_argument("--wavs", type=Path, required=True, metavar="DIR", help="the sounds, and manifest.csv")
    add_yardstick_arguments(command)
    command.add_argument("--manifest", type=Path, metavar="CSV", help="default: manifest.csv beside the sounds")
    command.add_argument("--name", help="of the run folder that is written (default: the name of DIR)")
    command.set_defaults(handler=score)
    text = "sample a trained run in other ways and score eeg against shuffled at each; the report then draws it"
    command = commands.add_parser("sweep", help=text, description=text)
    add_run_arguments(command)
    command.add_argument("--steps", type=listed(int), default=(), metavar="N,..", help="num_inference_steps to try")
    command.add_argument("--schedulers", type=listed(str), default=(), metavar="NAME,..", help="each with every N")
    command.add_argument("--guidance", type=listed(float), default=(), metavar="W,..", help="guidance_scale to try")
    command.add_argument("--rescale", type=listed(float), default=(), metavar="PHI,..", help="each with every W")
    command.add_argument("--temperatures", type=listed(float), default=(), metavar="T,..", help="temperature to try")
    which = "whose stimuli: valid to choose a setting, test to show what the choice does (default: %(default)s)"
    command.add_argument("--split", choices=("test", "valid"), default="test", help=which)
    command.add_argument("--stimuli", type=int, help="unique stimuli, drawn by the seed (default: the config's)")
    command.add_argument("--metrics", type=listed(str), metavar="NAME,..", help="default: the config's")
    command.set_defaults(handler=sweep)
    text = "run named changes of a config with several seeds, and write one table: mean and interval over seeds"
    command = commands.add_parser("ablate", help=text, description=text)
    command.add_argument("--config", type=Path, default=Path("configs/ablation.yaml"), help="default: %(default)s")
    command.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where run folders live (default: %(default)s)"
    )
    command.set_defaults(handler=ablate)
    text = "write the model card of an evaluated run into its pipeline, and share both on the hub or in a folder"
    command = commands.add_parser("push", help=text, description=text)
    command.add_argument("run", type=Path, metavar="RUN_FOLDER", help="a trained and evaluated run")
    command.add_argument("target", metavar="TARGET", help="owner/name on the hub, or a folder such as ./shared")
    command.set_defaults(handler=push)
    text = "fetch a shared pipeline with its card from the hub or a folder"
    command = commands.add_parser("pull", help=text, description=text)
    command.add_argument("source", metavar="SOURCE", help="owner/name on the hub, or a folder")
    command.add_argument("folder", type=Path, metavar="FOLDER", help="where it goes")
    command.set_defaults(handler=pull)
    text = (
        "run the embedded study over a ladder of SNRs and many experiments of known truth; continues where it stopped"
    )
    command = commands.add_parser("calibrate", help=text, description=text)
    command.add_argument("--config", type=Path, default=Path("configs/calibrate.yaml"), help="default: %(default)s")
    command.add_argument("--runs", type=Path, default=Path("runs"), help="where its folder lies (default: %(default)s)")
    rungs = "the rungs, as in --snr-db=-inf,-20,0 where -inf is no response (default: -inf,-30,-20,-10,0,20)"
    command.add_argument("--snr-db", type=listed(float), metavar="DB,..", help=rungs)
    many = "null experiments of each kind that need no training (default: %(default)s)"
    command.add_argument("--drawn", type=int, default=1000, help=many)
    few = "null experiments that train the contrastive stage (default: %(default)s)"
    command.add_argument("--trained", type=int, default=20, help=few)
    where = "where calibration.json goes (default: %(default)s)"
    command.add_argument("--output", type=Path, default=Path("reports/published/calibration"), help=where)
    command.set_defaults(handler=calibrate)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    return execute(arguments.handler, arguments)


if __name__ == "__main__":
    sys.exit(main())
