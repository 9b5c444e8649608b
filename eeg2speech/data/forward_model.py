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
from scipy.fft import irfft, rfftfreq
from scipy.signal import butter, fftconvolve, oaconvolve, sosfiltfilt

from eeg2speech import audio

N_BANDS = 16
SNR_BAND_HZ = (1.0, 40.0)
TRF_DURATION_S = 0.4
N_PINK, N_ALPHA = 88, 8
"""Background sources with a 1/f power spectrum, and alpha rhythms."""
BACKGROUND_V, SENSOR_NOISE_V, BLINK_V, LINE_V = 1.5e-6, 0.5e-6, 120e-6, 1e-6
"""Typical amplitudes: one background source at the average sensor, amplifier noise, a blink at its peak, the line."""
DYNAMIC_RANGE = 8.0
"""Natural-log units below magnitude 1 at which a band counts as silent (about 70 dB)."""


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
    """(C, N_PINK + N_ALPHA): volts at the sensors per unit of each background source, average-referenced."""
    blink: np.ndarray
    """(C,): volts at the peak of a blink."""
    line: np.ndarray
    """(C,): amplitude of the line noise in volts."""


def make_listener(sensors: np.ndarray, sfreq: float, rng: np.random.Generator) -> Listener:
    """`sensors`: (C, 3) metres, x right, y front, z up, on a head of about 9.5 cm."""
    return Listener(
        kernels=np.stack([_kernel(sfreq, rng) for _ in range(2 * N_BANDS)]).astype(np.float32),
        mixing=_auditory_mixing(sensors, rng).astype(np.float32),
        background=_background_mixing(sensors, rng).astype(np.float32),
        blink=_blink(sensors).astype(np.float32),
        line=rng.lognormal(np.log(LINE_V), 0.5, len(sensors)).astype(np.float32),
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


def _auditory_mixing(sensors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(C, 2 * N_BANDS): a dipole in each hemisphere for each band, then for each band's onsets; unit RMS over sensors.

    Low frequencies lie anterolateral, high ones posteromedial on Heschl's gyrus; onsets are
    strongest behind it, in the planum temporale. Folding turns the orientations.
    """
    columns = []
    for behind in (0.0, -0.02):
        for along in np.linspace(-0.5, 0.5, N_BANDS):
            pair = np.zeros(len(sensors))
            for side in (-1.0, 1.0):
                place = np.array([side * (0.055 - 0.02 * along), 0.005 + behind - 0.04 * along, 0.02 + 0.01 * along])
                moment = rng.normal(size=3) + np.array([0.0, 0.3, 0.6])
                pair += rng.uniform(0.6, 1.4) * _dipole(sensors, place + rng.normal(0.0, 0.006, 3), moment)
            columns.append(pair)
    return _referenced(np.stack(columns, axis=1))


def _background_mixing(sensors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(C, N_PINK + N_ALPHA): dipoles anywhere in the upper cortex, the alpha rhythms' in the occipital lobe."""
    places = rng.normal(size=(N_PINK, 3))
    places *= (rng.uniform(0.05, 0.075, N_PINK) / np.linalg.norm(places, axis=1))[:, None]
    places[:, 2] = np.abs(places[:, 2])
    occipital = np.array([0.0, -0.065, 0.03]) + rng.normal(0.0, 0.015, (N_ALPHA, 3))
    dipoles = [_dipole(sensors, place, rng.normal(size=3)) for place in (*places, *occipital)]
    return BACKGROUND_V * _referenced(np.stack(dipoles, axis=1)) * rng.lognormal(0.0, 0.5, len(dipoles))


def _blink(sensors: np.ndarray) -> np.ndarray:
    """(C,): falls off with the distance from the nearer eye."""
    eyes = np.array([[0.03, 0.085, -0.03], [-0.03, 0.085, -0.03]])
    distance = np.linalg.norm(sensors[:, None] - eyes, axis=2).min(axis=1)
    blink = BLINK_V * np.exp(-(((distance - distance.min()) / 0.04) ** 2))
    return blink - blink.mean()


def _referenced(topographies: np.ndarray) -> np.ndarray:
    """(C, n): to the average of the sensors, each of unit RMS over them."""
    centred = topographies - topographies.mean(axis=0)
    return centred / np.sqrt(np.mean(centred**2, axis=0))


def _dipole(sensors: np.ndarray, place: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """(C,) potential of a current dipole in an unbounded homogeneous medium, up to a constant."""
    offset = sensors - place
    return offset @ (moment / np.linalg.norm(moment)) / np.linalg.norm(offset, axis=1) ** 3


def response(features: np.ndarray, listener: Listener) -> np.ndarray:
    """(2 * N_BANDS, T) -> (C, T) float32 of unit gain: convolve each source, then mix."""
    sources = oaconvolve(features, listener.kernels, axes=1)[:, : features.shape[1]]
    return listener.mixing @ sources.astype(np.float32, copy=False)


def background(n_samples: int, sfreq: float, listener: Listener, rng: np.random.Generator) -> np.ndarray:
    """(C, n_samples) float32 volts: 1/f and alpha sources mixed to the sensors, plus sensor noise.

    Sources are drawn in the frequency domain, where stationary Gaussian noise is independent from
    bin to bin; each has unit variance.
    """
    frequencies = rfftfreq(n_samples, 1.0 / sfreq)
    pink = 1.0 / np.sqrt(np.maximum(frequencies, 0.5))
    alpha = np.exp(-0.5 * ((frequencies - 10.0) / 1.0) ** 2)
    spectra = rng.standard_normal((N_PINK + N_ALPHA, 2 * len(frequencies)), dtype=np.float32).view(np.complex64)
    for rows, amplitude in ((spectra[:N_PINK], pink), (spectra[N_PINK:], alpha)):
        amplitude[0] = 0.0  # an amplifier passes no constant
        rows *= (0.5 * n_samples / np.linalg.norm(amplitude) * amplitude).astype(np.float32)
    sources = irfft(spectra, n_samples, overwrite_x=True)
    sensed = np.float32(SENSOR_NOISE_V) * rng.standard_normal((len(listener.background), n_samples), dtype=np.float32)
    sensed += listener.background @ sources
    return sensed


def artefacts(n_samples: int, sfreq: float, listener: Listener, rng: np.random.Generator) -> np.ndarray:
    """(C, n_samples) float32 volts: blinks about every four seconds and 50 Hz line noise."""
    train = np.zeros(n_samples, dtype=np.float32)
    gaps_s = 1.0 + rng.exponential(3.0, int(n_samples / sfreq) + 1)  # one blink is over before the next
    onsets = (np.cumsum(gaps_s) * sfreq).astype(int)
    train[onsets[onsets < n_samples]] = 1.0
    shape = np.hanning(int(0.35 * sfreq)).astype(np.float32)
    blinks = fftconvolve(train, shape)[:n_samples].astype(np.float32)
    phase = 2 * np.pi * (50.0 * np.arange(n_samples) / sfreq) + np.cumsum(rng.normal(0.0, 0.002, n_samples))
    return np.outer(listener.blink, blinks) + np.outer(listener.line, np.sin(phase).astype(np.float32))


def variance(signal: np.ndarray, speech: np.ndarray, sfreq: float) -> np.ndarray:
    """(C, T) -> (C,): variance between 1 and 40 Hz (zero-phase Butterworth) where `speech` (T,) is true."""
    band = butter(4, SNR_BAND_HZ, "bandpass", fs=sfreq, output="sos")
    return np.array([np.var(sosfiltfilt(band, channel)[speech]) for channel in signal])
