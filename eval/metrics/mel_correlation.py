"""Correlation of log-mel spectrograms: the intelligibility reference of neural speech decoding."""

from __future__ import annotations

import numpy as np
import torch

from eeg2speech.audio import LOG_FLOOR, N_FFT, log_mel
from eval.metrics.base import SystemOutput, TestSet, no_sound, sound
from eval.metrics.ratio import RatioMetric, Ratios, mean_of
from eval.metrics.scorers import Scorers
from eval.results import MetricInfo

SPEECH_RANGE_DB = 40.0
"""A frame carries speech where its mel energy is within 40 dB of the clip's loudest frame."""


def log_mels(waveform: np.ndarray, batch: int = 64) -> np.ndarray:
    """(n, N) -> (n, T, 64) float32, the front end of the whole project."""
    parts = [
        torch.from_numpy(np.array(waveform[i : i + batch], dtype=np.float32)) for i in range(0, len(waveform), batch)
    ]
    with torch.inference_mode():
        return np.concatenate([log_mel(p).squeeze(1).numpy() for p in parts])


def speech_frames(mel: np.ndarray) -> np.ndarray:
    """(n, T, 64) log-mels of the true clips -> (n, T) bool. Empty for a silent clip."""
    level = 20 / np.log(10) * np.logaddexp.reduce(2 * mel.astype(np.float64), axis=-1) / 2
    loudest = level.max(axis=-1, keepdims=True)
    silence = 20 * np.log10(LOG_FLOOR * np.sqrt(mel.shape[-1]))
    return (level > loudest - SPEECH_RANGE_DB) & (loudest > silence + 1e-3)


def mel_correlation(true: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """(n, T, K) log-mels -> (n,): mean over bands of Pearson's r over the true clip's speech frames.

    Within a band, so that the average spectrum of speech, which any system knows, earns nothing. A
    band that does not vary in the generated clip counts 0, one that does not vary in the true clip
    is left out; NaN where the true clip has fewer than three speech frames.
    """
    result = np.full(len(true), np.nan)
    for i, frames in enumerate(speech_frames(true)):
        if frames.sum() < 3:
            continue
        x, y = (m[i, frames].astype(np.float64) for m in (true, generated))
        x, y = x - x.mean(0), y - y.mean(0)
        sx, sy = np.sqrt((x**2).sum(0)), np.sqrt((y**2).sum(0))
        varies = sx > 1e-6
        if varies.any():
            r = np.divide((x * y).sum(0), sx * sy, out=np.zeros_like(sx), where=varies & (sy > 1e-6))
            result[i] = r[varies].mean()
    return result


class MelCorrelation(RatioMetric):
    info = MetricInfo(
        name="mel_correlation",
        label="Mel r",
        unit="",
        higher_is_better=True,
        per_example=True,
        definition="Pearson's r of the log-mel spectrogram (64 bands, 10 ms) with the true one, within each band over "
        f"frames within {SPEECH_RANGE_DB:g} dB of the true clip's loudest, mean over bands and clips.",
        chance=0.0,
        chance_reason="unrelated sounds do not correlate on average; sounds that start together do, see the floors",
    )

    def __init__(self, scorers: Scorers) -> None:
        self.scorers = scorers

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        reason = no_sound(test, output)
        return reason or ("clips are shorter than one analysis window" if sound(test).shape[1] < N_FFT else None)

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        true = self.scorers.once(test, "log-mel", lambda: log_mels(sound(test)))
        generated = self.scorers.once(output, "log-mel", lambda: log_mels(sound(output)))
        return mean_of(mel_correlation(true[output.stimulus], generated), "the true clip is silent")
