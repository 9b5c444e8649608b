"""From a condition to a latent: what a scheduler, its steps and guidance cost; and a whole EEG to waveform call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.measure import ONCE, Comparison, Measure
from benchmarks.modules import Made, half
from benchmarks.sizes import FLOAT32, SAMPLED, SIZES, Lever, Sampler, Shape, each_batch, each_sampler
from eeg2speech.audio import SAMPLE_RATE
from eeg2speech.models.layers import normalise_embedding


@pytest.mark.parametrize(("shape", "sampler"), each_sampler())
@torch.no_grad()
def test_sampler(measure: Measure, shape: Shape, sampler: Sampler) -> None:
    made, size = Made(shape), max(shape.batches)
    pipeline = half(made.pipeline(sampler.scheduler))
    cond = normalise_embedding(made.cond(size))
    latent = measure(
        lambda: pipeline.sample(cond, sampler.num_inference_steps, sampler.guidance_scale, range(size)),
        items=size,
        unit="clip",
        signal_s=size * shape.clip_s,
        batch=size,
        lever=SAMPLED.name,
        **sampler.model_dump(),
    )
    assert latent.isfinite().all()


@pytest.mark.parametrize(("shape", "batch"), each_batch("forward"))
def test_eeg_to_waveform(measure: Measure, shape: Shape, batch: int) -> None:
    """As recommended: DPM-Solver++ with 10 steps, no guidance, UNet and autoencoder in `SAMPLED`."""
    is_whole = batch == 1 and shape == SIZES.shapes[SIZES.whole]
    whole(measure, shape, batch, SAMPLED, "dpmsolver++", 10, Comparison(WHOLE, "ours", 20) if is_whole else None)


@pytest.mark.slow
def test_eeg_to_waveform_ddim_200_in_float32(measure: Measure) -> None:
    """What AudioLDM's own scripts do by default, without guidance."""
    shape = SIZES.shapes[SIZES.whole]
    whole(measure, shape, 1, FLOAT32, "ddim", 200, Comparison(WHOLE, "peer"), of=SIZES.whole, **ONCE)


WHOLE = f"EEG to waveform, one clip, {SIZES.whole}: DDIM 200 float32 / recommended"


def whole(
    measure: Measure,
    shape: Shape,
    size: int,
    lever: Lever,
    scheduler: str,
    steps: int,
    compare: Comparison | None,
    **repeats_and_facts: Any,
) -> None:
    made = Made(shape)
    pipeline, batch = half(made.pipeline(scheduler), lever), made.batch(size)
    waveform = measure(
        lambda: pipeline(batch.eeg, batch.positions, batch.subject, num_inference_steps=steps),
        items=size,
        unit="clip",
        signal_s=size * shape.clip_s,
        compare=compare,
        batch=size,
        lever=lever.name,
        scheduler=scheduler,
        num_inference_steps=steps,
        vocoder=type(pipeline.vocoder).__name__,
        **repeats_and_facts,
    )
    assert waveform.shape == (size, round(shape.clip_s * SAMPLE_RATE))
