"""EEG on disk, read a stretch at a time."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eeg2speech.errors import UserError

if TYPE_CHECKING:
    import mne


@dataclass(frozen=True)
class NpzSource:
    """An EEGSource over an array of an npz; the array is read when first asked for."""

    path: Path
    array: str
    samples_first: bool

    @cached_property
    def _shape(self) -> tuple[int, int]:
        """(C, n_samples), from the file's header alone."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.array}.npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, _ = read(file)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.path}: array {self.array!r} cannot be read ({error}); see study.eeg_array"
            ) from error
        if len(shape) != 2:
            raise UserError(f"{self.path}: {self.array} has shape {shape}, not (channels, samples); re-export it")
        return (shape[1], shape[0]) if self.samples_first else (shape[0], shape[1])

    @property
    def n_channels(self) -> int:
        return self._shape[0]

    @property
    def n_samples(self) -> int:
        return self._shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        whole = npz_array(self.path, self.array)
        part = whole[start:stop].T if self.samples_first else whole[:, start:stop]
        return np.ascontiguousarray(part, dtype=np.float32)


@dataclass(frozen=True)
class MneSource:
    """An EEGSource over picked channels of a file MNE reads."""

    raw: mne.io.BaseRaw
    picks: np.ndarray

    @property
    def n_samples(self) -> int:
        return int(self.raw.n_times)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.raw.get_data(picks=self.picks, start=start, stop=stop).astype(np.float32)


@lru_cache(maxsize=4)
def npz_array(path: Path, array: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[array]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: array {array!r} cannot be read ({error}); check the name in the study's config"
        ) from error


@dataclass(frozen=True)
class RowsSource:
    """An EEGSource over some rows of an array (channels, n_samples), times a factor that makes volts of its unit."""

    array: np.ndarray
    rows: np.ndarray
    factor: float

    @property
    def n_samples(self) -> int:
        return self.array.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        part = self.array[:, start:stop][self.rows]
        return (part * np.float32(self.factor)).astype(np.float32, copy=False)
