"""FAD and KAD against scipy, brute force and the package's own arithmetic."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from eeg2speech.errors import UserError
from eeg2speech.evaluation import EmbedderOptions
from eval.metrics import frechet, frechet_package
from eval.metrics.base import SystemOutput, TestSet
from eval.metrics.embedded_sets import ListenerSet
from eval.metrics.embedders import Embedder, Resemblyzer, speaker_mel
from eval.metrics.frechet import (
    FAD,
    FADInfinity,
    FrechetAudioDistance,
    SplitHalfFAD,
    accumulated,
    frechet_distance,
    frechet_distance_of_samples,
    joint_span,
)
from eval.metrics.kernel import KAD, KernelAudioDistance, kernel_distance
from eval.metrics.scorers import Scorers
from eval.metrics.yamnet import YAMNet, same_convolution
from eval.weights import RESEMBLYZER
from tests.metrics_fixture import make_test, per_listener, per_stimulus, permuted, tones

needs_package = pytest.mark.skipif(not frechet_package.available(), reason=frechet_package.HOW_TO_ADD)
YAMNET = Path(
    os.environ.get("EEG2SPEECH_YAMNET")
    or Path(__file__).parents[2] / "shared" / "weights" / "yamnet_audio_classifier_with_metadata.tflite"
)
needs_resemblyzer = pytest.mark.skipif(RESEMBLYZER.locate() is None, reason="Resemblyzer is not installed")


def two_samples(n: int, m: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ mix, rng.normal(size=(m, d)) @ mix * 1.2 + 0.1


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    """Dowson & Landau 1982 with scipy's matrix square root."""
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * np.real(sqrtm(cx @ cy))))


def test_closed_form_in_one_dimension() -> None:
    """(mu1 - mu2)^2 + (s1 - s2)^2."""
    value = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[25.0]]))
    assert value == pytest.approx(4 + 9)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 20), (80, 90, 64), (70, 30, 50)])
def test_agrees_with_scipy(n: int, m: int, d: int) -> None:
    x, y = two_samples(n, m, d)
    assert frechet_distance_of_samples(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-6)


@needs_package
@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 20), (300, 300, 128)])
def test_agrees_with_the_package(n: int, m: int, d: int) -> None:
    x, y = two_samples(n, m, d)
    theirs = frechet_package.frechet_distance(*frechet_package.statistics_of(x), *frechet_package.statistics_of(y))
    assert frechet_distance_of_samples(x, y) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 40), (40, 5), (30, 30)])
def test_finite_and_non_negative_with_fewer_samples_than_dimensions(n: int, m: int) -> None:
    x, y = two_samples(n, m, 64)
    few = frechet_distance_of_samples(x, y)
    assert few >= 0
    full = frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert few == pytest.approx(full, rel=1e-5)
    assert frechet_distance_of_samples(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rank", [1, 7, 40])
def test_covariances_without_full_rank(rank: int) -> None:
    """By eigenvalues: tr (A B)^(1/2) is the sum of the roots of those of the product."""
    rng = np.random.default_rng(rank)
    a, b = rng.normal(size=(40, rank)), rng.normal(size=(40, 12)) * 1e-3
    first, second, zero = a @ a.T, b @ b.T, np.zeros(40)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    value = frechet_distance(zero, first, zero, second)
    assert value == pytest.approx(np.trace(first) + np.trace(second) - 2 * roots, rel=1e-6)


def test_a_covariance_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2))


def test_the_joint_span_keeps_the_distance() -> None:
    x, y = two_samples(12, 15, 100)
    a, b = joint_span(x, y)
    assert a.shape == (12, 26)
    assert frechet_distance_of_samples(a, b) == pytest.approx(frechet_distance_of_samples(x, y), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1_000), st.integers(1, 40))
def test_batches_change_nothing(seed: int, batch: int) -> None:
    x, y = two_samples(40, 35, 8, seed)
    fad, kad = FrechetAudioDistance(8), KernelAudioDistance()
    for i in range(0, 40, batch):
        fad.update(torch.from_numpy(x[i : i + batch]), real=True)
        fad.update(torch.from_numpy(y[i : i + batch]), real=False)
        if i < 35:
            kad.update(torch.from_numpy(x[i : min(35, i + batch)]), torch.from_numpy(y[i : i + batch]))
    assert float(fad.compute()) == pytest.approx(by_sqrtm(x, y), rel=1e-5)
    assert float(kad.compute()) == pytest.approx(kernel_distance(x[:35], y))


def test_own_arithmetic_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet.frechet_package, "available", lambda: False)
    x, y = two_samples(60, 60, 10)
    value, by = accumulated(x, y)
    assert by == "own"
    assert value == pytest.approx(by_sqrtm(x, y), rel=1e-6)


@needs_package
def test_the_package_is_used_and_leaves_no_stand_in_behind() -> None:
    x, y = two_samples(60, 60, 10)
    value, by = accumulated(x, y)
    assert by.startswith("frechet-audio-distance-")
    assert value == pytest.approx(by_sqrtm(x, y), rel=1e-6)
    assert not any(type(module).__name__ == "_Inert" for module in sys.modules.values())


def test_kernel_distance_by_brute_force() -> None:
    """Gretton et al. 2012, eq. 4, summed pair by pair."""
    x, y = two_samples(9, 9, 4)
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(9) for j in range(i)]
    s = np.median(distances)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * s * s)))

    terms = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i in range(9) for j in range(9) if i != j
    ]
    assert kernel_distance(x, y) == pytest.approx(100 * np.mean(terms))
    assert kernel_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_kernel_distance_is_unbiased_at_small_n() -> None:
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(12, 6)), rng.normal(size=(12, 6)), 3.0) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(400)


class Spectrum(Embedder):
    """A small embedder that needs no weights: log band energies in two frames."""

    name = "spectrum"
    weights = "none"

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        halves = waveforms.reshape(len(waveforms), 2, -1).astype(np.float64)
        power = np.abs(np.fft.rfft(halves, axis=-1))[..., 1:] ** 2
        return np.log(power.reshape(*power.shape[:2], 8, -1).mean(-1) + 1e-9)


@pytest.fixture
def scorers(tmp_path: Path) -> Scorers:
    made = Scorers(tmp_path)
    made._embedders["spectrum"] = Spectrum()
    return made


@pytest.fixture
def case() -> tuple[TestSet, SystemOutput]:
    waveform = tones(24, 4_000)
    test = make_test(["a"] * 24, waveform)
    noise = np.random.default_rng(1).normal(size=(48, 4_000)).astype(np.float32)
    return test, per_listener(test, waveform[test.examples["stimulus"]] + 0.01 * noise)


def test_fad_is_averaged_over_listeners_at_equal_n(scorers: Scorers, case: tuple[TestSet, SystemOutput]) -> None:
    test, output = case
    found = FAD(scorers, "spectrum").measure(test, output)
    true = Spectrum().embed(test.waveform).reshape(-1, 8)
    embedded = Spectrum().embed(output.waveform)
    expected = [by_sqrtm(true, embedded[(output.rows["subject"] == u).to_numpy()].reshape(-1, 8)) for u in ("P0", "P1")]
    assert found.value == pytest.approx(np.mean(expected), rel=1e-5)
    assert found.n == 24
    assert found.ci is not None
    assert found.ci[0] < found.value < found.ci[1]
    assert "|N24|" in found.signature


def test_the_true_recordings_have_distance_zero(scorers: Scorers, case: tuple[TestSet, SystemOutput]) -> None:
    test, _ = case
    reference = per_stimulus(test, test.waveform)
    assert FAD(scorers, "spectrum").measure(test, reference).value == pytest.approx(0, abs=1e-5)
    assert KAD(scorers, "spectrum").measure(test, reference).value == pytest.approx(0, abs=1e-9)
    floor = SplitHalfFAD(scorers, "spectrum").measure(test, reference)
    assert floor.value is not None
    assert floor.value > 0
    assert floor.n == 12
    assert SplitHalfFAD(scorers, "spectrum").measure(test, case[1]).value is None


@pytest.mark.parametrize("metric", [FAD, KAD])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_order_of_examples_changes_nothing(metric: type[FAD] | type[KAD], seed: int) -> None:
    made = Scorers(Path())
    made._embedders["spectrum"] = Spectrum()
    waveform = tones(12, 4_000)
    test = make_test(["a"] * 12, waveform)
    rng = np.random.default_rng(seed)
    output = per_listener(test, rng.normal(size=(24, 4_000)).astype(np.float32))
    one = metric(made, "spectrum").measure(test, output)
    two = metric(made, "spectrum").measure(test, permuted(output, rng.permutation(24)))
    assert one.value == pytest.approx(two.value, rel=1e-6)
    assert one.ci == pytest.approx(two.ci, rel=1e-6)


def test_fad_infinity_only_where_estimable_and_then_less_biased(scorers: Scorers) -> None:
    rng = np.random.default_rng(2)
    waveform = rng.normal(size=(60, 800)).astype(np.float32)
    test = make_test(["a"] * 60, waveform, n_subjects=1)
    output = per_listener(test, rng.normal(size=(60, 800)).astype(np.float32))
    biased = FAD(scorers, "spectrum").measure(test, output).value
    extrapolated = FADInfinity(scorers, "spectrum").measure(test, output).value
    assert biased is not None
    assert extrapolated is not None
    assert abs(extrapolated) < abs(biased) / 2, "both sets are the same noise: the truth is 0"
    few = make_test(["a"] * 10, waveform[:10], n_subjects=1)
    reason = FADInfinity(scorers, "spectrum").measure(few, per_listener(few, waveform[:10])).reason
    assert reason == "not estimable: N / 2 = 5 is not above the dimension 8"


def test_a_broken_clip_is_named(scorers: Scorers, case: tuple[TestSet, SystemOutput]) -> None:
    test, output = case
    assert output.waveform is not None
    output.waveform[5, 3] = np.nan
    with pytest.raises(UserError, match=r"P1.*s2"):
        FAD(scorers, "spectrum").measure(test, output)


def test_absent_weights_are_a_reason(tmp_path: Path, case: tuple[TestSet, SystemOutput]) -> None:
    made = Scorers(tmp_path, embedding=EmbedderOptions(checkpoints=tmp_path))
    reason = FAD(made, "vggish").measure(*case).reason
    assert reason is not None
    assert "pip install" in reason or "weights absent" in reason
    with pytest.raises(UserError, match="nosuch"):
        FAD(made, "nosuch").measure(*case)


@pytest.mark.slow
def test_speaker_mel_against_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    clip = tones(1, 8_000)[0]
    expected = librosa.feature.melspectrogram(y=clip, sr=16_000, n_fft=400, hop_length=160, n_mels=40).T
    assert np.allclose(speaker_mel(torch.from_numpy(clip)[None])[0].numpy(), expected, rtol=1e-3, atol=1e-6)


@needs_resemblyzer
@pytest.mark.slow
def test_resemblyzer_against_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("librosa")
    monkeypatch.setitem(sys.modules, "webrtcvad", types.ModuleType("webrtcvad"))  # cuts pauses; not called here
    package = pytest.importorskip("resemblyzer")
    waveform = tones(3, 48_000)
    theirs = package.VoiceEncoder("cpu", verbose=False)
    levelled = [package.normalize_volume(w, -30, increase_only=True) for w in waveform]
    expected = np.stack([theirs.embed_utterance(w) for w in levelled])
    for batch_size in (1, 2, 32):
        assert np.allclose(Resemblyzer(batch_size).embed(waveform)[:, 0], expected, atol=2e-4)


@needs_resemblyzer
@pytest.mark.parametrize("batch_size", [1, 2])
def test_resemblyzer_by_values_of_the_package(batch_size: int) -> None:
    """The five largest entries that Resemblyzer 0.1.4 itself gives for these two clips, pauses left in."""
    found = Resemblyzer(batch_size).embed(tones(2, 48_000))[:, 0]
    assert found[0, [246, 168, 144, 189, 122]] == pytest.approx([0.37203, 0.26322, 0.2229, 0.17497, 0.16989], abs=1e-3)
    assert found[1, [36, 168, 122, 213, 164]] == pytest.approx([0.2757, 0.27001, 0.22442, 0.22096, 0.21165], abs=1e-3)


@pytest.mark.parametrize(("height", "width", "stride"), [(6, 4, 2), (5, 7, 2), (4, 4, 1)])
def test_padding_same_by_brute_force(height: int, width: int, stride: int) -> None:
    """TensorFlow's rule: ceil(size / stride) outputs, the smaller half of the padding above and to the left."""
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(1, 2, height, width)), rng.normal(size=(3, 3, 3, 2)), rng.normal(size=3)
    rows, columns = -(-height // stride), -(-width // stride)
    above, left = (((n - 1) * stride + 3 - size) // 2 for n, size in ((rows, height), (columns, width)))
    expected = np.zeros((3, rows, columns)) + bias[:, None, None]
    for i, j, u, v in np.ndindex(rows, columns, 3, 3):
        r, c = i * stride + u - above, j * stride + v - left
        if 0 <= r < height and 0 <= c < width:
            expected[:, i, j] += kernel[:, u, v] @ x[0, :, r, c]
    found = same_convolution(*map(torch.from_numpy, (x, kernel, bias)), stride)
    assert np.allclose(found[0], expected)


@pytest.mark.skipif(not YAMNET.exists(), reason="YAMNet's file is not at EEG2SPEECH_YAMNET")
def test_yamnet_knows_noise_and_a_sine_and_ranks_degradation() -> None:
    """Its own classifier on its features: AudioSet: 507 noise, 509 static, 514 white noise, 475 beep."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1, 16_000)).astype(np.float32) * 0.1
    sine = 0.3 * np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000, dtype=np.float32)[None]
    yamnet = YAMNet(YAMNET, 2)
    heard = [yamnet.network.classes(torch.from_numpy(yamnet.embed(x)[0]).float())[0] for x in (noise, sine)]
    assert set(heard[0].topk(3).indices.tolist()) == {507, 509, 514}
    assert heard[1].argmax() == 475
    clips = tones(8, 32_000)
    embedded = [yamnet.embed(clips + s * rng.normal(size=clips.shape).astype(np.float32)) for s in (0, 1e-3, 1e-1)]
    clean, mild, heavy = (e.reshape(-1, 1024) for e in embedded)
    assert frechet_distance_of_samples(clean, mild) < frechet_distance_of_samples(clean, heavy)
    assert np.allclose(YAMNet(YAMNET, 8).embed(clips), embedded[0], atol=1e-4)


def test_fad_of_smaller_sets_is_as_large_as_theirs(scorers: Scorers) -> None:
    """Against fresh samples of each size, taken with scipy's root: the same bias, which falls as N grows."""
    rng = np.random.default_rng(0)
    n, d = 400, 6
    sets = [
        ListenerSet(np.arange(n), rng.normal(size=(n, 1, d)), rng.normal(size=(n, 1, d))) for _ in range(6)
    ]  # six listeners of noise
    curve = FAD(scorers, "whisper").curve(sets)
    assert [size for size, _ in curve] == [100, 200, 300]
    for size, value in curve:
        fresh = [by_sqrtm(rng.normal(size=(size, d)), rng.normal(size=(size, d))) for _ in range(60)]
        assert value == pytest.approx(np.mean(fresh), rel=0.25)
    few = [ListenerSet(np.arange(2), rng.normal(size=(2, 1, d)), rng.normal(size=(2, 1, d)))]
    assert FAD(scorers, "whisper").curve(few) == []
