"""Audio encoders: the speech side of the contrastive pair, features (B, K, F) -> (B, D, T')."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor, nn

from eeg2speech.models.layers import DilatedConvs, resample_frames
from eeg2speech.schema import Config, is_off


class DeepMelConfig(Config):
    """A small network on the log-mel, trained with the EEG encoder ("deep mel"); needs no download."""

    name: Literal["deep_mel"] = "deep_mel"
    channels: int = 320
    depth: int = 6
    linear_skip: bool = Field(default=False, description="a 1x1 convolution beside the network", exclude_if=is_off)

    def build(self, *, n_bands: int, dim: int, n_frames: int) -> DeepMel:
        sizes = {"n_bands": n_bands, "dim": dim, "n_frames": n_frames}
        return DeepMel(**sizes, channels=self.channels, depth=self.depth, linear_skip=self.linear_skip)


class DeepMel(ModelMixin, ConfigMixin):
    """Dilated convolutions over feature frames; Défossez et al. (2023), "Deep Mel" baseline.

    Features are standardised per band by the training mean and deviation kept with the weights.
    """

    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(
        self,
        n_bands: int,
        dim: int,
        n_frames: int,
        channels: int = 320,
        depth: int = 6,
        linear_skip: bool = False,
    ) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.register_buffer("mean", torch.zeros(n_bands, 1))
        self.register_buffer("std", torch.ones(n_bands, 1))
        self.convs = DilatedConvs(n_bands, channels, depth)
        self.head = nn.Conv1d(channels, dim, 1)
        self.skip = nn.Conv1d(n_bands, dim, 1) if linear_skip else None

    def fit_scale(self, features: Tensor) -> None:
        """Sets mean and deviation from training features (n, K, F)."""
        self.mean.copy_(features.mean(dim=(0, 2)).unsqueeze(1))
        self.std.copy_(features.std(dim=(0, 2)).clamp(min=1e-3).unsqueeze(1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, K, F) -> (B, dim, n_frames)."""
        x = (features - self.mean) / self.std
        out = self.head(self.convs(x))
        return resample_frames(out if self.skip is None else out + self.skip(x), self.n_frames)


class SpeechHead(ModelMixin, ConfigMixin):
    """Features of a pretrained model, standardised as in `DeepMel`, resampled, and brought to D channels.

    Where they have D channels already nothing here is trained, as in brainmagick.
    """

    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(self, n_bands: int, dim: int, n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.register_buffer("mean", torch.zeros(n_bands, 1))
        self.register_buffer("std", torch.ones(n_bands, 1))
        self.map = nn.Identity() if n_bands == dim else nn.Conv1d(n_bands, dim, 1)

    fit_scale = DeepMel.fit_scale

    def forward(self, features: Tensor) -> Tensor:
        """(B, K', F') -> (B, dim, n_frames)."""
        return resample_frames(self.map((features - self.mean) / self.std), self.n_frames)
