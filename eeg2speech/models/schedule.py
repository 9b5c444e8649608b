"""The objective and its sampler: how noise enters a latent in training, and how it is taken out again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)
from pydantic import Discriminator, Field, Tag

from eeg2speech.evaluation import SamplingConfig
from eeg2speech.schema import Config

SAMPLERS = {"diffusion": ("dpmsolver++", "ddim"), "flow_matching": ("euler", "heun")}
"""Which `sampling.scheduler` solves which objective."""


class NoiseScheduleConfig(Config):
    """The forward diffusion; the values are AudioLDM's, v-prediction after Salimans & Ho (ICLR 2022)."""

    # Not written out, for it is the default: what diffuses keeps the hash that it had when there was no choice.
    objective: Literal["diffusion"] = Field(default="diffusion", exclude_if=lambda _: True)
    num_train_timesteps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    zero_terminal_snr: bool = Field(default=True, description="the last step is pure noise (Lin et al., WACV 2024)")


class FlowScheduleConfig(Config):
    """Flow matching along straight lines: x_s = (1 - s) x0 + s eps, and the network predicts dx / ds = eps - x0.

    Lipman et al. (ICLR 2023), equations 20-23 with time reversed; rectified flow of Liu et al. (ICLR 2023), equation 1.
    """

    objective: Literal["flow_matching"] = "flow_matching"
    num_train_timesteps: int = Field(default=1000, gt=0, description="the network is told t = s times this")


def _objective(value: Any) -> str:
    # What is no mapping and no config is left to the first one, which says so.
    named = value.get("objective") if isinstance(value, dict) else getattr(value, "objective", None)
    return "flow_schedule" if named == "flow_matching" else "noise_schedule"


ScheduleConfig = Annotated[
    Annotated[NoiseScheduleConfig, Tag("noise_schedule")] | Annotated[FlowScheduleConfig, Tag("flow_schedule")],
    Discriminator(_objective),
]


def noise_scheduler(config: NoiseScheduleConfig | FlowScheduleConfig) -> SchedulerMixin:
    """The forward process."""
    if isinstance(config, FlowScheduleConfig):
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps)
    return DDPMScheduler(**_diffusion(config))


def sampler_of(schedule: NoiseScheduleConfig | FlowScheduleConfig, sampling: SamplingConfig) -> SchedulerMixin:
    """The reverse process: DDIM (Song et al., ICLR 2021) or DPM-Solver++ of order 2 (Lu et al. 2022); for a flow
    Euler's or Heun's method. Raises ValueError where the scheduler does not solve the objective."""
    if isinstance(schedule, FlowScheduleConfig):
        solvers = {"euler": FlowMatchEulerDiscreteScheduler, "heun": FlowMatchHeunDiscreteScheduler}
        return solvers[checked(schedule, sampling)](num_train_timesteps=schedule.num_train_timesteps)
    values = _diffusion(schedule)
    if checked(schedule, sampling) == "ddim":
        return DDIMScheduler(**values, clip_sample=False, timestep_spacing="trailing")
    return DPMSolverMultistepScheduler(
        **values, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
    )


def checked(schedule: NoiseScheduleConfig | FlowScheduleConfig, sampling: SamplingConfig) -> str:
    """The name of the scheduler. Raises ValueError where it does not solve the objective."""
    possible = SAMPLERS[schedule.objective]
    if sampling.scheduler not in possible:
        raise ValueError(
            f"sampling.scheduler: {sampling.scheduler} does not solve the objective of model.schedule, "
            f"{schedule.objective}; choose {' or '.join(possible)}"
        )
    return sampling.scheduler


def set_steps(scheduler: SchedulerMixin, num_inference_steps: int, device: torch.device) -> None:
    """Spaces the steps. Euler's are even, 1, 1 - 1/n, .., 1/n: its own default spends the last one on s = 1/1000."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps), device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)


def network_calls(sampling: SamplingConfig) -> int:
    """Forward passes of the denoiser that one sample takes."""
    steps = sampling.num_inference_steps
    passes = 2 * steps - 1 if sampling.scheduler == "heun" else steps
    return passes * (2 if sampling.guidance_scale != 1.0 else 1)


def _diffusion(config: NoiseScheduleConfig) -> dict[str, object]:
    values = config.model_dump(exclude={"zero_terminal_snr"})
    return values | {"rescale_betas_zero_snr": config.zero_terminal_snr}
