"""Networks of one's own: what is refused before anything is trained, and what needs no other line of code."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from eeg2speech.config import ExperimentConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.errors import UserError
from eeg2speech.models.denoiser import ConditionalDenoiser
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.runs import RunFolder
from eeg2speech.schema import Config
from eeg2speech.training import loop
from eeg2speech.training import run as training_run
from eeg2speech.training.code import code_of
from eeg2speech.training.run import _Trainer
from eval.runner import make_bench
from eval.systems import SYSTEMS
from tests.test_loop import Regression
from tests.toy_fixture import toy_data, toy_experiment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return toy_data(tmp_path_factory.mktemp("noise"))


class Recurrent(ModelMixin, ConfigMixin):
    """An encoder with nothing in common with the project's; `turned` gives (B, T', D)."""

    @register_to_config
    def __init__(self, n_channels: int, dim: int, n_frames: int, turned: bool = False) -> None:
        super().__init__()
        self.gru, self.n_frames = nn.GRU(n_channels, dim, batch_first=True), n_frames

    def forward(self, eeg: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        out = F.adaptive_avg_pool1d(self.gru(eeg.transpose(1, 2))[0].transpose(1, 2), self.n_frames)
        return out.transpose(1, 2) if self.config.turned else out


class RecurrentConfig(Config):
    name: str = "recurrent"
    turned: bool = False

    def build(self, *, n_subjects: int, **sizes: int) -> Recurrent:
        return Recurrent(**sizes, turned=self.turned)


class PlainConfig(Config):
    name: str = "plain"

    def build(self, **sizes: int) -> nn.Module:
        return nn.Linear(1, 1)


class Pointwise(ConditionalDenoiser):
    """A denoiser that looks at one point of the latent, and at the mean of the condition."""

    @register_to_config
    def __init__(self, latent_channels: int, cond_dim: int, cond_frames: int) -> None:
        super().__init__(cond_dim)
        self.point, self.shift = nn.Conv2d(latent_channels, latent_channels, 1), nn.Linear(cond_dim, latent_channels)

    def forward(self, latent: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.point(latent) + self.shift(cond.mean(dim=2))[:, :, None, None]


class PointwiseConfig(Config):
    name: str = "pointwise"

    def build(self, *, latent_channels: int, cond_dim: int, cond_frames: int, **_: object) -> Pointwise:
        return Pointwise(latent_channels, cond_dim, cond_frames)


def with_parts(*sets: str, **parts: Config) -> ExperimentConfig:
    config = toy_experiment(*sets)
    return config.model_copy(update={"model": config.model.model_copy(update=parts)})


def test_an_encoder_and_a_denoiser_of_ones_own_train_speak_and_are_saved(data: StudyData, tmp_path: Path) -> None:
    config = with_parts("sampling.num_inference_steps=2", eeg_encoder=RecurrentConfig(), denoiser=PointwiseConfig())
    trained = _Trainer(config, RunFolder(tmp_path), data).run()
    bench = make_bench(config, trained)
    for name in ("eeg", "unconditional"):
        waveform = SYSTEMS[name].run(bench).waveform
        assert waveform is not None
        assert waveform.std() > 0
    again = EEG2SpeechPipeline.from_pretrained(tmp_path / "pipeline")
    again.set_progress_bar_config(disable=True)
    batch = data.batch(data.indices("test")[:2])
    assert trained.pipeline is not None
    heard = [p(batch.eeg, batch.positions, batch.subject) for p in (trained.pipeline, again)]
    torch.testing.assert_close(heard[1], heard[0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"eeg_encoder": PlainConfig()},
            r"model\.eeg_encoder: a pipeline cannot save Linear; derive it from .*ModelMixin",
        ),
        (
            {"eeg_encoder": RecurrentConfig(turned=True)},
            r"model\.eeg_encoder: Recurrent gives \(2, 30, 6\) where \(2, 6, 30\) is needed",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    parts: dict[str, Config], message: str, data: StudyData, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        _Trainer(with_parts(**parts), RunFolder(tmp_path), data)
    assert not list(tmp_path.iterdir())


def test_weights_of_other_code_are_used_with_a_warning(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_experiment()
    for module in (loop, training_run):
        monkeypatch.setattr(module, "code_of", lambda stage: {"mine": "before"})
    _Trainer(config, RunFolder(tmp_path), data).run()
    with caplog.at_level(logging.WARNING):
        _Trainer(config, RunFolder(tmp_path), data).run()
    assert not caplog.records
    monkeypatch.setattr(training_run, "code_of", lambda stage: {"mine": "after"})
    _Trainer(config, RunFolder(tmp_path), data).run()
    assert [r.getMessage().partition(" changed")[0] for r in caplog.records] == [
        f"stage {name}: mine" for name in ("autoencoder", "contrastive", "diffusion")
    ]


def test_the_code_of_a_stage_is_the_source_of_its_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = tmp_path / "my_network.py", []
    for number in (1, 1, 2):
        path.write_text(f"from torch import nn\nclass Mine(nn.Linear):\n    number = {number}\n")
        spec = importlib.util.spec_from_file_location("my_network", path)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "my_network", module)
        spec.loader.exec_module(module)
        found.append(code_of(Regression(nn.Sequential(module.Mine(4, 1)))))
    assert [set(code) for code in found] == [{"my_network"}] * 3, "torch's own is left out"
    assert found[0] == found[1] != found[2]


def test_a_saved_pipeline_loads_where_nothing_else_was_imported(data: StudyData, tmp_path: Path) -> None:
    """As the README has it: diffusers takes a class from a module that somebody has imported, and from no other."""
    _Trainer(toy_experiment(), RunFolder(tmp_path), data).run()
    code = (
        "import sys; from eeg2speech.pipeline import EEG2SpeechPipeline; "
        "p = EEG2SpeechPipeline.from_pretrained(sys.argv[1]); print(p.config.eeg_input['n_times'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pipeline")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == str(data.n_times)
