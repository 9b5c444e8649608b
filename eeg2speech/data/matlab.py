"""MATLAB files, v5 and v7.3 alike, and FieldTrip's raw structure as an array that is read a stretch at a time."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest, new_array, write_atomically


def read_mat(path: Path, *names: str) -> dict[str, Any]:
    """The named variables; structures come as dicts. Raises UserError naming the file and what it lacks."""
    import pymatreader

    with _readable(path):
        values = pymatreader.read_mat(path, variable_names=list(names))
    lacking = [name for name in names if name not in values]
    if lacking:
        raise UserError(f"{path}: holds no variable {', '.join(lacking)}; is it a file of this study?")
    return values


def mat_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of a variable as MATLAB sees it, without reading it. Raises UserError as `read_mat` does."""
    import h5py
    from scipy.io import whosmat

    with _readable(path):
        try:
            shapes = {found: shape for found, shape, _ in whosmat(path)}
        except NotImplementedError:  # v7.3: HDF5, with the axes reversed
            with h5py.File(path, "r") as file:
                shapes = {found: tuple(reversed(file[found].shape)) for found in file if hasattr(file[found], "shape")}
    if name not in shapes:
        raise UserError(f"{path}: holds no variable {name}; is it a file of this study?")
    return tuple(shapes[name])


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the readers raise of a file that is none, or was cut off, as a UserError that names it."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, EOFError, struct.error, zlib.error, MatReadError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: no MATLAB file that can be read ({said}); download it again") from error


def field(values: Any, path: Path, *keys: str) -> Any:
    """values[key][key]...; raises UserError naming the file and the field that is not there."""
    for depth, key in enumerate(keys):
        if not isinstance(values, Mapping) or key not in values:
            raise UserError(f"{path}: has no field {'.'.join(keys[: depth + 1])}; is it a file of this study?")
        values = values[key]
    return values


@dataclass(frozen=True)
class FieldTripRaw:
    """A continuous recording that FieldTrip saved (ft_datatype_raw with one trial)."""

    sfreq: float
    labels: tuple[str, ...]
    data: Path
    """An `.npy` (channels, samples) float32, in the unit of the file."""


def open_fieldtrip(path: Path, variable: str, folder: Path) -> FieldTripRaw:
    """A v5 file can only be read whole: what it holds is written once to `folder`, and read from there.

    Raises UserError naming file and field where it is not one continuous trial that starts with sample 1.
    """
    state = path.stat()
    copy = folder / f"{path.stem}-{digest([str(path.resolve()), state.st_size, state.st_mtime_ns])}.npy"
    about = copy.with_suffix(".json")
    if not (copy.exists() and about.exists()):
        raw = _structure(path, variable)
        data = _only_trial(field(raw, path, "trial"), path)
        labels = [str(np.ravel(label)[0]) for label in np.ravel(np.asarray(field(raw, path, "label"), dtype=object))]
        if data.ndim != 2 or len(data) != len(labels):
            raise UserError(f"{path}: trial has shape {data.shape} for {len(labels)} labels; download the file again")
        first = np.ravel(raw.get("sampleinfo", [1]))
        if len(first) and first[0] != 1:
            raise UserError(f"{path}: sampleinfo starts at {first[0]:g}, not 1; give the whole recording, not a part")
        sfreq = float(np.ravel(field(raw, path, "fsample"))[0])
        with atomic_path(copy) as partial:
            out = new_array(partial, data.shape)
            out[:] = data
            out.flush()
        write_atomically(about, json.dumps({"sfreq": sfreq, "labels": labels}))
    stored = json.loads(about.read_text(encoding="utf-8"))
    return FieldTripRaw(stored["sfreq"], tuple(stored["labels"]), copy)


def _structure(path: Path, variable: str) -> Mapping[str, Any]:
    """Fields of a structure, by scipy where the file is v5: pymatreader copies every array once more."""
    from scipy.io import loadmat

    with _readable(path):
        try:
            found = loadmat(path, variable_names=[variable]).get(variable)
        except NotImplementedError:  # v7.3
            found = None
    if isinstance(found, np.ndarray) and found.dtype.names and found.size == 1:
        return {name: found.ravel()[0][name] for name in found.dtype.names}
    values = read_mat(path, variable)[variable]
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: {variable} is no structure; is it a file of this study?")
    return values


def _only_trial(trial: Any, path: Path) -> np.ndarray:
    """`trial` is a cell array; of one cell the readers make a list, an object array or the array itself."""
    if isinstance(trial, list) or (isinstance(trial, np.ndarray) and trial.dtype == object):
        cells = list(np.ravel(np.asarray(trial, dtype=object))) if isinstance(trial, np.ndarray) else trial
        if len(cells) != 1:
            raise UserError(f"{path}: holds {len(cells)} trials; a continuous recording is one")
        return np.asarray(cells[0])
    return np.asarray(trial)
