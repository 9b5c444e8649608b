"""Mel correlation, MCD, ESTOI and the torchmetrics slot against numpy, brute force and pystoi."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

from eeg2speech.audio import log_mel
from eeg2speech.errors import UserError
from eeg2speech.evaluation import MetricsConfig
from eval.metrics import METRICS, build_metrics
from eval.metrics.mel_cepstral import MelCepstralDistortion, cepstra, frame_distances, warped_mean
from eval.metrics.mel_correlation import MelCorrelation, log_mels, mel_correlation, speech_frames
from eval.metrics.scorers import Scorers
from eval.metrics.torchmetrics_audio import TorchMetricsAudio, estoi
from tests.metrics_fixture import make_test, per_listener, per_stimulus, permuted, tones


def test_mel_correlation_is_numpy_corrcoef() -> None:
    rng = np.random.default_rng(0)
    true, other = rng.normal(size=(2, 3, 40, 64)).astype(np.float32)
    expected = [np.mean([np.corrcoef(true[i, :, k], other[i, :, k])[0, 1] for k in range(64)]) for i in range(3)]
    assert speech_frames(true).all(), "all of these frames are loud"
    assert np.allclose(mel_correlation(true, other), expected, atol=1e-6)


def test_mel_correlation_extremes() -> None:
    true = log_mels(tones(2))
    assert np.allclose(mel_correlation(true, true), 1)
    assert np.allclose(mel_correlation(true, -true), -1)
    average = np.repeat(true.mean(1, keepdims=True), true.shape[1], axis=1)
    assert np.allclose(mel_correlation(true, average), 0, atol=1e-9), "the average spectrum earns nothing"
    assert np.isnan(mel_correlation(log_mels(np.zeros((1, 16_000), np.float32)), true[:1])).all()


def test_pauses_are_not_speech_frames() -> None:
    clip = tones(1)
    clip[0, 8_000:] *= 1e-4
    frames = speech_frames(log_mels(clip))[0]
    assert frames[:45].mean() > 0.8
    assert not frames[55:].any()


def test_distortion_is_the_root_mean_square_difference_of_the_spectra_in_db() -> None:
    """Parseval, for spectra that differ only in their level and first 13 cosines; the level does not count."""
    rng = np.random.default_rng(1)
    cosines = np.cos(np.pi * np.arange(1, 14)[:, None] * (np.arange(64) + 0.5) / 64)
    x = rng.normal(size=(1, 1, 64))
    difference = rng.normal(size=13) @ cosines
    expected = 20 * np.sqrt(np.mean((difference / np.log(10)) ** 2))
    found = frame_distances(cepstra(x)[0], cepstra(x + difference + 3.0)[0])
    assert found[0, 0] == pytest.approx(expected)


def brute_warp(distance: np.ndarray) -> float:
    """Least total cost by plain recursion over all paths; of equal ones the diagonal first."""
    rows, columns = distance.shape

    def best(i: int, j: int) -> tuple[float, int]:
        if i == j == 0:
            return distance[0, 0], 1
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        cost, length = min((best(a, b) for a, b in steps if a >= 0 and b >= 0), key=lambda found: found[0])
        return cost + distance[i, j], length + 1

    cost, length = best(rows - 1, columns - 1)
    return cost / length


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1_000))
def test_warping_by_brute_force(rows: int, columns: int, seed: int) -> None:
    distance = np.random.default_rng(seed).uniform(size=(rows, columns))
    assert warped_mean(distance) == pytest.approx(brute_warp(distance))


def test_warping_forgives_a_delay() -> None:
    clip = tones(1, 32_000)
    clip[:, :3_200] = clip[:, -3_200:] = 0
    late = np.roll(clip, 1_600, axis=1)
    test = make_test(["a"], clip, n_subjects=1)
    scorers = Scorers(Path())
    plain = MelCepstralDistortion(scorers).measure(test, per_listener(test, late)).value
    warped = MelCepstralDistortion(scorers, warped=True).measure(test, per_listener(test, late)).value
    assert plain is not None
    assert warped is not None
    assert warped < plain / 2
    assert MelCepstralDistortion(scorers).measure(test, per_stimulus(test, clip)).value == pytest.approx(0, abs=1e-5)


def test_estoi_equals_pystoi() -> None:
    pystoi = pytest.importorskip("pystoi")
    true = tones(2, 32_000)
    noisy = true + 0.05 * np.random.default_rng(0).normal(size=true.shape).astype(np.float32)
    test = make_test(["a", "b"], true, n_subjects=1)
    found = estoi().measure(test, per_listener(test, noisy))
    expected = np.mean([pystoi.stoi(t, n, 16_000, extended=True) for t, n in zip(true, noisy, strict=True)])
    assert found.value == pytest.approx(expected, abs=1e-5)


def test_any_torchmetrics_audio_metric_by_name() -> None:
    true = tones(3)
    noisy = true + 0.02 * np.random.default_rng(0).normal(size=true.shape).astype(np.float32)
    test = make_test(["a"] * 3, true, n_subjects=1)
    metric = TorchMetricsAudio("ScaleInvariantSignalDistortionRatio")
    assert metric.info.higher_is_better
    found = metric.measure(test, per_listener(test, noisy))
    assert found.value == pytest.approx(float(si_sdr(torch.from_numpy(noisy), torch.from_numpy(true)).mean()), rel=1e-5)
    with pytest.raises(UserError, match="NoSuchRatio"):
        TorchMetricsAudio("NoSuchRatio")


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1_000))
def test_order_of_examples_and_batch_size_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    test = make_test(["a"] * 4, tones(4))
    output = per_listener(test, rng.normal(size=(8, 16_000)).astype(np.float32) * 0.1)
    order = rng.permutation(8)
    for make in (MelCorrelation, MelCepstralDistortion, lambda s: MelCepstralDistortion(s, warped=True)):
        one = make(Scorers(Path())).measure(test, output)
        two = make(Scorers(Path())).measure(test, permuted(output, order))
        assert one.value == pytest.approx(two.value)
        assert one.numerator is not None
        assert two.numerator is not None
        assert np.allclose(one.numerator[order], two.numerator)
    assert output.waveform is not None
    whole = log_mel(torch.from_numpy(output.waveform)).squeeze(1).numpy()
    for batch in (1, 3, 8):
        assert np.allclose(log_mels(output.waveform, batch), whole, atol=1e-5)


def test_every_registered_metric_is_built_and_says_why_it_cannot_run(tmp_path: Path) -> None:
    metrics = build_metrics(MetricsConfig(), tmp_path)
    assert {m.info.name for m in metrics} == set(METRICS)
    test = make_test(["a"] * 3)  # no audio
    output = per_listener(test)
    for metric in metrics:
        found = metric.measure(test, output)
        assert found.value is None
        assert found.reason
    with pytest.raises(UserError, match="nosuch"):
        build_metrics(MetricsConfig(names=("nosuch",)), tmp_path)
