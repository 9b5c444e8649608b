"""Retrieval among the stimuli of the same story: voice, topic and microphone are then no help."""

from __future__ import annotations

import numpy as np

from eval.metrics.base import SystemOutput, TestSet
from eval.metrics.ratio import RatioMetric, Ratios, mean_of
from eval.metrics.retrieval import DEFOSSEZ, identities, ranks, scores
from eval.metrics.scorers import Scorers
from eval.results import MetricInfo

ALONE = "the only test stimulus of its story"


class SameStoryTopK(RatioMetric):
    """Share of examples whose true speech is among the k best-scored candidates of its own story."""

    def __init__(self, scorers: Scorers, k: int = 1) -> None:
        self.scorers, self.k = scorers, k
        self.info = MetricInfo(
            name=f"top{k}_same_story",
            label=f"Top-{k}, same story",
            unit="%",
            higher_is_better=True,
            per_example=True,
            definition=f"Share of EEG windows whose true speech ranks in the first {k} of the distinct test stimuli "
            f"cut from the same sound file, scored as among all of them ({DEFOSSEZ}); ties at their average rank. "
            f"Windows whose story has no more than {k} such stimuli are left out.",
        )

    def describe(self, test: TestSet) -> MetricInfo:
        sizes = self._sizes(test)[test.examples["stimulus"].to_numpy(dtype=np.int64)]
        sizes = sizes[sizes > self.k]
        if not len(sizes):
            return self.info
        chance = {
            "chance": float((self.k / sizes).mean()),
            "chance_reason": "exact: mean over windows of k / candidates",
        }
        return self.info.model_copy(update=chance)

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        if output.estimate is None:
            return "this system makes no embedding from EEG"
        if "story" not in test.stimuli:
            return "the study does not say which story a stimulus is from"
        most = self._sizes(test).max()
        return None if most > self.k else f"no story has more than {most} test stimuli"

    def _sizes(self, test: TestSet) -> np.ndarray:
        """(S,) distinct candidates in the story of each stimulus; 1 where stories are unknown."""
        if "story" not in test.stimuli:
            return np.ones(len(test.stimuli), dtype=np.int64)
        distinct = test.stimuli.assign(identity=identities(test.candidates)).groupby("story")["identity"]
        return distinct.transform("nunique").to_numpy(dtype=np.int64)

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        assert output.estimate is not None  # `reason` said so
        story, identity = test.stimuli["story"].to_numpy(), identities(test.candidates)
        hits, stimulus = np.full(len(output.rows), np.nan), output.stimulus
        for one in np.unique(story):
            members = np.flatnonzero(story == one)
            rows = np.flatnonzero(np.isin(stimulus, members))
            candidates, first, group = np.unique(identity[members], return_index=True, return_inverse=True)
            if len(candidates) <= self.k or not len(rows):
                continue
            score = scores(output.estimate[rows], test.candidates[members[first]])
            target = group[np.searchsorted(members, stimulus[rows])]
            hits[rows] = ranks(score, target) <= self.k
        return mean_of(hits, ALONE)
