"""Is the sound where the onsets say? Asked of recordings that kept a copy of the sound in a channel."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from eeg2speech.data.base import EEGSource
from eeg2speech.errors import UserError

MAX_LAG_S = 1.0
"""How far around its onset a sound is looked for."""
HEARD = 0.5
"""Correlation of envelopes from which on a channel is taken to hold the sound."""
TOLERANCE_S = 0.03


def alignment(channel: EEGSource, sfreq: float, sounds: pd.DataFrame) -> pd.DataFrame:
    """A row per sound: sound, lag_s (how much later it was recorded than its onset says), correlation.

    `channel` (1, n_samples) is the recorded sound, `sounds` has SOUND_COLUMNS. Envelopes (rectified,
    50-ms mean) are compared at every lag up to MAX_LAG_S; the best one is reported. A sound of which
    less than a second was recorded is left out.
    """
    rows = []
    for sound in sounds.itertuples(index=False):
        first = max(0, round(-sound.onset_s * sfreq))
        played = _played(sound.path, float(sound.offset_s), float(sound.duration_s), sfreq)[first:]
        start = round(sound.onset_s * sfreq) + first
        played = played[: max(0, channel.n_samples - start)]
        if len(played) < sfreq:
            continue
        margin = round(MAX_LAG_S * sfreq)
        known = channel.read(max(0, start - margin), min(channel.n_samples, start + len(played) + margin))[0]
        before = margin - max(0, margin - start)
        lag, correlation = _best_lag(_envelope(known, sfreq), _envelope(played, sfreq), before)
        rows.append((sound.sound, lag / sfreq, correlation))
    return pd.DataFrame(rows, columns=["sound", "lag_s", "correlation"])


def require_aligned(table: pd.DataFrame, where: str) -> None:
    """Raises UserError naming the first sound that the channel holds elsewhere, or not at all.

    Where no sound at all is heard, the channel carries something else and proves nothing.
    """
    heard = table["correlation"] >= HEARD
    if not heard.any():
        return
    wrong = table[~heard | (table["lag_s"].abs() > TOLERANCE_S)]
    if len(wrong):
        row = wrong.iloc[0]
        found = f"{1000 * row.lag_s:+.0f} ms from its onset, correlation {row.correlation:.2f}"
        raise UserError(
            f"{where}: the recorded audio channel does not agree with the onsets: {row.sound} is found {found}; "
            "check the release and study.onsets, leave the subject out, or set study.verify_alignment: false"
        )


@lru_cache(maxsize=16)
def _played(path: str, offset_s: float, duration_s: float, sfreq: float) -> np.ndarray:
    """(n,) at `sfreq`: what an amplifier that samples so slowly keeps of the sound."""
    import soundfile
    from scipy.signal import resample_poly

    try:
        with soundfile.SoundFile(path) as file:
            file.seek(min(round(offset_s * file.samplerate), file.frames))
            data = file.read(round(duration_s * file.samplerate), dtype="float32", always_2d=True).mean(axis=1)
            rate = file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: this sound file cannot be read ({error}); replace or re-export it") from error
    divisor = np.gcd(rate, round(sfreq))
    return resample_poly(data, round(sfreq) // divisor, rate // divisor)


def _envelope(signal: np.ndarray, sfreq: float) -> np.ndarray:
    width = max(1, round(0.05 * sfreq))
    return np.convolve(np.abs(signal - signal.mean()), np.full(width, 1 / width), mode="same")


def _best_lag(known: np.ndarray, played: np.ndarray, before: int) -> tuple[int, float]:
    """(lag in samples, Pearson correlation there); `known` starts `before` samples ahead of the onset."""
    from scipy.signal import correlate

    n = len(played)
    centred = played - played.mean()
    products = correlate(known, centred, mode="valid", method="fft")
    sums, squares = (np.concatenate([[0.0], np.cumsum(known.astype(np.float64) ** k)]) for k in (1, 2))
    mean = (sums[n:] - sums[:-n]) / n
    deviation = np.sqrt(np.maximum((squares[n:] - squares[:-n]) / n - mean**2, 0.0))
    scale = n * deviation * centred.std()
    correlation = np.divide(products, scale, out=np.zeros(len(products)), where=scale > 1e-9 * max(scale.max(), 1e-30))
    best = int(np.argmax(correlation))
    return best - before, float(correlation[best])
