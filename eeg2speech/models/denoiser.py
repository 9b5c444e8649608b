"""The conditional denoiser: a `diffusers` UNet2DConditionModel and the ways a condition enters it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from pydantic import Field, TypeAdapter, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from eeg2speech.models.prior import AlignedCondition, LatentPrior, posterior_prediction, prediction_of, signal_and_noise
from eeg2speech.models.schedule import FlowScheduleConfig, NoiseScheduleConfig, ScheduleConfig, noise_scheduler
from eeg2speech.schema import Config, is_off

Conditioning = Literal["film", "cross_attention", "time_aligned"]


class DenoiserConfig(Config):
    """The default is AudioLDM-S, with attention at levels of 1/2, 1/4 and 1/8; its conditioning is film, 512 wide."""

    # Not written out, for there is no other here: what is added beside it tells itself apart by its own.
    name: Literal["unet"] = Field(default="unet", exclude_if=lambda _: True)
    channels: tuple[int, ...] = (128, 256, 384, 640)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = Field(
        default=(False, True, True, True), description="attention at this level; one value a level"
    )
    head_dim: int = 32
    norm_groups: int = 32
    conditioning: tuple[Conditioning, ...] = ("time_aligned",)
    aligned_channels: int = Field(default=8, description="channels that time-aligned conditioning adds to the input")
    prior: bool = Field(
        default=False,
        description="the condition gives a Gaussian estimate of the latent, which the UNet corrects",
        exclude_if=is_off,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DenoiserConfig:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} values for {len(self.channels)} channels: give as many"
            )
        if not self.conditioning:
            raise ValueError("conditioning is empty: name film, cross_attention or time_aligned")
        if "cross_attention" in self.conditioning and not any(self.attention):
            raise ValueError("conditioning by cross_attention needs attention: true on at least one level")
        if any(c % self.norm_groups for c in self.channels):
            raise ValueError(f"norm_groups {self.norm_groups} must divide every one of channels {self.channels}")
        if any(c % min(c, self.head_dim) for c, on in zip(self.channels, self.attention, strict=True) if on):
            raise ValueError(f"head_dim {self.head_dim} must divide channels {self.channels} where there is attention")
        return self

    def build(
        self,
        *,
        latent_channels: int,
        latent_bins: int,
        cond_dim: int,
        cond_frames: int,
        latent_frames: int | None = None,
        schedule: NoiseScheduleConfig | FlowScheduleConfig | None = None,
    ) -> Denoiser:
        """`latent_frames`: of a latent; where the condition has several frames to one of it, none is averaged away.
        `schedule`: the objective, which a denoiser with a prior must know."""
        if self.prior and schedule is None:
            raise ValueError("a denoiser with a prior needs the schedule")
        return Denoiser(
            latent_channels=latent_channels,
            latent_bins=latent_bins,
            cond_dim=cond_dim,
            cond_frames=cond_frames,
            cond_fold=max(1, round(cond_frames / (latent_frames or cond_frames))),
            prior=schedule.model_dump() if self.prior and schedule is not None else None,
            **self.model_dump(exclude={"prior"}),
        )


class ConditionalDenoiser(ModelMixin, ConfigMixin):
    """What training and sampling ask of a denoiser: (latent, t, condition) -> prediction, and a learned null condition.

    `config.cond_frames` is T' of a condition. One without a `latent_prior` leaves it None.
    """

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.latent_prior: LatentPrior | None = None
        self.null_cond = nn.Parameter(torch.zeros(cond_dim, 1))

    def drop(self, cond: Tensor, dropped: Tensor) -> Tensor:
        """(B, D, T') with the rows where `dropped` (B,) is true replaced by the null condition."""
        return torch.where(dropped.view(-1, 1, 1), self.null_cond, cond)

    def null(self, batch: int) -> Tensor:
        """(batch, D, T'): the null condition."""
        return self.null_cond.expand(batch, -1, int(self.config.cond_frames))

    def forward(self, latent: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(B, L, T, W) noisy latent, (B,) or () timestep, (B, D, T') -> (B, L, T, W), for any T."""
        raise NotImplementedError


class Denoiser(ConditionalDenoiser):
    """A UNet. Predicts what the scheduler asks for (eps, v or x0) from a noisy latent and a condition.

    *film*: the condition's mean over time, as a class embedding concatenated to the time embedding
    (AudioLDM). *cross_attention*: the condition's frames as keys. *time_aligned*: the condition,
    projected frame by frame onto the latent's time axis and concatenated to its channels.
    A learned `null_cond` stands for "no condition" in all three. With a `prior` (the dump of a schedule)
    the condition also gives a mean and a log variance of the latent; the UNet sees them, and corrects
    what they predict.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        latent_bins: int,
        cond_dim: int,
        cond_frames: int,
        channels: tuple[int, ...] = (128, 256, 384, 640),
        layers_per_block: int = 2,
        attention: tuple[bool, ...] = (False, True, True, True),
        head_dim: int = 32,
        norm_groups: int = 32,
        conditioning: tuple[Conditioning, ...] = ("time_aligned",),
        aligned_channels: int = 8,
        cond_fold: int = 1,
        prior: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(cond_dim)
        film, cross = "film" in conditioning, "cross_attention" in conditioning
        self.aligned = "time_aligned" in conditioning
        kind = "CrossAttn" if cross or film else "Attn"
        down = tuple(f"{kind}DownBlock2D" if on else "DownBlock2D" for on in attention)
        up = tuple(f"{kind}UpBlock2D" if on else "UpBlock2D" for on in reversed(attention))
        self.unet = UNet2DConditionModel(
            in_channels=latent_channels * (3 if prior else 1) + (aligned_channels if self.aligned else 0),
            out_channels=latent_channels,
            down_block_types=down,
            up_block_types=up,
            mid_block_type="UNetMidBlock2DCrossAttn" if any(attention) and (cross or film) else "UNetMidBlock2D",
            block_out_channels=channels,
            layers_per_block=layers_per_block,
            # In a block with cross-attention diffusers takes `attention_head_dim` for the number of heads.
            attention_head_dim=tuple(max(1, c // head_dim) for c in channels) if cross or film else head_dim,
            norm_num_groups=norm_groups,
            cross_attention_dim=cond_dim if cross else channels,
            class_embed_type="simple_projection" if film else None,
            projection_class_embeddings_input_dim=cond_dim if film else None,
            class_embeddings_concat=film,
        )
        if self.aligned:
            self.align = AlignedCondition(cond_dim, cond_fold, aligned_channels, latent_bins)
        self.multiple = 2 ** (len(channels) - 1)
        self.process = None
        if prior is not None:
            self.latent_prior = LatentPrior(cond_dim, cond_fold, latent_channels, latent_bins)
            self.process = noise_scheduler(TypeAdapter(ScheduleConfig).validate_python(dict(prior)))
            # At the start the prediction is the prior's.
            nn.init.zeros_(self.unet.conv_out.weight)
            nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, latent: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(B, L, T, W) noisy latent, (B,) or () timestep, (B, D, T') -> (B, L, T, W).

        T is padded to a multiple of the UNet's downsampling and cropped again.
        """
        frames = latent.shape[2]
        padded = -(-frames // self.multiple) * self.multiple
        x = latent.to(self.unet.conv_in.weight.dtype)  # a prior's prediction is float32, whatever the UNet is
        if self.aligned:
            x = torch.cat([x, self.align(cond, frames).to(x)], dim=1)
        estimated = None
        if self.latent_prior is not None:
            estimated = self.latent_prior.estimate(cond, frames)
            x = torch.cat([x, *(part.to(x) for part in estimated)], dim=1)
        x = F.pad(x, (0, 0, 0, padded - frames))
        kinds = self.config.conditioning
        out = self.unet(
            x,
            t,
            encoder_hidden_states=cond.transpose(1, 2) if "cross_attention" in kinds else None,
            class_labels=cond.mean(dim=2) if "film" in kinds else None,
        ).sample
        out = out[:, :, :frames]
        if estimated is None:
            return out
        # In float32: the closed form has differences of near numbers in it.
        alpha, sigma = signal_and_noise(self.process, t)
        kind = prediction_of(self.process)
        expected, deviation = posterior_prediction(kind, latent.float(), alpha, sigma, *estimated)
        return expected + deviation * out.float()
