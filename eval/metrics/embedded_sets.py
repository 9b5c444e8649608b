"""Metrics of a set of embedded clips against the embedded true recordings, listener by listener."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval import statistics
from eval.metrics.base import Measurement, Metric, SystemOutput, TestSet, no_sound
from eval.metrics.scorers import Scorers


@dataclass(frozen=True)
class ListenerSet:
    """The clips of one listener, sorted by stimulus."""

    stimulus: np.ndarray
    """(n,)"""
    true: np.ndarray
    """(n, f, d) float64: f embeddings of each true clip."""
    generated: np.ndarray
    """(n, f, d) float64"""

    def without(self, stimuli: np.ndarray) -> ListenerSet:
        kept = ~np.isin(self.stimulus, stimuli)
        return ListenerSet(self.stimulus[kept], self.true[kept], self.generated[kept])


class SetMetric(Metric):
    """A value per listener, averaged; the interval from leaving out stimuli with all their listeners."""

    embedder: str

    def __init__(self, scorers: Scorers, embedder: str, seed: int = 0) -> None:
        self.scorers, self.embedder, self.seed = scorers, embedder, seed

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        return no_sound(test, output) or self.scorers.embedder(self.embedder).missing()

    def sets(self, test: TestSet, output: SystemOutput) -> list[ListenerSet]:
        true = self.scorers.embeddings(self.embedder, test)
        generated = self.scorers.embeddings(self.embedder, output)
        listener = output.rows["subject"].to_numpy()
        found = []
        for subject in np.unique(listener):
            rows = np.flatnonzero(listener == subject)
            rows = rows[np.argsort(output.stimulus[rows], kind="stable")]
            stimulus = output.stimulus[rows]
            found.append(ListenerSet(stimulus, true[stimulus], generated[rows]))
        return found

    def interval(
        self, sets: Sequence[ListenerSet], value: Callable[[ListenerSet], float], max_groups: int = 20
    ) -> tuple[float, float] | None:
        """95 % interval of the mean of `value` over listeners. None below six stimuli: too few to leave any out."""
        stimuli = np.unique(np.concatenate([s.stimulus for s in sets]))
        if len(stimuli) < 6:
            return None

        def statistic(kept: np.ndarray) -> float:
            return float(np.mean([value(s.without(stimuli[~kept])) for s in sets]))

        return statistics.jackknife_interval(statistic, stimuli, max_groups, self.seed)

    def result(
        self,
        test: TestSet,
        value: float | None,
        n: int,
        ci: tuple[float, float] | None = None,
        reason: str | None = None,
        by: str = "",
        curve: tuple[tuple[int, float], ...] = (),
    ) -> Measurement:
        """`n` is the clips of one listener; `by` says whose arithmetic."""
        name = f"{self.embedder}({by})" if by else self.embedder
        weights = self.scorers.embedder(self.embedder).weights
        signature = self.signature(n, name, weights, seed=self.seed)
        return Measurement(
            self.describe(test), value, self.embedder, ci, n, curve=curve, reason=reason, signature=signature
        )


def flat(embeddings: np.ndarray) -> np.ndarray:
    """(n, f, d) -> (n f, d)"""
    return embeddings.reshape(-1, embeddings.shape[-1])
