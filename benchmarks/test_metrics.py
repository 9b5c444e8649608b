"""Every metric of the registry: its arithmetic alone, on transcripts and embeddings that are there already."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from metrics_fixture import make_test, per_listener, per_stimulus

from benchmarks.measure import Comparison, Measure
from benchmarks.sizes import SIZES
from benchmarks.speech import spoken
from eeg2speech.evaluation import MetricsConfig
from eval.metrics import METRICS
from eval.metrics.base import SystemOutput, TestSet
from eval.metrics.scorers import Scorers
from eval.metrics.transcription import Heard, Transcript
from eval.metrics.word_errors import count_edits

N, LISTENERS = SIZES.evaluation_clips[0], 2
EMBEDDER, DIMENSION = "resemblyzer", 256
OF_THE_TRUE_CLIPS = {"fad_split_half"}
LISTENING = {"hallucination_noise", "hallucination_silence"}
"""Nothing but a pass of Whisper, which `test_transcription` measures."""


@lru_cache(maxsize=1)
def scored() -> tuple[TestSet, SystemOutput, SystemOutput]:
    """The test set, a system that hears EEG, and the true recordings."""
    speech, rng = spoken(N), np.random.default_rng(0)
    candidates = rng.standard_normal((N, 128, 150), dtype=np.float32)
    embed = np.random.default_rng(1).standard_normal((128, 150), dtype=np.float32)
    test = make_test(speech.texts, speech.true, candidates, LISTENERS, lambda waves: waves[:, :128, None] * embed)
    which = test.examples["stimulus"].to_numpy()
    estimate = candidates[which] + rng.standard_normal((len(which), 128, 150), dtype=np.float32)
    return test, per_listener(test, speech.generated[which], estimate), per_stimulus(test, speech.true)


def prepared(folder: Path) -> Scorers:
    """Scorers that have heard and embedded everything: two words in five misheard."""
    test, eeg, reference = scored()
    scorers, rng = Scorers(folder), np.random.default_rng(0)
    words = np.array([text.split() for text in test.stimuli["text"]])
    for owner, stimulus in ((eeg, eeg.stimulus), (reference, np.arange(N)), (test, np.arange(N))):
        heard = words[stimulus]
        heard = np.where(rng.random(heard.shape) < 0.4, words[rng.permutation(N)][stimulus], heard)
        transcripts = [Transcript(" ".join(row), 0.0, -0.2, 1.0) for row in heard]
        states = rng.standard_normal((len(heard), 384), dtype=np.float32)
        scorers.once(owner, "heard", lambda t=transcripts, s=states: Heard(t, s))
        embeddings = rng.standard_normal((len(heard), 1, DIMENSION))
        scorers.once(owner, f"embeddings/{EMBEDDER}", lambda e=embeddings: e)
    return scorers


@pytest.mark.parametrize("name", [name for name in METRICS if name not in LISTENING])
def test_metric(measure: Measure, name: str, tmp_path: Path) -> None:
    test, eeg, reference = scored()
    (metric,) = METRICS[name](prepared(tmp_path), MetricsConfig(embedders=(EMBEDDER,)))
    output = reference if name in OF_THE_TRUE_CLIPS else eeg
    if reason := metric.reason(test, output):
        pytest.skip(reason)
    found = measure(lambda: metric.measure(test, output), items=len(output.rows), unit="clip", clips=N)
    assert found.value is not None or found.reason


WORDS = "word errors of sentences of five words"


def test_word_edits(measure: Measure) -> None:
    texts, guesses = pairs()
    edits = measure(
        lambda: count_edits(texts, guesses), items=len(texts), unit="pair", compare=Comparison(WORDS, "ours")
    )
    assert edits.length.sum() == 5 * len(texts)


def test_word_edits_by_torchmetrics(measure: Measure) -> None:
    """Pair by pair, as it must be called where every example's edits are wanted."""
    from torchmetrics.text import WordErrorRate

    from eval.metrics.transcription import normalise

    texts, guesses = ([normalise(text) for text in side] for side in pairs())
    metric = WordErrorRate()
    rates = measure(
        lambda: [float(metric([guess], [text])) for text, guess in zip(texts, guesses, strict=True)],
        items=len(texts),
        unit="pair",
        compare=Comparison(WORDS, "peer"),
    )
    ours = count_edits(texts, guesses)
    np.testing.assert_allclose(rates, ours.total / ours.length, rtol=1e-6)


def pairs() -> tuple[list[str], list[str]]:
    from eeg2speech.data.speech_corpus import sentences

    return sentences(500, seed=0), sentences(500, seed=1)
