"""Edited copies of one recording in two splits: louder, shifted, resampled or encoded, under any name.

Equal samples are found by their hash; here log-mels are compared. Of each, what lies `DEPTH` below its peak is floor,
so that noise under the speech does not count, and each band's mean over the spoken part is taken away, and with it the
gain and the voice's mean spectrum. What is left is averaged to 16 bands and 20 ms and scaled to length 1.

Two are one recording where at some lag their product is above `BOUND` and that of every stretch of 0.4 s, each scaled
for itself, above `BOUND_PART`: a sentence in which one word differs is another. Measured in one voice, on the 1,000
sentences of the embedded study and on 40 that differ in one word: products up to 0.89 and, of the likest, parts up to
0.79; of copies (gain 0.5, one sample or 5 ms late, noise at 40 dB, by way of 32 kHz, OGG, MP3) from 0.96 and 0.88 on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from eeg2speech.data.features import StimulusFeatures
from eeg2speech.data.splits import Finding

CHECK = "near-duplicate audio"
BOUND, BOUND_PART = 0.92, 0.81
PART = 20
"""Steps of 20 ms."""
LAGS = 5
"""Steps to either side: encoders delay by up to 50 ms."""
DEPTH = 4.5
"""Of the natural logarithm of the magnitude: 39 dB."""
MIN_STEPS = 25
"""Half a second. Windows with less speech are compared with none: so short a sound has many like it."""
AT_ONCE = 512


def near_duplicates(stimuli: pd.DataFrame, windows: pd.DataFrame, features: StimulusFeatures) -> Finding:
    """The audit's check, of every test and valid stimulus against train. `stimuli` has the column `content`."""
    if features.waveforms is None:
        return Finding(CHECK, True, "not tested: the study has no audio", tested=False)
    is_train = windows["split"] == "train"
    train, held = (np.unique(windows.loc[rows, "stimulus"]) for rows in (is_train, ~is_train))
    pairs = [(a, b) for a, b in alike(features.features, train, held) if not _is_known(stimuli, a, b, features)]
    if not pairs:
        return Finding(CHECK, True, "no stimulus of valid or test is an edited copy of one of train")
    named = list(dict.fromkeys(" and ".join(stimuli["sound"].iloc[[a, b]]) for a, b in pairs))
    return Finding(CHECK, False, f"{len(pairs)} cases, such as {', '.join(named[:3])}")


def alike(log_mel: np.ndarray, train: np.ndarray, held: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows (train, held) that are one recording. Blocks of train are made and forgotten."""
    others = [(rows, prints(part)) for rows in _blocks(held) for part in _phases(log_mel[rows])]
    pairs = set()
    for mine in _blocks(train):
        block = prints(log_mel[mine])
        for rows, other in others:
            for i, j in zip(*np.nonzero(similarity(block, other) > BOUND), strict=True):
                if weakest_part(block[i], other[j]) > BOUND_PART:
                    pairs.add((int(mine[i]), int(rows[j])))
    return sorted(pairs)


def _phases(log_mel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As it is and half a step earlier, since an average over 20 ms notices a shift of 10 ms."""
    return log_mel, np.concatenate([log_mel[:, :, 1:], log_mel[:, :, -1:]], axis=2)


def prints(log_mel: np.ndarray) -> np.ndarray:
    """(n, 64, F) -> (n, F // 2, 16) of length 1, or 0 where nearly nothing is said."""
    n, bands, frames = log_mel.shape
    peak = log_mel.max(axis=(1, 2), keepdims=True)
    above = np.maximum(log_mel - peak + DEPTH, 0)[:, :, : frames // 2 * 2]
    steps = above.reshape(n, 16, bands // 16, frames // 2, 2).mean(axis=(2, 4)).transpose(0, 2, 1)
    spoken = steps.any(axis=2, keepdims=True)
    count = spoken.sum(axis=1, keepdims=True)
    steps = np.where(spoken, steps - steps.sum(axis=1, keepdims=True) / np.maximum(count, 1), 0)
    norm = np.linalg.norm(steps, axis=(1, 2), keepdims=True)
    return np.where((count >= MIN_STEPS) & (norm > 1e-3), steps / np.maximum(norm, 1e-3), 0).astype(np.float32)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, T, K), (m, T, K) -> (n, m): the largest product at any lag."""
    best = np.full((len(a), len(b)), -1, dtype=np.float32)
    for x, y in _lagged(a, b):
        np.maximum(best, x.reshape(len(a), -1) @ y.reshape(len(b), -1).T, out=best)
    return best


def weakest_part(a: np.ndarray, b: np.ndarray) -> float:
    """(T, K) twice -> the product of the stretch that agrees least, at the lag where this is largest."""
    best = -1.0
    for x, y in _lagged(a[None], b[None]):
        both, each = (np.add.reduceat(v.sum(axis=(0, 2)), np.arange(0, v.shape[1], PART)) for v in (x * y, x**2 + y**2))
        loud = each > 0.25 * each.sum() * PART / x.shape[1]  # the end of a word weighs little, and noise much there
        best = max(best, float((2 * both[loud] / each[loud]).min()))
    return best


def _lagged(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    steps = a.shape[1]
    for lag in range(-LAGS, LAGS + 1):
        yield a[:, max(0, lag) : steps + min(0, lag)], b[:, max(0, -lag) : steps + min(0, -lag)]


def _is_known(stimuli: pd.DataFrame, a: int, b: int, features: StimulusFeatures) -> bool:
    """Equal samples, and stretches of one sound that overlap, are found by other checks."""
    one, other = stimuli.iloc[a], stimuli.iloc[b]
    length_s = features.features.shape[2] / features.frame_rate_hz
    overlap = abs(one["offset_s"] - other["offset_s"]) < length_s
    return bool(one["content"] == other["content"] or (one["audio"] == other["audio"] and overlap))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
