"""EEG from a recording to a batch: preprocessing, and serving windows from the memory-mapped cache."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from data_fixture import recording, sentence_study, sounds

from benchmarks.measure import Comparison, Measure
from benchmarks.sizes import SIZES
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig, preprocess, resample_blocks
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig

SIZE = SIZES.recording
SECONDS = SIZE.minutes * 60
TARGET_HZ = PreprocessingConfig().sfreq
RESAMPLING = f"resampling {SIZE.sfreq:g} to {TARGET_HZ:g} Hz"
FACTS = {"channels": SIZE.channels, "minutes": SIZE.minutes, "sfreq_hz": SIZE.sfreq}


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """(C, T) float32, in V: noise on an offset, as amplifiers give it."""
    shape = (SIZE.channels, round(SECONDS * SIZE.sfreq))
    return 1e-5 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32) + np.float32(1e-3)


@pytest.mark.parametrize("highpass_hz", [None, 0.5])
def test_preprocess(measure: Measure, raw: np.ndarray, highpass_hz: float | None, tmp_path: Path) -> None:
    """Resampled, scaled, and written to the cache."""
    ch_names = [f"E{i}" for i in range(SIZE.channels)]
    heard = recording("one", sounds(), eeg=raw, sfreq=SIZE.sfreq, ch_names=ch_names)
    config, number = PreprocessingConfig(highpass_hz=highpass_hz), count()

    def run() -> None:
        preprocess(heard, config, [(0.0, SECONDS / 2)], tmp_path / str(next(number))).unlink()

    measure(run, unit="recording", signal_s=SECONDS, highpass_hz=highpass_hz, **FACTS)


def test_resample(measure: Measure, raw: np.ndarray) -> None:
    source = recording("one", sounds(), eeg=raw, sfreq=SIZE.sfreq, ch_names=["E"] * SIZE.channels).eeg
    measure(
        lambda: sum(block.shape[1] for _, block in resample_blocks(source, SIZE.sfreq, TARGET_HZ)),
        unit="recording",
        signal_s=SECONDS,
        compare=Comparison(RESAMPLING, "ours"),
        **FACTS,
    )


def test_resample_by_mne(measure: Measure, raw: np.ndarray) -> None:
    """MNE's polyphase resampling: the same filter as ours, in float64."""
    mne = pytest.importorskip("mne", reason="mne is not installed")
    up, down = TARGET_HZ, SIZE.sfreq
    measure(
        lambda: mne.filter.resample(raw.astype(np.float64), up, down, method="polyphase", verbose="error"),
        unit="recording",
        signal_s=SECONDS,
        compare=Comparison(RESAMPLING, "peer"),
        **FACTS,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("study")
    made = sentence_study(folder, n_sentences=100, subjects=("a", "b", "c", "d"), n_channels=64)
    return StudyData.prepare(
        made, folder, PreprocessingConfig(), WindowConfig(), SplitConfig(), folder / "cache", "noise"
    )


@pytest.mark.parametrize("batch", SIZES.serving_batches)
def test_batch(measure: Measure, study: StudyData, batch: int) -> None:
    """Windows picked at random from all recordings, baseline-corrected and clamped, with their log-mels."""
    rows = np.random.default_rng(0).choice(len(study.windows), batch)
    served = measure(
        lambda: study.batch(rows),
        items=batch,
        unit="window",
        signal_s=batch * study.length_s,
        batch=batch,
        channels=study.n_channels,
    )
    assert served.eeg.shape == (batch, 64, study.n_times)
