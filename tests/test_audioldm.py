"""AudioLDM's shapes, and a training of the small one from EEG to sound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from eeg2speech.config import ExperimentConfig, load
from eeg2speech.models.denoiser import Denoiser

CONFIGS = Path(__file__).parents[1] / "configs"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def denoiser(config: ExperimentConfig, conditioning: tuple[str, ...], cond_dim: int) -> Denoiser:
    """Without weights."""
    choice = config.model.denoiser.model_copy(update={"conditioning": conditioning})
    with torch.device("meta"):
        return choice.build(latent_channels=8, latent_bins=16, cond_dim=cond_dim, cond_frames=150, latent_frames=75)


# Counted in the original's modules, commit 702a638d023b008a2d9a45cdf1e1f4fcdc590dfc of AudioLDM-training-finetuning.
UNETS = [("audioldm_s", 512, 185_036_552), ("audioldm_s", 1024, 185_298_696), ("audioldm_l", 512, 739_139_080)]


@pytest.mark.parametrize(("name", "cond_dim", "wanted"), UNETS)
def test_unet_has_the_originals_parameters(name: str, cond_dim: int, wanted: int) -> None:
    assert parameters(denoiser(load(CONFIGS / f"{name}.yaml"), ("film",), cond_dim).unet) == wanted


@pytest.mark.parametrize(("name", "heads"), [("audioldm_s", 32), ("audioldm_l", 64)])
def test_unet_has_the_originals_heads(name: str, heads: int) -> None:
    """diffusers counts heads where AudioLDM gives their width."""
    unet = denoiser(load(CONFIGS / f"{name}.yaml"), ("film",), 512).unet
    widths = {m.inner_dim // m.heads for path, m in unet.named_modules() if path.endswith(("attn1", "attn2"))}
    assert widths == {heads}


@pytest.mark.parametrize("name", ["audioldm_s", "audioldm_l"])
def test_the_configured_unet_differs_by_its_time_aligned_input_alone(name: str) -> None:
    model = load(CONFIGS / f"{name}.yaml").model
    made = denoiser(load(CONFIGS / f"{name}.yaml"), model.denoiser.conditioning, model.embedding.dim)
    film = denoiser(load(CONFIGS / f"{name}.yaml"), ("film",), model.embedding.dim)
    more = 9 * model.denoiser.aligned_channels * model.denoiser.channels[0]
    assert parameters(made.unet) == parameters(film.unet) + more


@pytest.mark.parametrize("name", ["audioldm_s", "audioldm_l"])
def test_autoencoder_is_the_originals(name: str) -> None:
    choice = load(CONFIGS / f"{name}.yaml").model.autoencoder
    with torch.device("meta"):
        autoencoder = choice.build()
        assert parameters(autoencoder) == 55_376_873
        assert autoencoder.encode(torch.empty(1, 1, 300, 64)).latent_dist.mean.shape == (1, 8, 75, 16)
