"""The rival of the diffusion model: an EEG encoder that estimates the log-mel itself."""

from __future__ import annotations

from torch import Tensor, nn


class Regressor(nn.Module):
    """(B, C, T), (B, C, 2), (B,) -> (B, K, F): the encoder's output, scaled to the features' mean and deviation.

    The encoder works on standardised features, since a log-mel near -11 has no precision left in bfloat16.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, features: Tensor) -> None:
        """`features` (n, K, F) of training speech give mean and deviation of each band."""
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", features.mean(dim=(0, 2)).unsqueeze(1))
        self.register_buffer("std", features.std(dim=(0, 2)).clamp(min=1e-3).unsqueeze(1))

    def forward(self, eeg: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        out: Tensor = self.encoder(eeg, positions, subject)
        return out.float() * self.std + self.mean
