"""The mel autoencoder: a `diffusers` AutoencoderKL on log-mel images."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from pydantic import Field, model_validator
from torch import Tensor

from eeg2speech.schema import Config


class AutoencoderConfig(Config):
    """AudioLDM's is channels (128, 256, 512), 2 layers a block, 8 latent channels, attention in the middle."""

    channels: tuple[int, ...] = Field(
        default=(128, 256, 512), description="one level each; every level after the first halves both axes"
    )
    layers_per_block: int = 2
    latent_channels: int = 8
    mid_attention: bool = True
    norm_groups: int = 32

    @model_validator(mode="after")
    def _fits_together(self) -> AutoencoderConfig:
        if any(c % self.norm_groups for c in self.channels):
            raise ValueError(f"norm_groups {self.norm_groups} must divide every one of channels {self.channels}")
        return self

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channels) - 1)

    def build(self, mel_mean: float = 0.0) -> AutoencoderKL:
        """`mel_mean`: where the output starts, so that no step is spent on finding the mean level."""
        n = len(self.channels)
        autoencoder = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * n,
            up_block_types=("UpDecoderBlock2D",) * n,
            block_out_channels=self.channels,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_groups,
            mid_block_add_attention=self.mid_attention,
            scaling_factor=1.0,
        )
        torch.nn.init.constant_(autoencoder.decoder.conv_out.bias, mel_mean)
        return autoencoder


def encode(autoencoder: AutoencoderKL, log_mel: Tensor) -> Tensor:
    """(B, 1, T, 64) -> (B, latent_channels, T / 4, 16): the posterior mean, scaled to unit variance.

    Per channel where the autoencoder knows its latents' mean and deviation (ours do), else by the
    one `scaling_factor` of published checkpoints.
    """
    latent = autoencoder.encode(log_mel).latent_dist.mode()
    shift, scale = _scale(autoencoder, latent)
    return (latent - shift) * scale


def decode(autoencoder: AutoencoderKL, latent: Tensor) -> Tensor:
    """The inverse of `encode`: (B, latent_channels, T / 4, 16) -> (B, 1, T, 64)."""
    shift, scale = _scale(autoencoder, latent)
    return autoencoder.decode(latent / scale + shift).sample


def fit_scale(autoencoder: AutoencoderKL, latents: Tensor) -> None:
    """Registers the mean and deviation per channel of unscaled training latents (n, L, T, W)."""
    autoencoder.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3)).tolist(), latents_std=latents.std(dim=(0, 2, 3)).tolist()
    )


def _scale(autoencoder: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor]:
    config = autoencoder.config
    if config.latents_std is None:
        return torch.zeros((), device=like.device), torch.tensor(config.scaling_factor, device=like.device)
    shape = (1, -1, 1, 1)
    shift = torch.tensor(config.latents_mean, device=like.device).view(shape)
    return shift, 1.0 / torch.tensor(config.latents_std, device=like.device).view(shape)
