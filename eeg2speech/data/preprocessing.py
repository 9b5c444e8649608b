"""From a raw recording to the continuous EEG that windows are sliced from, and what is done per batch.

As in brainmagick (Défossez et al., Nat. Mach. Intell. 2023): resampled to 120 Hz, robust-scaled per
recording and channel; per window the mean before onset is subtracted and values are clamped at ±20.
Unlike it, the scaler sees training windows only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from eeg2speech.data.base import EEGSource, Recording
from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest, new_array, write_atomically
from eeg2speech.schema import Config, is_unset

VERSION = 1
"""Raised whenever the same recording and configuration would give other numbers."""
BLOCK_S = 60.0
"""Length of the stretches that are resampled at a time."""
FIR_HALF_LENGTH = 10
"""scipy.signal.resample_poly's default filter reaches this many samples of the slower rate."""

Intervals = Sequence[tuple[float, float]]


class PreprocessingConfig(Config):
    """What happens to the EEG before a model sees it."""

    sfreq: float = Field(default=120.0, gt=0, description="Hz after resampling")
    highpass_hz: float | None = Field(default=None, gt=0, description="zero-phase FIR high-pass, after resampling")
    shift_s: float = Field(default=0.15, ge=0, description="the EEG of a window starts this long after its audio")
    baseline_s: float = Field(default=0.5, ge=0, description="the mean of this long is subtracted from each window")
    baseline_from_s: float | None = Field(
        default=None,
        le=0,
        description="where that begins, from the EEG slice on; null: it ends where the slice begins",
        exclude_if=is_unset,
    )
    clamp: float = Field(default=20.0, gt=0, description="scaled EEG is clamped to +- this")
    channels: Literal["eyes"] | None = Field(
        default=None,
        description="null: all; eyes: a control, only the channels named EOG, or else the sites nearest to the eyes",
        exclude_if=is_unset,
    )

    def edge_s(self, sfreq: float) -> float:
        """How far, to either side, the filters let a sample of a recording at `sfreq` Hz spread."""
        edge = 0.0 if sfreq == self.sfreq else FIR_HALF_LENGTH / min(sfreq, self.sfreq)
        return edge + (
            0.0 if self.highpass_hz is None else highpass_half_length(self.highpass_hz, self.sfreq) / self.sfreq
        )

    def slice_start(self, onset_s: np.ndarray | float) -> np.ndarray:
        """First EEG sample of windows whose audio starts at `onset_s` (recording time)."""
        return np.round((np.asarray(onset_s) + self.shift_s) * self.sfreq).astype(np.int64)

    def n_samples(self, length_s: float) -> int:
        return round(length_s * self.sfreq)

    @property
    def baseline(self) -> tuple[int, int]:
        """Samples of EEG kept before the slice, and how many from the first of them on make the baseline."""
        n_mean = self.n_samples(self.baseline_s)
        return (n_mean if self.baseline_from_s is None else self.n_samples(-self.baseline_from_s)), n_mean


@dataclass(frozen=True)
class Scaler:
    """Median and interquartile range per channel name, and the recording time they were taken from."""

    ch_names: tuple[str, ...]
    median: tuple[float, ...]
    iqr: tuple[float, ...]
    fit_intervals: tuple[tuple[float, float], ...]

    @classmethod
    def load(cls, eeg_path: Path) -> Scaler:
        """The scaler stored beside a preprocessed recording."""
        raw = json.loads(eeg_path.with_suffix(".json").read_text(encoding="utf-8"))
        spans = tuple((a, b) for a, b in raw["fit_intervals"])
        return cls(tuple(raw["ch_names"]), tuple(raw["median"]), tuple(raw["iqr"]), spans)

    @classmethod
    def pooled(cls, scalers: Sequence[Scaler]) -> Scaler:
        """Median over recordings, channel by channel: for a recording without any training window."""
        names = tuple(dict.fromkeys(name for s in scalers for name in s.ch_names))
        values = {
            name: [(s.median[i], s.iqr[i]) for s in scalers for i, n in enumerate(s.ch_names) if n == name]
            for name in names
        }
        middle = {name: np.median(rows, axis=0) for name, rows in values.items()}
        return cls(names, tuple(float(middle[n][0]) for n in names), tuple(float(middle[n][1]) for n in names), ())


def preprocess(
    recording: Recording,
    config: PreprocessingConfig,
    fit_intervals: Intervals,
    cache: Path,
    scaler: Scaler | None = None,
) -> Path:
    """Resampled, robust-scaled, unclamped EEG as an `.npy` (C, T) float32; a second call does nothing.

    Per channel the median is subtracted and the result divided by the interquartile range
    (scikit-learn's RobustScaler), both over `fit_intervals` (recording time in s: the EEG of the
    training windows) or taken from `scaler` where there are none. A channel that is flat there is
    divided by 1. The scaler is stored beside the array as JSON.

    Raises UserError naming recording and channel where a value is not finite, and the recording
    where there is nothing to fit the scaler on.
    """
    given = None if scaler is None else asdict(scaler)
    spans = merged(fit_intervals)
    key = [VERSION, recording.fingerprint, recording.sfreq, config.sfreq, config.highpass_hz, spans, given]
    path = cache / "eeg" / f"{digest(key)}.npy"
    if path.exists() and path.with_suffix(".json").exists():
        return path
    if not spans and scaler is None:
        raise UserError(
            f"recording {recording.recording}: no training window, so nothing to scale it by; change splits"
        )
    n_samples = resampled_length(recording.eeg.n_samples, recording.sfreq, config.sfreq)
    with atomic_path(path) as partial:
        out = new_array(partial, (len(recording.ch_names), n_samples))
        for start, block in resample_blocks(recording.eeg, recording.sfreq, config.sfreq):
            out[:, start : start + block.shape[1]] = block
        _check_finite(recording, out)
        if config.highpass_hz is not None:
            for channel in out:
                channel[:] = highpass(channel, config.highpass_hz, config.sfreq)
        fitted = _fit(recording, out, config.sfreq, spans) if scaler is None else scaler
        _scale(recording, out, fitted)
        out.flush()
        del out
    write_atomically(path.with_suffix(".json"), json.dumps({"recording": recording.recording, **asdict(fitted)}))
    return path


def preprocess_all(
    recordings: Sequence[Recording], windows: pd.DataFrame, length_s: float, config: PreprocessingConfig, cache: Path
) -> dict[str, Path]:
    """Recording name -> its scaled EEG; recordings without training windows take the pooled scaler."""
    from tqdm import tqdm

    train = windows[windows["split"] == "train"]
    onsets = {str(name): table.to_numpy() + config.shift_s for name, table in train.groupby("recording")["onset_s"]}
    fits = {name: [(float(a), float(a + length_s)) for a in starts] for name, starts in onsets.items()}
    seen = [r for r in recordings if r.recording in fits]
    unseen = [r for r in recordings if r.recording not in fits]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        done = pool.map(lambda r: preprocess(r, config, fits[r.recording], cache), seen)
        paths = {
            r.recording: p
            for r, p in zip(seen, tqdm(done, "preprocessing", len(seen), leave=False, disable=None), strict=True)
        }
        if unseen and not seen:
            raise UserError("no recording has a training window; change splits")
        scaler = Scaler.pooled([Scaler.load(path) for path in paths.values()]) if unseen else None
        others = pool.map(lambda r: preprocess(r, config, (), cache, scaler), unseen)
        paths |= {r.recording: path for r, path in zip(unseen, others, strict=True)}
    return {r.recording: paths[r.recording] for r in recordings}


def merged(intervals: Intervals) -> list[tuple[float, float]]:
    """Sorted, overlapping intervals joined."""
    spans: list[tuple[float, float]] = []
    for start, stop in sorted((float(a), float(b)) for a, b in intervals):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], stop))
        else:
            spans.append((start, stop))
    return spans


def _ratio(sfreq: float, target: float) -> tuple[int, int]:
    """target / sfreq as up / down; off by less than 0.1 ms an hour where it is not rational."""
    ratio = Fraction(target / sfreq).limit_denominator(10_000)
    return ratio.numerator, ratio.denominator


def resampled_length(n_samples: int, sfreq: float, target: float) -> int:
    up, down = _ratio(sfreq, target)
    return -(-n_samples * up // down)


def resample_blocks(
    source: EEGSource, sfreq: float, target: float, block_s: float = BLOCK_S
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first output sample, (C, n) float32): blocks that join to `resample_poly` of the whole.

    Each block is filtered with as much of its neighbours as the filter reaches; the ends of the
    recording are continued with their edge values. The first sample of each channel is taken off
    beforehand: a large offset would otherwise leak through the polyphase filter as a ripple, and
    the robust scaler removes any constant anyway.
    """
    from scipy.signal import resample_poly

    up, down = _ratio(sfreq, target)
    periods = max(1, round(block_s * sfreq / down))
    reach = 0 if up == down else down * (FIR_HALF_LENGTH * max(up, down) // (up * down) + 2)
    offset = source.read(0, 1)
    total = resampled_length(source.n_samples, sfreq, target)
    for first in range(0, source.n_samples, periods * down):
        start, stop = first - reach, first + periods * down + reach
        known = source.read(max(start, 0), min(stop, source.n_samples)) - offset
        padded = np.pad(known, ((0, 0), (max(-start, 0), max(stop - source.n_samples, 0))), mode="edge")
        block = resample_poly(padded, up, down, axis=1)[:, reach // down * up :]
        begin = first // down * up
        yield begin, block[:, : min(periods * up, total - begin)].astype(np.float32, copy=False)


def highpass_half_length(cutoff_hz: float, sfreq: float) -> int:
    """Samples to either side: a transition band as wide as the cutoff (Hamming window)."""
    return round(1.65 * sfreq / cutoff_hz)


def highpass(channel: np.ndarray, cutoff_hz: float, sfreq: float) -> np.ndarray:
    """(T,) -> (T,): zero-phase FIR high-pass, ends continued with their edge values."""
    from scipy.signal import firwin, oaconvolve

    half = highpass_half_length(cutoff_hz, sfreq)
    taps = firwin(2 * half + 1, cutoff_hz, fs=sfreq, pass_zero=False)
    return oaconvolve(np.pad(channel, half, mode="edge"), taps, mode="valid")


def _check_finite(recording: Recording, eeg: np.ndarray) -> None:
    for name, channel in zip(recording.ch_names, eeg, strict=True):
        bad = np.count_nonzero(~np.isfinite(channel))
        if bad:
            raise UserError(
                f"recording {recording.recording}: channel {name} has {bad} values that are no numbers; "
                "interpolate them or drop the channel from the recording"
            )


def _fit(recording: Recording, eeg: np.ndarray, sfreq: float, spans: Intervals) -> Scaler:
    """Quartiles of each channel over the samples inside `spans`."""
    bounds = [(max(0, round(a * sfreq)), min(eeg.shape[1], round(b * sfreq))) for a, b in spans]
    rows = []
    for channel in eeg:
        q25, q50, q75 = np.percentile(np.concatenate([channel[a:b] for a, b in bounds]), (25, 50, 75))
        rows.append((float(q50), float(q75 - q25)))
    return Scaler(recording.ch_names, tuple(r[0] for r in rows), tuple(r[1] for r in rows), tuple(spans))


def _scale(recording: Recording, eeg: np.ndarray, scaler: Scaler) -> None:
    """In place; a channel the scaler does not know, or knows as flat, is left undivided."""
    known = {name: (m, q) for name, m, q in zip(scaler.ch_names, scaler.median, scaler.iqr, strict=True)}
    for name, channel in zip(recording.ch_names, eeg, strict=True):
        median, iqr = known.get(name, (0.0, 0.0))
        channel -= np.float32(median)
        if iqr > 0:
            channel /= np.float32(iqr)


def baseline_and_clamp(
    eeg: np.ndarray,
    n_before: int,
    available: np.ndarray,
    clamp: float,
    n_mean: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """(B, C, n_before + T) -> (B, C, T): each window less the mean of its first `n_mean` samples, clamped.

    `n_mean`: by default all that precedes the window. `available` (B,) int: how many of the first
    `n_before` samples the recording really has; the others must be 0 and do not count. Where none
    of the `n_mean` is available nothing is subtracted. `out` (B, C, T) takes the result, where given.
    """
    n_mean = n_before if n_mean is None else n_mean
    count = np.maximum(n_mean - (n_before - available), 1).astype(eeg.dtype)[:, None, None]
    mean = np.einsum("bct->bc", eeg[..., :n_mean])[..., None] / count
    out = np.subtract(eeg[..., n_before:], mean, out=out)
    return np.clip(out, -clamp, clamp, out=out)
