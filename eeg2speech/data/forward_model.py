"""How simulated listeners' EEG comes from sound: temporal response functions, dipoles, background.

A listener's EEG is  gain * response + background + blinks + line noise.
*Response*: 16 bands of the log spectrogram and their onsets, each filtered by a temporal response
function with P1-N1-P2 peaks (Lalor & Foxe, Eur. J. Neurosci. 2010) and emitted by a bilateral pair
of dipoles of its own along a tonotopic axis. *Background*: cortical dipoles with 1/f spectra and
occipital alpha, mixed to the same sensors, plus sensor noise. Everything is in volts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import butter, fftconvolve, sosfiltfilt

from eeg2speech import audio

N_BANDS = 16
SNR_BAND_HZ = (1.0, 40.0)
TRF_DURATION_S = 0.4
DYNAMIC_RANGE = 8.0
"""Natural-log units below the loudest band value at which a band counts as silent (about 70 dB)."""


def speech_features(waveform: np.ndarray, sfreq: float) -> np.ndarray:
    """(N,) at 16 kHz -> (2 * N_BANDS, T) at `sfreq`: band levels, then their onsets; silence is 0.

    Band level: mean log-mel of four adjacent bands above a floor. Onset: its half-wave rectified
    derivative, as in TRF studies (Hertrich et al., Psychophysiology 2012).
    """
    mel = audio.log_mel(torch.from_numpy(waveform)[None])[0, 0].numpy()
    bands = mel.reshape(len(mel), N_BANDS, -1).mean(axis=2).T
    levels = np.maximum(0.0, bands / DYNAMIC_RANGE + 1.0)
    onsets = np.maximum(0.0, np.diff(levels, axis=1, prepend=0.0))
    features = np.concatenate([levels, 4.0 * onsets])
    frames = (np.arange(features.shape[1]) + 0.5) / audio.FRAME_RATE_HZ
    times = np.arange(int(len(waveform) / audio.SAMPLE_RATE * sfreq)) / sfreq
    return np.stack([np.interp(times, frames, row, left=0.0) for row in features]).astype(np.float32)


@dataclass(frozen=True)
class Listener:
    """What makes one simulated brain different from the next."""

    kernels: np.ndarray
    """(2 * N_BANDS, lags): temporal response function of each feature, 0 to 400 ms."""
    mixing: np.ndarray
    """(C, 2 * N_BANDS): volts at the sensors per unit of each feature's source, average-referenced."""
    background: np.ndarray
    """(C, sources): volts at the sensors per unit of each background source."""
    n_alpha: int
    """How many of the background sources, the last ones, are alpha rhythms."""
    blink: np.ndarray
    """(C,): volts at the peak of a blink."""
    line: np.ndarray
    """(C,): amplitude of the line noise in volts."""


def make_listener(sensors: np.ndarray, sfreq: float, rng: np.random.Generator) -> Listener:
    """`sensors`: (C, 3) metres, x right, y front, z up, on a head of about 9.5 cm."""
    n = 2 * N_BANDS
    kernels = np.stack([_kernel(sfreq, rng) for _ in range(n)])
    mixing = np.zeros((len(sensors), n))
    for feature in range(n):
        along = (feature % N_BANDS) / (N_BANDS - 1) - 0.5
        for side in (-1.0, 1.0):
            # Low frequencies lie anterolateral, high ones posteromedial on Heschl's gyrus; onsets
            # are strongest behind it, in the planum temporale. Folding turns the orientations.
            behind = -0.02 if feature >= N_BANDS else 0.0
            place = np.array([side * (0.055 - 0.02 * along), 0.005 + behind - 0.04 * along, 0.02 + 0.01 * along])
            place += rng.normal(0.0, 0.006, 3)
            mixing[:, feature] += _dipole(sensors, place, rng.normal(size=3) + np.array([0.0, 0.3, 0.6])) * rng.uniform(
                0.6, 1.4
            )
    mixing /= np.sqrt(np.mean(mixing**2, axis=0))
    n_sources, n_alpha = 96, 8
    places = rng.normal(size=(n_sources, 3))
    places *= (rng.uniform(0.05, 0.075, n_sources) / np.linalg.norm(places, axis=1))[:, None]
    places[:, 2] = np.abs(places[:, 2])
    places[-n_alpha:] = np.array([0.0, -0.065, 0.03]) + rng.normal(0.0, 0.015, (n_alpha, 3))
    background = np.stack([_dipole(sensors, place, rng.normal(size=3)) for place in places], axis=1)
    background /= np.sqrt(np.mean(background**2, axis=0))
    background *= rng.lognormal(0.0, 0.5, n_sources)
    eyes = np.array([[0.03, 0.085, -0.03], [-0.03, 0.085, -0.03]])
    distance = np.linalg.norm(sensors[:, None] - eyes, axis=2).min(axis=1)
    blink = 120e-6 * np.exp(-(((distance - distance.min()) / 0.04) ** 2))
    return Listener(
        kernels=kernels.astype(np.float32),
        mixing=(mixing - mixing.mean(axis=0)).astype(np.float32),
        background=(background - background.mean(axis=0)).astype(np.float32) * 1.5e-6,
        n_alpha=n_alpha,
        blink=(blink - blink.mean()).astype(np.float32),
        line=rng.lognormal(np.log(1e-6), 0.5, len(sensors)).astype(np.float32),
    )


def _kernel(sfreq: float, rng: np.random.Generator) -> np.ndarray:
    """P1, N1, P2 and a late wave as Gaussians; latencies and sizes vary a little from source to source."""
    lags = np.arange(int(TRF_DURATION_S * sfreq)) / sfreq
    stretch = rng.normal(1.0, 0.08)
    kernel = np.zeros_like(lags)
    for peak_s, width_s, size in ((0.05, 0.012, 0.8), (0.1, 0.02, -1.0), (0.19, 0.035, 0.7), (0.3, 0.04, -0.25)):
        centre = peak_s * stretch + rng.normal(0.0, 0.006)
        kernel += size * rng.normal(1.0, 0.2) * np.exp(-0.5 * ((lags - centre) / width_s) ** 2)
    return kernel / np.linalg.norm(kernel)


def _dipole(sensors: np.ndarray, place: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """(C,) potential of a current dipole in an unbounded homogeneous medium, up to a constant."""
    offset = sensors - place
    return offset @ (moment / np.linalg.norm(moment)) / np.linalg.norm(offset, axis=1) ** 3


def response(features: np.ndarray, listener: Listener) -> np.ndarray:
    """(2 * N_BANDS, T) -> (C, T) float32 of unit gain: convolve each source, then mix."""
    sources = fftconvolve(features, listener.kernels, axes=1)[:, : features.shape[1]]
    return listener.mixing @ sources.astype(np.float32)


def background(n_samples: int, sfreq: float, listener: Listener, rng: np.random.Generator) -> np.ndarray:
    """(C, n_samples) float32 volts: 1/f and alpha sources mixed to the sensors, plus sensor noise."""
    n_sources = listener.background.shape[1]
    frequencies = np.fft.rfftfreq(n_samples, 1.0 / sfreq)
    pink = 1.0 / np.sqrt(np.maximum(frequencies, 0.5))
    alpha = np.exp(-0.5 * ((frequencies - 10.0) / 1.0) ** 2)
    waves = rng.standard_normal((n_sources, n_samples), dtype=np.float32)
    for source, wave in enumerate(waves):
        shape = alpha if source >= n_sources - listener.n_alpha else pink
        coloured = np.fft.irfft(shape * np.fft.rfft(wave), n_samples)
        waves[source] = coloured / coloured.std()
    sensor_noise = rng.standard_normal((len(listener.background), n_samples), dtype=np.float32)
    return listener.background @ waves + np.float32(0.5e-6) * sensor_noise


def artefacts(n_samples: int, sfreq: float, listener: Listener, rng: np.random.Generator) -> np.ndarray:
    """(C, n_samples) float32 volts: blinks about every four seconds and 50 Hz line noise."""
    train = np.zeros(n_samples, dtype=np.float32)
    onsets = np.cumsum(rng.exponential(4.0, int(n_samples / sfreq / 2) + 8) * sfreq).astype(int)
    train[onsets[onsets < n_samples]] = 1.0
    shape = np.hanning(int(0.35 * sfreq)).astype(np.float32)
    blinks = fftconvolve(train, shape)[:n_samples].astype(np.float32)
    phase = 2 * np.pi * (50.0 * np.arange(n_samples) / sfreq) + np.cumsum(rng.normal(0.0, 0.002, n_samples))
    return np.outer(listener.blink, blinks) + np.outer(listener.line, np.sin(phase).astype(np.float32))


def snr_db(response: np.ndarray, background: np.ndarray, speech: np.ndarray, sfreq: float) -> float:
    """10 log10 of the mean over channels of response variance / background variance.

    Both (C, T), band-passed 1 to 40 Hz, on the samples where `speech` (T,) is true.
    """
    band = butter(4, SNR_BAND_HZ, "bandpass", fs=sfreq, output="sos")
    ratio = [
        np.var(sosfiltfilt(band, r)[speech]) / np.var(sosfiltfilt(band, b)[speech])
        for r, b in zip(response, background, strict=True)
    ]
    return float(10.0 * np.log10(np.mean(ratio)))
