"""The UNet: forward passes and training steps, by batch and by lever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.device import DEVICE
from benchmarks.measure import Measure, count_flops
from benchmarks.modules import Made, loss_and_gradients, pulled, training_step
from benchmarks.sizes import SAMPLED, SIZES, Lever, Shape, each_batch, each_lever, each_shape
from eeg2speech.batch import Batch
from eeg2speech.models.autoencoder import encode
from eeg2speech.models.schedule import FlowScheduleConfig, NoiseScheduleConfig, ScheduleConfig
from eeg2speech.training.stages import DiffusionStage


@torch.no_grad()
def forward(measure: Measure, shape: Shape, batch: int, lever: Lever) -> None:
    made = Made(shape)
    denoiser = made.denoiser()
    latent, t, cond = made.latent(batch), torch.tensor(500, device=denoiser.device), made.cond(batch)
    one = count_flops(("denoiser", made.model), lambda: denoiser(latent[:1], t, cond[:1]))
    pulled(denoiser, lever)
    latent, cond = latent.to(lever.dtype), cond.to(lever.dtype)
    out = measure(
        lambda: denoiser(latent, t, cond),
        items=batch,
        unit="clip",
        dtype=lever.dtype,
        flops=batch * one,
        batch=batch,
        lever=lever.name,
        parameters=sum(p.numel() for p in denoiser.parameters()),
        latent=list(latent.shape),
    )
    assert out.shape == latent.shape


@pytest.mark.parametrize(("shape", "lever"), each_lever("forward"))
def test_forward_lever(measure: Measure, shape: Shape, lever: Lever) -> None:
    forward(measure, shape, max(shape.batches), lever)


@pytest.mark.parametrize(("shape", "batch"), each_batch("forward", largest=False))
def test_forward_batch(measure: Measure, shape: Shape, batch: int) -> None:
    """As the configs sample; the largest batch is among the levers."""
    forward(measure, shape, batch, SAMPLED)


PROMISED_MFU = 0.45
"""Of AudioLDM-S's training step in bfloat16 on a GPU, as recommended, at the largest batch."""


def train(
    measure: Measure, shape: Shape, stage: DiffusionStage, size: int, lever: Lever, folder: Path, **facts: float
) -> None:
    made = Made(shape)
    key = (type(stage), type(stage.eeg_encoder), stage.contrastive_weight, made.model)
    one = count_flops(key, loss_and_gradients(stage, made.batch(1)))
    measure(
        training_step(stage, made.batch(size), lever, folder),
        items=size,
        unit="window",
        dtype=lever.dtype,
        flops=size * one,
        batch=size,
        lever=lever.name,
        contrastive_weight=stage.contrastive_weight,
        parameters=sum(p.numel() for p in stage.modules.parameters()),
        **facts,
    )


@pytest.mark.parametrize(("shape", "lever"), each_lever("training"))
def test_training_lever(measure: Measure, shape: Shape, lever: Lever, tmp_path: Path) -> None:
    size = max(shape.training_batches)
    is_promised = DEVICE.type == "cuda" and lever == shape.trained and shape == SIZES.shapes.get("audioldm_s")
    promise = {"promised_mfu": PROMISED_MFU} if is_promised and lever.dtype == torch.bfloat16 else {}
    train(measure, shape, Made(shape).diffusion_stage(size), size, lever, tmp_path, **promise)


@pytest.mark.parametrize(("shape", "batch"), each_batch("training", largest=False))
def test_training_batch(measure: Measure, shape: Shape, batch: int, tmp_path: Path) -> None:
    train(measure, shape, Made(shape).diffusion_stage(batch), batch, shape.trained, tmp_path)


class LatentsEncoded(DiffusionStage):
    """What a step costs where latents are not cached."""

    autoencoder: nn.Module

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            self.latents = encode(self.autoencoder, batch.log_mel).float()
        return super().loss(batch)


class Stored(nn.Module):
    """An encoder's output as if it had been cached."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.output[: len(x)]


CHOICES: dict[str, tuple[ScheduleConfig | None, dict[str, float | None], dict[str, float]]] = {
    "recommended": (None, {}, {}),
    "epsilon": (NoiseScheduleConfig(prediction_type="epsilon", zero_terminal_snr=False), {}, {}),
    "x0": (NoiseScheduleConfig(prediction_type="sample"), {}, {}),
    "no-zero-terminal-snr": (NoiseScheduleConfig(zero_terminal_snr=False), {}, {}),
    "flow-matching": (FlowScheduleConfig(), {"min_snr_gamma": None}, {}),
    "no-min-snr": (None, {"min_snr_gamma": None}, {}),
    "encoders-trained-jointly": (None, {"contrastive_weight": 0.02}, {}),
    "audio-first": (None, {"audio_first": 1.0}, {}),
    "no-average": (None, {}, {"ema_decay": 0.0}),
    "two-micro-batches": (None, {}, {"gradient_accumulation": 2}),
}
"""Levers that change what is learned: the schedule, of the stage, of its loop."""


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", each_shape(largest_training_batch_above=1))
def test_training_choice(measure: Measure, shape: Shape, choice: str, tmp_path: Path) -> None:
    """What each costs beside the recommended step, alone; two micro-batches are twice as many windows."""
    schedule, of_stage, of_loop = CHOICES[choice]
    model = shape.model if schedule is None else shape.model.model_copy(update={"schedule": schedule})
    made, size = Made(shape.model_copy(update={"model": model})), max(shape.training_batches)
    lever = shape.trained
    step = training_step(made.diffusion_stage(size, **of_stage), made.batch(size), lever, tmp_path, **of_loop)
    items = size * int(of_loop.get("gradient_accumulation", 1))
    measure(step, items=items, unit="window", dtype=lever.dtype, batch=size, lever=lever.name, choice=choice)


@pytest.mark.parametrize("shape", each_shape(largest_training_batch_above=1))
def test_training_with_latents_encoded_each_step(measure: Measure, shape: Shape, tmp_path: Path) -> None:
    made, size = Made(shape), max(shape.training_batches)
    stage = made.diffusion_stage(size, LatentsEncoded)
    stage.autoencoder = made.autoencoder()
    train(measure, shape, stage, size, shape.trained, tmp_path)


@pytest.mark.parametrize("shape", each_shape(largest_training_batch_above=1))
def test_training_with_conditioning_cached(measure: Measure, shape: Shape, tmp_path: Path) -> None:
    made, size = Made(shape), max(shape.training_batches)
    stage = made.diffusion_stage(size, contrastive_weight=None)
    stage.eeg_encoder, stage.audio_encoder = Stored(made.cond(size)), Stored(made.cond(size))
    train(measure, shape, stage, size, shape.trained, tmp_path)
