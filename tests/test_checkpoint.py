"""Checkpoints are whole or absent, and say so when they are damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from eeg2speech.errors import UserError
from eeg2speech.training import checkpoint
from eeg2speech.training.checkpoint import Checkpoint

PARTS = ("model", "optimizer", "ema")


def sample(step: int) -> Checkpoint:
    torch.manual_seed(step)
    return Checkpoint(step, "d", {"wall_s": 0.1 * step}, {part: {"w": torch.randn(3, 2)} for part in PARTS})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    for step in (1, 2):
        checkpoint.save(folder, sample(step))
    found = checkpoint.load(folder, "d")
    assert found is not None
    assert (found.step, found.scalars) == (2, {"wall_s": 0.2})
    for part in PARTS:
        assert torch.equal(found.tensors[part]["w"], sample(2).tensors[part]["w"])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_another_configuration_is_no_checkpoint_unless_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    assert checkpoint.load(folder, "d") is None
    checkpoint.save(folder, sample(1))
    assert checkpoint.load(folder, "other") is None
    with pytest.raises(UserError, match=r"belongs to another configuration \(d, this one is other\)"):
        checkpoint.load(folder, "other", named=True)


@pytest.mark.parametrize("name", [*(f"{part}.safetensors" for part in PARTS), "state.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\xff" + data[1:]])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, sample(1))
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{name} .*delete .*checkpoint to train the stage again"):
        checkpoint.load(folder, "d")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, sample(1))
    (folder / "ema.safetensors").unlink()
    with pytest.raises(UserError, match="ema.safetensors"):
        checkpoint.load(folder, "d")


@pytest.mark.parametrize("survived", range(8))
def test_a_process_that_dies_while_saving_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Dies at the n-th rename: those of the four files, then those of the two folders."""
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, sample(1))
    rename, calls = os.replace, []

    def dying(source: object, target: object) -> None:
        if len(calls) == survived:
            raise KeyboardInterrupt
        calls.append(target)
        rename(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with contextlib.suppress(KeyboardInterrupt):
            checkpoint.save(folder, sample(2))
    found = checkpoint.load(folder, "d")
    assert found is not None
    assert found.step == (1 if survived < 6 else 2)
    assert torch.equal(found.tensors["model"]["w"], sample(found.step).tensors["model"]["w"])
    checkpoint.save(folder, sample(3))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, sample(1))
    nearly_full = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nearly_full)
    with pytest.raises(UserError, match="GB are needed"):
        checkpoint.save(folder, sample(2))
    found = checkpoint.load(folder, "d")
    assert found is not None
    assert found.step == 1


def test_a_disk_that_fills_while_writing_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def filling(tensors: object, path: Path) -> None:  # the error as it is on a full file system
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", filling)
    with pytest.raises(UserError, match="weights.safetensors: no space left"):
        checkpoint.save_tensors(tmp_path / "weights.safetensors", {"w": torch.zeros(1000)})
    assert not list(tmp_path.iterdir())


def test_tied_and_strided_tensors_come_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    tensors = {"a": weight, "tied": weight, "transposed": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(3)}
    path = tmp_path / "t.safetensors"
    checkpoint.save_tensors(path, tensors)
    loaded = checkpoint.load_tensors(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 2), r"tensor weight is \(2, 2\), the model has \(2, 3\)"),
        (nn.Linear(2, 2, bias=False), r"tensor bias is \(2,\), the model has absent"),
        (nn.BatchNorm1d(2), r"tensor weight is \(2, 2\), the model has \(2,\)"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    path, model = tmp_path / "weights.safetensors", nn.Linear(2, 2)
    checkpoint.save_tensors(path, model.state_dict())
    with pytest.raises(UserError, match=rf"weights.safetensors: {message}"):
        checkpoint.load_weights(path, other)
    same = nn.Linear(2, 2)
    checkpoint.load_weights(path, same)
    assert torch.equal(same.weight, model.weight)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="weights.safetensors cannot be read"):
        checkpoint.load_weights(path, nn.Linear(2, 2))
    with pytest.raises(UserError, match="absent.safetensors cannot be read"):
        checkpoint.load_weights(tmp_path / "absent.safetensors", nn.Linear(2, 2))


def test_a_restored_optimizer_goes_on_exactly(tmp_path: Path) -> None:
    def steps(model: nn.Linear, optimizer: torch.optim.Optimizer, which: range) -> None:
        for i in which:
            optimizer.zero_grad()
            model(torch.full((1, 3), i + 1.0)).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(3, 2)
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    steps(whole, torch.optim.AdamW(whole.parameters(), 0.1), range(6))

    model, resumed = nn.Linear(3, 2), nn.Linear(3, 2)
    model.load_state_dict(start)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    steps(model, optimizer, range(3))
    path = tmp_path / "optimizer.safetensors"
    checkpoint.save_tensors(path, checkpoint.optimizer_tensors(optimizer, dict(model.named_parameters())))
    resumed.load_state_dict(model.state_dict())
    second = torch.optim.AdamW([*reversed(list(resumed.parameters()))], 0.1)  # names count, not the order
    checkpoint.restore_optimizer(second, dict(resumed.named_parameters()), checkpoint.load_tensors(path))
    steps(resumed, second, range(3, 6))
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_state_is_readable_json(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint", sample(7))
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert state["step"] == 7
    assert set(state["files"]) == {f"{part}.safetensors" for part in PARTS}
