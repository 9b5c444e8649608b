"""What a Gaussian estimate of the latent alone says of a noisy latent, which the denoiser's UNet then corrects.

The estimate is read off the condition and trained with the encoders, as Grad-TTS trains its prior (Popov et
al., ICML 2021). Given x0 ~ N(mean, variance) and x_t = alpha x0 + sigma eps, the best
prediction is known in closed form; a UNet that starts from it has only to learn what a Gaussian that is
independent from one place to the next cannot say. Scaling the correction by the deviation that is left
follows the preconditioning of Karras et al. (NeurIPS 2022), section 5.
"""

from __future__ import annotations

import math
from typing import Literal

from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor, nn

from eeg2speech.models.layers import resample_frames

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]

LOG_VARIANCE = (-7.0, 2.0)
"""Range of the estimated log variance of a latent: a surer estimate would not be believed."""

VARIANCE_WEIGHT = 0.1
"""Of the likelihood beside the error: it fits the variance and leaves the encoders to the mean."""


class AlignedCondition(nn.Module):
    """The condition on the latent's grid: a convolution over time, at the latent's frame rate.

    Where the condition has `fold` frames to one of the latent, they become channels, and none is averaged away.
    """

    def __init__(self, cond_dim: int, fold: int, channels: int, bins: int) -> None:
        super().__init__()
        self.fold, self.channels = fold, channels
        self.conv = nn.Conv1d(cond_dim * fold, channels * bins, 3, padding=1)

    def forward(self, cond: Tensor, frames: int) -> Tensor:
        """(B, D, T') -> (B, channels, frames, W)."""
        folded = resample_frames(cond, frames * self.fold).unflatten(2, (frames, self.fold))
        aligned: Tensor = self.conv(folded.transpose(2, 3).flatten(1, 2))
        return aligned.unflatten(1, (self.channels, -1)).transpose(2, 3)


class LatentPrior(AlignedCondition):
    """A Gaussian estimate of the latent: mean and log variance of every value, one convolution from the condition."""

    def __init__(self, cond_dim: int, fold: int, latent_channels: int, bins: int) -> None:
        super().__init__(cond_dim, fold, 2 * latent_channels, bins)

    def estimate(self, cond: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """(B, D, T') -> mean and log variance, (B, L, frames, W) float32."""
        mean, log_variance = self(cond, frames).float().chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def loss(self, cond: Tensor, x0: Tensor) -> dict[str, Tensor]:
        """Terms of a condition (B, D, T') for latents (B, L, T, W): `prior` is what is minimised.

        `prior_error` is the mean's squared error. `prior_nats` is the negative log likelihood of a value, and the
        variance's affair alone: it would weigh the mean's errors by their certainty, and so give nearly all of
        them to silence (Seitzer et al., ICLR 2022).
        """
        mean, log_variance = self.estimate(cond, x0.shape[2])
        squared = (x0 - mean).square()
        nats = 0.5 * (squared.detach() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
        terms = {"prior_error": squared.mean(), "prior_nats": nats.mean()}
        return {"prior": terms["prior_error"] + VARIANCE_WEIGHT * terms["prior_nats"]} | terms


def posterior_prediction(
    kind: Prediction, latent: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor, log_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """The expected target given x_t = `latent`, and the deviation of the target from it; all (B, L, T, W).

    x0 | x_t is Gaussian around (sigma^2 mean + alpha variance x_t) / d with variance `variance` sigma^2 / d,
    d = alpha^2 variance + sigma^2; every target is a linear combination of x0 and x_t.
    """
    variance = log_variance.exp()
    d = alpha**2 * variance + sigma**2
    x0 = (sigma**2 * mean + alpha * variance * latent) / d
    eps = sigma * (latent - alpha * mean) / d
    left = (variance / d).sqrt()  # the deviation of x0 over sigma
    if kind == "epsilon":
        return eps, alpha * left
    if kind == "sample":
        return x0, sigma * left
    if kind == "v_prediction":
        return alpha * eps - sigma * x0, left
    return eps - x0, left  # alpha + sigma = 1 on the straight line


def prediction_of(scheduler: SchedulerMixin) -> Prediction:
    """What the network is asked for."""
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    kind: Prediction = "flow" if flow else scheduler.config.prediction_type
    return kind


def signal_and_noise(scheduler: SchedulerMixin, t: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) timesteps, whole or of a flow, -> alpha and sigma, (B, 1, 1, 1)."""
    t = t.reshape(-1, 1, 1, 1)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        s = t / scheduler.config.num_train_timesteps
        return 1 - s, s
    alpha_bar = scheduler.alphas_cumprod.to(t.device)[t.long()]
    return alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=1e-8).sqrt()
