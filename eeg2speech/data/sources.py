"""EEG on disk, read a stretch at a time."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eeg2speech.data.base import EEGSource
from eeg2speech.data.matlab import mat_shape, read_mat
from eeg2speech.errors import UserError
from eeg2speech.files import digest

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


def has_array(path: Path, array: str) -> bool:
    """Raises UserError where `path` is no npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{array}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no npz that can be read ({error}); write it again by numpy.savez") from error


def npz_number(path: Path, array: str) -> float:
    """An array of one value. Raises UserError naming file and array."""
    values = npz_array(path, array)
    if values.size != 1 or not np.issubdtype(values.dtype, np.number):
        raise UserError(f"{path}: {array} holds {values.dtype} {values.shape}, not one number; write one")
    return float(values.item())


def npz_names(path: Path, array: str) -> tuple[str, ...]:
    """An array of strings. Raises UserError naming file and array."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = archive[array]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {array} cannot be read ({error}); write numpy.array(names, dtype=str)") from error
    if values.ndim != 1 or values.dtype.kind != "U":
        raise UserError(f"{path}: {array} holds {values.dtype} {values.shape}, not a row of strings; write one")
    return tuple(map(str, values))


@dataclass(frozen=True)
class MatSource:
    """An EEGSource over an array (n_samples, channels) of a MATLAB file; the array is read when first asked for."""

    path: Path
    array: str
    factor: float
    reference: str = ""
    """An array (n_samples, n) of the same file, whose mean is subtracted."""

    @cached_property
    def _shape(self) -> tuple[int, int]:
        """(n_samples, channels), from the file's header alone."""
        shape = mat_shape(self.path, self.array)
        if len(shape) != 2:
            raise UserError(f"{self.path}: {self.array} has shape {shape}, not (samples, channels); get the file again")
        return shape[0], shape[1]

    @property
    def n_channels(self) -> int:
        return self._shape[1]

    @property
    def n_samples(self) -> int:
        return self._shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        part = mat_array(self.path, self.array)[start:stop]
        if self.reference:
            part = part - mat_array(self.path, self.reference)[start:stop].mean(axis=1, keepdims=True)
        return np.ascontiguousarray(part.T * np.float32(self.factor), dtype=np.float32)


@lru_cache(maxsize=8)
def mat_array(path: Path, array: str) -> np.ndarray:
    """(rows, columns) float32. Raises UserError naming the file and the array."""
    values = np.asarray(read_mat(path, array)[array])
    if values.ndim not in (1, 2) or not np.issubdtype(values.dtype, np.number):
        raise UserError(f"{path}: {array} is no matrix of numbers; get the file again")
    return (values[:, None] if values.ndim == 1 else values).astype(np.float32)


@dataclass(frozen=True)
class AverageReferenced:
    """An EEGSource less the mean of its channels."""

    source: EEGSource

    @property
    def n_samples(self) -> int:
        return self.source.n_samples

    def read(self, start: int, stop: int) -> np.ndarray:
        part = self.source.read(start, stop)
        return part - part.mean(axis=0, keepdims=True)


def fingerprint(*paths: Path) -> str:
    """Of where files are, how long and how old: what they hold is not read."""
    states = [(str(path.resolve()), path.stat()) for path in paths if path.exists()]
    return digest([(name, state.st_size, state.st_mtime_ns) for name, state in states])


@dataclass(frozen=True)
class RowsSource:
    """An EEGSource over some rows of an `.npy` (channels, n_samples), times a factor that makes volts of its unit.

    The file is mapped for each stretch anew: what stays mapped stays in memory, of all recordings together.
    """

    path: Path
    rows: np.ndarray
    factor: float

    @cached_property
    def n_samples(self) -> int:
        return int(np.load(self.path, mmap_mode="r").shape[1])

    def read(self, start: int, stop: int) -> np.ndarray:
        part = np.load(self.path, mmap_mode="r")[:, start:stop][self.rows]
        return (part * np.float32(self.factor)).astype(np.float32, copy=False)
