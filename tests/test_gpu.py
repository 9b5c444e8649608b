"""Training and evaluation on another device than the data lie on: all of it runs there, and gives the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eeg2speech.batch import Batch
from eeg2speech.config import ExperimentConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.runs import RunFolder
from eeg2speech.training.run import Trained, _Trainer
from eeg2speech.training.stages import DiffusionStage
from eval.controls import CONTROLS
from eval.runner import make_bench
from eval.systems import SYSTEMS
from tests.imaginary_gpu import GPU, imaginary_gpu
from tests.toy_fixture import STAGE, toy_data, toy_experiment

STAGES = ("autoencoder", "contrastive", "regression", "diffusion")
ALL = (f"training.regression={STAGE}", "sampling.num_inference_steps=2", "sampling.batch_size=5")
VARIANTS = {
    "film and cross-attention": (
        "model.denoiser.conditioning=[film,cross_attention]",
        "model.denoiser.attention=[false,true]",
        "model.denoiser.head_dim=8",
        "sampling.guidance_scale=2",
    ),
    "prior, aligned subjects": (
        "model.denoiser.prior=true",
        "model.eeg_encoder={name: aligned_conv, channels: 8, depth: 2}",
        "sampling.scheduler=ddim",
    ),
    "latents encoded at each step": (
        "training.diffusion.cache_latents=false",
        "model.eeg_encoder={name: linear}",
        "training.diffusion.contrastive_weight=0.1",
    ),
    "flow": (
        "model.schedule={objective: flow_matching}",
        "training.diffusion.min_snr_gamma=null",
        "sampling.scheduler=heun",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return toy_data(tmp_path_factory.mktemp("noise"))


def made(config: ExperimentConfig, data: StudyData, folder: Path) -> tuple[Trained, dict[str, dict[str, np.ndarray]]]:
    """The trained modules, and the sounds and estimates of every system."""
    trained = _Trainer(config, RunFolder(folder), data).run()
    bench = make_bench(config, trained)
    outputs = {name: system.run(bench) for name, system in (SYSTEMS | CONTROLS).items()}
    return trained, {
        kind: {name: getattr(o, kind) for name, o in outputs.items() if getattr(o, kind) is not None}
        for kind in ("waveform", "estimate")
    }


def modules(trained: Trained) -> dict[str, torch.nn.Module]:
    assert trained.pipeline is not None
    assert trained.regressor is not None
    parts = {name: part for name, part in trained.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return parts | {"regressor": trained.regressor, "encoder": trained.eeg_encoder}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_on_a_gpu_is_the_run_on_a_cpu(
    variant: str, data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_experiment(*ALL, *VARIANTS[variant])
    here, wanted = made(config, data, tmp_path / "cpu")
    assert {p.device.type for m in modules(here).values() for p in m.parameters()} == {"cpu"}
    with imaginary_gpu(monkeypatch):
        there, found = made(config, data, tmp_path / "gpu")
        for name, module in modules(there).items():
            assert {p.device for p in module.parameters()} <= {GPU}, name
        # What is trained is loaded, and goes where it is used.
        again, repeated = made(config, data, tmp_path / "gpu")
        assert {p.device for m in modules(again).values() for p in m.parameters()} == {GPU}
    assert len(wanted["waveform"]) > len(SYSTEMS) - 1
    for kind, of_systems in wanted.items():
        assert found[kind].keys() == repeated[kind].keys() == of_systems.keys()
        for name, values in of_systems.items():
            np.testing.assert_allclose(found[kind][name], values, atol=1e-3, err_msg=f"{kind} of {name}")
            np.testing.assert_allclose(repeated[kind][name], values, atol=1e-3, err_msg=f"{kind} of {name}, loaded")
    for stage in STAGES:
        ours, theirs = (load_file(tmp_path / device / stage / "weights.safetensors") for device in ("gpu", "cpu"))
        # Adam makes a step of a gradient near zero, whichever sign rounding leaves it: a weight or two may differ.
        moved = torch.cat([(ours[name] - weight).flatten() for name, weight in theirs.items()]).abs()
        assert float(moved.mean()) < 1e-6, stage


def test_a_training_goes_on_where_it_was_stopped(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, optimiser and average come back to the device."""
    changes = "steps: 3, checkpoint_every: 1, gradient_accumulation: 2, ema_decay: 0.5, gradient_checkpointing: true"
    config = toy_experiment(*ALL, "training.diffusion={batch_size: 4, learning_rate: 1.0e-3, " + changes + "}")
    folders = [RunFolder(tmp_path / name) for name in ("straight", "stopped")]
    with imaginary_gpu(monkeypatch):
        _Trainer(config, folders[0], data).run()
        folders[1].path.mkdir()
        for stage in ("autoencoder", "contrastive", "regression"):
            folders[1].stage(stage).symlink_to(folders[0].stage(stage))
        losses, loss = itertools.count(), DiffusionStage.loss

        def cut(stage: DiffusionStage, batch: Batch) -> dict[str, torch.Tensor]:
            if next(losses) == 4:
                raise OSError("a power cut")
            return loss(stage, batch)

        with monkeypatch.context() as patch:
            patch.setattr(DiffusionStage, "loss", cut)
            with pytest.raises(OSError, match="power cut"):
                _Trainer(config, folders[1], data).run()
        _Trainer(config, folders[1], data).run()
    straight, stopped = (load_file(folder.stage("diffusion") / "weights.safetensors") for folder in folders)
    for name, weight in straight.items():
        torch.testing.assert_close(stopped[name], weight, atol=1e-6, rtol=0, msg=name)


def test_the_imaginary_gpu_refuses_what_a_real_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    with imaginary_gpu(monkeypatch):
        here, there = torch.ones(3), torch.ones(3, device=GPU)
        assert (there + there.sum().cpu() + here.to(GPU)).cpu().tolist() == [5.0, 5.0, 5.0]
        assert there[torch.tensor([0, 2])].shape == (2,)
        for mixed in (
            lambda: here + there,
            lambda: here[torch.tensor([0, 2], device=GPU)],
            lambda: torch.cat([here, there]),
            lambda: torch.nn.Linear(3, 3).to(GPU)(here),
            lambda: torch.rand(3, device=GPU, generator=torch.Generator()),
            lambda: there.numpy(),
        ):
            with pytest.raises(RuntimeError):
                mixed()
    assert not hasattr(torch.ones(3), "held")
