"""The Gaussian prior of the denoiser against numerical integration, and what it leaves the UNet to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from eeg2speech.config import ExperimentConfig, NoiseScheduleConfig, load
from eeg2speech.errors import UserError
from eeg2speech.models.denoiser import Denoiser, DenoiserConfig
from eeg2speech.models.prior import (
    LOG_VARIANCE,
    AlignedCondition,
    LatentPrior,
    posterior_prediction,
    prediction_of,
    signal_and_noise,
)
from eeg2speech.models.schedule import FlowScheduleConfig, noise_scheduler
from eeg2speech.training.objectives import add_noise

KINDS = ("v_prediction", "epsilon", "sample", "flow")
SIZES = {"latent_channels": 4, "latent_bins": 16, "cond_dim": 6, "cond_frames": 30, "latent_frames": 15}


def schedule_of(kind: str) -> NoiseScheduleConfig | FlowScheduleConfig:
    if kind == "flow":
        return FlowScheduleConfig()
    return NoiseScheduleConfig.model_validate({"prediction_type": kind, "zero_terminal_snr": kind != "epsilon"})


def denoiser_of(kind: str, **values: object) -> Denoiser:
    torch.manual_seed(0)
    chosen = {"channels": (8, 16), "layers_per_block": 1, "attention": (False, False), "norm_groups": 4}
    config = DenoiserConfig.model_validate(chosen | {"aligned_channels": 2, "prior": True} | values)
    return config.build(**SIZES, schedule=schedule_of(kind)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "mean", "variance", "seen"), [(0.9, 0.5, 0.3, -1.0), (0.2, -1.0, 1.0, 2.0)])
def test_the_posterior_is_bayes_rule(kind: str, alpha: float, mean: float, variance: float, seen: float) -> None:
    """Mean and deviation of the target under p(x0) p(x_t | x0), summed over a fine grid of x0."""
    sigma = 1 - alpha if kind == "flow" else float(np.sqrt(1 - alpha**2))
    x0 = np.linspace(mean - 12, mean + 12, 200_001)
    weight = scipy.stats.norm.pdf(x0, mean, np.sqrt(variance)) * scipy.stats.norm.pdf(seen, alpha * x0, sigma)
    weight /= weight.sum()
    eps = (seen - alpha * x0) / sigma
    target = {"v_prediction": alpha * eps - sigma * x0, "epsilon": eps, "sample": x0, "flow": eps - x0}[kind]
    expected = (weight * target).sum()
    deviation = np.sqrt((weight * (target - expected) ** 2).sum())
    values = [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (seen, alpha, sigma, mean, np.log(variance))]
    given = posterior_prediction(kind, *values)  # type: ignore[arg-type]
    assert [float(v) for v in given] == pytest.approx([expected, deviation], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_and_sigma_are_those_that_noised_the_latent(kind: str) -> None:
    scheduler = noise_scheduler(schedule_of(kind))
    assert prediction_of(scheduler) == kind
    x0 = torch.full((64, 2, 40, 40), 3.0)
    noised = add_noise(scheduler, x0)
    alpha, sigma = signal_and_noise(scheduler, noised.t)
    assert noised.latent.mean(dim=(1, 2, 3)).numpy() == pytest.approx(3.0 * alpha.flatten().numpy(), abs=0.06)
    assert noised.latent.std(dim=(1, 2, 3)).numpy() == pytest.approx(sigma.flatten().numpy(), rel=0.06, abs=1e-3)


def test_the_loss_is_scipys_likelihood_and_the_mean_learns_from_its_error_alone() -> None:
    prior = LatentPrior(cond_dim=3, fold=2, latent_channels=2, bins=5)
    cond, x0 = torch.randn(6, 3, 14), torch.randn(6, 2, 7, 5)
    mean, log_variance = (v.detach() for v in prior.estimate(cond, 7))
    terms = prior.loss(cond, x0)
    nats = -scipy.stats.norm.logpdf(x0, mean, (log_variance / 2).exp())
    assert terms["prior_nats"].item() == pytest.approx(nats.mean(), rel=1e-5)
    assert terms["prior_error"].item() == pytest.approx(((x0 - mean) ** 2).mean().item(), rel=1e-6)
    terms["prior_nats"].backward()
    assert prior.conv.weight.grad is not None
    moved, channel_of = prior.conv.weight.grad.abs().sum(dim=(1, 2)), torch.arange(4).repeat_interleave(5)
    assert (moved[channel_of < 2] == 0).all()
    assert (moved[channel_of >= 2] > 0).all()


def test_the_condition_lies_on_the_latents_grid() -> None:
    """With the kernel a delta, channel c and bin w of frame t is what was put there."""
    aligned = AlignedCondition(cond_dim=2, fold=3, channels=2, bins=3)
    torch.nn.init.zeros_(aligned.conv.bias)
    torch.nn.init.zeros_(aligned.conv.weight)
    aligned.conv.weight.data[:, :, 1] = torch.eye(6)
    cond = torch.arange(24.0).view(1, 2, 12)
    out = aligned(cond, 4)
    assert out.shape == (1, 2, 4, 3)
    for channel in range(2):
        for frame in range(4):
            assert torch.equal(out[0, channel, frame], cond[0, channel, 3 * frame : 3 * frame + 3])


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_denoiser_says_what_the_prior_says(kind: str) -> None:
    denoiser = denoiser_of(kind)
    latent, cond, t = torch.randn(3, 4, 15, 16), torch.randn(3, 6, 30), torch.tensor([1, 500, 998])
    alpha, sigma = signal_and_noise(noise_scheduler(schedule_of(kind)), t)
    mean, log_variance = denoiser.latent_prior.estimate(cond, 15)
    expected, _ = posterior_prediction(kind, latent, alpha, sigma, mean, log_variance)  # type: ignore[arg-type]
    torch.testing.assert_close(denoiser(latent, t, cond), expected)


def test_a_right_prior_leaves_the_error_that_theory_leaves() -> None:
    """Latents drawn from the prior itself: no correction can lower the error below the posterior's variance."""
    denoiser, scheduler = denoiser_of("v_prediction"), noise_scheduler(schedule_of("v_prediction"))
    cond = torch.randn(256, 6, 30)
    with torch.no_grad():
        mean, log_variance = denoiser.latent_prior.estimate(cond, 15)
        x0 = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        noised = add_noise(scheduler, x0)
        alpha, sigma = signal_and_noise(scheduler, noised.t)
        left = log_variance.exp() / (alpha**2 * log_variance.exp() + sigma**2)
        error = (denoiser(noised.latent, noised.t, cond) - noised.target).square()
    assert float(error.mean()) == pytest.approx(float(left.mean()), rel=0.02)


def test_a_prior_survives_the_disk(tmp_path: Path) -> None:
    for kind in ("v_prediction", "flow"):
        denoiser = denoiser_of(kind)
        torch.nn.init.normal_(denoiser.unet.conv_out.weight)
        denoiser.save_pretrained(tmp_path / kind)
        again = Denoiser.from_pretrained(tmp_path / kind).eval()
        given: tuple[Tensor, ...] = (torch.randn(2, 4, 15, 16), torch.tensor([10, 900]), torch.randn(2, 6, 30))
        torch.testing.assert_close(again(*given), denoiser(*given), rtol=0, atol=0)


def test_no_certainty_is_beyond_belief() -> None:
    prior = LatentPrior(cond_dim=3, fold=4, latent_channels=2, bins=16)
    for bias, limit in ((100.0, LOG_VARIANCE[1]), (-100.0, LOG_VARIANCE[0])):
        torch.nn.init.constant_(prior.conv.bias, bias)
        assert (prior.estimate(torch.randn(1, 3, 28), 7)[1] == limit).all()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.diffusion.crop_frames=36 model.embedding.rate_hz=40", "a multiple of the 75 latent frames"),
        ("training.prior_weight=-1", "training.prior_weight"),
    ],
)
def test_a_prior_without_its_place_is_refused(override: str, said: str) -> None:
    path = Path(__file__).parents[1] / "configs" / "default.yaml"
    base = ["model.denoiser.prior=true"]
    assert isinstance(load(path, base, "x"), ExperimentConfig)
    with pytest.raises(UserError) as raised:
        load(path, [*base, *override.split()], "x")
    assert said in str(raised.value)
