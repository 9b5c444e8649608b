"""Vocoders: log-mel (B, T, 64) -> waveform (B, N), the call of `transformers.SpeechT5HifiGan`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from eeg2speech import audio
from eeg2speech.schema import Config


class GriffinLimConfig(Config):
    """Phase by iteration instead of by a trained network: nothing to train, nothing to download."""

    name: Literal["griffin_lim"] = "griffin_lim"
    iterations: int = 32

    def build(self) -> GriffinLimVocoder:
        return GriffinLimVocoder(iterations=self.iterations)


@lru_cache
def _inverse_mel_basis() -> Tensor:
    return torch.linalg.pinv(audio.mel_basis())


class GriffinLimVocoder(ModelMixin, ConfigMixin):
    """Fast Griffin-Lim (Perraudin et al., WASPAA 2013) on the magnitudes that the mel basis allows.

    The mel spectrogram is spread over frequency by the pseudo-inverse of the mel basis, clamped at 0.
    """

    MOMENTUM = 0.99

    @register_to_config
    def __init__(self, iterations: int = 32) -> None:
        super().__init__()
        self.iterations = iterations
        # diffusers asks a model's parameters for device and dtype.
        self.register_buffer("anchor", torch.zeros(1))

    @torch.no_grad()
    def forward(self, spectrogram: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """(B, T, 64) natural-log mel -> (B, T * 160) at 16 kHz.

        The starting phase of example b comes from `seeds[b]` alone (0 where not given), so that an
        example sounds the same in every batch.
        """
        mel = spectrogram.float().exp().transpose(1, 2)
        magnitude = (_inverse_mel_basis().to(mel) @ mel).clamp(min=0.0)
        phase = torch.stack([self._phase(seed, magnitude) for seed in (seeds or [0] * len(mel))])
        window = torch.hann_window(audio.N_FFT, device=mel.device)
        length = mel.shape[2] * audio.HOP_LENGTH
        previous = torch.zeros_like(phase)
        for _ in range(self.iterations):
            waveform = self._inverse(magnitude * phase, window)
            rebuilt = torch.stft(
                waveform, audio.N_FFT, audio.HOP_LENGTH, window=window, center=False, return_complex=True
            )
            phase = rebuilt - self.MOMENTUM / (1 + self.MOMENTUM) * previous
            phase = phase / phase.abs().clamp(min=1e-8)
            previous = rebuilt
        pad = (audio.N_FFT - audio.HOP_LENGTH) // 2
        return self._inverse(magnitude * phase, window)[:, pad : pad + length]

    def _phase(self, seed: int, magnitude: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        angle = 2 * torch.pi * torch.rand(magnitude.shape[1:], generator=generator)
        return torch.polar(torch.ones_like(angle), angle).to(magnitude.device)

    @staticmethod
    def _inverse(spectrum: Tensor, window: Tensor) -> Tensor:
        """Overlap-add without centring, as `audio.magnitude` frames it; (B, F, T) -> (B, (T-1)*hop + n_fft)."""
        frames = torch.fft.irfft(spectrum, audio.N_FFT, dim=1) * window[:, None]
        n_frames = frames.shape[2]
        size = (1, (n_frames - 1) * audio.HOP_LENGTH + audio.N_FFT)
        fold = {"kernel_size": (1, audio.N_FFT), "stride": (1, audio.HOP_LENGTH)}
        total = torch.nn.functional.fold(frames, size, **fold)[:, 0, 0]
        weight = (window**2)[None, :, None].expand(1, -1, n_frames)
        norm = torch.nn.functional.fold(weight.contiguous(), size, **fold)[:, 0, 0]
        return total / norm.clamp(min=1e-3)


class HifiGanConfig(Config):
    """A trained `transformers.SpeechT5HifiGan` in a folder (AudioLDM's is 16 kHz, 64 mel)."""

    name: Literal["hifigan"] = "hifigan"
    path: str

    def build(self) -> torch.nn.Module:
        from transformers import SpeechT5HifiGan

        from eeg2speech.errors import UserError

        try:
            return SpeechT5HifiGan.from_pretrained(self.path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"vocoder.path: no HiFi-GAN in {self.path} ({error}); name a folder saved by transformers"
            ) from error
