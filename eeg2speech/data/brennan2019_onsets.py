"""When the sounds of Brennan & Hale 2019 began, by either of the two ways in which their release tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eeg2speech.data.matlab import field, read_mat
from eeg2speech.errors import UserError

SFREQ = 500.0
N_SEGMENTS = 12

NO_FIRST_MARKER = ("S26", "S34", "S35", "S36")
"""Their first marker is that of segment 2, so that the authors' scripts, which count markers, call
every segment one too low."""
LAG_S = {segment: 0.060 if segment == 1 else 0.050 for segment in range(1, N_SEGMENTS + 1)}
"""From a raw marker to the sound: the authors' measurement of their stimulus program
(helpers/get_alice2_trials.m of cnllab/alice-eeg-shared). `proc.trl` has it in already."""


@dataclass(frozen=True)
class Onsets:
    """Recording time in s of the sounds, by segment number, and of words, by the table's `Order`."""

    segments: dict[int, float]
    words: pd.Series


def onsets_from_proc(path: Path, subject: str) -> Onsets:
    """Onsets out of the authors' epochs: (start_sample - offset) / 500, where `offset` is -150.

    An epoch starts 300 ms before its word; brainmagick takes that start for the word.
    Raises UserError naming file and column where `proc.trl` is not what the release has.
    """
    proc = read_mat(path, "proc")["proc"]
    trl = np.atleast_2d(np.asarray(field(proc, path, "trl"), dtype=float))
    names = [str(name) for name in np.atleast_1d(field(proc, path, "varnames"))]
    names = names if len(names) == trl.shape[1] else ["start_sample", "stop_sample", "offset", *names]
    if len(names) != trl.shape[1]:
        raise UserError(f"{path}: proc.trl has {trl.shape[1]} columns, proc.varnames names {len(names)}; get it again")
    columns = dict(zip(reversed(names), trl.T[::-1], strict=True))  # of two columns of one name the first
    segment, tmin, order = (
        _column(columns, path, *known) for known in (("segment", "passage", "Segment"), ("tmin", "onset"), ("Order",))
    )
    word_s = (_column(columns, path, "start_sample") - _column(columns, path, "offset")) / SFREQ
    # the authors round a word up to the next sample, so that the sound starts at the least of these
    starts = pd.Series(word_s - tmin).groupby(segment.astype(int)).agg(["min", "max"])
    unsure = starts.index[(starts["max"] - starts["min"] > 2.5 / SFREQ) | ~starts.index.isin(list(LAG_S))]
    if len(unsure):
        raise UserError(
            f"{path}: the words of segment {unsure[0]} in proc.trl do not agree on when it began; leave {subject} out"
        )
    segments = {int(number): round(s * SFREQ) / SFREQ for number, s in starts["min"].items()}
    if subject in NO_FIRST_MARKER and N_SEGMENTS not in segments:
        shifted = {n + 1: s - LAG_S[n] + LAG_S[n + 1] for n, s in segments.items()}
        return Onsets(shifted, pd.Series(dtype=float))
    return Onsets(segments, pd.Series(word_s, index=order.astype(int)))


def onsets_from_markers(markers: tuple[tuple[float, str], ...], subject: str, path: Path) -> Onsets:
    """Onsets out of raw markers, in order of time, plus the lag from marker to sound.

    Raises UserError naming the file where it is unclear to which segments the markers belong.
    """
    times = sorted(time for time, _ in markers)
    if len(times) == N_SEGMENTS:
        numbers = range(1, N_SEGMENTS + 1)
    elif len(times) == N_SEGMENTS - 1 and subject in NO_FIRST_MARKER:
        numbers = range(2, N_SEGMENTS + 1)
    else:
        raise UserError(
            f"{path}: has {len(times)} stimulus markers for {N_SEGMENTS} segments; leave {subject} out of the subjects"
        )
    return Onsets({n: t + LAG_S[n] for n, t in zip(numbers, times, strict=True)}, pd.Series(dtype=float))


def _column(columns: dict[str, np.ndarray], path: Path, *names: str) -> np.ndarray:
    for name in names:
        if name in columns:
            return columns[name]
    raise UserError(f"{path}: proc.varnames has no {' or '.join(names)}; take proc.zip of the release")
