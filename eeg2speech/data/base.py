"""The contract between a study on disk and everything after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd

SOUND_COLUMNS = ("sound", "onset_s", "duration_s", "path", "offset_s", "sfreq_hz")
"""A row per sound played in a recording: `sound` names it, `onset_s` is recording time, `path` a wav
or an `.npy` feature array (frames, bands) or (frames,) with rate `sfreq_hz` (NaN for a wav), and the
sound starts `offset_s` into that file."""

WORD_COLUMNS = ("word", "onset_s", "duration_s", "sentence")
"""A row per word heard: `onset_s` is recording time, `sentence` a running number within the recording."""


class EEGSource(Protocol):
    """Channels of one recording, read a stretch at a time so that memory does not grow with length."""

    @property
    def n_samples(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """(C, stop - start) float32, volts where the file is calibrated."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """An EEGSource over an array (C, n_samples) in memory or memory-mapped."""

    array: np.ndarray

    @property
    def n_samples(self) -> int:
        return self.array.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.array[:, start:stop], dtype=np.float32)


@dataclass(frozen=True)
class Recording:
    """One continuous recording of one listener, with what was played and when."""

    subject: str
    recording: str
    """Unique within the study."""
    sfreq: float
    """Sampling rate of the EEG in Hz."""
    ch_names: tuple[str, ...]
    positions: np.ndarray
    """(C, 2) in the unit square, as the layout of the montage projects them; NaN where unknown."""
    eeg: EEGSource
    sounds: pd.DataFrame
    """SOUND_COLUMNS."""
    words: pd.DataFrame
    """WORD_COLUMNS; empty where the study has no words."""
    fingerprint: str
    """Hash of the content or of (path, size, modification time) of the EEG: the cache's key."""
    split: str = ""
    """train, valid or test, where the study comes with lists of its own (`splits.by: study`)."""


class SpeechStudy(ABC):
    """Recordings of people who listened to speech.

    Subclasses state what a reader must know before trusting a number from the study, and yield
    recordings one by one. Nothing after this contract may ask whether the study is simulated.
    """

    modality: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]
    consent: ClassVar[str] = "not stated: ask whoever recorded it"
    """What the participants agreed to, as far as a reader of the data is told."""
    source: ClassVar[str] = ""
    """Where to get it."""
    place: ClassVar[str] = ""
    """As `data.repositories.get` takes it; empty where no plain download exists."""
    steps: ClassVar[str] = ""
    """How, in full, where no plain download exists, or besides it; `{to}` stands for the folder."""
    recordings_at: ClassVar[tuple[str, ...]] = ()
    """Patterns, below the root, that the files of recordings match: one or the other release."""
    expected: ClassVar[dict[str, float]] = {}
    """What the whole release holds: subjects, channels, hours."""
    simulated: ClassVar[bool] = False
    isolated_sentences: ClassVar[bool] = False
    """True: windows start at sentence onsets. False: continuous speech, cut every `stride_s`."""
    has_audio: bool = True
    """False: the sounds are feature arrays, so nothing can be listened to or transcribed."""

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Makes the study ready to read: synthesises it, or checks that the user's files are there.

        `folder` is where generated files go. Raises UserError that says exactly which files are
        missing, where they come from and which folder they belong in.
        """

    @abstractmethod
    def subjects(self) -> tuple[str, ...]:
        """Listener names, sorted."""

    @abstractmethod
    def iter_recordings(self) -> Iterator[Recording]:
        """Every recording, in a fixed order, opened lazily."""

    def alignment(self, subject: str) -> pd.DataFrame | None:
        """Where the recorded audio channel has the sounds of a listener, as `data.alignment.alignment` says it.

        None where no recording of the study has such a channel.
        """
        return None
