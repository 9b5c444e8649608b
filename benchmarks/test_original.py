"""A training step of AudioLDM-S beside the original's own UNet, where AUDIOLDM_CHECKOUT names a checkout of
github.com/haoheliu/AudioLDM-training-finetuning."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.device import DEVICE, float32_of_others
from benchmarks.measure import Comparison, Measure
from benchmarks.modules import Made, training_step
from benchmarks.sizes import FAST, SIZES
from eeg2speech.batch import Batch
from eeg2speech.importers.audioldm import read
from eeg2speech.models.denoiser import Denoiser
from eeg2speech.training.loop import Stage
from tests.golden import audioldm as golden

FILM = 1024
"""The width of the ancestor's condition."""
PREFIX = "model.diffusion_model."


class Step:
    """What one step is shown: noisy latents, timesteps, a condition, and the noise that is to be found."""

    def __init__(self, made: Made, size: int) -> None:
        self.latent, self.eps = made.latent(size), made.latent(size)
        self.t = torch.randint(1000, (size,), device=DEVICE)
        self.film = torch.randn(size, FILM, device=DEVICE)

    def loss(self, predicted: Tensor) -> Tensor:
        return F.mse_loss(predicted.float(), self.eps)

    def of_theirs(self, unet: nn.Module) -> Tensor:
        return self.loss(unet(self.latent, self.t, self.film, context_list=[], context_attn_mask_list=[]))

    def of_ours(self, denoiser: nn.Module) -> Tensor:
        return self.loss(denoiser(self.latent, self.t, self.film.unsqueeze(2)))


class Denoising(Stage):
    """The UNet alone."""

    def __init__(self, denoiser: Denoiser, step: Step) -> None:
        super().__init__("denoising", {"denoiser": denoiser})
        self.step = step

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.step.of_ours(self.modules["denoiser"])}


def original_step(unet: nn.Module, step: Step) -> Callable[[], None]:
    """As the original trains: float32 of its `precision: high`, mean squared error, AdamW; its moving average is left
    out."""
    optimizer = torch.optim.AdamW(unet.train().parameters(), lr=1e-5)

    def advance() -> None:
        optimizer.zero_grad()
        with float32_of_others("high"):
            step.of_theirs(unet).backward()
        optimizer.step()

    return advance


@pytest.mark.slow
def test_training_step(measure: Measure, tmp_path: Path) -> None:
    """Five pairs; ours as recommended (and compiled on a GPU), clipped and averaged."""
    checkout = os.environ.get("AUDIOLDM_CHECKOUT")
    if not checkout:
        pytest.skip("AUDIOLDM_CHECKOUT names no checkout of github.com/haoheliu/AudioLDM-training-finetuning")
    pytest.importorskip("einops", reason="the original's attention needs einops, see benchmarks/results/README.md")
    shape = SIZES.shapes["audioldm_s"].film_only
    made, choice = Made(shape), shape.model.denoiser
    size = max(4, *shape.training_batches[:1])
    width = choice.channels[0]
    mult = tuple(c // width for c in choice.channels)
    theirs = golden.filled(golden.original_unet(Path(checkout), width, mult, FILM), PREFIX)
    torch.save({PREFIX + name: tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "original.ckpt")
    channels, _, bins = made.latent_size
    ours = choice.build(latent_channels=channels, latent_bins=bins, cond_dim=FILM, cond_frames=1)
    ours.unet.load_state_dict(read(tmp_path / "original.ckpt", head_dim=32).modules["unet"].state_dict())
    (tmp_path / "original.ckpt").unlink()
    parameters = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.unet.parameters()) == parameters

    step = Step(made, size)
    theirs, ours = theirs.to(DEVICE), ours.to(DEVICE)
    with torch.no_grad():
        losses = float(step.of_theirs(theirs)), float(step.of_ours(ours.eval()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)

    gpu = DEVICE.type == "cuda"
    lever = FAST.with_(compile=True) if gpu else FAST
    measure.pairs(
        training_step(Denoising(ours, step), made.batch(size), lever, tmp_path),
        original_step(theirs, step),
        compare=Comparison(
            f"training step of the UNet, latent {'x'.join(map(str, made.latent_size))}, batch {size}: "
            "the original's openaimodel.UNetModel / ours",
            "ours",
            promise=4 if gpu else 3,
        ),
        items=size,
        unit="window",
        lever=lever.name,
        parameters=parameters,
        losses=losses,
        peer_float32="TensorFloat-32 in products and convolutions, where there is any",
        threads=torch.get_num_threads(),
    )
