"""AudioLDM's shapes, and a training of the small one from EEG to sound."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eeg2speech.config import ExperimentConfig, load
from eeg2speech.errors import UserError
from eeg2speech.importers.audioldm import convert
from eeg2speech.models.denoiser import Denoiser
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.runs import RunFolder, read_done
from eeg2speech.training.log import read_metrics
from eeg2speech.training.run import Trained, train
from tests.golden import audioldm as golden

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


# Training


BRIEF = [
    "study={name: matrix, snr_db: 10, n_sentences: 16, n_subjects: 1, recordings_per_subject: 1}",
    "splits={valid: 0.2, test: 0.2}",
    "model.vocoder={name: griffin_lim, iterations: 2}",
    "training.regression=null",
    "training.contrastive.steps=1",
    "training.contrastive.batch_size=4",
    "training.autoencoder.batch_size=2",
    "training.diffusion.steps=2",
    "training.diffusion.batch_size=2",
    "training.diffusion.warmup_steps=1",
    "training.diffusion.compile=false",
    "training.diffusion.log_every=1",
]
NARROW = [
    "model.embedding.dim=24",
    "model.eeg_encoder={name: clip_conv, virtual_channels: 8, fourier_size: 32, channels: 16, depth: 2}",
    "model.audio_encoder={name: deep_mel, channels: 16, depth: 2}",
    "model.autoencoder.channels=[32, 64, 128]",
    "model.denoiser.channels=[32, 64, 64, 96]",
]
"""The widths of the stored outputs; everything else is the config's."""


def trained(name: str, folder: Path, overrides: list[str]) -> Trained:
    return train(load(CONFIGS / f"{name}.yaml", overrides, "brief"), RunFolder(folder / "brief"))


def check_trained(run: Trained, folder: Path) -> None:
    """Every step has a loss, the denoiser has moved, and the pipeline on disk turns EEG into 3 s of sound."""
    losses = [row["train/loss"] for row in read_metrics(folder / "brief" / "diffusion") if "train/loss" in row]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    pipeline = EEG2SpeechPipeline.from_pretrained(folder / "brief" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    batch = run.data.batch(run.data.indices("test")[:1])
    waveform = pipeline(batch.eeg, batch.positions, batch.subject, num_inference_steps=1)
    assert waveform.shape == (1, 48_000)
    assert torch.isfinite(waveform).all()
    assert waveform.std() > 0


def test_training_starts_from_published_weights(tmp_path: Path) -> None:
    """Small AudioLDM on the embedded study: the autoencoder as it was published, the denoiser trained on from there."""
    pytest.importorskip("hibari")
    state = golden.checkpoints()["ldm"]
    torch.save({"state_dict": state}, tmp_path / "published.ckpt")
    convert(tmp_path / "published.ckpt", tmp_path / "published")
    init = [f"training.{stage}.init={tmp_path / 'published'}" for stage in ("autoencoder", "diffusion")]
    vocoder = f"model.vocoder={{name: hifigan, path: {tmp_path / 'published' / 'vocoder'}}}"
    run = trained("audioldm_s_finetune", tmp_path, [*BRIEF, *NARROW, *init, vocoder])
    check_trained(run, tmp_path)

    kept = load_file(tmp_path / "brief" / "autoencoder" / "weights.safetensors")
    name = "decoder.conv_out.weight"
    assert torch.equal(kept[f"autoencoder.{name}"], state[f"first_stage_model.{name}"])
    assert "valid/l1" in read_metrics(tmp_path / "brief" / "autoencoder")[0]
    assert run.pipeline is not None
    assert run.pipeline.vae.config.scaling_factor == pytest.approx(golden.SCALE_FACTOR)
    assert run.pipeline.vae.config.latents_std is None
    kernel, start = run.pipeline.denoiser.unet.conv_in.weight, state["model_ema.diffusion_modelinput_blocks00weight"]
    moved = (kernel[:, :8] - start).abs().max()  # two steps of AdamW at 1e-4
    assert 0 < float(moved) < 3e-4


@pytest.mark.slow
def test_audioldm_s_trains_end_to_end(tmp_path: Path) -> None:
    """At full size: 185 M parameters in the UNet, 55 M in the autoencoder, brainmagick's encoder."""
    pytest.importorskip("hibari")
    run = trained("audioldm_s", tmp_path, [*BRIEF, "training.autoencoder.steps=2"])
    check_trained(run, tmp_path)
    done = read_done(tmp_path / "brief" / "diffusion")
    assert done is not None
    assert done["parameters"] > 185_036_552
    assert run.pipeline is not None
    assert parameters(run.pipeline.vae) == 55_376_873


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["training.autoencoder.steps=0"], "training.autoencoder: steps 0 needs init"),
        (["training.diffusion.init=published"], "training.diffusion.init needs training.autoencoder.init"),
        (
            ["training.diffusion.init=published", "training.autoencoder.init=published"],
            "training.diffusion.init: AudioLDM's UNet predicts the noise; set model.schedule",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(CONFIGS / "audioldm_s.yaml", overrides, "x")
