"""Uncertainty for few listeners and many stimuli: clustered bootstrap, paired permutation, Holm, power.

Every value here is a ratio of sums over examples (edits over words, hits over trials). The unit that
is drawn or flipped is the stimulus with all listeners who heard it, because listeners of one
stimulus share its difficulty. Listeners are drawn as well only where there are at least 20 of both:
with fewer, the between-listener variance cannot be estimated, the listeners are a fixed factor, and
the claim is about these listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from eeg2speech.errors import UserError

MIN_CLUSTERS_TWO_WAY = 20
"""Below this many stimuli or subjects, subject is a fixed factor."""
CHUNK = 1_000
"""Resamples held as float64 at a time, which bounds the memory."""


def two_way(n_stimuli: int, n_subjects: int) -> bool:
    """Whether subjects are drawn too, and not only stimuli."""
    return min(n_stimuli, n_subjects) >= MIN_CLUSTERS_TWO_WAY


Statistic = Callable[[np.ndarray], np.ndarray]
"""(..., K) totals -> (...) values."""


@dataclass(frozen=True)
class Clusters:
    """Sums of K columns within each (stimulus, subject) cell."""

    sums: np.ndarray
    """(S, U, K) float64; U = 1 where subject is a fixed factor."""

    @classmethod
    def of(cls, columns: Sequence[np.ndarray], stimulus: np.ndarray, subject: np.ndarray) -> Clusters:
        """`columns` are K arrays (n,); a row with NaN in any of them is left out of all."""
        values = np.column_stack([np.asarray(c, dtype=np.float64) for c in columns])
        kept = np.isfinite(values).all(axis=1)
        stimuli, row = np.unique(np.asarray(stimulus)[kept], return_inverse=True)
        subjects, column = np.unique(np.asarray(subject)[kept], return_inverse=True)
        if not two_way(len(stimuli), len(subjects)):
            subjects, column = subjects[:1], np.zeros_like(column)
        sums = np.zeros((len(stimuli), len(subjects), values.shape[1]))
        np.add.at(sums, (row, column), values[kept])
        return cls(sums)

    @property
    def n(self) -> int:
        """Clusters of the scarcer way of drawing: what the degrees of freedom come from."""
        n_stimuli, n_subjects = self.sums.shape[:2]
        return min(n_stimuli, n_subjects) if n_subjects > 1 else n_stimuli

    def total(self) -> np.ndarray:
        """(K,)"""
        return self.sums.sum(axis=(0, 1))

    def bootstrap(self, statistic: Statistic, n_resamples: int, seed: int) -> np.ndarray:
        """(n_resamples,) values of a statistic of the K totals, a ratio or a difference of ratios.

        One way: stimuli drawn with replacement. Two ways: the deviations of drawing stimuli and of
        drawing subjects added, then scaled to the variance of Cameron, Gelbach & Miller (J. Bus. Econ.
        Stat. 2011, 29:238-249): by stimulus, plus by subject, less by cell, which both of them count.
        """
        by_stimulus = statistic(self._drawn(self.sums.sum(axis=1), n_resamples, seed))
        if self.sums.shape[1] == 1:
            return by_stimulus
        value = statistic(self.total())
        deviations = (
            np.stack([by_stimulus, statistic(self._drawn(self.sums.sum(axis=0), n_resamples, seed + 1))]) - value
        )
        variances = np.nanvar(deviations, axis=1)
        wanted = max(variances.sum() - self._variance_by_cell(statistic), variances.max())
        return value + deviations.sum(axis=0) * np.sqrt(_ratio(wanted, variances.sum()))

    @staticmethod
    def _drawn(sums: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
        """(clusters, K) -> (n_resamples, K): totals with clusters drawn with replacement."""
        counts = _counts(len(sums), n_resamples, seed)
        return np.concatenate([counts[rows].astype(np.float64) @ sums for rows in _chunks(n_resamples)])

    def _variance_by_cell(self, statistic: Statistic) -> float:
        """Of the linearised statistic, cells independent. It does not change when all sums are scaled, so
        the influences of the cells add to zero."""
        total = self.total()
        step = np.diag(1e-6 * np.maximum(np.abs(total), 1e-12))
        gradient = (statistic(total + step) - statistic(total - step)) / (2 * step.diagonal())
        return float(((self.sums @ gradient) ** 2).sum())


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, n, CHUNK))


@lru_cache(maxsize=8)
def _counts(n_clusters: int, n_resamples: int, seed: int) -> np.ndarray:
    """(n_resamples, n_clusters) uint8: how often each cluster is drawn. Shared by all cells of a table,
    so that rows are compared on the same resamples. (A count above 255 has probability below 1e-500.)"""
    rng = np.random.default_rng([seed, n_clusters])
    counts = np.empty((n_resamples, n_clusters), dtype=np.uint8)
    for rows in _chunks(n_resamples):
        height = counts[rows].shape[0]
        drawn = rng.integers(n_clusters, size=(height, n_clusters)) + np.arange(height)[:, None] * n_clusters
        counts[rows] = np.bincount(drawn.ravel(), minlength=height * n_clusters).reshape(height, n_clusters)
    return counts


def percentile_interval(samples: np.ndarray, n_clusters: int, level: float = 0.95) -> tuple[float, float] | None:
    """The expanded percentile interval of bootstrap `samples` (Hesterberg, Am. Stat. 2015, 69:371-386, section 4.3).

    The plain percentile interval is too narrow with few clusters, by sqrt((n - 1) / n) and by using
    normal in place of t quantiles; widening its tail probability repairs both. None where there
    are fewer than two clusters or nothing finite to look at.
    """
    from scipy.special import ndtr, stdtrit

    samples = samples[np.isfinite(samples)]
    if n_clusters < 2 or not len(samples):
        return None
    tail = ndtr(np.sqrt(n_clusters / (n_clusters - 1)) * stdtrit(n_clusters - 1, (1 - level) / 2))
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def where_all_agree(
    interval: tuple[float, float] | None, value: float, n_clusters: int, lowest: float = 0.0
) -> tuple[float, float] | None:
    """`interval`, or where it has no width because all clusters gave `value`, what they can exclude.

    Were more than e = 1 - 0.025^(1/n) of all clusters unlike these, n alike ones would come up in less than
    2.5 % of draws. The unlike ones lie between `lowest` and 1, so the mean lies between value - e (value - lowest)
    and value + e (1 - value). At 0 and 1 this is Clopper & Pearson's interval (Biometrika 1934, 26:404-413).
    """
    if interval is None or interval[1] - interval[0] > 1e-9:
        return interval
    unlike = 1 - 0.025 ** (1 / n_clusters)
    return value - unlike * (value - lowest), value + unlike * (1 - value)


def _proportions(num: np.ndarray, den: np.ndarray) -> bool:
    """Whether no numerator leaves the range from zero to its denominator."""
    kept = np.isfinite(num) & np.isfinite(den)
    return bool(((num[kept] >= 0) & (num[kept] <= den[kept])).all())


def _ratio(num: np.ndarray, den: np.ndarray) -> np.ndarray:
    return np.divide(num, den, out=np.full(np.shape(num), np.nan), where=den != 0)


def ratio_bootstrap(
    num: np.ndarray,
    den: np.ndarray,
    stimulus: np.ndarray,
    subject: np.ndarray,
    n_resamples: int = 10_000,
    seed: int = 0,
    has_unit: bool = False,
) -> tuple[float, float] | None:
    """95 % interval of sum(num) / sum(den), all arrays (n,); rows with NaN were not run and are left out.

    Proportions that are the same in all clusters have the interval of `where_all_agree`; not so values that have a
    unit, of which 0 to 1 is no range. None where fewer than two stimuli carry a value.
    """
    clusters = Clusters.of((num, den), stimulus, subject)
    if clusters.n < 2:
        return None
    samples = clusters.bootstrap(lambda totals: _ratio(totals[..., 0], totals[..., 1]), n_resamples, seed)
    interval = percentile_interval(samples, clusters.n)
    if has_unit or not _proportions(num, den):
        return interval
    num_total, den_total = clusters.total()
    return where_all_agree(interval, float(num_total / den_total), clusters.n)


def median_bootstrap(
    values: np.ndarray, stimulus: np.ndarray, subject: np.ndarray, n_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the median of `values` (n,); NaN rows are left out.

    Where subjects are drawn too, a row's weight is the product of the counts of its stimulus and its
    subject (the pigeonhole bootstrap: Owen, Ann. Appl. Stat. 2007, 1:386-411), which errs on the wide side.
    """
    kept = np.isfinite(values)
    order = np.argsort(values[kept], kind="stable")
    ordered = np.asarray(values, dtype=np.float64)[kept][order]
    stimuli, row = np.unique(np.asarray(stimulus)[kept][order], return_inverse=True)
    subjects, column = np.unique(np.asarray(subject)[kept][order], return_inverse=True)
    if len(stimuli) < 2:
        return None
    both = two_way(len(stimuli), len(subjects))
    by_stimulus = _counts(len(stimuli), n_resamples, seed)
    by_subject = _counts(len(subjects), n_resamples, seed + 1)
    medians = np.empty(n_resamples)
    step = max(1, 4_000_000 // len(ordered))
    for start in range(0, n_resamples, step):
        rows = slice(start, start + step)
        weights = by_stimulus[rows][:, row].astype(np.int64)
        if both:
            weights *= by_subject[rows][:, column]
        cumulated = weights.cumsum(axis=1)
        half = cumulated[:, -1:] / 2
        lower = (cumulated < half).sum(axis=1)
        upper = (cumulated <= half).sum(axis=1).clip(max=len(ordered) - 1)
        medians[rows] = (ordered[lower] + ordered[upper]) / 2
    return percentile_interval(medians, min(len(stimuli), len(subjects)) if both else len(stimuli))


def jackknife_interval(
    statistic: Callable[[np.ndarray], float],
    stimulus: np.ndarray,
    max_groups: int = 50,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of a statistic of a set of clips, by leaving out groups of stimuli (Efron & Stein, Ann. Stat. 1981).

    `statistic` receives a boolean mask (n,) of the rows kept. Drawing clips with replacement would
    inflate a Fréchet distance, whose bias grows as distinct clips become fewer; leaving out shifts
    every replicate alike. Stimuli are dealt at random into at most `max_groups` groups.
    """
    from scipy.special import stdtrit

    stimuli, row = np.unique(np.asarray(stimulus), return_inverse=True)
    n_groups = min(len(stimuli), max_groups)
    if n_groups < 2:
        return None
    group = (np.random.default_rng(seed).permutation(len(stimuli)) % n_groups)[row]
    left_out = np.array([statistic(group != g) for g in range(n_groups)])
    error = float(np.sqrt((n_groups - 1) / n_groups * ((left_out - left_out.mean()) ** 2).sum()))
    value = statistic(np.ones(len(row), dtype=bool))
    half = -float(stdtrit(n_groups - 1, (1 - level) / 2)) * error
    return value - half, value + half


@dataclass(frozen=True)
class Pairs:
    """A metric of the claim and of another system on the same stimuli, listener by listener; arrays (n,)."""

    num: np.ndarray
    den: np.ndarray
    other_num: np.ndarray
    other_den: np.ndarray
    stimulus: np.ndarray
    subject: np.ndarray

    def clusters(self) -> Clusters:
        return Clusters.of((self.num, self.den, self.other_num, self.other_den), self.stimulus, self.subject)


def pair(examples: pd.DataFrame, metric: str, other: str, claim: str = "eeg") -> Pairs:
    """Pairs of `claim` with `other` from the per-example table (columns as `eval.results.EXAMPLE_KEYS`).

    A system that hears no EEG ran once per stimulus: its row is joined to every listener of that
    stimulus. Rows where either was not run are left out. Raises UserError on doubled keys.
    """
    columns = [metric, f"{metric}_n"]
    ours = examples.loc[examples["system"] == claim].dropna(subset=columns)
    theirs = examples.loc[examples["system"] == other].dropna(subset=columns)
    listener = [key for key in ("subject", "recording") if key in examples]
    keys = ["study", "stimulus_id", "sampling_seed"] + (listener if (theirs["subject"] != "").any() else [])
    for system, rows, unique in ((claim, ours, [*keys, *listener]), (other, theirs, keys)):
        if rows.duplicated(list(dict.fromkeys(unique))).any():
            raise UserError(
                f"examples: system {system!r} has the same (study, subject, recording, stimulus_id, sampling_seed) "
                "twice; keep one"
            )
    joined = ours.merge(theirs[keys + columns], on=keys, suffixes=("", "_other"))
    stimulus = joined["study"].astype(str) + "/" + joined["stimulus_id"].astype(str)
    arrays = (joined[c].to_numpy(dtype=np.float64) for c in (*columns, f"{metric}_other", f"{metric}_n_other"))
    num, den, other_num, other_den = arrays
    return Pairs(num, den, other_num, other_den, stimulus.to_numpy(dtype=str), joined["subject"].to_numpy(dtype=str))


@dataclass(frozen=True)
class Gain:
    value: float
    """Positive: the claim is better."""
    ci: tuple[float, float] | None
    standard_error: float
    n_clusters: int


def _difference(totals: np.ndarray, higher_is_better: bool) -> np.ndarray:
    gain = _ratio(totals[..., 2], totals[..., 3]) - _ratio(totals[..., 0], totals[..., 1])
    return -gain if higher_is_better else gain


def paired_gain(pairs: Pairs, higher_is_better: bool, n_resamples: int = 10_000, seed: int = 0) -> Gain | None:
    """How much better the claim is than the other system, in the metric's unit, with its 95 % interval.

    Both systems are drawn with the same weights. Differences of proportions that are the same in all clusters have
    the interval of `where_all_agree`. None where fewer than two stimuli are paired.
    """
    clusters = pairs.clusters()
    if clusters.n < 2:
        return None
    samples = clusters.bootstrap(lambda totals: _difference(totals, higher_is_better), n_resamples, seed)
    value = float(_difference(clusters.total(), higher_is_better))
    interval = percentile_interval(samples, clusters.n)
    if _proportions(pairs.num, pairs.den) and _proportions(pairs.other_num, pairs.other_den):
        interval = where_all_agree(interval, value, clusters.n, lowest=-1)
    return Gain(value, interval, float(np.nanstd(samples)), clusters.n)


def paired_permutation(pairs: Pairs, n_permutations: int = 10_000, seed: int = 0) -> float | None:
    """Two-sided p of "the two systems are exchangeable": flips the two by stimulus, all its listeners together.

    Where listeners are drawn too, the two are also flipped by listener, with all their stimuli, and the larger p
    counts: each way alone takes the effects of the other for a gain. Where effects of stimuli and of listeners
    weigh the same, p is still too small, and the interval of `paired_gain`, which adds the two, is the stricter.

    All 2^S flips are enumerated where they are no more than `n_permutations`. Else p = (1 + count) /
    (1 + n) (Phipson & Smyth, SAGMB 2010), and never less than 2 / 2^S, the smallest value that S
    stimuli (or listeners) can give. None where nothing is paired.
    """
    sums = pairs.clusters().sums
    n_stimuli, n_subjects = sums.shape[:2]
    if n_stimuli == 0:
        return None
    ways = (1, 0) if n_subjects > 1 else (1,)
    return max(_flipped(sums.sum(axis=others), n_permutations, seed) for others in ways)


def _flipped(sums: np.ndarray, n_permutations: int, seed: int) -> float:
    """p of flipping the clusters of `sums` (clusters, 4)."""
    n = len(sums)
    swap = sums[:, [2, 3, 0, 1]] - sums
    total = sums.sum(axis=0)
    observed = abs(float(_difference(total, True)))
    exact = n < 63 and 2**n <= n_permutations
    flips = _all_flips(n) if exact else _random_flips(n, n_permutations, seed)
    # A flip that gives the observed value again must count however the sums were rounded.
    threshold = observed - 1e-9 * max(observed, 1e-3)
    count = sum(
        int((np.abs(_difference(total + flips[rows].astype(np.float64) @ swap, True)) >= threshold).sum())
        for rows in _chunks(len(flips))
    )
    if exact:
        return count / 2**n
    return max((1 + count) / (1 + n_permutations), 2.0 ** (1 - n))


@lru_cache(maxsize=4)
def _all_flips(n: int) -> np.ndarray:
    """(2^n, n) bool: every way to flip n stimuli."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1


@lru_cache(maxsize=4)
def _random_flips(n: int, n_permutations: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, n]).integers(2, size=(n_permutations, n), dtype=np.uint8)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values (Scand. J. Stat. 1979, 6:65-70), in the order given; None stays None."""
    tested = [(p, i) for i, p in enumerate(ps) if p is not None]
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, (p, i) in enumerate(sorted(tested)):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = running
    return adjusted


def minimum_detectable_effect(
    standard_error: float, n_clusters: int, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The gain that a two-sided test at `alpha` finds with `power`: (t_{1 - alpha/2} + t_{power}) standard errors
    with n_clusters - 1 degrees of freedom (Bloom, Eval. Rev. 1995, 19:547-556). None below two clusters."""
    from scipy.special import stdtrit

    if n_clusters < 2:
        return None
    return float((stdtrit(n_clusters - 1, 1 - alpha / 2) + stdtrit(n_clusters - 1, power)) * standard_error)
