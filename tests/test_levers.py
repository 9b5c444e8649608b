"""Every lever of training and sampling, from its config value to the run that it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

from eeg2speech import config as configs
from eeg2speech.data.loader import StudyData
from eeg2speech.runs import RunFolder
from eeg2speech.training import processes
from eeg2speech.training.checkpoint import load_tensors
from eeg2speech.training.run import Trained, _Trainer
from tests.toy_fixture import toy_data, toy_experiment

FLOW = ["model.schedule={objective: flow_matching}", "training.diffusion.min_snr_gamma=null"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return toy_data(tmp_path_factory.mktemp("noise"))


def trained(data: StudyData, folder: Path, *sets: str) -> Trained:
    return _Trainer(toy_experiment(*sets), RunFolder(folder), data).run()


@pytest.fixture(scope="module")
def plain(data: StudyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    trained(data, folder)
    return folder


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_tensors(folder / stage / "weights.safetensors")


CHANGES = [
    "model.schedule.prediction_type=sample",
    "model.schedule={prediction_type: epsilon, zero_terminal_snr: false}",
    "model.schedule.zero_terminal_snr=false",
    "training.diffusion.min_snr_gamma=null",
    "training.diffusion.ema_decay=0",
    "training.diffusion.mixed_precision=bf16",
    "training.diffusion.gradient_accumulation=2",
    "training.diffusion.contrastive_weight=0.1",
    "training.diffusion.audio_first=1",
    "model.denoiser.conditioning=[film, time_aligned]",
]
KEEPS = [
    "training.diffusion.channels_last=true",
    "training.diffusion.gradient_checkpointing=true",
    "training.diffusion.cache_latents=false",
]


@pytest.mark.parametrize("lever", [*CHANGES, *KEEPS])
def test_a_lever_reaches_the_training_that_it_is_of(
    lever: str, plain: Path, data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights of the denoiser, or, from a lever of speed and memory, the same; the earlier stages stay."""
    monkeypatch.setattr(processes, "has_bfloat16", lambda device: True)  # imitated, where the processor has none
    for stage in ("autoencoder", "contrastive"):
        (tmp_path / stage).symlink_to(plain / stage)
    before = (plain / "autoencoder" / "done.json").stat().st_mtime_ns
    pipeline = trained(data, tmp_path, lever).pipeline
    assert (plain / "autoencoder" / "done.json").stat().st_mtime_ns == before
    assert pipeline is not None
    assert torch.isfinite(pipeline(cond=torch.randn(1, 6, 30), num_inference_steps=2)).all()
    ours, theirs = weights(tmp_path, "diffusion"), weights(plain, "diffusion")
    alike = ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in theirs)
    # Adam makes a step of a gradient near zero, whichever sign rounding leaves it: a weight or two may differ.
    moved = float(torch.cat([(ours[name] - theirs[name]).flatten() for name in theirs]).abs().mean()) if alike else 1.0
    assert moved < 1e-7 if lever in KEEPS else moved > 1e-6


def test_gradient_checkpointing_of_the_autoencoder(plain: Path, data: StudyData, tmp_path: Path) -> None:
    trained(data, tmp_path, "training.autoencoder.gradient_checkpointing=true")
    ours, theirs = weights(tmp_path, "autoencoder"), weights(plain, "autoencoder")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_flow_is_trained_and_sampled(plain: Path, data: StudyData, tmp_path: Path) -> None:
    for stage in ("autoencoder", "contrastive"):
        (tmp_path / stage).symlink_to(plain / stage)
    pipeline = trained(data, tmp_path, *FLOW, "sampling.scheduler=heun").pipeline
    assert pipeline is not None
    assert isinstance(pipeline.scheduler, FlowMatchHeunDiscreteScheduler)
    assert torch.isfinite(pipeline(cond=torch.randn(1, 6, 30), num_inference_steps=3, guidance_scale=2.0)).all()
    assert not torch.equal(
        *(weights(folder, "diffusion")["denoiser.unet.conv_out.weight"] for folder in (tmp_path, plain))
    )


def test_the_recipe_that_trains_on_audio_is_audioldms() -> None:
    """Audio alone conditions it, the encoders are as the contrastive stage left them; EEG comes when it speaks."""
    recipe = configs.load(Path(__file__).parents[1] / "configs" / "audio_first.yaml")
    default = configs.load(Path(__file__).parents[1] / "configs" / "default.yaml")
    diffusion = recipe.training.diffusion
    assert diffusion is not None
    assert (diffusion.audio_first, diffusion.audio_share, diffusion.contrastive_weight) == (1.0, 1.0, None)
    kept = {"audio_first": 0.0, "audio_share": 0.1, "contrastive_weight": None}
    training = recipe.training.model_copy(update={"diffusion": diffusion.model_copy(update=kept)})
    assert recipe.model_copy(update={"training": training, "name": "default"}) == default
