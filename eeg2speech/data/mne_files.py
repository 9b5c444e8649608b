"""Files that MNE reads: opened or refused, whole, with the channels of a modality and where these lie."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eeg2speech.data.channels import require_inputs
from eeg2speech.data.matrix import layout, plane
from eeg2speech.errors import UserError

if TYPE_CHECKING:
    import mne

EDF_HEADER_BYTES = 256
SAMPLE_BYTES = {".edf": 2, ".bdf": 3}


def open_raw(path: Path, read: Callable[[], mne.io.BaseRaw] | None = None) -> mne.io.BaseRaw:
    """`read()`, by default MNE's reader for the file's suffix; samples are left on disk where the format lets them.

    Raises UserError naming the file where it cannot be read or was cut off.
    """
    import mne
    from scipy.io.matlab import MatReadError

    try:
        raw = read() if read is not None else mne.io.read_raw(path, preload=False, verbose="error")
        raw.get_data(start=raw.n_times - 1, verbose="error")  # several formats notice only here that their end is gone
    except (
        OSError, ValueError, TypeError, RuntimeError, LookupError, EOFError, AttributeError,
        struct.error, zlib.error, MatReadError,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split())
        raise UserError(
            f"{path}: MNE cannot read this EEG ({said}); if it was cut off, copy it again, else convert it to FIF, "
            "EDF or npz"
        ) from error
    for part in [path, *map(Path, filter(None, raw.filenames))]:
        _require_whole(part, raw)
    return raw


def picked(path: Path, raw: mne.io.BaseRaw, modality: str) -> np.ndarray:
    """Indices of the EEG channels, or of the MEG channels where that is the modality.

    Triggers, sound and eyes are left out by their type in the file. Raises UserError where nothing is left, or where
    what is left has the name of a trigger or of sound: a study may name the channels anew after this.
    """
    import mne

    meg = modality.upper() == "MEG"
    picks = mne.pick_types(raw.info, meg=meg, eeg=not meg, ref_meg=False, exclude=[])
    if not len(picks):
        kind = "MEG" if meg else "EEG"
        raise UserError(f"{path}: has no channel of type {kind}; set the channel types in the file, or study.modality")
    require_inputs(path.name, [raw.ch_names[i] for i in picks])
    return picks


def standard_montage(name: str) -> mne.channels.DigMontage:
    """One of MNE's. Raises UserError that lists them."""
    import mne

    known = mne.channels.get_builtin_montages()
    # MNE 1.13 named standard_1020 and the like anew, warns of the old names, and will refuse them.
    now = name if name in known else name.replace("standard_", "colin27_", 1)
    if now not in known:
        raise UserError(f"study.montage: MNE has no {name!r}; choose one of {', '.join(known)}")
    return mne.channels.make_standard_montage(now)


def electrodes(path: Path, montage: mne.channels.DigMontage | None, ch_names: tuple[str, ...]) -> np.ndarray:
    """(C, 2) in the unit square; NaN where the montage lacks a channel. Raises UserError where it lacks all."""
    known = set() if montage is None else set(montage.get_positions()["ch_pos"] or ())
    if montage is None or not known & set(ch_names):
        raise UserError(f"{path}: no position is known for any of {', '.join(ch_names[:4])}...; set study.montage")
    return layout(montage, list(ch_names))


def sensors(path: Path, raw: mne.io.BaseRaw, picks: np.ndarray) -> np.ndarray:
    """(C, 2): MEG sensors, seen from the middle of the sphere that fits them best."""
    xyz = np.array([raw.info["chs"][i]["loc"][:3] for i in picks], dtype=float)
    if not np.isfinite(xyz).all() or np.ptp(xyz, axis=0).min() == 0:
        raise UserError(f"{path}: does not say where its sensors are; convert it with its sensor positions")
    # |xyz - middle|^2 = r^2 is linear in the middle and in r^2 - |middle|^2
    middle = np.linalg.lstsq(np.column_stack([2 * xyz, np.ones(len(xyz))]), (xyz**2).sum(axis=1), rcond=None)[0][:3]
    return plane(xyz - middle)


def _require_whole(path: Path, raw: mne.io.BaseRaw) -> None:
    """Raises UserError where a file is shorter than it says; MNE reads what there is of such a file."""
    suffix, size = path.suffix.lower(), path.stat().st_size if path.exists() else 0
    expected = size
    if suffix in SAMPLE_BYTES:
        expected = _edf_bytes(path) or size
    elif suffix == ".fdt":
        expected = 4 * len(raw.ch_names) * raw.n_times
    elif suffix == ".eeg" and raw.n_times:
        frame = size // raw.n_times  # of all channels; MNE takes as many whole frames as there are
        expected = size if size == frame * raw.n_times else frame * (raw.n_times + 1)
    if size < expected:
        raise UserError(f"{path}: was cut off: it has {size} bytes and says that it has {expected}; copy it again")


def _edf_bytes(path: Path) -> int:
    """What the header of an EDF or BDF file promises; 0 where its number of records was left open."""
    with path.open("rb") as file:
        head = file.read(EDF_HEADER_BYTES)
        n_header, n_records, n_signals = int(head[184:192]), int(head[236:244]), int(head[252:256])
        file.seek(EDF_HEADER_BYTES + 216 * n_signals)
        samples = sum(int(file.read(8)) for _ in range(n_signals))
    return n_header + n_records * samples * SAMPLE_BYTES[path.suffix.lower()] if n_records > 0 else 0
