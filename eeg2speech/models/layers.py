"""Layers shared by the EEG and audio encoders."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpatialAttention(nn.Module):
    """Recombines sensors into virtual channels by attention over their positions.

    Défossez et al. (Nat. Mach. Intell. 2023), equation 1 and its text: each virtual channel owns a
    learned function on the scalp, written in a Fourier basis, whose softmax over the sensors that
    are present weighs them. In training, sensors within `dropout_radius` of a random point are dropped.
    """

    MARGIN = 0.2
    """Kept free on each side of the unit square, so that the periodic basis does not wrap: brainmagick's."""

    def __init__(self, virtual_channels: int, fourier_size: int, dropout_radius: float) -> None:
        super().__init__()
        self.n_frequencies = math.isqrt(fourier_size // 2)
        self.heads = nn.Parameter(torch.randn(virtual_channels, fourier_size) / math.sqrt(fourier_size))
        self.dropout_radius = dropout_radius

    def basis(self, positions: Tensor) -> Tensor:
        """(..., 2) -> (..., fourier_size): cosines then sines of 2 pi (k x + l y), x and y within the margin."""
        frequency = torch.arange(self.n_frequencies, device=positions.device, dtype=positions.dtype)
        angle = 2 * math.pi * (positions + self.MARGIN) / (1 + 2 * self.MARGIN)
        phase = angle[..., :1, None] * frequency[:, None] + angle[..., 1:, None] * frequency
        phase = phase.flatten(-2)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)

    def weights(self, positions: Tensor) -> Tensor:
        """(B, C, 2), NaN where a sensor is missing -> (B, virtual, C), rows summing to one."""
        absent = positions.isnan().any(-1)
        places = torch.nan_to_num(positions)
        scores = torch.einsum("bcf,vf->bvc", self.basis(places), self.heads)
        if self.training and self.dropout_radius > 0:
            centre = torch.rand(len(positions), 1, 2, device=positions.device)
            near = (places - centre).norm(dim=-1) <= self.dropout_radius
            # A listener with few sensors may have them all near the point: then none is dropped.
            near &= ~(near | absent).all(dim=1, keepdim=True)
            absent = absent | near
        return scores.masked_fill(absent.unsqueeze(1), float("-inf")).softmax(dim=-1)

    def forward(self, eeg: Tensor, positions: Tensor) -> Tensor:
        """(B, C, T) and (B, C, 2) -> (B, virtual, T)."""
        return self.weights(positions).to(eeg) @ eeg


class SubjectLayer(nn.Module):
    """A matrix of its own for each listener, (B, H, T) -> (B, H, T); no bias, identity at the start.

    A subject index outside the training subjects (-1: unseen) uses the mean of all matrices.
    """

    def __init__(self, channels: int, n_subjects: int) -> None:
        super().__init__()
        noise = torch.randn(n_subjects, channels, channels) / math.sqrt(channels)
        self.matrices = nn.Parameter(torch.eye(channels) + 0.1 * noise)

    def forward(self, x: Tensor, subject: Tensor) -> Tensor:
        seen = self.matrices[subject.clamp(min=0)]
        unseen = (subject < 0).view(-1, 1, 1)
        return torch.where(unseen, self.matrices.mean(0), seen).to(x) @ x


class DilatedConvs(nn.Module):
    """Residual convolutions, dilation 2^(k mod 5), batch norm, GELU, and a GLU after every second one."""

    def __init__(self, in_channels: int, channels: int, depth: int, kernel: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.convs, self.gates = nn.ModuleList(), nn.ModuleList()
        for k in range(depth):
            dilation = 2 ** (k % 5)
            conv = nn.Conv1d(
                in_channels if k == 0 else channels,
                channels,
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
            )
            self.convs.append(nn.Sequential(conv, nn.BatchNorm1d(channels), nn.GELU(), nn.Dropout(dropout)))
            gate = nn.Sequential(nn.Conv1d(channels, 2 * channels, 3, padding=1), nn.GLU(dim=1))
            self.gates.append(gate if k % 2 == 1 else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) -> (B, channels, T)."""
        for conv, gate in zip(self.convs, self.gates, strict=True):
            y = conv(x)
            x = gate(x + y if x.shape == y.shape else y)
        return x


def resample_frames(x: Tensor, n_frames: int) -> Tensor:
    """(B, D, T) -> (B, D, n_frames): linear interpolation up, averaging down."""
    if x.shape[-1] == n_frames:
        return x
    if x.shape[-1] < n_frames:
        return F.interpolate(x, n_frames, mode="linear", align_corners=False)
    return F.adaptive_avg_pool1d(x, n_frames)


def normalise_embedding(x: Tensor) -> Tensor:
    """(B, D, T') scaled to unit root-mean-square over D and T', so that EEG estimates and audio
    embeddings condition the diffusion model on one scale."""
    return x / x.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-6)
