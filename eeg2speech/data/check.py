"""Is a folder the study that it should be? Every recording is read, and compared with what is known of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eeg2speech.data.alignment import HEARD
from eeg2speech.data.base import Recording, SpeechStudy
from eeg2speech.data.preprocessing import BLOCK_S
from eeg2speech.errors import MissingFiles, UserError

SLACK_S = 0.1
"""Sounds and words may reach this far over an end before that counts."""
COLUMNS = (
    "subject", "recording", "channels", "sfreq_hz", "minutes", "sounds", "heard_min", "words", "lag_ms", "heard",
)  # fmt: skip
"""`lag_ms`: how far the recorded audio channel has the worst sound from its onset; `heard`: how many sounds it has."""


@dataclass
class Checked:
    """What was found."""

    recordings: list[dict[str, Any]] = field(default_factory=list)
    """COLUMNS."""
    faults: list[str] = field(default_factory=list)
    """What is wrong, with the file or recording."""
    missing: list[str] = field(default_factory=list)
    """Files that are not there."""
    notes: list[str] = field(default_factory=list)
    """What is otherwise than in the whole release, or cannot be checked."""

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.recordings, columns=list(COLUMNS))


def check(config: Any) -> Checked:
    """Reads every recording of the study that `config` (its config class) describes; nothing is left on disk.

    Listeners are checked one by one where the config can select them, so that one fault hides no other.
    """
    found = Checked()
    try:
        study: SpeechStudy = config.build()
        subjects: tuple[str | None, ...] = study.subjects()
    except UserError as error:
        found.faults.append(str(error))
        return found
    if "subjects" not in type(config).model_fields:
        subjects = (None,)
    for subject in subjects:
        one = config if subject is None else config.model_copy(update={"subjects": (subject,)})
        with tempfile.TemporaryDirectory() as folder:
            try:
                _check_listener(one.build(), subject, Path(folder), found)
            except MissingFiles as error:
                found.missing += [name for name in error.files if name not in found.missing]
            except UserError as error:
                if str(error) not in found.faults:
                    found.faults.append(str(error))
    found.notes += _compared(found.table, study)
    return found


def _check_listener(study: SpeechStudy, subject: str | None, folder: Path, found: Checked) -> None:
    study.prepare(folder)
    rows = []
    for recording in study.iter_recordings():
        rows.append(_row(recording))
        scan = _scan(recording)
        faults = _sample_faults(recording, scan) + _sound_faults(recording) + _word_faults(recording)
        found.faults += [f"{recording.recording}: {said}" for said in faults]
        found.notes += [f"{recording.recording}: {said}" for said in _odd(recording, scan.moving)]
    aligned = None if subject is None else study.alignment(subject)
    if aligned is not None and len(aligned):
        known = aligned[aligned["correlation"] >= HEARD]
        for row in rows:
            row["lag_ms"] = 1000 * known["lag_s"].abs().max() if len(known) else np.nan
            row["heard"] = f"{len(known)} of {len(aligned)}"
    found.recordings += rows


def _row(recording: Recording) -> dict[str, Any]:
    values = (
        recording.subject, recording.recording, len(recording.ch_names), recording.sfreq,
        recording.eeg.n_samples / recording.sfreq / 60, len(recording.sounds),
        recording.sounds["duration_s"].sum() / 60, len(recording.words), np.nan, "",
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class _Scan:
    """What one reading of all samples says of each channel."""

    bad: np.ndarray
    """(C,) how many values are no numbers."""
    first_s: float
    """When the first of them is; inf where there is none."""
    moving: np.ndarray
    """(C,) bool: not constant."""


def _scan(recording: Recording) -> _Scan:
    """Reads the recording once, a minute at a time."""
    from tqdm import tqdm

    total, step = recording.eeg.n_samples, max(1, round(BLOCK_S * recording.sfreq))
    bad, first = np.zeros(len(recording.ch_names), dtype=int), np.inf
    low, high = np.full(len(bad), np.inf), np.full(len(bad), -np.inf)
    for start in tqdm(range(0, total, step), recording.recording, unit="min", leave=False, disable=None):
        eeg = recording.eeg.read(start, min(total, start + step))
        lost = ~np.isfinite(eeg)
        if lost.any():
            bad += lost.sum(axis=1)
            first = min(first, start + int(lost.any(axis=0).argmax()))
        low = np.minimum(low, np.where(lost, np.inf, eeg).min(axis=1))
        high = np.maximum(high, np.where(lost, -np.inf, eeg).max(axis=1))
    return _Scan(bad, first / recording.sfreq, high > low)


def _sample_faults(recording: Recording, scan: _Scan) -> list[str]:
    """Values that are no numbers, and recordings in which nothing moves."""
    faults = []
    if scan.bad.any():
        names = [name for name, n in zip(recording.ch_names, scan.bad, strict=True) if n]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        faults.append(
            f"{scan.bad.sum()} values are no numbers, the first at {scan.first_s:.2f} s, in channel "
            f"{', '.join(names[:3])}{more}; interpolate or drop it"
        )
    if not scan.moving.any():
        faults.append("every channel is constant; is it the right file, and whole?")
    return faults


def _sound_faults(recording: Recording) -> list[str]:
    """Sounds outside of the recording, or two at a time."""
    if recording.sounds.empty:
        return ["no sound was heard in it; see its events or manifest"]
    faults = []
    lasts_s = recording.eeg.n_samples / recording.sfreq
    sounds = recording.sounds.sort_values("onset_s", kind="stable")
    begins, ends = sounds["onset_s"].to_numpy(float), (sounds["onset_s"] + sounds["duration_s"]).to_numpy(float)
    for name, begin, end in zip(sounds["sound"], begins, ends, strict=True):
        if begin < -SLACK_S or end > lasts_s + SLACK_S:
            faults.append(f"{name} plays from {begin:.2f} to {end:.2f} s, the EEG lasts {lasts_s:.2f} s; check onsets")
    for k in np.flatnonzero(begins[1:] < ends[:-1] - SLACK_S):
        pair = " and ".join(sounds["sound"].iloc[[k, k + 1]])
        faults.append(f"{pair} overlap by {ends[k] - begins[k + 1]:.2f} s; check their onsets")
    return faults


def _word_faults(recording: Recording) -> list[str]:
    """Words that last no time, or are heard where no sound plays."""
    words, sounds = recording.words, recording.sounds
    faults = []
    if len(words) and (words["duration_s"] <= 0).any():
        odd = words[words["duration_s"] <= 0].iloc[0]
        faults.append(f"the word {odd['word']!r} at {odd['onset_s']:.2f} s lasts {odd['duration_s']:.3f} s; correct it")
    onset = words["onset_s"].to_numpy(float)[:, None]
    begins, lasts = sounds["onset_s"].to_numpy(float), sounds["duration_s"].to_numpy(float)
    spoken = ((onset >= begins - SLACK_S) & (onset <= begins + lasts + SLACK_S)).any(axis=1)
    if not spoken.all():
        odd = words[~spoken].iloc[0]
        what = f"{odd['word']!r} at {odd['onset_s']:.2f} s"
        faults.append(f"{np.count_nonzero(~spoken)} of {len(words)} words fall where no sound plays, such as {what}")
    return faults


def _odd(recording: Recording, moving: np.ndarray) -> list[str]:
    """What need not be wrong: dead channels, channels without a place."""
    notes = []
    flat = [name for name, moves in zip(recording.ch_names, moving, strict=True) if not moves]
    if flat and moving.any():
        notes.append(f"{len(flat)} channels are constant: {', '.join(flat[:5])}")
    lost = [n for n, xy in zip(recording.ch_names, recording.positions, strict=True) if not np.isfinite(xy).all()]
    if lost:
        notes.append(f"{len(lost)} of {len(recording.ch_names)} channels have no position: {', '.join(lost[:5])}")
    if len(recording.sounds) and recording.words.empty:
        notes.append("no words: blocks are cut by time, and nothing can be said about words")
    return notes


def _compared(table: pd.DataFrame, study: SpeechStudy) -> list[str]:
    """Against the whole release, and recordings against each other."""
    if table.empty:
        return []
    counts = {
        "subjects": float(table["subject"].nunique()),
        "channels": float(table["channels"].max()),
        "hours": float(table["minutes"].sum() / 60),
    }
    notes = [
        f"{name}: {counts[name]:.3g} here, {study.expected[name]:.3g} in the whole release"
        for name in counts
        if name in study.expected and abs(counts[name] / study.expected[name] - 1) > 0.02
    ]
    for name in ("channels", "sfreq_hz"):
        values = table[name].value_counts()
        if len(values) > 1:
            odd = table[table[name] != values.index[0]]["recording"]
            notes.append(f"{name} differ: {len(odd)} recordings, such as {odd.iloc[0]}, have not {values.index[0]:g}")
    if table["lag_ms"].isna().all():
        notes.append("no audio channel was recorded: that EEG and sound are aligned rests on the onsets alone")
    return notes
