"""Retrieval with the generated sound, as CLAP scores are used: pooled embeddings, cosine, both directions.

The embedder is the model's own audio encoder, so these rates say how much of the stimulus survives
into the sound by that encoder's standard; confirm them with WER, which shares no weights with it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from eval.metrics.base import SystemOutput, TestSet, no_sound, sound
from eval.metrics.ratio import RatioMetric, Ratios, mean_of
from eval.metrics.retrieval import identities, ranks
from eval.metrics.scorers import Scorers
from eval.results import MetricInfo

Direction = Literal["audio_to_speech", "speech_to_audio"]
WU = "Wu et al., ICASSP 2023"


def pooled(embedding: np.ndarray) -> np.ndarray:
    """(n, D, T') -> (n, D) float64 of unit length: the mean over time."""
    mean = np.asarray(embedding, dtype=np.float64).mean(axis=-1)
    norms = np.linalg.norm(mean, axis=1, keepdims=True)
    return np.divide(mean, norms, out=np.zeros_like(mean), where=norms > 0)


class AudioRetrieval(RatioMetric):
    """Top-k between generated sounds and true speech."""

    def __init__(self, scorers: Scorers, direction: Direction, k: int = 1) -> None:
        self.scorers, self.direction, self.k = scorers, direction, k
        forward = direction == "audio_to_speech"
        self.info = MetricInfo(
            name=f"{direction}_top{k}",
            label=f"{'Audio → speech' if forward else 'Speech → audio'} top-{k}",
            unit="%",
            higher_is_better=True,
            per_example=True,
            definition="Cosine between time-averaged embeddings by the model's own audio encoder, as CLAP is scored "
            f"({WU}): share of "
            + (
                f"generated clips whose true speech is in the first {k} of all distinct test stimuli."
                if forward
                else f"test stimuli whose generated clip is in the first {k} of the clips of the same listener."
            ),
        )

    def describe(self, test: TestSet) -> MetricInfo:
        n = len(np.unique(identities(test.candidates)))
        chance = {"chance": min(1.0, self.k / n), "chance_reason": f"exact: {self.k} of {n} distinct stimuli"}
        return self.info.model_copy(update=chance)

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        if (reason := no_sound(test, output)) is not None:
            return reason
        if test.embed_audio is None:
            return "it hears by the run's own audio encoder, and submitted or stored sounds are scored without a model"
        n = len(np.unique(identities(test.candidates)))
        return None if n > self.k else f"needs more than {self.k} candidates, the test set has {n}"

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        assert test.embed_audio is not None  # `reason` said so
        embed = test.embed_audio
        heard = self.scorers.once(output, "pooled audio", lambda: pooled(embed(sound(output))))
        _, first, group = np.unique(identities(test.candidates), return_index=True, return_inverse=True)
        speech = pooled(test.candidates[first])
        target = group[output.stimulus]
        if self.direction == "audio_to_speech":
            return mean_of(ranks(heard @ speech.T, target) <= self.k)
        return mean_of(self._within_listener(heard, speech, target, output) <= self.k)

    def _within_listener(
        self, heard: np.ndarray, speech: np.ndarray, target: np.ndarray, output: SystemOutput
    ) -> np.ndarray:
        """(n,) rank of each clip among its listener's clips, for the speech it should be; NaN-free."""
        rank = np.empty(len(target))
        subject = output.rows["subject"].to_numpy()
        for one in np.unique(subject):
            rows = np.flatnonzero(subject == one)
            rank[rows] = ranks(speech[target[rows]] @ heard[rows].T, np.arange(len(rows)))
        return rank
