"""The log-mel front end every model and metric shares (AudioLDM's, at 16 kHz).

64 Slaney mel bands from 0 to 8 kHz, n_fft = win_length = 1024, hop 160, natural logarithm of the
magnitude clamped at 1e-5, reflect-padded by (n_fft - hop) / 2 so that 3 s are exactly 300 frames.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path

SAMPLE_RATE = 16_000
N_FFT = 1024
HOP_LENGTH = 160
N_MELS = 64
FRAME_RATE_HZ = SAMPLE_RATE / HOP_LENGTH
LOG_FLOOR = 1e-5
"""Magnitudes below this are clamped before the logarithm: silence is log(1e-5) = -11.5."""


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear below 1 kHz, logarithmic above (Auditory Toolbox, 1998)."""
    log_region = 15.0 + np.log(np.maximum(hz, 1e-10) / 1000.0) * 27.0 / np.log(6.4)
    return np.where(hz >= 1000.0, log_region, hz * 3.0 / 200.0)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel >= 15.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0), mel * 200.0 / 3.0)


@lru_cache
def mel_basis() -> Tensor:
    """(N_MELS, N_FFT // 2 + 1) float32: triangular filters of unit area (Slaney normalisation)."""
    edges = _mel_to_hz(np.linspace(_hz_to_mel(np.array(0.0)), _hz_to_mel(np.array(8000.0)), N_MELS + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(weights.astype(np.float32))


def magnitude(waveform: Tensor) -> Tensor:
    """(B, N) -> (B, N_FFT // 2 + 1, N // HOP_LENGTH): the magnitude spectrogram."""
    pad = (N_FFT - HOP_LENGTH) // 2
    padded = torch.nn.functional.pad(waveform.unsqueeze(1), (pad, pad), mode="reflect").squeeze(1)
    window = torch.hann_window(N_FFT, device=waveform.device, dtype=waveform.dtype)
    spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, N_FFT, window, center=False, return_complex=True)
    return spectrum.abs()


def log_mel(waveform: Tensor) -> Tensor:
    """(B, N) at 16 kHz, |x| <= 1 -> (B, 1, T, 64), T = N // 160 frames of 10 ms."""
    basis = mel_basis().to(waveform)
    mel = torch.einsum("mf,bft->btm", basis, magnitude(waveform))
    return mel.clamp(min=LOG_FLOOR).log().unsqueeze(1)


def load(path: str | Path, start_s: float = 0.0, duration_s: float | None = None) -> np.ndarray:
    """Reads a stretch of a sound file as mono float32 at 16 kHz, shape (N,).

    Channels are averaged, other rates resampled (polyphase). Before the start of the file (`start_s`
    below 0) and past its end the stretch is silent: a window that outlasts a short sentence keeps its
    fixed length.
    Raises UserError naming the file where it cannot be read.
    """
    import soundfile

    if start_s < 0:
        lead = round(-start_s * SAMPLE_RATE)
        if duration_s is None:
            return np.pad(load(path), (lead, 0))
        wanted = round(duration_s * SAMPLE_RATE)
        rest = max(0, wanted - lead)
        return np.pad(load(path, 0.0, rest / SAMPLE_RATE), (wanted - rest, 0))
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            file.seek(min(round(start_s * rate), file.frames))
            frames = -1 if duration_s is None else round(duration_s * rate)
            data = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: this sound file cannot be read ({error}); replace or re-export it") from error
    data = resample(data, rate)
    if duration_s is None:
        return data
    wanted = round(duration_s * SAMPLE_RATE)
    return np.pad(data[:wanted], (0, max(0, wanted - len(data))))


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """(N,) at `rate` Hz -> float32 at 16 kHz, by a polyphase filter."""
    if rate == SAMPLE_RATE:
        return waveform.astype(np.float32, copy=False)
    from scipy.signal import resample_poly

    divisor = int(np.gcd(rate, SAMPLE_RATE))
    return resample_poly(waveform, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)


def save(path: str | Path, waveform: np.ndarray) -> None:
    """Writes (N,) at 16 kHz as 16-bit PCM, atomically; louder than full scale is scaled down, not clipped."""
    import soundfile

    peak = float(np.abs(waveform).max(initial=0.0))
    encoded = io.BytesIO()  # libsndfile itself would not say that a disk is full
    soundfile.write(encoded, waveform / max(peak, 1.0), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    with atomic_path(Path(path)) as partial:
        partial.write_bytes(encoded.getvalue())
