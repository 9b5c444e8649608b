"""What must hold of every registered metric: a new one is tested here as soon as it has its line in the registry."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from test_metrics_sets import Spectrum

from eeg2speech.evaluation import MetricsConfig
from eval.metrics import METRICS
from eval.metrics.base import Measurement, Metric, SystemOutput, TestSet
from eval.metrics.embedded_sets import flat
from eval.metrics.frechet import FAD, FADInfinity, FrechetAudioDistance, SplitHalfFAD
from eval.metrics.kernel import KernelAudioDistance
from eval.metrics.ratio import SummedRatio
from eval.metrics.retrieval import RetrievalRanks
from eval.metrics.scorers import Scorers
from eval.metrics.story_retrieval import SameStoryTopK
from eval.metrics.transcription import Heard, Transcriber, Transcript, normalise
from eval.metrics.word_errors import ErrorRate, HallucinationRate, randomise_phases
from tests.metrics_fixture import make_test, per_listener, per_stimulus, permuted, tones

N_STIMULI, N_SUBJECTS, LENGTH = 20, 2, 8_000
OF_THE_SCORER = ("fad_split_half", "hallucination_noise", "hallucination_silence")
"""Properties of scorer and corpus, measured in the row of the true recordings."""
OF_A_SET = ("fad", "kad", "fad_infinity", "fad_split_half", "median_rank", "speech_to_audio_top1")
"""Without a value of one example by itself; the last ranks a clip among the others."""
WORDS = ("Anna", "Bert", "Carl", "Dora", "sees", "has", "wants", "sold", "two", "five", "dogs", "cats", "birds", "fish")


class Loudness(Transcriber):
    """Hears words that depend on the sound and on nothing else; repeats itself where it is loud."""

    name, weights = "loudness", "none"

    def __init__(self) -> None:
        pass

    def listen(self, waveforms: np.ndarray) -> Heard:
        heard = []
        for clip in waveforms:
            level = int(1e4 * np.abs(clip).mean())
            text = " ".join(WORDS[(level + 3 * i) % len(WORDS)] for i in range(level % 5))
            heard.append(Transcript("no no no no no" if level % 7 == 0 else text, 0.1, -0.2, 1.0))
        return Heard(heard, np.zeros((len(waveforms), 1), np.float32))


def scorers() -> Scorers:
    made = Scorers(Path())
    made._embedders["spectrum"] = Spectrum()
    made.transcriber = Loudness()
    return made


def embed(waveform: np.ndarray) -> np.ndarray:
    return waveform.reshape(len(waveform), 8, -1).astype(np.float32)


@cache
def case(n_subjects: int = N_SUBJECTS) -> tuple[TestSet, SystemOutput, SystemOutput]:
    """A test set of two stories, what a system that hears EEG made of it, and the true recordings as a system."""
    rng = np.random.default_rng(7)
    waveform = tones(N_STIMULI, LENGTH)
    texts = [" ".join(rng.choice(WORDS, 4, replace=False)) for _ in range(N_STIMULI)]
    test = make_test(texts, waveform, embed(waveform), n_subjects, embed)
    test = replace(test, stimuli=test.stimuli.assign(story=[f"story{i % 2}" for i in range(N_STIMULI)]))
    heard = waveform[test.examples["stimulus"]] + 0.02 * rng.normal(size=(len(test.examples), LENGTH))
    heard = heard.astype(np.float32)
    return (
        test,
        per_listener(test, heard, embed(heard + 0.2 * rng.normal(size=heard.shape))),
        per_stimulus(test, waveform),
    )


def build(name: str) -> Metric:
    (metric,) = METRICS[name](scorers(), MetricsConfig(embedders=("spectrum",)))
    return metric


def measure(name: str, test: TestSet, output: SystemOutput) -> Measurement:
    return build(name).measure(test, output)


def row(name: str) -> SystemOutput:
    """The system that a metric is measured in."""
    _, eeg, reference = case()
    return reference if name in OF_THE_SCORER else eeg


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_value_here(name: str) -> None:
    found = measure(name, case()[0], row(name))
    assert found.value is not None, found.reason
    assert np.isfinite(found.value)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_permutation_of_the_examples_changes_nothing(name: str, seed: int) -> None:
    test, output = case()[0], row(name)
    order = np.random.default_rng(seed).permutation(len(output.rows))
    one, two = measure(name, test, output), measure(name, test, permuted(output, order))
    assert two.value == pytest.approx(one.value, rel=1e-6, abs=1e-9)
    assert two.n == one.n
    if one.numerator is not None and two.numerator is not None:
        assert np.allclose(one.numerator[order], two.numerator, equal_nan=True, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in OF_A_SET])
@settings(max_examples=2, deadline=None)
@given(first=st.integers(1, N_STIMULI - 1))
def test_the_batch_an_example_came_in_changes_nothing(name: str, first: int) -> None:
    """Two parts scored one after the other give every example the value that all together give it."""
    test, output = case()[0], row(name)
    rows, values = np.arange(len(output.rows)), []
    for part in (rows[:first], rows[first:]):
        numerator = measure(name, test, permuted(output, part)).numerator
        assert numerator is not None
        values.append(numerator)
    whole = measure(name, test, output).numerator
    assert whole is not None
    assert np.allclose(np.concatenate(values), whole, equal_nan=True, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in OF_THE_SCORER])
def test_a_listener_who_is_there_twice_changes_nothing(name: str) -> None:
    """Duplicates: values are means over listeners or over examples, so the same listeners again move none."""
    test, eeg, _ = case()
    assert eeg.waveform is not None
    assert eeg.estimate is not None
    again = test.examples.assign(subject=test.examples["subject"] + "again")
    examples = pd.concat([test.examples, again], ignore_index=True)
    doubled = replace(test, examples=examples.assign(example=np.arange(len(examples))))
    twice = replace(
        eeg,
        rows=pd.concat([eeg.rows, eeg.rows.assign(subject=eeg.rows["subject"] + "again")], ignore_index=True),
        waveform=np.concatenate([eeg.waveform, eeg.waveform]),
        estimate=np.concatenate([eeg.estimate, eeg.estimate]),
    )
    one, two = measure(name, test, eeg), measure(name, doubled, twice)
    # An extrapolation draws other subsets for other listeners, and moves by their luck.
    assert two.value == pytest.approx(one.value, rel=0.3 if name == "fad_infinity" else 1e-6, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), cuts=st.lists(st.integers(1, 29), max_size=4, unique=True))
def test_sums_over_batches_are_the_sum_of_all(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    num, den, x, y = rng.normal(size=30), rng.integers(1, 9, 30), rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    batches = np.split(np.arange(30), sorted(cuts))
    ratio, rank, fad, kad = SummedRatio(), RetrievalRanks(), FrechetAudioDistance(3), KernelAudioDistance(1.0)
    whole = FrechetAudioDistance(3)
    for rows in batches:
        ratio.update(torch.tensor(num[rows]), torch.tensor(den[rows]).double())
        rank.update(torch.tensor(num[rows]))
        fad.update(torch.tensor(x[rows]), real=True)
        fad.update(torch.tensor(y[rows]), real=False)
        kad.update(torch.tensor(x[rows]), torch.tensor(y[rows]))
    whole.update(torch.tensor(x), real=True)
    whole.update(torch.tensor(y), real=False)
    assert float(ratio.compute()) == pytest.approx(num.sum() / den.sum())
    assert float(rank.compute()) == pytest.approx(np.median(num))
    assert float(fad.compute()) == pytest.approx(float(whole.compute()), rel=1e-9, abs=1e-12)
    assert float(kad.compute()) == pytest.approx(by_pairs(x, y))


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """100 times the unbiased squared MMD (Gretton et al. 2012, eq. 4), pair by pair, at bandwidth 1."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / 2))

    n = len(x)
    terms = [
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    return 100 * sum(terms) / (n * (n - 1))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """By scipy's matrix square root."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real))


def test_split_half_is_the_mean_over_splits_by_scipy() -> None:
    test, _, reference = case()
    true = Spectrum().embed(np.asarray(test.waveform))
    rng = np.random.default_rng(0)
    orders = [rng.permutation(N_STIMULI) for _ in range(SplitHalfFAD.SPLITS)]
    expected = np.mean([frechet(flat(true[o[:10]]), flat(true[o[10:]])) for o in orders])
    assert measure("fad_split_half", test, reference).value == pytest.approx(expected, rel=1e-5)


def test_infinite_n_finds_a_known_distance() -> None:
    """Two Gaussians of one covariance whose means are 2 apart: the distance is 4, at 150 clips about 4.2."""
    rng = np.random.default_rng(3)

    class Given(Spectrum):
        def embed(self, waveforms: np.ndarray) -> np.ndarray:
            return waveforms[:, None].astype(np.float64)

    true = rng.normal(size=(400, 5)).astype(np.float32)
    shifted = (rng.normal(size=(400, 5)) + [2, 0, 0, 0, 0]).astype(np.float32)
    made = scorers()
    made._embedders["spectrum"] = Given()
    test = make_test([""] * 400, true, n_subjects=1)
    output = per_listener(test, shifted)
    found = FADInfinity(made, "spectrum").measure(test, output).value
    plain = FAD(made, "spectrum").measure(test, output).value
    assert found == pytest.approx(4.0, abs=0.6)
    assert plain == pytest.approx(frechet(true, shifted), rel=1e-4)


def test_guarded_rate_counts_what_is_not_believed_as_nothing() -> None:
    """Silence, a repetition and a sentence: two of three hypotheses are emptied, whose words are then all deleted."""

    said = ["Anna sees two dogs", "no no no no no no", "Carl wants birds"]

    class Scripted(Loudness):
        def listen(self, waveforms: np.ndarray) -> Heard:
            return Heard([Transcript(t, 0.0, 0.0, 1.0) for t in said], np.zeros((3, 1), np.float32))

    made = scorers()
    made.transcriber = Scripted()
    clips = np.stack([np.zeros(800), np.full(800, 0.1), np.full(800, 0.2)]).astype(np.float32)
    test = make_test(["Anna sees two dogs", "Bert has five cats", "Carl wants nine birds"], clips, n_subjects=1)
    output = per_listener(test, clips)
    assert ErrorRate(made).measure(test, output).value == pytest.approx((0 + 6 + 1) / 12)
    assert ErrorRate(made, guarded=True).measure(test, output).value == pytest.approx((4 + 4 + 1) / 12)
    texts = [normalise(text) for text in test.stimuli["text"]]
    edits = [by_dynamic_programming(a, normalise(b)) for a, b in zip(texts, said, strict=True)]
    found = ErrorRate(made, "character").measure(test, output).value
    assert found == pytest.approx(sum(edits) / sum(map(len, texts)))


def by_dynamic_programming(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_words_heard_in_noise_are_counted_clip_by_clip() -> None:
    test, _, reference = case()
    noise = randomise_phases(np.asarray(test.waveform), np.arange(N_STIMULI), seed=0)
    expected = np.mean([bool(normalise(t.text)) for t in Loudness().listen(noise).transcripts])
    assert 0 < expected < 1
    assert HallucinationRate(scorers(), "noise").measure(test, reference).value == pytest.approx(expected)


def test_same_story_by_hand() -> None:
    """Candidates are unit vectors, so that an estimate's entries are its scores; two stories of three and of two."""
    candidates = np.eye(5, dtype=np.float32)[:, :, None]
    test = make_test(["a"] * 5, candidates=candidates, n_subjects=1)
    test = replace(test, stimuli=test.stimuli.assign(story=["x", "x", "x", "y", "y"]))
    estimate = np.array(
        [
            [3, 2, 1, 9, 9],  # first of its story, third of all
            [3, 2, 1, 0, 0],
            [0, 0, 1, 0, 0],
            [9, 9, 9, 1, 2],
            [9, 9, 9, 1, 2],
        ],
        dtype=np.float32,
    )[:, :, None]
    found = SameStoryTopK(scorers()).measure(test, per_listener(test, estimate=estimate))
    assert list(np.asarray(found.numerator)) == [1, 0, 1, 0, 1]
    assert found.metric.chance == pytest.approx((3 / 3 + 2 / 2) / 5)


def test_a_story_of_one_stimulus_or_of_one_and_its_copy_is_left_out() -> None:
    candidates = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]][:, :, None]
    test = make_test(["a"] * 4, candidates=candidates, n_subjects=1)
    estimate = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]][:, :, None]
    stories = replace(test, stimuli=test.stimuli.assign(story=["x", "x", "y", "y"]))
    found = SameStoryTopK(scorers()).measure(stories, per_listener(stories, estimate=estimate))
    assert (found.value, found.n, found.skipped) == (1.0, 2, {"the only test stimulus of its story": 2})
    apart = replace(test, stimuli=test.stimuli.assign(story=list("abcd")))
    reason = SameStoryTopK(scorers()).measure(apart, per_listener(apart, estimate=estimate)).reason
    assert reason == "no story has more than 1 test stimuli"
    unknown = SameStoryTopK(scorers()).measure(test, per_listener(test, estimate=estimate))
    assert unknown.value is None
    assert "which story" in (unknown.reason or "")
