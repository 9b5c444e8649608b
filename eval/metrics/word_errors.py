"""Word and character error rates of what Whisper hears, and the floors that belong beside them.

Both sides pass Whisper's English normaliser. The rate is summed edits over summed reference words
(jiwer's alignment), so it may exceed 100 %, and is shown as it is. A window whose normalised
reference has no word is not scored: an insertion rate over no words has no meaning, and what is
heard where nothing was said is what the hallucination rates count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from eval.metrics.base import SystemOutput, TestSet, no_sound, sound
from eval.metrics.ratio import RatioMetric, Ratios
from eval.metrics.scorers import Scorers
from eval.metrics.transcription import NORMALISER, guard, normalise
from eval.results import MetricInfo

Unit = Literal["word", "character"]
EMPTY_REFERENCE = "no word in the reference"
WHISPER = "Whisper (Radford et al., ICML 2023)"


@dataclass(frozen=True)
class Edits:
    """Alignment counts per example, each (n,) float64; NaN where the normalised reference is empty."""

    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray
    length: np.ndarray
    """Words (or characters) of the reference."""

    @property
    def total(self) -> np.ndarray:
        return self.substitutions + self.deletions + self.insertions


def count_edits(references: Sequence[str], hypotheses: Sequence[str], unit: Unit = "word") -> Edits:
    """Minimum edits that turn each normalised reference into its normalised hypothesis."""
    import jiwer

    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    counts = np.full((len(references), 4), np.nan)
    for row, reference, hypothesis in zip(counts, references, hypotheses, strict=True):
        if wanted := normalise(reference):
            out = process(wanted, normalise(hypothesis))
            row[:] = out.substitutions, out.deletions, out.insertions, out.hits + out.substitutions + out.deletions
    return Edits(*counts.T)


@lru_cache(maxsize=4)
def chance_error_rate(texts: tuple[str, ...], unit: Unit = "word", most: int = 1_500) -> tuple[float, str] | None:
    """Expected error rate of answering with a random other sentence of the test set, and how it was found.

    The mean over all ordered pairs of stimuli with different references; of the first `most`
    stimuli where there are more. None where all references agree.
    """
    from rapidfuzz.distance import Levenshtein

    words = [normalise(t).split() if unit == "word" else list(normalise(t)) for t in texts]
    words = [w for w in words if w][:most]
    edits = length = pairs = 0
    for i, reference in enumerate(words):
        for hypothesis in words[:i]:
            if reference != hypothesis:
                edits += 2 * Levenshtein.distance(reference, hypothesis)
                length += len(reference) + len(hypothesis)
                pairs += 2
    if not pairs:
        return None
    return edits / length, f"exact mean over {pairs} ordered pairs of different test references"


def derangement(texts: Sequence[str], seed: int) -> np.ndarray | None:
    """(S,) for each stimulus another one with a different normalised text, at random; None where there is none.

    Stimuli sorted by text, texts in random order, rotated by the size of the largest group: no
    stimulus can land in its own group unless that group holds more than half of them.
    """
    _, group, sizes = np.unique([normalise(t) for t in texts], return_inverse=True, return_counts=True)
    if 2 * sizes.max() > len(texts):
        return None
    rank = np.random.default_rng(seed).permutation(len(sizes))[group]
    order = np.argsort(rank, kind="stable")
    partner = np.empty(len(texts), dtype=np.int64)
    partner[order] = np.roll(order, -int(sizes.max()))
    return partner


class ASRMetric(RatioMetric):
    """A rate of what Whisper hears in a system's sounds."""

    def __init__(self, scorers: Scorers) -> None:
        self.scorers = scorers

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        silent = no_sound(test, output)
        if silent is None and not any(normalise(t) for t in test.stimuli["text"]):
            return "the study has no words"
        return silent

    def provenance(self) -> dict[str, str | int | None]:
        listener = self.scorers.transcriber
        return {"by": listener.name, "weights": listener.weights, "normaliser": NORMALISER}


class ErrorRate(ASRMetric):
    """WER or CER, raw or guarded."""

    def __init__(self, scorers: Scorers, unit: Unit = "word", guarded: bool = False) -> None:
        super().__init__(scorers)
        self.unit, self.guarded = unit, guarded
        label = "WER" if unit == "word" else "CER"
        self.info = MetricInfo(
            name=label.lower() + ("_guarded" if guarded else ""),
            label=label + (", guarded" if guarded else ""),
            unit="%",
            higher_is_better=False,
            per_example=True,
            definition=f"{unit.capitalize()} error rate: summed {unit} edits "
            f"between the true text and what {WHISPER} hears, over the {unit}s of the "
            "true text, both through Whisper's English normaliser"
            + (
                "; what it hears in silence, in likely no-speech, or repeats on and on counts as nothing."
                if guarded
                else "."
            ),
        )

    def describe(self, test: TestSet) -> MetricInfo:
        found = chance_error_rate(tuple(test.stimuli["text"]), self.unit)
        if found is None:
            return self.info
        return self.info.model_copy(update={"chance": found[0], "chance_reason": found[1]})

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        transcripts = self.scorers.transcripts(output)
        heard = [t.text for t in transcripts]
        columns: dict[str, np.ndarray] = {}
        if self.guarded:
            reasons = guard(transcripts, sound(output))
            heard = ["" if why else text for why, text in zip(reasons, heard, strict=True)]
        edits = count_edits(list(test.stimuli["text"].iloc[output.stimulus]), heard, self.unit)
        if self.unit == "word" and not self.guarded:
            columns = {k: getattr(edits, k) for k in ("substitutions", "deletions", "insertions")}
            columns["hypothesis"] = np.array(heard, dtype=object)
        return Ratios(edits.total, edits.length, EMPTY_REFERENCE, columns)


class WrongTranscriptRate(ASRMetric):
    """WER of a system's transcripts against the sentence of another stimulus: what hearing any sentence scores."""

    info = MetricInfo(
        name="wer_wrong_transcript",
        label="WER against a wrong transcript",
        unit="%",
        higher_is_better=False,
        per_example=True,
        definition="WER of the same transcripts against the text of another test stimulus, each used once, drawn by "
        "seed: what a system scores whose sounds have nothing to do with their stimulus.",
    )

    def __init__(self, scorers: Scorers, seed: int = 0) -> None:
        super().__init__(scorers)
        self.seed = seed

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        reason = super().reason(test, output)
        if reason is None and derangement(list(test.stimuli["text"]), self.seed) is None:
            return "one text makes up more than half of the stimuli, so no wrong transcripts can be drawn"
        return reason

    def provenance(self) -> dict[str, str | int | None]:
        return {**super().provenance(), "seed": self.seed}

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        partner = derangement(list(test.stimuli["text"]), self.seed)
        assert partner is not None  # `reason` said so
        heard = [t.text for t in self.scorers.transcripts(output)]
        edits = count_edits(list(test.stimuli["text"].iloc[partner[output.stimulus]]), heard)
        return Ratios(edits.total, edits.length, EMPTY_REFERENCE)


class HallucinationRate(ASRMetric):
    """How often Whisper hears words where there are none. A property of the scorer and the corpus, not of a system."""

    def __init__(self, scorers: Scorers, of: Literal["noise", "silence"], seed: int = 0) -> None:
        super().__init__(scorers)
        self.of, self.seed = of, seed
        what = (
            "noise with the level and spectrum of each true clip (its phases drawn at random)"
            if of == "noise"
            else "digital silence of the same length"
        )
        self.info = MetricInfo(
            name=f"hallucination_{of}",
            label=f"Words heard in {of}",
            unit="%",
            higher_is_better=False,
            per_example=True,
            definition=f"Share of clips of {what} in which {WHISPER} hears a word.",
        )

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        if output.system != "reference":
            return "a property of the scorer, measured once, in the row of the true recordings"
        return super().reason(test, output)

    def provenance(self) -> dict[str, str | int | None]:
        return {**super().provenance(), "seed": self.seed if self.of == "noise" else None}

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        true = sound(test)[output.stimulus]
        clips = randomise_phases(true, output.stimulus, self.seed) if self.of == "noise" else np.zeros_like(true[:1])
        transcripts = self.scorers.transcriber.transcribe(clips)
        words = np.array([bool(normalise(t.text)) for t in transcripts], dtype=np.float64)
        believed = words * np.array([why is None for why in guard(transcripts, clips)], dtype=np.float64)
        n = len(true)
        return Ratios(np.resize(words, n), np.ones(n), columns={f"{self.info.name}_guarded": np.resize(believed, n)})


def randomise_phases(waveform: np.ndarray, stimulus: np.ndarray, seed: int) -> np.ndarray:
    """(n, N) -> (n, N) float32 with the same power spectra and levels and no speech left.

    The random stream belongs to the stimulus (n,), so the order of the clips does not matter.
    """
    spectrum = np.fft.rfft(waveform, axis=1)
    for row, index in zip(spectrum, stimulus, strict=True):
        angle = np.random.default_rng([seed, index]).uniform(0, 2 * np.pi, len(row))
        angle[[0, -1]] = 0.0  # the constant and Nyquist terms are real
        row *= np.exp(1j * angle)
    return np.fft.irfft(spectrum, n=waveform.shape[1], axis=1).astype(np.float32)
