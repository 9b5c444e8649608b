"""Published AudioLDM weights (Liu et al., ICML 2023), as a folder from which a training starts.

Reads a checkpoint of AudioLDM or AudioLDM-training-finetuning (UNet, its moving average, autoencoder,
vocoder, together or alone) or a folder in diffusers' layout. Only tensors are loaded: no code in a
file is run.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from eeg2speech.errors import UserError
from eeg2speech.files import require_free_space, sha256, write_atomically
from eeg2speech.importers import audioldm_names as names
from eeg2speech.models.autoencoder import AutoencoderConfig
from eeg2speech.models.denoiser import Denoiser
from eeg2speech.training.pretrained import PARTS, load_part

UNET, EMA, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
UPSAMPLE_RATES = {(16, 16, 8, 4, 4): (5, 4, 2, 2, 2)}
"""Kernels of the 16 kHz, 64 mel HiFi-GAN -> its strides, which do not show in its weights."""


@dataclass(frozen=True)
class Published:
    """The modules that a file held, and what is worth knowing about them."""

    modules: dict[str, nn.Module]
    """Some of `unet`, `vae`, `vocoder`, in eval mode."""
    facts: dict[str, Any]


def convert(path: Path, folder: Path, *, ema: bool = True, head_dim: int | None = None) -> dict[str, Any]:
    """Writes `folder` in diffusers' layout, one subfolder a part, and `import.json`; returns the latter's facts.

    It appears when it is whole. Raises UserError where it exists, and for what `read` refuses.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: name another folder, or delete it")
    published = read(path, ema=ema, head_dim=head_dim)
    size = sum(t.numel() * t.element_size() for m in published.modules.values() for t in m.state_dict().values())
    require_free_space(folder, size)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        for part, module in published.modules.items():
            module.save_pretrained(partial / part)  # type: ignore[operator]
        write_atomically(partial / "import.json", json.dumps(published.facts, indent=1))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return published.facts


def read(path: Path, *, ema: bool = True, head_dim: int | None = None) -> Published:
    """The modules in a checkpoint, or in a folder in diffusers' layout.

    `ema`: the UNet's moving average, which AudioLDM generates with, where the file has one.
    `head_dim`: of the UNet's attention, which does not show in the weights; None: 32, or 64 where
    the first level has 256 channels (AudioLDM-L). A folder states heads, and is believed without it;
    but what diffusers' own script converted states none, and so counts as having 8 at every level.

    Raises UserError naming the file, and the tensors that are missing or have no place.
    """
    if path.is_dir():
        return _read_folder(path, head_dim)
    tensors, facts = load_tensors(path), {"source": path.name, "sha256": sha256(path)}
    modules: dict[str, nn.Module] = {}
    unet = _beginning(tensors, UNET)
    if unet:
        averaged = ema and any(name.startswith(EMA) for name in tensors)
        modules["unet"] = _unet(_average(tensors, unet, path) if averaged else unet, path, head_dim)
        facts["unet"] = "moving average" if averaged else "last step"
    first_stage = _beginning(tensors, FIRST_STAGE) or tensors
    if "encoder.conv_in.weight" in first_stage:
        modules["vae"] = _autoencoder(first_stage, path, float(tensors.get("scale_factor", torch.ones(()))))
    vocoder = _beginning(first_stage, "vocoder.") or tensors
    if any(name.startswith("conv_pre.") for name in vocoder):
        modules["vocoder"] = _vocoder(vocoder, path)
    if not modules:
        raise UserError(
            f"{path} holds no part of AudioLDM (it begins with {', '.join(list(tensors)[:3])}): "
            f"expected tensors named {UNET}*, {FIRST_STAGE}* or a HiFi-GAN's conv_pre.*"
        )
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    return Published({part: module.eval() for part, module in modules.items()}, facts | {"parameters": counts})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint by name; `state_dict` and a vocoder's `generator` are opened.

    Raises UserError where the file is absent, damaged, or holds anything but plain data.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: name a checkpoint of AudioLDM or a folder") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights, which is not loaded since it could run code "
            f"({str(error).splitlines()[0]}): save its state_dict alone, where you trust the file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is no PyTorch checkpoint, or is damaged ({str(error).splitlines()[0]})") from error
    for inner in ("state_dict", "generator"):
        if isinstance(held, Mapping) and isinstance(held.get(inner), Mapping):
            held = held[inner]
    if not isinstance(held, Mapping):
        raise UserError(f"{path} holds a {type(held).__name__}, not tensors by name")
    # torch.compile leaves a module of its own in the names.
    return {str(k).replace("_orig_mod.", ""): v for k, v in held.items() if isinstance(v, Tensor)}


def _beginning(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _average(tensors: Mapping[str, Tensor], unet: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The moving average is kept under the parameters' names without their dots."""
    theirs = {name: EMA + (UNET.removeprefix("model.") + name).replace(".", "") for name in unet}
    missing = [name for name in theirs.values() if name not in tensors]
    if missing:
        raise UserError(f"{path}: {_listed('missing', missing)}; --weights last takes the UNet without its average")
    return {name: tensors[average] for name, average in theirs.items()}


def _unet(tensors: Mapping[str, Tensor], path: Path, head_dim: int | None) -> nn.Module:
    needed = ("input_blocks.0.0.weight", "input_blocks.1.0.out_layers.0.weight", "film_emb.weight")
    if missing := [name for name in needed if name not in tensors]:
        raise UserError(
            f"{path}: the UNet lacks {', '.join(missing)}: only AudioLDM's UNet conditioned by FiLM can be read"
        )
    renamed, sizes = names.unet(tensors)
    with torch.device("meta"):
        denoiser = Denoiser(
            latent_channels=tensors["input_blocks.0.0.weight"].shape[1],
            latent_bins=1,
            cond_dim=tensors["film_emb.weight"].shape[1],
            cond_frames=1,
            head_dim=head_dim or (64 if sizes["channels"][0] == 256 else 32),
            conditioning=("film",),
            **sizes,
        )
    return _filled(denoiser.unet, renamed, path, "UNet")


def _autoencoder(first_stage: Mapping[str, Tensor], path: Path, scale_factor: float) -> AutoencoderKL:
    mine = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    tensors = {name: t for name, t in first_stage.items() if name.startswith(mine)}
    if "post_quant_conv.weight" not in tensors:
        raise UserError(f"{path}: the autoencoder lacks post_quant_conv.weight")
    renamed, sizes = names.autoencoder(tensors)
    with torch.device("meta"):
        empty = AutoencoderConfig(**sizes).build()
    autoencoder: AutoencoderKL = _filled(empty, renamed, path, "autoencoder")
    autoencoder.register_to_config(scaling_factor=scale_factor)
    return autoencoder


def _vocoder(tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    if not {"conv_pre.weight", "conv_pre.weight_v"} & tensors.keys():
        raise UserError(f"{path}: the vocoder lacks conv_pre.weight")
    renamed, sizes = names.vocoder(tensors)
    rates = UPSAMPLE_RATES.get(tuple(sizes["upsample_kernel_sizes"]))
    if rates is None:
        raise UserError(
            f"{path}: a vocoder with upsampling kernels {sizes['upsample_kernel_sizes']} is not known; "
            f"AudioLDM's at 16 kHz and 64 mel has {list(next(iter(UPSAMPLE_RATES)))}"
        )
    dilations = [[1, 3, 5]] * len(sizes["resblock_kernel_sizes"])
    config = SpeechT5HifiGanConfig(
        **sizes, upsample_rates=list(rates), resblock_dilation_sizes=dilations, normalize_before=False
    )
    with torch.device("meta"):
        empty = SpeechT5HifiGan(config)
    return _filled(empty, renamed, path, "vocoder")


def _filled(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, part: str) -> Any:
    """The module, made without weights, with these tensors, every one of them used."""
    wanted = module.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "of another shape": [n for n, t in tensors.items() if n in wanted and t.shape != wanted[n].shape],
    }
    if any(faults.values()):
        said = "; ".join(_listed(fault, found) for fault, found in faults.items() if found)
        raise UserError(f"{path}: its {part} is none of AudioLDM's: {said}")
    module.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    return module


def _listed(fault: str, found: list[str]) -> str:
    return f"{len(found)} tensors {fault} ({', '.join(found[:3])}{', ..' if len(found) > 3 else ''})"


def _read_folder(path: Path, head_dim: int | None) -> Published:
    modules = {part: load_part(path, part) for part in PARTS if (path / part).is_dir()}
    if "unet" in modules and head_dim is not None:
        modules["unet"] = _with_heads(modules["unet"], head_dim)
    if not modules:
        raise UserError(f"{path} holds none of the folders {', '.join(PARTS)} of a diffusers pipeline")
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    return Published(modules, {"source": path.name, "parameters": counts})


def _with_heads(unet: UNet2DConditionModel, head_dim: int) -> UNet2DConditionModel:
    """The same weights, with attention heads of this width (diffusers calls their number `attention_head_dim`)."""
    heads = [max(1, channels // head_dim) for channels in unet.config.block_out_channels]
    stated = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    with torch.device("meta"):
        other = UNet2DConditionModel(**stated | {"attention_head_dim": heads})
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval()
