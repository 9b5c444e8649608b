"""The contrastive pair: the EEG encoder's forward pass, a training step, and the log-mel front end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.device import DEVICE
from benchmarks.measure import Measure, count_flops
from benchmarks.modules import Made, loss_and_gradients, training_step
from benchmarks.sizes import FLOAT32, SIZES, Lever, Shape, each_shape
from eeg2speech import audio

BATCH = 32
AUTOCAST = Lever("bfloat16", torch.bfloat16)


@pytest.mark.parametrize("shape", each_shape())
@torch.no_grad()
def test_eeg_encoder(measure: Measure, shape: Shape) -> None:
    made = Made(shape)
    encoder, batch = made.eeg_encoder(), made.batch(BATCH)
    eeg, positions, subject = batch.eeg, batch.positions, batch.subject
    one = count_flops(("eeg encoder", made.model), lambda: encoder(eeg[:1], positions[:1], subject[:1]))
    out = measure(
        lambda: encoder(eeg, positions, subject),
        items=BATCH,
        unit="window",
        dtype=torch.float32,
        flops=BATCH * one,
        batch=BATCH,
        channels=eeg.shape[1],
        samples=eeg.shape[2],
        parameters=sum(p.numel() for p in encoder.parameters()),
    )
    assert out.shape == made.cond(BATCH).shape


@pytest.mark.parametrize("lever", [FLOAT32, AUTOCAST], ids=lambda lever: lever.name)
@pytest.mark.parametrize("shape", each_shape())
def test_contrastive_step(measure: Measure, shape: Shape, lever: Lever, tmp_path: Path) -> None:
    made = Made(shape)
    stage, batch = made.contrastive_stage(), made.batch(BATCH)
    measure(
        training_step(stage, batch, lever, tmp_path),
        items=BATCH,
        unit="window",
        dtype=lever.dtype,
        flops=count_flops(("contrastive step", made.model, BATCH), loss_and_gradients(stage, batch)),
        batch=BATCH,
        lever=lever.name,
        parameters=sum(p.numel() for p in stage.modules.parameters()),
    )


def test_log_mel(measure: Measure) -> None:
    clip_s = SIZES.shapes[SIZES.whole].clip_s
    waveform = torch.rand(BATCH, round(clip_s * audio.SAMPLE_RATE), device=DEVICE) - 0.5
    measure(lambda: audio.log_mel(waveform), items=BATCH, unit="clip", signal_s=BATCH * clip_s, batch=BATCH)
