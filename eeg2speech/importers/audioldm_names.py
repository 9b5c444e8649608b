"""What the modules of AudioLDM's checkpoints are called in diffusers and transformers.

The UNet's names are those of OpenAI's guided-diffusion, the autoencoder's those of latent diffusion
(Rombach et al., CVPR 2022), the vocoder's those of HiFi-GAN (Kong et al., NeurIPS 2020).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by their names in UNet2DConditionModel, and the sizes of a `Denoiser`.

    A tensor that has no place there keeps its name.
    """
    modules = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "film_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    modules |= _resnet("middle_block.0", "mid_block.resnets.0") | _resnet("middle_block.2", "mid_block.resnets.1")
    layers: list[int] = []  # of each level
    channels: list[int] = []
    attention: list[bool] = []
    for block in _numbered("input_blocks", tensors, start=1):
        if f"{block}.0.op.weight" in tensors:
            modules[f"{block}.0.op"] = f"down_blocks.{len(layers) - 1}.downsamplers.0.conv"
            layers.append(0)
            continue
        layers = layers or [0]
        if layers[-1] == 0:
            attention.append(f"{block}.1.norm.weight" in tensors)
            channels.append(len(tensors[f"{block}.0.out_layers.0.weight"]))
        modules |= _resnet(f"{block}.0", f"down_blocks.{len(layers) - 1}.resnets.{layers[-1]}")
        modules[f"{block}.1"] = f"down_blocks.{len(layers) - 1}.attentions.{layers[-1]}"
        layers[-1] += 1
    for i, block in enumerate(_numbered("output_blocks", tensors)):
        level, layer = divmod(i, layers[0] + 1)
        modules |= _resnet(f"{block}.0", f"up_blocks.{level}.resnets.{layer}")
        modules[f"{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        for place in (1, 2):
            modules[f"{block}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    sizes = {"channels": tuple(channels), "layers_per_block": layers[0], "attention": tuple(attention)}
    return {_renamed(name, modules): tensor for name, tensor in tensors.items()}, sizes


def _numbered(blocks: str, tensors: Mapping[str, Tensor], start: int = 0) -> list[str]:
    """`blocks.<start>`, .. as far as they go."""
    there = {".".join(name.split(".")[:2]) for name in tensors}
    return list(takewhile(there.__contains__, (f"{blocks}.{i}" for i in count(start))))


def _resnet(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{inner}": f"{ours}.{name}" for inner, name in _RESNET.items()}


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """The name with the longest of the known modules that it begins with replaced."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n])
        if module in modules:
            return ".".join([modules[module], *parts[n:]])
    return name


def autoencoder(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by their names in diffusers' AutoencoderKL, and the sizes of an `AutoencoderConfig`."""
    firsts = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(len(tensors))]
    channels = tuple(len(tensors[name]) for name in takewhile(tensors.__contains__, firsts))
    layers = sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in tensors)

    def up(match: re.Match[str]) -> str:  # theirs are counted from the full resolution, ours from the latent
        return f"decoder.up_blocks.{len(channels) - 1 - int(match[1])}."

    named = {}
    for name, tensor in tensors.items():
        new = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
        new = re.sub(r"^decoder\.up\.(\d+)\.", up, new)
        for pattern, replacement in _AUTOENCODER:
            new = re.sub(pattern, replacement, new)
        # Attention's 1x1 convolutions are linear layers in diffusers.
        named[new] = tensor.flatten(1) if re.search(r"\.to_\w+(\.0)?\.weight$", new) else tensor
    sizes = {"channels": channels, "layers_per_block": layers}
    return named, sizes | {"latent_channels": tensors["post_quant_conv.weight"].shape[1]}


_AUTOENCODER = [
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
]


def vocoder(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by their names in SpeechT5HifiGan, weight norm multiplied out, and its sizes that show in them.

    `upsample_rates` do not show.
    """
    plain = without_weight_norm(tensors)
    kernels = [len(plain[f"{block}.weight"][0, 0]) for block in _numbered("ups", plain)]
    blocks = _numbered("resblocks", plain)
    per_kernel = blocks[: len(blocks) // max(1, len(kernels))]
    named = {re.sub(r"^ups\.", "upsampler.", name): tensor for name, tensor in plain.items()}
    initial, mels = plain["conv_pre.weight"].shape[:2]
    sizes = {
        "model_in_dim": mels,
        "upsample_initial_channel": initial,
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": [plain[f"{block}.convs1.0.weight"].shape[2] for block in per_kernel],
    }
    return named | {"mean": torch.zeros(mels), "scale": torch.ones(mels)}, sizes


def without_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w = g v / ||v||, the norm over all but the first axis (Salimans & Kingma, NeurIPS 2016)."""
    plain = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last == "weight_v":
            norm = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
            plain[f"{module}.weight"] = tensors[f"{module}.weight_g"] * tensor / norm
        elif last != "weight_g":
            plain[name] = tensor
    return plain
