"""Losses: plain functions of tensors, no configuration look-ups."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity(estimate: Tensor, candidate: Tensor) -> Tensor:
    """(B, D, T') EEG estimates against (K, D, T') candidates -> (B, K) scores.

    score = <estimate, candidate / ||candidate||> over D and T' (Défossez et al. 2023, equation 2).
    """
    flat = candidate.flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return estimate.flatten(1) @ flat.T


def clip_loss(estimate: Tensor, candidate: Tensor, stimulus: Tensor, first: int = 0) -> Tensor:
    """Cross-entropy of picking one's own candidate among the batch's (Défossez et al. 2023, equation 3).

    Of (B, D, T') estimates and (K, D, T') candidates, K >= B, those of the estimates are the B from `first` on.
    Candidates that are the same speech as one's own (equal `stimulus` (K,)) are no negatives.
    """
    scores = similarity(estimate, candidate).float()
    own = first + torch.arange(len(estimate), device=scores.device)
    twin = stimulus[own][:, None] == stimulus[None, :]
    twin[torch.arange(len(own)), own] = False
    return F.cross_entropy(scores.masked_fill(twin, float("-inf")), own)


def min_snr_weight(alpha_bar: Tensor, prediction: str, gamma: float | None) -> Tensor:
    """Weight of a squared error at each timestep (Hang et al., ICCV 2023, section 3.4).

    min(SNR, gamma) scales the error of x0; a network that predicts eps or v has its own error
    scaled by SNR or SNR + 1 already. `gamma` None: every timestep weighs one.
    """
    if gamma is None:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar).clamp(min=1e-8)
    clipped = snr.clamp(max=gamma)
    weights = {"epsilon": (gamma / snr).clamp(max=1.0), "v_prediction": clipped / (snr + 1), "sample": clipped}
    return weights[prediction]
