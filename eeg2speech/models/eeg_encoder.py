"""EEG encoders: (B, C, T) of any sensor layout -> an embedding (B, D, T')."""

from __future__ import annotations

import math
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import Field, field_validator
from torch import Tensor, nn

from eeg2speech.models.layers import DilatedConvs, SpatialAttention, SubjectLayer, resample_frames
from eeg2speech.schema import Config


class ClipConvConfig(Config):
    """brainmagick's `clip_conv`; its published size is the default, smaller ones are for small machines."""

    name: Literal["clip_conv"] = "clip_conv"
    virtual_channels: int = 270
    fourier_size: int = Field(default=2048, description="twice a square")
    dropout_radius: float = 0.2
    channels: int = 320
    depth: int = 10
    dropout: float = 0.0

    @field_validator("fourier_size")
    @classmethod
    def _is_twice_a_square(cls, value: int) -> int:
        if value < 2 or 2 * math.isqrt(value // 2) ** 2 != value:
            raise ValueError("must be twice a square, such as 512 or 2048")
        return value

    def build(self, *, n_subjects: int, dim: int, n_frames: int, n_channels: int) -> ClipConv:
        """`n_channels` is not needed: attention over positions takes any layout."""
        del n_channels
        return ClipConv(n_subjects=n_subjects, dim=dim, n_frames=n_frames, **self.model_dump(exclude={"name"}))


class ClipConv(ModelMixin, ConfigMixin):
    """Spatial attention, 1x1 convolution, a matrix per subject, dilated convolutions, two 1x1 out.

    Défossez et al. (Nat. Mach. Intell. 2023), section "Brain module"; written from the paper. With the
    weights of the original (`importers.brainmagick`) it gives the same output.
    """

    @register_to_config
    def __init__(
        self,
        n_subjects: int,
        dim: int,
        n_frames: int,
        virtual_channels: int = 270,
        fourier_size: int = 2048,
        dropout_radius: float = 0.2,
        channels: int = 320,
        depth: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.attention = SpatialAttention(virtual_channels, fourier_size, dropout_radius)
        self.initial = nn.Conv1d(virtual_channels, virtual_channels, 1)
        self.subject = SubjectLayer(virtual_channels, n_subjects)
        self.convs = DilatedConvs(virtual_channels, channels, depth, dropout=dropout)
        self.head = nn.Sequential(nn.Conv1d(channels, 2 * channels, 1), nn.GELU(), nn.Conv1d(2 * channels, dim, 1))

    def forward(self, eeg: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """(B, C, T), (B, C, 2), (B,) -> (B, dim, n_frames)."""
        x = self.subject(self.initial(self.attention(eeg, positions)), subject)
        return resample_frames(self.head(self.convs(x)), self.n_frames)


class AlignedConvConfig(Config):
    """Whitened EEG, a matrix per subject, a wide first convolution, then `clip_conv`'s trunk.

    Attention over positions can only average sensors, so that a `clip_conv` spends its first
    thousands of steps on unmixing them. Euclidean alignment does that in closed form.
    """

    name: Literal["aligned_conv"] = "aligned_conv"
    channels: int = 160
    depth: int = 6
    stem: int = Field(default=9, description="samples of the first convolution; odd")
    dropout: float = 0.0

    def build(self, *, n_subjects: int, dim: int, n_frames: int, n_channels: int) -> AlignedConv:
        sizes = {"n_subjects": n_subjects, "dim": dim, "n_frames": n_frames, "n_channels": n_channels}
        return AlignedConv(**sizes, **self.model_dump(exclude={"name"}))


class AlignedConv(ModelMixin, ConfigMixin):
    """Needs the channel order of the training study; a missing channel is 0 and positions are not used."""

    LIMIT = 8.0
    """Whitened samples are clamped to +- this many deviations: blinks lie far beyond, speech within."""
    alignment: Tensor

    @register_to_config
    def __init__(
        self,
        n_subjects: int,
        dim: int,
        n_frames: int,
        n_channels: int,
        channels: int = 160,
        depth: int = 6,
        stem: int = 9,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.register_buffer("alignment", torch.eye(n_channels).repeat(n_subjects, 1, 1))
        self.subject = SubjectLayer(n_channels, n_subjects)
        self.first = nn.Conv1d(n_channels, channels, stem, padding=stem // 2)
        self.convs = DilatedConvs(channels, channels, depth, dropout=dropout)
        self.head = nn.Sequential(nn.Conv1d(channels, 2 * channels, 1), nn.GELU(), nn.Conv1d(2 * channels, dim, 1))

    def fit_alignment(self, eeg: Tensor, subject: Tensor) -> None:
        """Sets each subject's whitening from training windows (n, C, T) and their subjects (n,).

        Euclidean alignment (He & Wu, IEEE Trans. Biomed. Eng. 2020): the inverse square root of the
        subject's mean covariance, here with eigenvalues below 1e-4 of the largest raised to that.
        """
        for index in subject.unique().tolist():
            mine = eeg[subject == index].clamp(-5.0, 5.0)
            covariance = torch.einsum("nct,ndt->cd", mine, mine).double() / (len(mine) * mine.shape[2])
            values, vectors = torch.linalg.eigh(covariance)
            values = values.clamp(min=1e-4 * float(values.max()))
            self.alignment[index] = (vectors * values.rsqrt() @ vectors.T).float()

    def forward(self, eeg: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """(B, C, T), (B, C, 2), (B,) -> (B, dim, n_frames). An unseen subject (-1) gets the mean alignment."""
        unseen = (subject < 0).view(-1, 1, 1)
        alignment = torch.where(unseen, self.alignment.mean(0), self.alignment[subject.clamp(min=0)])
        with torch.autocast(eeg.device.type, enabled=False):  # differences of large numbers: bfloat16 loses them
            x = (alignment @ eeg.float()).clamp(-self.LIMIT, self.LIMIT)
        return resample_frames(self.head(self.convs(self.first(self.subject(x, subject)))), self.n_frames)


class LinearEncoderConfig(Config):
    """A linear map from lagged EEG: the backward temporal response function, trained by gradient."""

    name: Literal["linear"] = "linear"
    lags: int = 61

    def build(self, *, n_subjects: int, dim: int, n_frames: int, n_channels: int) -> LinearEncoder:
        return LinearEncoder(n_subjects=n_subjects, dim=dim, n_frames=n_frames, n_channels=n_channels, lags=self.lags)


class LinearEncoder(ModelMixin, ConfigMixin):
    """One convolution over time and channels per listener: no hidden layer, no nonlinearity.

    The decoder of the TRF literature (Crosse et al., Front. Hum. Neurosci. 2016). `lags` samples are
    centred on the output's time, so the channel order must be the training study's.
    """

    @register_to_config
    def __init__(self, n_subjects: int, dim: int, n_frames: int, n_channels: int, lags: int = 61) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.subject = SubjectLayer(n_channels, n_subjects)
        self.filters = nn.Conv1d(n_channels, dim, lags, padding=lags // 2)

    def forward(self, eeg: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        """(B, C, T), (B, C, 2), (B,) -> (B, dim, n_frames). Positions are not used."""
        return resample_frames(self.filters(self.subject(eeg, subject)), self.n_frames)
