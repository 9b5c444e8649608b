"""Edited copies are found; other sentences, even of the same words and voice, are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from data_fixture import sentence_study
from scipy.signal import resample_poly

from eeg2speech import audio
from eeg2speech.data.duplicates import AT_ONCE, CHECK, alike, prints
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.speech_corpus import SLOTS, synthesise
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError


def log_mel(waveforms: list[np.ndarray]) -> np.ndarray:
    padded = np.stack([np.pad(w[:48_000], (0, max(0, 48_000 - len(w)))) for w in waveforms]).astype(np.float32)
    return audio.log_mel(torch.from_numpy(padded)).squeeze(1).transpose(1, 2).numpy()


def with_noise(waveform: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(waveform))
    return waveform + 0.01 * np.sqrt(np.mean(waveform**2)) * noise


def as_ogg(waveform: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, waveform, 16_000, format="OGG", subtype="VORBIS")
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gain 0.5": lambda w: 0.5 * w,
    "1 sample": lambda w: w[1:],
    "5 ms": lambda w: np.pad(w, (80, 0)),
    "70 ms": lambda w: np.pad(w, (1120, 0)),
    "noise 40 dB": with_noise,
    "32 kHz": lambda w: resample_poly(resample_poly(w, 2, 1), 1, 2),
    "OGG": as_ogg,
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Forty sentences in one voice, each of which differs from nine others in one word."""
    pytest.importorskip("hibari")
    head = [" ".join(words[k] for words in list(SLOTS.values())[:4]) for k in range(4)]
    texts = [f"{start} {last}" for start in head for last in SLOTS["object"]]
    folder = tmp_path_factory.mktemp("read")
    with ThreadPoolExecutor(2) as pool:
        made = synthesise(texts, 0, folder, pool)
    return [soundfile.read(folder / name, dtype="float32")[0] for name in made["path"]]


def test_sentences_that_differ_in_one_word_are_not_alike(read: list[np.ndarray]) -> None:
    mel, rows = log_mel(read), np.arange(len(read))
    assert alike(mel, rows, rows) == [(k, k) for k in rows]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_is_alike_and_nothing_else_is(read: list[np.ndarray], edit: str) -> None:
    mel, rows = log_mel([*read, *map(EDITS[edit], read)]), np.arange(len(read))
    assert alike(mel, rows, rows + len(read)) == [(k, k + len(read)) for k in rows]


def test_silence_and_short_sounds_are_like_nothing() -> None:
    rng = np.random.default_rng(0)
    hiss = 1e-3 * rng.standard_normal(48_000)
    click = np.zeros(48_000)
    click[:1600] = rng.standard_normal(1600)
    mel = log_mel([np.zeros(48_000), np.zeros(48_000), click, click, hiss, hiss])
    assert alike(mel, np.array([0, 2, 4]), np.array([1, 3, 5])) == [(4, 5)], "noise that is equal is a copy"
    assert not prints(mel[:4]).any()


def test_blocks_are_all_compared() -> None:
    mel = np.random.default_rng(0).normal(0, 2, (AT_ONCE + 3, 64, 60)).astype(np.float32)
    mel[-1] = mel[1] + 1.5
    train, held = np.arange(AT_ONCE + 2), np.array([AT_ONCE + 2])
    assert alike(mel, train, held) == [(1, AT_ONCE + 2)]
    assert alike(mel, held, train) == [(AT_ONCE + 2, 1)]


def test_a_study_with_copies_under_other_names_is_refused(tmp_path: Path) -> None:
    study, parts = sentence_study(tmp_path), (PreprocessingConfig(), WindowConfig(), SplitConfig())
    data = StudyData.prepare(study, tmp_path / "study", *parts, tmp_path / "cache")
    assert next(f for f in data.audit if f.check == CHECK).passed
    split = dict(zip(data.stimuli["sound"], data.stimuli["split"], strict=True))
    train, test = (next(name for name, s in split.items() if s == part) for part in ("train", "test"))
    waveform, _ = soundfile.read(tmp_path / f"{train}.wav")
    soundfile.write(tmp_path / f"{test}.wav", 0.9 * waveform, 16_000)
    with pytest.raises(UserError, match=rf"leaks: near-duplicate audio \(1 cases, such as {train} and {test}\)"):
        StudyData.prepare(study, tmp_path / "study", *parts, tmp_path / "cache2")
