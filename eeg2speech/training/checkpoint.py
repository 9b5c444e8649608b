"""Weights and training state on disk: safetensors and JSON, whole or absent, never a pickle."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, require_free_space, sha256, write_atomically

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on as if it had never stopped."""

    step: int
    """Steps completed."""
    depends: str
    """Hash of the configuration and of all that the stage was trained on."""
    scalars: dict[str, Any]
    """Plain data of the loop."""
    tensors: dict[str, dict[str, Tensor]]
    """`model`, `optimizer`, and `ema` where one is kept: a safetensors file each."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors of any device and memory format. Raises UserError where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        storage = plain[name].untyped_storage().data_ptr()
        if storage in storages:  # tied weights are written once per name
            plain[name] = plain[name].clone()
        storages.add(storage)
    require_free_space(path.parent, sum(t.numel() * t.element_size() for t in plain.values()))
    with atomic_path(path) as partial:
        try:
            save_file(plain, partial)
        except SafetensorError as error:
            full = f"os error {errno.ENOSPC}" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file into memory. Raises UserError naming the file where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or delete its folder to redo it") from error


def load_weights(path: Path, modules: nn.Module) -> None:
    """Fills a stage's modules from its `weights.safetensors`; names and shapes must agree.

    Raises UserError naming the file and the first tensor that does not fit.
    """
    cure = f"the code of this model changed since; delete {path.parent} to train it again, or give a new --name"
    restore(modules, load_tensors(path), path, cure)


def restore(
    modules: nn.Module, tensors: Mapping[str, Tensor], path: Path, cure: str = "name weights of this config"
) -> None:
    wanted = modules.state_dict()
    for name in [*wanted, *tensors]:
        if name not in tensors or name not in wanted or tensors[name].shape != wanted[name].shape:
            found = tuple(tensors[name].shape) if name in tensors else "absent"
            expected = tuple(wanted[name].shape) if name in wanted else "absent"
            raise UserError(f"{path}: tensor {name} is {found}, the model has {expected}: {cure}")
    modules.load_state_dict(dict(tensors))


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint as `folder`; the one before it is replaced only when this one is whole."""
    partial, previous = _beside(folder, "partial"), _beside(folder, "previous")
    shutil.rmtree(partial, ignore_errors=True)
    hashes = {}
    for stem, tensors in checkpoint.tensors.items():
        path = partial / f"{stem}.safetensors"
        save_tensors(path, tensors)
        hashes[path.name] = sha256(path)
    state = {"step": checkpoint.step, "depends": checkpoint.depends, "scalars": checkpoint.scalars, "files": hashes}
    write_atomically(partial / STATE, json.dumps(state, indent=1))
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(folder, previous)
    os.replace(partial, folder)
    shutil.rmtree(previous, ignore_errors=True)


def load(folder: Path, depends: str, *, named: bool = False) -> Checkpoint | None:
    """The checkpoint in `folder`; None where there is none, or one of another configuration.

    `named`: the user asked for this very checkpoint, so that absence and another configuration
    are errors. Raises UserError for those, and for a damaged file.
    """
    previous = _beside(folder, "previous")
    if previous.exists() and not folder.exists():  # the process ended between the two renames of `save`
        os.replace(previous, folder)
    if not (folder / STATE).exists():
        if named:
            raise UserError(f"{folder} is no checkpoint (no {STATE} in it): name a folder that training wrote")
        return None
    state = _read_state(folder)
    if state["depends"] != depends:
        if named:
            raise UserError(
                f"{folder} belongs to another configuration ({state['depends']}, this one is {depends}): "
                "name a checkpoint of this configuration, or none to start over"
            )
        return None
    tensors = {}
    for name, wanted in state["files"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != wanted:
            raise UserError(f"{path} does not match the hash in {STATE}: delete {folder} to train the stage again")
        tensors[path.stem] = load_tensors(path)
    return Checkpoint(state["step"], state["depends"], state["scalars"], tensors)


def remove(folder: Path) -> None:
    for path in (folder, _beside(folder, "previous"), _beside(folder, "partial")):
        shutil.rmtree(path, ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state["step"], int) and isinstance(state["files"], dict):
            return {key: state[key] for key in ("step", "depends", "scalars", "files")}
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise UserError(f"{path} is damaged: delete {folder} to train the stage again")


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>/<key>` -> tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`, in the memory format of each parameter."""
    indices = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        if value.shape == parameter.shape and value.ndim:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(indices[id(parameter)], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
