"""Our `ClipConv` against what brainmagick's own code gave (`tests/golden/brainmagick.py`)."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.importers import brainmagick
from eeg2speech.models.eeg_encoder import ClipConv, ClipConvConfig
from eeg2speech.runs import RunFolder
from eeg2speech.training.run import _Trainer, train
from tests.golden.brainmagick import LAYOUTS, MISSING, info
from tests.toy_fixture import toy_data, toy_experiment

GOLDEN = Path(__file__).parent / "golden" / "brainmagick.safetensors"
N_TIMES = 40


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def state(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    with safe_open(GOLDEN, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_are_those_of_the_original(golden: dict[str, Tensor], state: dict[str, Tensor], layout: str) -> None:
    encoder = brainmagick.from_state_dict(state, N_TIMES)
    eeg, positions, subject, wanted = (golden[f"{layout}.{k}"] for k in ("eeg", "positions", "subject", "output"))
    assert eeg.shape[1] == int(layout)
    assert positions.isnan().any()
    assert float(wanted.std(dim=2).mean()) > 0.1  # over time: it depends on the EEG, not on biases alone
    torch.testing.assert_close(encoder(eeg, positions, subject), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sensors_are_where_the_original_has_them(golden: dict[str, Tensor], layout: str) -> None:
    ours = brainmagick.sensor_positions(info(int(layout), LAYOUTS[layout], MISSING[layout]))
    np.testing.assert_allclose(ours, golden[f"{layout}.positions"][0], atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["brennan", "mel"])
def test_parameters_are_as_many_at_full_size(metadata: dict[str, str], name: str) -> None:
    dim, n_subjects = json.loads(metadata["sizes"])[name]
    encoder = ClipConvConfig().build(n_subjects=n_subjects, dim=dim, n_frames=343, n_channels=60)
    assert sum(p.numel() for p in encoder.parameters()) == json.loads(metadata["parameters"])[name]


def test_parameters_are_as_many_as_imported(metadata: dict[str, str], state: dict[str, Tensor]) -> None:
    encoder = brainmagick.from_state_dict(state, N_TIMES)
    assert sum(p.numel() for p in encoder.parameters()) == json.loads(metadata["parameters"])["small"]


def same(one: ClipConv, other: ClipConv) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_every_file_that_holds_the_weights_is_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    wanted = brainmagick.from_state_dict(state, N_TIMES)
    listed = {f"0.{key}": value for key, value in state.items()}  # a solver keeps [model, feature model]
    worse = {key: value + 1 for key, value in listed.items()}
    torch.save({"all_models": worse, "best_state": listed, "history": [{"valid": {"loss": 1.0}}]}, tmp_path / "a.th")
    torch.save(state, tmp_path / "b.pt")
    save_file(state, tmp_path / "c.safetensors")
    for name in ("a.th", "b.pt", "c.safetensors"):
        assert same(brainmagick.load(tmp_path / name, N_TIMES), wanted)
    wanted.save_pretrained(tmp_path / "ours")
    assert same(ClipConv.from_pretrained(tmp_path / "ours"), wanted)


def started(state: dict[str, Tensor], *sets: str) -> ExperimentConfig:
    """The toy run with an encoder of the file's size, which starts from it."""
    small = brainmagick.from_state_dict(state, N_TIMES).config
    sizes = ", ".join(f"{key}: {small[key]}" for key in ("virtual_channels", "fourier_size", "channels", "depth"))
    return toy_experiment(f"model.eeg_encoder={{name: clip_conv, {sizes}}}", *sets)


def test_training_starts_from_the_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    """All but the listeners' matrices and the last convolution, which are of another study."""
    save_file(state, tmp_path / "meg.safetensors")
    config = started(state, f"training.contrastive.init={tmp_path / 'meg.safetensors'}")
    _Trainer(config, RunFolder(tmp_path / "run"), toy_data(tmp_path / "noise")).run()
    trained = load_file(tmp_path / "run" / "contrastive" / "weights.safetensors")
    start = brainmagick.from_state_dict(state, N_TIMES).state_dict()
    ours = {key.removeprefix("eeg_encoder."): value for key, value in trained.items() if key.startswith("eeg_encoder.")}
    own = {"subject.matrices", "head.2.weight", "head.2.bias"}
    assert {name for name in start if start[name].shape != ours[name].shape} == own
    learned = {name for name in start.keys() - own if "running" not in name and "num_batches" not in name}
    moved = {name: float((ours[name] - start[name]).abs().max()) for name in learned}
    assert max(moved.values()) < 5e-3  # two steps of AdamW at 1e-3
    assert min(value for name, value in moved.items() if name.endswith("convs.0.0.weight")) > 0


def test_a_start_that_does_not_fit_is_refused_before_anything_is_done(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "meg.safetensors")
    init = f"training.contrastive.init={tmp_path / 'meg.safetensors'}"
    with pytest.raises(ValidationError, match=r"training\.contrastive\.init holds a clip_conv, and .* is linear"):
        toy_experiment("model.eeg_encoder={name: linear}", init)
    for config, sentence in (
        (toy_experiment(init), r"meg\.safetensors: tensor .* the model has .*name weights of this config"),
        (started(state, "training.contrastive.init=absent.th"), r"absent\.th: does not exist"),
    ):
        with pytest.raises(UserError, match=sentence):
            train(config, RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"weight": torch.zeros(1)}, "not a brainmagick clip_conv"),
        ({"merger.heads": torch.zeros(10, 32)}, "not those of a clip_conv"),
        ([torch.zeros(1)], "holds a list"),
    ],
)
def test_another_file_is_refused_by_name(broken: object, said: str, tmp_path: Path) -> None:
    torch.save(broken, tmp_path / "other.th")
    with pytest.raises(UserError, match=rf"other\.th: .*{said}"):
        brainmagick.load(tmp_path / "other.th", N_TIMES)


def test_a_layer_that_is_missing_is_named(state: dict[str, Tensor]) -> None:
    short = {key: value for key, value in state.items() if key != "encoders.meg.glus.3.0.bias"}
    with pytest.raises(UserError, match=r"convs\.gates\.3\.0\.bias"):
        brainmagick.from_state_dict(short, N_TIMES)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.th").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"evil\.th: cannot be read as tensors alone"):
        brainmagick.load(Path("evil.th"), N_TIMES)
    assert not Path("executed").exists()
    with pytest.raises(UserError, match=r"gone\.th: does not exist"):
        brainmagick.load(Path("gone.th"), N_TIMES)
