"""The mel autoencoder: a `diffusers` AutoencoderKL on log-mel images."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKL
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from eeg2speech.schema import Config

MEL_MEAN, MEL_STD = -6.0, 4.0
"""Round numbers near the level of speech in natural-log mel, so that patches are of order one."""


class AutoencoderConfig(Config):
    """AudioLDM's is channels (128, 256, 512), 2 layers a block, 8 latent channels, attention in the middle."""

    channels: tuple[int, ...] = Field(
        default=(128, 256, 512), description="one level each; every level after the first halves both axes"
    )
    patch: int = Field(
        default=1, ge=1, description="above 1: squares of this side become channels first, and the mel is standardised"
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
        return self.patch * 2 ** (len(self.channels) - 1)

    def build(self) -> AutoencoderKL:
        n = len(self.channels)
        return AutoencoderKL(
            in_channels=self.patch**2,
            out_channels=self.patch**2,
            down_block_types=("DownEncoderBlock2D",) * n,
            up_block_types=("UpDecoderBlock2D",) * n,
            block_out_channels=self.channels,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_groups,
            mid_block_add_attention=self.mid_attention,
            scaling_factor=1.0,
        )


def to_image(autoencoder: AutoencoderKL, log_mel: Tensor) -> Tensor:
    """(B, 1, T, 64) -> what the autoencoder sees: the log-mel as it is (AudioLDM's way), or, where it
    takes patches, standardised and with each patch's pixels as channels, at a fraction of the cost."""
    patch = math.isqrt(int(autoencoder.config.in_channels))
    return log_mel if patch == 1 else F.pixel_unshuffle((log_mel - MEL_MEAN) / MEL_STD, patch)


def from_image(autoencoder: AutoencoderKL, image: Tensor) -> Tensor:
    """The inverse of `to_image`, in float32: near -11 a log-mel has no precision left in bfloat16."""
    patch = math.isqrt(int(autoencoder.config.in_channels))
    return image.float() if patch == 1 else F.pixel_shuffle(image.float(), patch) * MEL_STD + MEL_MEAN


def encode(autoencoder: AutoencoderKL, log_mel: Tensor) -> Tensor:
    """(B, 1, T, 64) -> (B, latent_channels, T / 4, 16): the posterior mean, scaled to unit variance.

    Per channel where the autoencoder knows its latents' mean and deviation (ours do), else by the
    one `scaling_factor` of published checkpoints.
    """
    latent = autoencoder.encode(to_image(autoencoder, log_mel)).latent_dist.mode()
    shift, scale = _scale(autoencoder, latent)
    return (latent - shift) * scale


def decode(autoencoder: AutoencoderKL, latent: Tensor) -> Tensor:
    """The inverse of `encode`: (B, latent_channels, T / 4, 16) -> (B, 1, T, 64)."""
    shift, scale = _scale(autoencoder, latent)
    return from_image(autoencoder, autoencoder.decode(latent / scale + shift).sample)


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
