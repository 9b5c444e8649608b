"""The mel autoencoder: a `diffusers` AutoencoderKL on log-mel images."""

from __future__ import annotations

import math
from functools import partial

import torch
from diffusers import AutoencoderKL, ModelMixin  # noqa: F401 - a saved pipeline looks for ModelMixin in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from eeg2speech.audio import LOG_FLOOR
from eeg2speech.schema import Config, is_off, is_unset

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
    linear_skip: bool = Field(
        default=False,
        description="principal components of a patch run beside the network, which corrects them",
        exclude_if=is_off,
    )
    floor: float | None = Field(
        default=None,
        gt=math.log(LOG_FLOOR),
        description="log-mel that stands for silence: what lies below is as noise of this level, not told apart",
        exclude_if=is_unset,
    )
    layers_per_block: int = 2
    latent_channels: int = 8
    mid_attention: bool = True
    norm_groups: int = 32

    @model_validator(mode="after")
    def _fits_together(self) -> AutoencoderConfig:
        if any(c % self.norm_groups for c in self.channels):
            raise ValueError(f"norm_groups {self.norm_groups} must divide every one of channels {self.channels}")
        if self.linear_skip and (len(self.channels) > 1 or self.latent_channels > self.patch**2):
            raise ValueError(
                "linear_skip takes a patch to a latent: it needs channels of one level, and no more latent_channels "
                f"than the patch has pixels (now {len(self.channels)} levels, {self.latent_channels} latent_channels, "
                f"{self.patch**2} pixels)"
            )
        if self.floor is not None and not self.linear_skip:
            raise ValueError("floor needs linear_skip: other autoencoders take the log-mel as it is")
        return self

    @property
    def downsampling(self) -> int:
        return self.patch * 2 ** (len(self.channels) - 1)

    def build(self) -> AutoencoderKL:
        n = len(self.channels)
        kind = partial(LinearSkipAutoencoder, floor=self.floor) if self.linear_skip else AutoencoderKL
        return kind(
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


class LinearSkipAutoencoder(AutoencoderKL):
    """An AutoencoderKL beside a linear one: each adds to what the other says, and the network starts at nothing.

    A network of normalised and rectified features takes thousands of steps to pass a patch through unchanged,
    which its principal components do in closed form: with 8 of 16, of the log-mel of the embedded study, at a
    fifth of the error of the network alone after 1,200 steps. The network has what is not linear left to learn.

    With a `floor` the image is log(mel + exp(floor)). A log-mel falls by five or more from the softest sound that
    matters to silence, so that squared errors of a latent are mostly of where silence begins, and an estimate that
    averages over speech and silence is a smear; above a floor they are of the shape of what is heard.
    """

    LOG_VARIANCE = -10.0
    """Of the posterior at the start, in standardised log-mel: less than what the components leave out."""

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        down_block_types: tuple[str, ...],
        up_block_types: tuple[str, ...],
        block_out_channels: tuple[int, ...],
        layers_per_block: int = 1,
        latent_channels: int = 8,
        norm_num_groups: int = 32,
        scaling_factor: float = 1.0,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        mid_block_add_attention: bool = True,
        floor: float | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            scaling_factor=scaling_factor,
            latents_mean=latents_mean,
            latents_std=latents_std,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.skip_in = nn.Conv2d(in_channels, latent_channels, 1)
        self.skip_out = nn.Conv2d(latent_channels, out_channels, 1)
        nn.init.zeros_(self.quant_conv.weight)
        nn.init.zeros_(self.quant_conv.bias)
        nn.init.constant_(self.quant_conv.bias.data[latent_channels:], self.LOG_VARIANCE)
        nn.init.zeros_(self.decoder.conv_out.weight)
        nn.init.zeros_(self.decoder.conv_out.bias)

    @torch.no_grad()
    def fit_skip(self, images: Tensor) -> None:
        """Sets the linear path to the principal components of patches (n, C, T, W), and their inverse."""
        patches = images.movedim(1, -1).flatten(0, -2).double()
        mean = patches.mean(dim=0)
        _, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))  # in ascending order of variance
        basis = vectors[:, -int(self.config.latent_channels) :].flip(1)
        self.skip_in.weight.copy_(basis.T[:, :, None, None])
        assert self.skip_in.bias is not None
        assert self.skip_out.bias is not None
        self.skip_in.bias.copy_(-basis.T @ mean)
        self.skip_out.weight.copy_(basis[:, :, None, None])
        self.skip_out.bias.copy_(mean)

    def _encode(self, x: Tensor) -> Tensor:
        mean, log_variance = super()._encode(x).chunk(2, dim=1)
        return torch.cat([mean + self.skip_in(x), log_variance], dim=1)

    def _decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        sample = super()._decode(z).sample + self.skip_out(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)


def to_image(autoencoder: AutoencoderKL, log_mel: Tensor) -> Tensor:
    """(B, 1, T, 64) -> what the autoencoder sees: the log-mel as it is (AudioLDM's way), or, where it
    takes patches, above its floor, standardised and with each patch's pixels as channels, at a fraction of the cost."""
    patch, floor = math.isqrt(int(autoencoder.config.in_channels)), autoencoder.config.get("floor")
    if floor is not None:
        log_mel = torch.logaddexp(log_mel, torch.tensor(floor).to(log_mel))
    return log_mel if patch == 1 else F.pixel_unshuffle((log_mel - MEL_MEAN) / MEL_STD, patch)


def from_image(autoencoder: AutoencoderKL, image: Tensor) -> Tensor:
    """The inverse of `to_image`, in float32: near -11 a log-mel has no precision left in bfloat16."""
    patch, floor = math.isqrt(int(autoencoder.config.in_channels)), autoencoder.config.get("floor")
    log_mel = image.float() if patch == 1 else F.pixel_shuffle(image.float(), patch) * MEL_STD + MEL_MEAN
    if floor is None:
        return log_mel
    silence = math.log1p(LOG_FLOOR / math.exp(floor))  # above the floor
    return floor + (log_mel - floor).clamp(min=silence).expm1().log()


def image_error(autoencoder: AutoencoderKL, image: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error of an image in units of log-mel, which below the floor counts for nothing."""
    scale = 1.0 if int(autoencoder.config.in_channels) == 1 else MEL_STD
    return scale * (image.float() - true.float()).abs().mean()


def encode(autoencoder: AutoencoderKL, log_mel: Tensor) -> Tensor:
    """(B, 1, T, 64) -> (B, latent_channels, T / 4, 16): the posterior mean, scaled to unit variance.

    Per channel where the autoencoder knows its latents' mean and deviation (ours do), else by the
    one `scaling_factor` of published checkpoints.
    """
    latent = autoencoder.encode(to_image(autoencoder, log_mel).to(autoencoder.dtype)).latent_dist.mode()
    shift, scale = _scale(autoencoder, latent)
    return (latent - shift) * scale


def decode(autoencoder: AutoencoderKL, latent: Tensor) -> Tensor:
    """The inverse of `encode`: (B, latent_channels, T / 4, 16) -> (B, 1, T, 64)."""
    shift, scale = _scale(autoencoder, latent)
    return from_image(autoencoder, autoencoder.decode((latent / scale + shift).to(autoencoder.dtype)).sample)


def fit_scale(autoencoder: AutoencoderKL, latents: Tensor) -> None:
    """Registers the mean and deviation per channel of unscaled training latents (n, L, T, W).

    Principal components keep their proportions, and get a mean variance of one: they are a rotation of the
    patch, so that an error in the latent is one in the image.
    """
    std = latents.std(dim=(0, 2, 3))
    if isinstance(autoencoder, LinearSkipAutoencoder):
        std = std.square().mean().sqrt().expand(len(std))
    autoencoder.register_to_config(latents_mean=latents.mean(dim=(0, 2, 3)).tolist(), latents_std=std.tolist())


def _scale(autoencoder: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor]:
    config = autoencoder.config
    if config.latents_std is None:
        return torch.zeros((), device=like.device), torch.tensor(config.scaling_factor, device=like.device)
    shape = (1, -1, 1, 1)
    shift = torch.tensor(config.latents_mean, device=like.device).view(shape)
    return shift, 1.0 / torch.tensor(config.latents_std, device=like.device).view(shape)
