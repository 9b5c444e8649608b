"""Experiments whose truth is known, by the hundred: what the statistics say where the EEG says nothing,
and how often they find an effect of known size.

Nothing is trained. The embeddings or scores are drawn, and go through the metrics, the shuffling, the
pairing and the test that every run goes through. Listeners share stimuli, and what a stimulus does to
one listener it does in part to all of them: flipping listeners one by one would reject far too often.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eval import statistics
from eval.metrics.base import SystemOutput, TestSet
from eval.metrics.retrieval import MeanReciprocalRank
from eval.metrics.scorers import Scorers
from eval.results import ExperimentSeries
from eval.systems import other_examples

ALPHA = 0.05
N_PERMUTATIONS = 1_999
N_STIMULI, N_SUBJECTS = 48, 4
SHARED = 0.6
"""Share of the variance within a stimulus that all its listeners have in common."""
POWER = 0.8
"""What the planted effect is made for."""


@dataclass(frozen=True)
class Outcome:
    """One experiment: `p` is two-sided, `gain` positive where eeg is better than shuffled."""

    p: float
    gain: float


Experiment = Callable[[int], Outcome]
"""By its seed."""


def outcome(pairs: statistics.Pairs, higher_is_better: bool, seed: int) -> Outcome:
    p = statistics.paired_permutation(pairs, N_PERMUTATIONS, seed)
    gain = statistics.paired_gain(pairs, higher_is_better, 100, seed)
    assert p is not None, "nothing is paired"
    assert gain is not None, "nothing is paired"
    return Outcome(p, gain.value)


def crossed(n_stimuli: int = N_STIMULI, n_subjects: int = N_SUBJECTS) -> pd.DataFrame:
    """A row per stimulus and listener: example, study, subject, stimulus_id, stimulus."""
    stimulus, subject = (a.ravel() for a in np.indices((n_stimuli, n_subjects)))
    return pd.DataFrame(
        {
            "example": np.arange(len(stimulus)),
            "study": "null",
            "subject": [f"P{u}" for u in subject],
            "stimulus_id": [f"s{s}" for s in stimulus],
            "stimulus": stimulus,
            "text": "",
        }
    )


def clustered(rng: np.random.Generator, rows: pd.DataFrame, size: tuple[int, ...] = ()) -> np.ndarray:
    """(n, *size) standard normal, of which listeners of one stimulus share `SHARED` of the variance."""
    common = rng.normal(size=(rows["stimulus"].nunique(), *size))[rows["stimulus"]]
    return np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * rng.normal(size=(len(rows), *size))


def retrieval(seed: int) -> Outcome:
    """Embeddings that know nothing of the speech, ranked against it, against those of another stimulus.

    Candidates have a common direction and so do the estimates of a listener, as trained encoders'
    have: some candidates win more often than others, whoever listens to what.
    """
    rng, rows, (dim, frames) = np.random.default_rng([seed, 10]), crossed(), (8, 4)
    candidates = rng.normal(size=(1, dim, frames)) + rng.normal(size=(N_STIMULI, dim, frames))
    of_listener = rng.normal(size=(N_SUBJECTS, dim, frames))[rows["subject"].astype("category").cat.codes]
    estimate = of_listener + clustered(rng, rows, (dim, frames))
    stimuli = rows.drop_duplicates("stimulus")[["stimulus_id", "text"]].reset_index(drop=True)
    test = TestSet(rows, stimuli, None, candidates.astype(np.float32))
    return shuffled_apart(test, estimate.astype(np.float32), seed)


def shuffled_apart(test: TestSet, estimate: np.ndarray, seed: int) -> Outcome:
    """The mean reciprocal rank of estimates (n, D, T') against that of the same estimates shuffled."""
    tables = []
    for system, given in (("eeg", estimate), ("shuffled", estimate[other_examples(test, seed)])):
        metric = MeanReciprocalRank(Scorers(Path()))
        measured = metric.measure(test, SystemOutput(system, True, test.examples, estimate=given))
        values = {"mrr": measured.numerator, "mrr_n": measured.denominator}
        tables.append(test.examples.assign(system=system, recording="", sampling_seed=0, **values))
    pairs = statistics.pair(pd.concat(tables, ignore_index=True), "mrr", "shuffled")
    return outcome(pairs, True, seed)


def word_errors(seed: int) -> Outcome:
    """Words of random number, wrong with a probability that depends on the stimulus, the listener and luck."""
    rng, rows = np.random.default_rng([seed, 11]), crossed()
    stimulus, subject = rows["stimulus"].to_numpy(), rows["subject"].astype("category").cat.codes.to_numpy()
    words = rng.integers(3, 9, N_STIMULI)[stimulus]
    difficulty = 0.1 * rng.normal(size=N_STIMULI)[stimulus] + 0.05 * rng.normal(size=N_SUBJECTS)[subject]
    eeg, shuffled = (
        rng.binomial(words, (0.8 + difficulty + 0.1 * clustered(rng, rows)).clip(0, 1)).astype(np.float64)
        for _ in ("eeg", "shuffled")
    )
    den = words.astype(np.float64)
    return outcome(statistics.Pairs(eeg, den, shuffled, den, stimulus, subject), False, seed)


def planted_size() -> float:
    """The effect that the design finds with `POWER` by `statistics.minimum_detectable_effect`."""
    effect = statistics.minimum_detectable_effect(_standard_error(), N_STIMULI, ALPHA, POWER)
    assert effect is not None
    return effect


def _standard_error() -> float:
    """Of the mean difference of two `clustered` scores, by stimulus."""
    return float(np.sqrt(2 * (SHARED + (1 - SHARED) / N_SUBJECTS) / N_STIMULI))


def planted(seed: int) -> Outcome:
    """Scores of which eeg's are higher by `planted_size`, with a difficulty that both systems share."""
    rng, rows = np.random.default_rng([seed, 12]), crossed()
    stimulus, subject = rows["stimulus"].to_numpy(), rows["subject"].to_numpy(dtype=str)
    difficulty, ones = 2 * rng.normal(size=N_STIMULI)[stimulus], np.ones(len(rows))
    eeg = difficulty + clustered(rng, rows) + planted_size()
    pairs = statistics.Pairs(eeg, ones, difficulty + clustered(rng, rows), ones, stimulus, subject)
    return outcome(pairs, True, seed)


def computed_power(effect: float | None = None) -> float:
    """Of the two-sided t test of the stimuli's mean differences, whose deviation is known here, by the noncentral t
    distribution (Cohen, Statistical Power Analysis, 1988, ch. 2); the permutation test has nearly the same."""
    from scipy import stats

    shift, freedom = (planted_size() if effect is None else effect) / _standard_error(), N_STIMULI - 1
    critical = stats.t.ppf(1 - ALPHA / 2, freedom)
    return float(stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift))


def exact_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Clopper & Pearson, Biometrika 1934, 26:404-413)."""
    from scipy import stats

    found = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def series(
    name: str, description: str, metric: str, outcomes: list[Outcome], expected: float = ALPHA, truth: str = "null"
) -> ExperimentSeries:
    """How often the outcomes were significant, and with eeg ahead."""
    n = len(outcomes)
    significant = sum(o.p < ALPHA for o in outcomes)
    beats = sum(o.p < ALPHA and o.gain > 0 for o in outcomes)
    return ExperimentSeries(
        name=name,
        description=description,
        truth=truth,
        metric=metric,
        expected=expected,
        n=n,
        significant=significant,
        beats=beats,
        rate=significant / n,
        ci=exact_interval(significant, n),
        beats_ci=exact_interval(beats, n),
        p=[o.p for o in outcomes],
    )


def drawn_series(n: int) -> list[ExperimentSeries]:
    """All the experiments that need no training, `n` of each kind."""
    design = f"{N_STIMULI} stimuli, each heard by {N_SUBJECTS} listeners who share {SHARED:.0%} of what is not signal"
    kinds: tuple[tuple[str, Experiment, str, str, float, str], ...] = (
        (
            "retrieval without signal",
            retrieval,
            f"Embeddings drawn without regard to the speech, against the same embeddings shuffled: {design}.",
            "mrr",
            ALPHA,
            "null",
        ),
        (
            "word errors without signal",
            word_errors,
            f"Word errors of two systems that are equally bad: {design}.",
            "wer",
            ALPHA,
            "null",
        ),
        (
            "planted effect",
            planted,
            f"Scores with the smallest effect that the design is computed to find with {POWER:.0%} power: {design}.",
            "score",
            computed_power(),
            "effect",
        ),
    )
    return [
        series(name, description, metric, [experiment(seed) for seed in range(n)], expected, truth)
        for name, experiment, description, metric, expected, truth in kinds
    ]
