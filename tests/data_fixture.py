"""Small studies whose every sample is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from eeg2speech.data.base import SOUND_COLUMNS, WORD_COLUMNS, ArraySource, Recording, SpeechStudy


def sounds(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(SOUND_COLUMNS))


def words(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(WORD_COLUMNS))


def recording(
    name: str,
    heard: pd.DataFrame,
    spoken: pd.DataFrame | None = None,
    *,
    subject: str = "",
    eeg: np.ndarray | None = None,
    sfreq: float = 120.0,
    ch_names: Sequence[str] = ("Cz", "Pz"),
    duration_s: float | None = None,
) -> Recording:
    """Noise of its own per name, long enough for every sound, unless `eeg` is given."""
    if eeg is None:
        length_s = duration_s or float((heard["onset_s"] + heard["duration_s"]).max()) + 2.0
        rng = np.random.default_rng([ord(letter) for letter in name])
        eeg = rng.standard_normal((len(ch_names), round(length_s * sfreq))).astype(np.float32)
    return Recording(
        subject=subject or name,
        recording=name,
        sfreq=sfreq,
        ch_names=tuple(ch_names),
        positions=np.linspace(0.1, 0.9, 2 * len(ch_names), dtype=np.float32).reshape(-1, 2),
        eeg=ArraySource(eeg),
        sounds=heard,
        words=words() if spoken is None else spoken,
        fingerprint=f"{name}-{float(eeg.sum())}",
    )


def write_noise(folder: Path, name: str, duration_s: float, seed: int) -> str:
    """A wav of noise at 16 kHz."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.wav"
    soundfile.write(path, 0.05 * np.random.default_rng(seed).standard_normal(round(duration_s * 16_000)), 16_000)
    return str(path)


def write_envelope(folder: Path, name: str, duration_s: float, seed: int, rate: float = 64.0) -> str:
    """A feature array (frames,) of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npy"
    np.save(path, np.random.default_rng(seed).random(round(duration_s * rate), dtype=np.float32))
    return str(path)


class ListedStudy(SpeechStudy):
    """A study over recordings made by the test."""

    modality: ClassVar[str] = "EEG"
    licence: ClassVar[str] = "none"
    citation: ClassVar[str] = "none"

    def __init__(self, recordings: Sequence[Recording], isolated: bool = False) -> None:
        self.recordings = list(recordings)
        self.isolated_sentences = isolated  # type: ignore[misc]

    def prepare(self, folder: Path) -> None:
        """Everything is in memory."""

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({r.subject for r in self.recordings}))

    def iter_recordings(self) -> Iterator[Recording]:
        yield from self.recordings


def sentence_study(
    folder: Path, n_sentences: int = 40, subjects: Sequence[str] = ("ann", "bob"), n_channels: int = 2
) -> ListedStudy:
    """Isolated sentences of 2 s, 3.8 s from onset to onset, in another order for each listener."""
    paths = [write_noise(folder, f"s{i}", 2.0, i) for i in range(n_sentences)]
    recordings = []
    for number, subject in enumerate(subjects):
        order = np.random.default_rng(number).permutation(n_sentences)
        onsets = 1.0 + 3.8 * np.arange(n_sentences)
        heard = sounds(*((f"s{i}", t, 2.0, paths[i], 0.0, np.nan) for i, t in zip(order, onsets, strict=True)))
        spoken = words(
            *((f"w{i}.{k}", t + 0.4 * k, 0.4, i) for i, t in zip(order, onsets, strict=True) for k in range(5))
        )
        ch_names = [f"E{c}" for c in range(n_channels)]
        recordings.append(recording(subject, heard, spoken, ch_names=ch_names))
    return ListedStudy(recordings, isolated=True)


def story_study(folder: Path, duration_s: float = 300.0, subjects: Sequence[str] = ("ann", "bob")) -> ListedStudy:
    """One continuous story without audio: sentences of eight words, 4 s each."""
    path = write_envelope(folder, "story", duration_s, 0)
    starts = np.arange(0.0, duration_s - 0.5, 0.5)
    recordings = []
    for lead_s, subject in enumerate(subjects, start=1):
        spoken = words(*((f"w{k}", lead_s + t, 0.5, k // 8) for k, t in enumerate(starts)))
        recordings.append(recording(subject, sounds(("story", float(lead_s), duration_s, path, 0.0, 64.0)), spoken))
    return ListedStudy(recordings)
