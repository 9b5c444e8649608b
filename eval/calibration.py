"""What the whole instrument reads where the truth is known: a ladder of SNRs, and experiments without signal.

Every rung and every retrained experiment is an ordinary run in a folder of its own, so that what is
done is not done again and an interrupted calibration continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from eeg2speech import config as experiment
from eeg2speech import environment
from eeg2speech.cli import as_typed
from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.runs import RunFolder
from eval import nulls, runner
from eval.results import Calibration, ExperimentSeries, MetricInfo, Rung, RunResult

LADDER_DB = (-math.inf, -30.0, -20.0, -10.0, 0.0, 20.0)
SYSTEMS = ("eeg", "shuffled")
"""Of a retrained null experiment."""
METRIC = "mrr"


def calibrate(path: Path, folder: Path, ladder: Sequence[float], n_drawn: int, n_trained: int) -> Calibration:
    """Climbs the ladder of the config at `path`, and runs the null experiments; its runs lie in `folder`.

    Raises UserError where the config's study has no SNR that could be set.
    """
    base = experiment.load(path)
    if base.study.name != "matrix":
        raise UserError(f"{path}: study.name must be matrix: only the embedded study has an SNR to set")
    typed = as_typed("nox -s calibrate --", path, (), None)
    rungs = [run(rung_config(path, snr), folder, typed) for snr in sorted(set(ladder))]
    trained = [run(null_config(path, seed), folder, typed) for seed in range(n_trained)]
    return Calibration(
        name=base.name,
        study=base.study.name,
        simulated=True,
        alpha=nulls.ALPHA,
        metrics=_described(rungs),
        rungs=[rung(result) for result in rungs],
        series=[*(nulls.drawn_series(n_drawn) if n_drawn else []), *([trained_series(trained)] if trained else [])],
        config=base.model_dump(mode="json"),
        environment=environment.describe(),
    )


def rung_config(path: Path, snr_db: float) -> ExperimentConfig:
    """The config at `path` at another SNR."""
    level = "-.inf" if snr_db == -math.inf else str(snr_db)
    name = "snr-inf" if snr_db == -math.inf else f"snr{snr_db:+g}"
    return experiment.load(path, [f"study.snr_db={level}"], name)


def null_config(path: Path, seed: int) -> ExperimentConfig:
    """The config without a response in the EEG, and with its own speech, listeners, split, training and shuffling.

    The contrastive stage alone is trained, which is all that retrieval needs.
    """
    own = [f"{key}={seed}" for key in ("seed", "study.seed", "splits.seed", "evaluation.seed")]
    untrained = [f"training.{stage}=null" for stage in ("autoencoder", "regression", "diffusion")]
    asked = [
        f"evaluation.systems=[{', '.join(SYSTEMS)}]",
        f"evaluation.metrics.names=[{METRIC}]",
        f"evaluation.primary={METRIC}",
        "evaluation.max_stimuli=null",
    ]
    return experiment.load(path, ["study.snr_db=-.inf", *own, *untrained, *asked], f"null-{seed:03d}")


def run(config: ExperimentConfig, folder: Path, command: str) -> RunResult:
    """An ordinary run, trained and evaluated unless it is done; all runs of a calibration share studies and caches."""
    place = RunFolder(folder / config.name)
    runner.run(config, place, command)
    return RunResult.load(place.path)


def rung(run: RunResult) -> Rung:
    """What the ladder keeps of a run: its cells over all subjects."""
    return Rung(
        snr_db=float(run.config["study"]["snr_db"]),
        systems=run.systems,
        results=[r for r in run.results if r.subject is None],
        comparisons=run.comparisons,
        signature=run.signature,
    )


def _described(runs: Sequence[RunResult]) -> list[MetricInfo]:
    return list({info.name: info for result in runs for info in result.metrics}.values())


def trained_series(runs: Sequence[RunResult]) -> ExperimentSeries:
    """The retrained experiments' own comparisons of eeg with shuffled."""
    outcomes = []
    for result in runs:
        found = next(c for c in result.comparisons if (c.metric, c.system) == (METRIC, "shuffled"))
        if found.p is None or found.gain is None:
            raise UserError(f"{result.name}: eeg was not compared with shuffled ({found.reason}); delete its folder")
        outcomes.append(nulls.Outcome(found.p, found.gain))
    heard = runs[0].systems[0]
    description = (
        f"The contrastive stage trained anew on EEG without a response, each time with other speech, listeners and "
        f"seeds: about {heard.n_stimuli} test stimuli, each heard by {heard.n_subjects} listeners."
    )
    return nulls.series("retrained without signal", description, METRIC, outcomes)
