"""Intervals, tests, and the whole table of an evaluation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from benchmarks.measure import Measure
from benchmarks.sizes import SIZES
from eeg2speech.evaluation import EvaluationConfig
from eval import statistics
from eval.assembly import CLAIM, Scored, assemble
from eval.results import MetricInfo

SIZE = SIZES.statistics
METRICS = [f"metric{i}" for i in range(SIZE.metrics)]
SYSTEMS = [CLAIM, *(f"floor{i}" for i in range(1, SIZE.systems))]
FACTS = {"examples": SIZE.stimuli * SIZE.subjects, "resamples": SIZE.resamples}


@lru_cache(maxsize=1)
def examples() -> pd.DataFrame:
    """Hits of every system in every metric, with a difficulty that listeners of a stimulus share."""
    rng, frames = np.random.default_rng(0), []
    stimulus, subject = (a.ravel() for a in np.indices((SIZE.stimuli, SIZE.subjects)))
    ease = rng.normal(size=SIZE.stimuli)[stimulus]
    for number, system in enumerate(SYSTEMS):
        rows = pd.DataFrame({"study": "study", "subject": [f"S{s:02d}" for s in subject], "recording": "r"})
        rows = rows.assign(stimulus_id=[f"s{s:04d}" for s in stimulus], system=system, sampling_seed=0)
        for metric in METRICS:
            hit = ease + rng.normal(size=len(rows)) > 0.5 * (number > 0)
            rows = rows.assign(**{metric: hit.astype(float), f"{metric}_n": 1.0})
        frames.append(rows)
    return pd.concat(frames, ignore_index=True)


def test_interval_of_a_cell(measure: Measure) -> None:
    rows = examples()[examples()["system"] == CLAIM]
    arrays = [rows[c].to_numpy() for c in ("metric0", "metric0_n", "stimulus_id", "subject")]

    def run() -> object:
        statistics._counts.cache_clear()  # the table's first cell draws the resamples, the others share them
        return statistics.ratio_bootstrap(*arrays, n_resamples=SIZE.resamples)

    assert measure(run, unit="interval", **FACTS) is not None


def test_gain(measure: Measure) -> None:
    pairs = statistics.pair(examples(), "metric0", SYSTEMS[1])
    gain = measure(lambda: statistics.paired_gain(pairs, True, SIZE.resamples), unit="gain", **FACTS)
    assert gain is not None


def test_permutation(measure: Measure) -> None:
    pairs = statistics.pair(examples(), "metric0", SYSTEMS[1])
    p = measure(lambda: statistics.paired_permutation(pairs, SIZE.resamples), unit="test", **FACTS)
    assert p is not None


def test_whole_table(measure: Measure) -> None:
    """Every cell's interval, over all listeners and for each, and every comparison with its gain and p."""
    info = MetricInfo(name="", label="", unit="%", higher_is_better=True, per_example=True, definition="hits")
    infos = [info.model_copy(update={"name": metric}) for metric in METRICS]
    rows = dict(list(examples().groupby("system")))
    scored = [Scored(s, "claim" if s == CLAIM else "floor", "", rows[s], []) for s in SYSTEMS]
    for system in scored:
        for info in infos:
            cell = {"value": float(system.examples[info.name].mean()), "ci": None, "n": len(system.examples)}
            described = {"metric": info.model_dump(), "per_example": True, "embedder": None, "signature": ""}
            system.measurements.append(described | cell | {"reason": None})
    config = EvaluationConfig(primary=METRICS[0], n_resamples=SIZE.resamples)
    about = dict.fromkeys(("name", "study", "signature"), "") | dict.fromkeys(("config", "data", "environment"), {})
    about |= {"simulated": True, "training_seeds": [0], "sampling_seed": 0, "audit": [], "stages": []}
    run = measure(
        lambda: assemble(scored, examples(), about, config),
        unit="table",
        rounds=1,
        warm_up=False,
        systems=SIZE.systems,
        metrics=SIZE.metrics,
        **FACTS,
    )
    assert len(run.comparisons) == (SIZE.systems - 1) * SIZE.metrics
