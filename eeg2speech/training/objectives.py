"""What a denoiser is shown and asked for: a latent with noise in it, and the target of that moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from eeg2speech.losses import min_snr_weight


@dataclass(frozen=True)
class Noised:
    """A batch of noisy latents."""

    latent: Tensor
    """(B, L, T, W)"""
    t: Tensor
    """(B,) the timestep that the network is told: whole numbers in diffusion, 0 to num_train_timesteps in a flow."""
    target: Tensor
    """(B, L, T, W) what the network is to predict."""
    weight: Tensor
    """(B,) of the squared error."""


def add_noise(scheduler: SchedulerMixin, x0: Tensor, min_snr_gamma: float | None = None) -> Noised:
    """Draws noise and a moment for every latent (B, L, T, W), by the objective that the scheduler is of."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return _flow(scheduler, x0)
    return _diffusion(scheduler, x0, min_snr_gamma)


def _diffusion(scheduler: SchedulerMixin, x0: Tensor, gamma: float | None) -> Noised:
    eps = torch.randn_like(x0)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), device=x0.device)
    kind = scheduler.config.prediction_type
    targets = {"epsilon": lambda: eps, "sample": lambda: x0, "v_prediction": lambda: scheduler.get_velocity(x0, eps, t)}
    weight = min_snr_weight(scheduler.alphas_cumprod.to(x0)[t], kind, gamma)
    return Noised(scheduler.add_noise(x0, eps, t), t, targets[kind](), weight)


def _flow(scheduler: SchedulerMixin, x0: Tensor) -> Noised:
    """Uniform moments s of the straight line from data to noise (Lipman et al., ICLR 2023; Liu et al., ICLR 2023)."""
    eps = torch.randn_like(x0)
    s = torch.rand(len(x0), device=x0.device)
    part = s.view(-1, 1, 1, 1)
    latent = (1 - part) * x0 + part * eps
    return Noised(latent, s * scheduler.config.num_train_timesteps, eps - x0, torch.ones_like(s))
