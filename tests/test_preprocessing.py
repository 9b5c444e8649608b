"""Resampling, scaling, baseline and clamp against scipy, numpy and closed forms."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from data_fixture import recording, sounds
from scipy.signal import resample_poly

from eeg2speech.data.base import ArraySource
from eeg2speech.data.preprocessing import (
    PreprocessingConfig,
    Scaler,
    baseline_and_clamp,
    highpass,
    merged,
    preprocess,
    resample_blocks,
    resampled_length,
)
from eeg2speech.errors import UserError

CONFIG = PreprocessingConfig()
NOTHING = sounds(("s", 0.0, 1.0, "", 0.0, np.nan))


def joined(eeg: np.ndarray, sfreq: float, block_s: float) -> np.ndarray:
    out = np.full((len(eeg), resampled_length(eeg.shape[1], sfreq, 120.0)), np.nan, dtype=np.float32)
    for start, block in resample_blocks(ArraySource(eeg), sfreq, 120.0, block_s):
        assert np.isnan(out[:, start : start + block.shape[1]]).all(), "blocks must not overlap"
        out[:, start : start + block.shape[1]] = block
    return out


@pytest.mark.parametrize(
    ("sfreq", "up", "down"), [(500, 6, 25), (128, 15, 16), (64, 15, 8), (120, 1, 1), (512, 15, 64)]
)
@pytest.mark.parametrize("block_s", [0.5, 3.7, 1000.0])
def test_blocks_join_to_the_resampled_whole(sfreq: int, up: int, down: int, block_s: float) -> None:
    eeg = np.random.default_rng(0).standard_normal((3, 12 * sfreq + 7)).astype(np.float32)
    whole = resample_poly(eeg - eeg[:, :1], up, down, axis=1, padtype="edge")
    np.testing.assert_allclose(joined(eeg, sfreq, block_s), whole, atol=2e-6)


def test_a_sine_stays_a_sine() -> None:
    slow, fast = np.arange(64 * 30) / 64, np.arange(120 * 30) / 120
    out = joined(np.sin(2 * np.pi * 7 * slow)[None].astype(np.float32), 64, 5.0)[0]
    inner = slice(120, -120)
    np.testing.assert_allclose(out[inner], np.sin(2 * np.pi * 7 * fast)[inner], atol=5e-3)


def test_a_large_offset_leaves_no_ripple() -> None:
    """Polyphase branches differ in gain at 0 Hz: a 0.1 V offset would leave more than the EEG itself."""
    out = joined(np.full((1, 500 * 20), 0.1, dtype=np.float32), 500, 4.0)
    assert np.abs(out).max() < 1e-9


def test_scaler_is_the_quartiles_of_the_fit_intervals_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    eeg = (rng.standard_normal((2, 120 * 40)) * [[3.0], [0.2]] + [[5.0], [-1.0]]).astype(np.float32)
    intervals = [(2.0, 5.0), (4.0, 7.0), (20.0, 23.0)]
    inside = np.zeros(eeg.shape[1], dtype=bool)
    for start, stop in intervals:
        inside[round(start * 120) : round(stop * 120)] = True
    spoiled = np.where(inside, eeg, 1e6 * rng.random(eeg.shape)).astype(np.float32)
    spoiled[:, 0] = eeg[:, 0]
    for number, values in enumerate((eeg, spoiled)):
        source = recording(f"r{number}", NOTHING, eeg=values)
        path = preprocess(source, CONFIG, intervals, tmp_path)
        q25, q50, q75 = np.quantile(values[:, inside].astype(np.float64), (0.25, 0.5, 0.75), axis=1)
        expected = (values - q50[:, None]) / (q75 - q25)[:, None]
        np.testing.assert_allclose(np.load(path), expected, rtol=1e-4, atol=1e-4)
        scaler = Scaler.load(path)
        np.testing.assert_allclose(scaler.iqr, q75 - q25, rtol=1e-5)
        assert scaler.fit_intervals == ((2.0, 7.0), (20.0, 23.0))
    assert json.loads(path.with_suffix(".json").read_text())["ch_names"] == ["Cz", "Pz"]


def test_flat_channel_is_left_undivided(tmp_path: Path) -> None:
    eeg = np.stack([np.full(1200, 0.03), np.random.default_rng(0).standard_normal(1200)]).astype(np.float32)
    path = preprocess(recording("r", NOTHING, eeg=eeg, sfreq=500.0), CONFIG, [(0.5, 2.0)], tmp_path)
    assert np.all(np.load(path)[0] == 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_name_recording_and_channel(tmp_path: Path, bad: float) -> None:
    eeg = np.random.default_rng(0).standard_normal((2, 1200)).astype(np.float32)
    eeg[1, 700] = bad
    with pytest.raises(UserError, match="recording night7: channel Pz has"):
        preprocess(recording("night7", NOTHING, eeg=eeg), CONFIG, [(0.0, 2.0)], tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()], "nothing half-made may stay"


def test_nothing_to_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recording r: no training window"):
        preprocess(recording("r", NOTHING), CONFIG, [], tmp_path)


@dataclass(frozen=True)
class Unreadable:
    n_samples: int

    def read(self, start: int, stop: int) -> np.ndarray:
        raise AssertionError("the cache must answer")


def test_second_call_reads_nothing_and_other_parameters_do(tmp_path: Path) -> None:
    source = recording("r", NOTHING, duration_s=20.0)
    intervals = [(1.0, 4.0)]
    first = preprocess(source, CONFIG, intervals, tmp_path)
    closed = replace(source, eeg=Unreadable(source.eeg.n_samples))
    assert preprocess(closed, CONFIG, intervals, tmp_path) == first
    assert preprocess(closed, PreprocessingConfig(clamp=5.0, shift_s=0.0), intervals, tmp_path) == first
    others = [
        preprocess(source, CONFIG, [(1.0, 4.5)], tmp_path),
        preprocess(source, PreprocessingConfig(sfreq=60.0), intervals, tmp_path),
        preprocess(source, PreprocessingConfig(highpass_hz=0.5), intervals, tmp_path),
        preprocess(replace(source, fingerprint="edited"), CONFIG, intervals, tmp_path),
    ]
    assert len({first, *others}) == 5


def test_pooled_scaler_is_the_median_over_recordings(tmp_path: Path) -> None:
    scalers = [Scaler(("Cz", "Pz"), (float(k), 0.0), (1.0 + k, 2.0), ()) for k in (0, 1, 5)]
    pooled = Scaler.pooled([*scalers, Scaler(("Oz",), (7.0,), (3.0,), ())])
    assert pooled == Scaler(("Cz", "Pz", "Oz"), (1.0, 0.0, 7.0), (2.0, 2.0, 3.0), ())
    eeg = np.random.default_rng(0).standard_normal((2, 600)).astype(np.float32)
    path = preprocess(recording("unseen", NOTHING, eeg=eeg), CONFIG, [], tmp_path, pooled)
    np.testing.assert_allclose(np.load(path), (eeg - eeg[:, :1] - [[1.0], [0.0]]) / 2.0, atol=1e-6)
    assert Scaler.load(path).fit_intervals == ()


def test_highpass_passes_10_hz_and_stops_drift() -> None:
    time = np.arange(120 * 60) / 120
    wave = np.sin(2 * np.pi * 10 * time)
    out = highpass(wave + 5.0 + 10 * np.sin(2 * np.pi * 0.02 * time), 0.5, 120.0)
    inner = slice(120 * 10, -120 * 10)
    np.testing.assert_allclose(out[inner], wave[inner], atol=0.02)


def test_filter_edge_covers_what_a_sample_reaches() -> None:
    """An impulse must not spread farther than the audit is told."""
    config = PreprocessingConfig(highpass_hz=1.0)
    for sfreq in (64, 500):
        eeg = np.zeros((1, 40 * sfreq), dtype=np.float32)
        eeg[0, 20 * sfreq] = 1.0
        out = highpass(joined(eeg, sfreq, 7.0)[0], 1.0, 120.0)
        touched = np.flatnonzero(np.abs(out) > 1e-6) / 120
        assert config.edge_s(sfreq) - 0.1 < np.abs(touched - 20.0).max() <= config.edge_s(sfreq) + 1 / 120
    assert PreprocessingConfig().edge_s(120.0) == 0.0


def test_baseline_and_clamp_by_hand() -> None:
    eeg = np.array([[[1.0, 3.0, 4.0, 90.0, -90.0]], [[0.0, 6.0, 4.0, 5.0, 6.0]], [[0.0, 0.0, 4.0, 5.0, 6.0]]])
    out = baseline_and_clamp(eeg, 2, np.array([2, 1, 0]), clamp=20.0)
    assert out.tolist() == [[[2.0, 20.0, -20.0]], [[-2.0, -1.0, 0.0]], [[4.0, 5.0, 6.0]]]


def test_intervals_merge() -> None:
    assert merged([(5, 6), (1, 3), (2, 4), (4, 4.5)]) == [(1.0, 4.5), (5.0, 6.0)]


@dataclass(frozen=True)
class Synthesised:
    """EEG made as it is read: an hour of it is never in memory."""

    n_channels: int
    n_samples: int

    def read(self, start: int, stop: int) -> np.ndarray:
        phase = np.arange(start, stop, dtype=np.float32) * np.float32(0.1)
        return np.sin(phase + np.arange(self.n_channels, dtype=np.float32)[:, None])


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    ch_names = [f"E{i}" for i in range(16)]
    source = replace(
        recording("r", NOTHING, ch_names=ch_names, duration_s=1.0), sfreq=250.0, eeg=Synthesised(16, 250 * 60 * 40)
    )
    tracemalloc.start()
    try:
        path = preprocess(source, CONFIG, [(10.0, 13.0)], tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.load(path, mmap_mode="r").nbytes > 18e6
    assert peak < 8e6
