"""The mel autoencoder: encoding, decoding, a training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.measure import Measure, count_flops
from benchmarks.modules import Made, loss_and_gradients, pulled, training_step
from benchmarks.sizes import FAST, FLOAT32, Lever, Shape, each_batch, each_shape
from eeg2speech.models.autoencoder import decode, encode

PRECISION = pytest.mark.parametrize("lever", [lever.param for lever in dict.fromkeys((FLOAT32, FAST))])


@pytest.mark.parametrize("direction", ["encode", "decode"])
@PRECISION
@pytest.mark.parametrize(("shape", "batch"), each_batch("forward"))
@torch.no_grad()
def test_pass(measure: Measure, shape: Shape, batch: int, lever: Lever, direction: str) -> None:
    made, run = Made(shape), encode if direction == "encode" else decode
    autoencoder = made.autoencoder()
    x = made.batch(batch).log_mel if direction == "encode" else made.latent(batch)
    one = count_flops((direction, made.model), lambda: run(autoencoder, x[:1]))
    pulled(autoencoder, lever)
    x = x.to(lever.dtype)
    measure(
        lambda: run(autoencoder, x),
        items=batch,
        unit="clip",
        dtype=lever.dtype,
        flops=batch * one,
        signal_s=batch * shape.clip_s,
        batch=batch,
        lever=lever.name,
        parameters=sum(p.numel() for p in autoencoder.parameters()),
    )


@pytest.mark.parametrize("shape", each_shape())
def test_training_step(measure: Measure, shape: Shape, tmp_path: Path) -> None:
    made, size = Made(shape), max(shape.training_batches)
    stage, batch = made.autoencoder_stage(), made.batch(size)
    flops = count_flops(("autoencoder step", made.model, size), loss_and_gradients(stage, batch))
    measure(
        training_step(stage, batch, FAST, tmp_path),
        items=size,
        unit="window",
        dtype=FAST.dtype,
        flops=flops,
        batch=size,
        lever=FAST.name,
    )
