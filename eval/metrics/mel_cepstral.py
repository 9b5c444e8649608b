"""Mel-cepstral distortion (Kubichek, 1993), frame by frame and after dynamic time warping."""

from __future__ import annotations

import numpy as np

from eval.metrics.base import SystemOutput, TestSet, no_sound, sound
from eval.metrics.mel_correlation import log_mels, speech_frames
from eval.metrics.ratio import RatioMetric, Ratios, mean_of
from eval.metrics.scorers import Scorers
from eval.results import MetricInfo

N_CEPSTRA = 13
DB = 10 / np.log(10) * np.sqrt(2)
"""Distance of cepstra of the natural log magnitude to dB: the RMS difference of the smoothed spectra."""


def cepstra(mel: np.ndarray) -> np.ndarray:
    """(n, T, K) log-mels (natural logarithm) -> (n, T, 13) mel cepstra c1..c13; c0, the level, is left out."""
    from scipy.fft import dct

    return dct(mel.astype(np.float64), type=2, axis=-1)[..., 1 : N_CEPSTRA + 1] / mel.shape[-1]


def frame_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(T, 13), (U, 13) -> (T, U) distortion in dB between every two frames."""
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return DB * np.sqrt(squared.clip(min=0))


def warped_mean(distance: np.ndarray) -> float:
    """Mean of (T, U) along the path of least total distance (Sakoe & Chiba, 1978; steps right, down, diagonal).

    Of equally cheap paths the shortest is taken. Runs over anti-diagonals, each in one array operation.
    """
    rows, columns = distance.shape
    cost = np.full((rows + 1, columns + 1), np.inf)
    steps = np.zeros((rows + 1, columns + 1))
    cost[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        options = np.stack([cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1]])
        lengths = np.stack([steps[i - 1, j - 1], steps[i - 1, j], steps[i, j - 1]])
        best = options.argmin(axis=0)
        pick = np.arange(len(i))
        cost[i, j] = distance[i - 1, j - 1] + options[best, pick]
        steps[i, j] = 1 + lengths[best, pick]
    return float(cost[-1, -1] / steps[-1, -1])


class MelCepstralDistortion(RatioMetric):
    def __init__(self, scorers: Scorers, warped: bool = False) -> None:
        self.scorers, self.warped = scorers, warped
        self.info = MetricInfo(
            name="mcd_dtw" if warped else "mcd",
            label="MCD, warped" if warped else "MCD",
            unit="dB",
            higher_is_better=False,
            per_example=True,
            definition="Mel-cepstral distortion (Kubichek 1993) of 13 cepstra without the level, over the speech "
            "frames of the true clip"
            + (", after dynamic time warping of the clips cut to that stretch." if warped else ", frame by frame."),
        )

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        return no_sound(test, output)

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        true = self.scorers.once(test, "log-mel", lambda: log_mels(sound(test)))
        generated = self.scorers.once(output, "log-mel", lambda: log_mels(sound(output)))
        frames = speech_frames(true)
        wanted, got = cepstra(true), cepstra(generated)
        values = np.full(len(generated), np.nan)
        for i, stimulus in enumerate(output.stimulus):
            spoken = np.flatnonzero(frames[stimulus])
            if not len(spoken):
                continue
            if self.warped:
                stretch = slice(spoken[0], spoken[-1] + 1)
                values[i] = warped_mean(frame_distances(wanted[stimulus, stretch], got[i, stretch]))
            else:
                x, y = wanted[stimulus, spoken], got[i, spoken]
                values[i] = (DB * np.sqrt(((x - y) ** 2).sum(-1))).mean()
        return mean_of(values, "the true clip is silent")
