"""What travels from the loader to the models."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B windows of equal length, cut from the recordings of one study.

    Shapes: C EEG channels, T EEG samples, K feature bands, F feature frames, N audio samples.
    A field that a study cannot fill is None, never zeros.
    """

    eeg: Tensor
    """(B, C, T) float32, robust-scaled units, baseline-corrected and clamped; missing channels are 0."""
    positions: Tensor
    """(B, C, 2) float32, sensor positions projected to the unit square; missing sensors are NaN."""
    subject: Tensor
    """(B,) int64, index into the training subjects."""
    stimulus: Tensor
    """(B,) int64, row of the study's stimulus table: equal rows are the same speech."""
    features: Tensor
    """(B, K, F) float32, the speech representation: the log-mel (K = 64, natural log) where the
    study has audio, else the feature array the study ships (an envelope: K = 1)."""
    text: tuple[str, ...] = ()
    """The words wholly inside each window; empty where the study has none."""
    speech: Tensor | None = None
    """(B, K', F') float32, what a pretrained speech model makes of the sound; None where the audio
    encoder works on `features`."""

    @property
    def log_mel(self) -> Tensor:
        """(B, 1, F, K): the features as an image, in the layout of the autoencoder and vocoder."""
        return self.features.transpose(1, 2).unsqueeze(1)

    @property
    def heard(self) -> Tensor:
        """What the audio encoder takes: `speech`, else `features`."""
        return self.features if self.speech is None else self.speech

    def to(self, device: torch.device | str) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def __len__(self) -> int:
        return self.eeg.shape[0]
