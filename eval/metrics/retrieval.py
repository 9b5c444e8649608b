"""Retrieval of the heard speech among all test stimuli, as in brainmagick (Défossez et al., 2023).

The score is the training loss's: <estimate, candidate / |candidate|> over D x T'. Candidates are the unique
stimuli: a sound, by the hash of its samples, and an offset in it. brainmagick takes a sentence and a word's place
in it, which is the same for a story that is told once, and is not there where a study has no words. Scores that
tie, as those of identical stimuli do, share their average rank.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities import dim_zero_cat

from eeg2speech.errors import UserError
from eval import statistics
from eval.metrics.base import Measurement, Metric, SystemOutput, TestSet
from eval.metrics.ratio import RatioMetric, Ratios, mean_of
from eval.metrics.scorers import Scorers
from eval.results import MetricInfo

DEFOSSEZ = "Défossez et al., Nat. Mach. Intell. 2023"


def scores(estimate: np.ndarray, candidates: np.ndarray, block: int = 256) -> np.ndarray:
    """(n, D, T'), (S, D, T') -> (n, S) float32, a block of each at a time: inputs may be larger than the memory."""
    estimates, speech = (array.reshape(len(array), -1) for array in (estimate, candidates))
    found = np.empty((len(estimates), len(speech)), dtype=np.float32)
    for start in range(0, len(speech), block):
        columns = slice(start, start + block)
        directions = np.asarray(speech[columns], dtype=np.float32)
        norms = np.linalg.norm(directions, axis=1)
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        for first in range(0, len(estimates), block):
            rows = slice(first, first + block)
            found[rows, columns] = np.asarray(estimates[rows], dtype=np.float32) @ directions.T * scale
    return found


def ranks(score: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(n, S) scores, (n,) index of the true candidate -> (n,) rank from 1, the average where scores tie.

    Raises UserError where a score is NaN: a broken embedding has no rank.
    """
    if np.isnan(score).any():
        rows = np.flatnonzero(np.isnan(score).any(axis=1))
        raise UserError(
            f"retrieval: {len(rows)} embeddings hold NaN, the first in row {rows[0]}: train the encoder again"
        )
    own = np.take_along_axis(score, target[:, None], axis=1)
    return 1.0 + (score > own).sum(axis=1) + ((score == own).sum(axis=1) - 1) / 2


def identities(candidates: np.ndarray) -> np.ndarray:
    """(S, ...) -> (S,) int: equal numbers for candidates that are the same array."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(np.ascontiguousarray(c).tobytes(), len(seen)) for c in candidates])


def accuracy_with_fewer(rank: np.ndarray, n_candidates: int, size: int, k: int = 1) -> float:
    """Expected top-k accuracy if each trial had `size` candidates, the true one and others drawn at random.

    Exact: of the rank - 1 better candidates fewer than k may be among the size - 1 drawn
    (hypergeometric). For curves over the size of the candidate set; chance is k / size.
    """
    from scipy.stats import hypergeom

    better = np.ceil(rank - 1).astype(int)
    return float(hypergeom.cdf(k - 1, n_candidates - 1, better, size - 1).mean())


class RetrievalRanks(TorchMetric):
    """Ranks of the true candidates over batches and processes, gathered: a median cannot be summed."""

    full_state_update = False
    ranks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ranks", [], dist_reduce_fx="cat")

    def update(self, ranks: Tensor) -> None:
        """(n,)"""
        self.ranks.append(ranks.double())

    def compute(self) -> Tensor:
        """The median rank; the mean of the middle two where n is even."""
        return dim_zero_cat(self.ranks).quantile(0.5)


class Retrieval:
    """Ranks of a system's estimates, shared by the metrics below."""

    def __init__(self, scorers: Scorers) -> None:
        self.scorers = scorers

    def n_candidates(self, test: TestSet) -> int:
        return len(np.unique(self._identities(test)))

    def _identities(self, test: TestSet) -> np.ndarray:
        return self.scorers.once(test, "candidate identities", lambda: identities(test.candidates))

    def ranks(self, test: TestSet, output: SystemOutput) -> np.ndarray:
        """(n,) float64"""

        def rank() -> np.ndarray:
            assert output.estimate is not None  # `reason` said so
            _, first, group = np.unique(self._identities(test), return_index=True, return_inverse=True)
            return ranks(scores(output.estimate, test.candidates[first]), group[output.stimulus])

        return self.scorers.once(output, "retrieval ranks", rank)

    def reason(self, test: TestSet, output: SystemOutput, more_than: int = 1) -> str | None:
        if output.estimate is None:
            return "this system makes no embedding from EEG"
        n = self.n_candidates(test)
        return None if n > more_than else f"needs more than {more_than} candidates, the test set has {n}"


class TopK(RatioMetric):
    """Share of examples whose true speech is among the k best-scored candidates."""

    def __init__(self, scorers: Scorers, k: int) -> None:
        self.retrieval, self.k = Retrieval(scorers), k
        self.info = MetricInfo(
            name=f"top{k}",
            label=f"Top-{k}",
            unit="%",
            higher_is_better=True,
            per_example=True,
            definition=f"Share of EEG windows whose true speech ranks in the first {k} of all distinct test stimuli by "
            f"the inner product with the normalised candidate ({DEFOSSEZ}); ties at their average rank.",
        )

    def describe(self, test: TestSet) -> MetricInfo:
        n = self.retrieval.n_candidates(test)
        chance = {"chance": min(1.0, self.k / n), "chance_reason": f"exact: {self.k} of {n} distinct candidates"}
        return self.info.model_copy(update=chance)

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        return self.retrieval.reason(test, output, self.k)

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        rank = self.retrieval.ranks(test, output)
        ratios = mean_of((rank <= self.k).astype(np.float64))
        return Ratios(ratios.numerator, ratios.denominator, columns={"rank": rank})


class MeanReciprocalRank(RatioMetric):
    """Mean of 1 / rank."""

    info = MetricInfo(
        name="mrr",
        label="MRR",
        unit="",
        higher_is_better=True,
        per_example=True,
        definition="Mean reciprocal rank: mean over EEG windows of one over the rank "
        "of the true speech among all distinct test stimuli.",
    )

    def __init__(self, scorers: Scorers) -> None:
        self.retrieval = Retrieval(scorers)

    def describe(self, test: TestSet) -> MetricInfo:
        n = self.retrieval.n_candidates(test)
        chance = float((1 / np.arange(1, n + 1)).sum() / n)
        return self.info.model_copy(
            update={"chance": chance, "chance_reason": f"exact: harmonic number of {n} over {n}"}
        )

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        return self.retrieval.reason(test, output)

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        return mean_of(1 / self.retrieval.ranks(test, output))


class MedianRank(Metric):
    """Median rank of the true speech, from 1."""

    info = MetricInfo(
        name="median_rank",
        label="Median rank",
        unit="",
        higher_is_better=False,
        per_example=False,
        definition="Median over EEG windows of the rank of the true speech among all distinct test stimuli; 1 is best.",
    )

    def __init__(self, scorers: Scorers, n_resamples: int = 10_000, seed: int = 0) -> None:
        self.retrieval, self.n_resamples, self.seed = Retrieval(scorers), n_resamples, seed

    def describe(self, test: TestSet) -> MetricInfo:
        n = self.retrieval.n_candidates(test)
        return self.info.model_copy(update={"chance": (n + 1) / 2, "chance_reason": f"exact: middle of {n} candidates"})

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        return self.retrieval.reason(test, output)

    def compute(self, test: TestSet, output: SystemOutput) -> Measurement:
        rank = self.retrieval.ranks(test, output)
        metric = RetrievalRanks()
        metric.update(torch.from_numpy(rank))
        subject = output.rows["subject"].to_numpy()
        ci = statistics.median_bootstrap(rank, output.stimulus, subject, self.n_resamples, self.seed)
        signature = self.signature(len(rank), seed=self.seed)
        return Measurement(self.describe(test), float(metric.compute()), ci=ci, n=len(rank), signature=signature)
