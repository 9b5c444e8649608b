"""Log-mel to waveform: Griffin-Lim, and AudioLDM's HiFi-GAN with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.measure import Measure, count_flops
from benchmarks.modules import Made, hifigan
from benchmarks.sizes import FLOAT32, HALF, SIZES, Lever, Shape, each_batch, of_whole
from eeg2speech.models.vocoder import GriffinLimVocoder


def log_mel(shape: Shape, size: int) -> Tensor:
    return Made(shape).batch(size).features.transpose(1, 2)


@pytest.mark.parametrize(("shape", "batch"), each_batch("forward"))
def test_griffin_lim(measure: Measure, shape: Shape, batch: int) -> None:
    vocoder, mel = GriffinLimVocoder().to(DEVICE), log_mel(shape, batch)
    out = measure(
        lambda: vocoder(mel, range(batch)),
        items=batch,
        unit="clip",
        signal_s=batch * shape.clip_s,
        batch=batch,
        iterations=vocoder.iterations,
    )
    assert out.isfinite().all()


@of_whole
@pytest.mark.parametrize("lever", [FLOAT32.param, HALF.param])
@torch.no_grad()
def test_hifigan(measure: Measure, lever: Lever) -> None:
    shape, vocoder = SIZES.shapes[SIZES.whole], hifigan()
    mel = log_mel(shape, 1)
    flops = count_flops(("hifigan", shape.clip_s), lambda: vocoder(mel))
    vocoder.to(lever.dtype)
    mel = mel.to(lever.dtype)
    measure(
        lambda: vocoder(mel),
        unit="clip",
        dtype=lever.dtype,
        flops=flops,
        signal_s=shape.clip_s,
        batch=1,
        parameters=sum(p.numel() for p in vocoder.parameters()),
    )
