"""The contrastive pair: the EEG encoder's forward pass, a training step, and the log-mel front end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.device import DEVICE
from benchmarks.measure import Measure, count_flops
from benchmarks.modules import Made, loss_and_gradients, training_step
from benchmarks.sizes import FLOAT32, HALF, SIZES, Lever, Shape, each_shape
from eeg2speech import audio


@pytest.mark.parametrize("shape", each_shape())
@torch.no_grad()
def test_eeg_encoder(measure: Measure, shape: Shape) -> None:
    made, size = Made(shape), shape.contrastive_batch
    encoder, batch = made.eeg_encoder(), made.batch(size)
    eeg, positions, subject = batch.eeg, batch.positions, batch.subject
    one = count_flops(("eeg encoder", made.model), lambda: encoder(eeg[:1], positions[:1], subject[:1]))
    out = measure(
        lambda: encoder(eeg, positions, subject),
        items=size,
        unit="window",
        dtype=torch.float32,
        flops=size * one,
        batch=size,
        channels=eeg.shape[1],
        samples=eeg.shape[2],
        parameters=sum(p.numel() for p in encoder.parameters()),
    )
    assert out.shape == made.cond(size).shape


@pytest.mark.parametrize("lever", [FLOAT32.param, HALF.param])
@pytest.mark.parametrize("shape", each_shape())
def test_contrastive_step(measure: Measure, shape: Shape, lever: Lever, tmp_path: Path) -> None:
    made, size = Made(shape), shape.contrastive_batch
    stage, batch = made.contrastive_stage(size), made.batch(size)
    measure(
        training_step(stage, batch, lever, tmp_path),
        items=size,
        unit="window",
        dtype=lever.dtype,
        flops=count_flops(("contrastive step", made.model, size), loss_and_gradients(stage, batch)),
        batch=size,
        lever=lever.name,
        parameters=sum(p.numel() for p in stage.modules.parameters()),
    )


def test_log_mel(measure: Measure) -> None:
    size, clip_s = 32, SIZES.shapes[SIZES.whole].clip_s
    waveform = torch.rand(size, round(clip_s * audio.SAMPLE_RATE), device=DEVICE) - 0.5
    measure(lambda: audio.log_mel(waveform), items=size, unit="clip", signal_s=size * clip_s, batch=size)
