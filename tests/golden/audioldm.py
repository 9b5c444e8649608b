"""Outputs of AudioLDM's own modules at reduced width, and the tensors they are called by in its checkpoints.

    python tests/golden/audioldm.py CHECKOUT

reads the modules of a checkout of github.com/haoheliu/AudioLDM-training-finetuning (it needs einops), gives every
tensor of a checkpoint the value that `weight` makes from its name, and writes `audioldm.safetensors` (inputs, outputs,
the checkout's commit) and `audioldm_names.json.gz` (file -> name -> shape) beside this file. No weights are stored.
"""

from __future__ import annotations

import gzip
import importlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

TENSORS, NAMES = (Path(__file__).with_name(name) for name in ("audioldm.safetensors", "audioldm_names.json.gz"))
FILM, MULT = 24, (1, 2, 2, 3)
SCALE_FACTOR = 0.2


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers from the name's CRC-32, of a deviation that keeps activations near one."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name == "scale_factor":
        return torch.tensor(SCALE_FACTOR)
    if name.endswith("weight_g") or (name.endswith("weight") and len(shape) == 1):
        noise = 1.0 + 0.1 * noise
    elif len(shape) > 1:
        noise /= np.sqrt(np.prod(shape[1:]))
    else:
        noise *= 0.1
    return torch.from_numpy(np.asarray(noise, np.float32))


def checkpoints() -> dict[str, dict[str, Tensor]]:
    """The state dicts the outputs belong to, by file; the names are the original's."""
    names = json.loads(gzip.decompress(NAMES.read_bytes()))
    return {file: {n: weight(n, tuple(s)) for n, s in shapes.items()} for file, shapes in names.items()}


def tensors() -> dict[str, Tensor]:
    """Inputs and outputs of the original's modules."""
    with safe_open(TENSORS, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)


def original(checkout: Path, module: str) -> ModuleType:
    """A module of the checkout, without running the packages' `__init__`, which want the whole training program."""
    for package in ("", ".utilities", ".modules", ".modules.diffusionmodules", ".modules.hifigan"):
        empty = ModuleType(f"audioldm_train{package}")
        empty.__path__ = [str(checkout / "audioldm_train" / package.replace(".", "/").lstrip("/"))]
        sys.modules.setdefault(empty.__name__, empty)
    configured: Any = ModuleType("audioldm_train.utilities.model_util")
    configured.instantiate_from_config = None
    sys.modules.setdefault(configured.__name__, configured)
    return importlib.import_module(f"audioldm_train.modules.{module}")


def original_unet(checkout: Path, width: int, mult: tuple[int, ...], film: int) -> nn.Module:
    """As in audioldm_original.yaml, but for these."""
    return original(checkout, "diffusionmodules.openaimodel").UNetModel(
        image_size=64,
        extra_film_condition_dim=film,
        in_channels=8,
        out_channels=8,
        model_channels=width,
        attention_resolutions=[8, 4, 2],
        num_res_blocks=2,
        channel_mult=mult,
        num_head_channels=32,
        use_spatial_transformer=True,
        transformer_depth=1,
        extra_sa_layer=False,
    )


def original_autoencoder(checkout: Path, width: int) -> nn.ModuleDict:
    """As in 16k_64.yaml, but for the width."""
    parts = original(checkout, "diffusionmodules.model")
    sizes = {"ch": width, "ch_mult": [1, 2, 4], "num_res_blocks": 2, "attn_resolutions": [], "resolution": 256}
    sizes |= {"in_channels": 1, "out_ch": 1, "z_channels": 8, "double_z": True}
    convs = {"quant_conv": nn.Conv2d(16, 16, 1), "post_quant_conv": nn.Conv2d(8, 8, 1)}
    return nn.ModuleDict({"encoder": parts.Encoder(**sizes), "decoder": parts.Decoder(**sizes)} | convs)


def original_vocoder(checkout: Path, width: int) -> nn.Module:
    """As in hifigan_16k_64bins.json, but for the width."""
    sizes = {"upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4], "num_mels": 64}
    blocks = {"resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3}
    return original(checkout, "hifigan.models").Generator(
        SimpleNamespace(**sizes, **blocks, upsample_initial_channel=width)
    )


def filled(module: nn.Module, prefix: str) -> nn.Module:
    """Every tensor has the value that goes with its name in a checkpoint."""
    module.load_state_dict({n: weight(prefix + n, tuple(t.shape)) for n, t in module.state_dict().items()})
    return module.eval()


@torch.no_grad()
def main(checkout: Path) -> None:
    torch.manual_seed(0)
    unet, autoencoder = original_unet(checkout, 32, MULT, FILM), original_autoencoder(checkout, 32)
    vocoder, weight_normed = original_vocoder(checkout, 64), original_vocoder(checkout, 64)
    vocoder.remove_weight_norm()
    model = nn.ModuleDict({"diffusion_model": unet})
    ema = original(checkout, "diffusionmodules.ema").LitEma(model)

    found = {"latent": torch.randn(2, 8, 16, 8), "t": torch.tensor([10, 777]), "film": torch.randn(2, FILM)}
    found |= {"log_mel": torch.randn(1, 1, 16, 64) - 6.0, "z": torch.randn(1, 8, 4, 16)}
    call = (found["latent"], found["t"], found["film"])
    found["unet"] = filled(unet, "model.diffusion_model.")(*call, context_list=[], context_attn_mask_list=[])
    filled(ema, "model_ema.").copy_to(model)
    found["ema"] = unet(*call, context_list=[], context_attn_mask_list=[])
    filled(autoencoder, "first_stage_model.")
    found["moments"] = autoencoder["quant_conv"](autoencoder["encoder"](found["log_mel"]))
    found["decoded"] = autoencoder["decoder"](autoencoder["post_quant_conv"](found["z"]))
    mel = found["log_mel"][:, 0].transpose(1, 2)
    found["waveform"] = filled(vocoder, "first_stage_model.vocoder.")(mel)[:, 0]
    found["weight_normed"] = filled(weight_normed, "")(mel)[:, 0]

    parts = {"model.": model, "model_ema.": ema, "first_stage_model.": autoencoder}
    parts["first_stage_model.vocoder."] = vocoder
    ldm = {p + n: list(t.shape) for p, module in parts.items() for n, t in module.state_dict().items()}
    others = {"scale_factor": [], "betas": [1000], "first_stage_model.loss.logvar": [1]}
    names = {"ldm": ldm | others, "hifigan": {n: list(t.shape) for n, t in weight_normed.state_dict().items()}}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    facts = {"source": "github.com/haoheliu/AudioLDM-training-finetuning", "commit": commit.stdout.strip()}
    save_file({n: t.contiguous() for n, t in found.items()}, TENSORS, facts)
    NAMES.write_bytes(gzip.compress(json.dumps(names).encode(), mtime=0))
    for name, tensor in found.items():
        print(name, tuple(tensor.shape), f"{float(tensor.float().std()):.3g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
