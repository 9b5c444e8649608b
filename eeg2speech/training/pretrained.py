"""Published weights as a start: from a folder in diffusers' layout, or a checkpoint, into the modules of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.files import sha256
from eeg2speech.importers import brainmagick
from eeg2speech.models.denoiser import Denoiser
from eeg2speech.models.eeg_encoder import ClipConv
from eeg2speech.training.checkpoint import restore

PARTS = ("unet", "vae", "vocoder")
_ALIKE = ("attention_head_dim", "norm_num_groups", "norm_eps", "flip_sin_to_cos", "freq_shift", "act_fn")
"""What a UNet computes with and no shape shows."""
_OF_THE_STUDY = ("subject.matrices", "head.2.weight", "head.2.bias")
"""What an EEG encoder has of its listeners and of the speech that it was trained with."""


def load_part(folder: Path, part: str) -> Any:
    """A module of a diffusers pipeline in eval mode. Raises UserError where it is absent or does not fit its config."""
    require_part(folder, part)
    path = folder / part
    try:
        module, info = _class_of(part).from_pretrained(path, output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    # The vocoder's two buffers have a value where the file has none.
    missing = set(info["missing_keys"]) - {"mean", "scale"}
    for fault, found in (("missing", missing), ("unexpected", info["unexpected_keys"])):
        if found:
            raise UserError(f"{path}: {len(found)} tensors are {fault}, {sorted(found)[0]} among them")
    return module.eval()


def require_starts(config: ExperimentConfig) -> None:
    """Raises UserError where weights that a config starts from are absent, or those of an EEG encoder do not fit it."""
    training = config.training
    for part, stage in (("vae", training.autoencoder), ("unet", training.diffusion)):
        if stage is not None and stage.init is not None:
            require_part(stage.init, part)
    if training.contrastive.init is not None:
        sizes = {
            "n_subjects": 1,
            "n_channels": 1,
            "dim": config.model.embedding.dim,
            "n_frames": config.embedding_frames,
        }
        start_eeg_encoder(config.model.eeg_encoder.build(**sizes), training.contrastive.init)


def require_part(folder: Path, part: str) -> None:
    """Raises UserError where `folder` is none in diffusers' layout that holds this part."""
    path = folder / part
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} holds no config.json: name a folder that `python -m eeg2speech import audioldm` wrote, "
            "or one in diffusers' layout"
        )


def _class_of(part: str) -> Any:
    if part == "vocoder":
        from transformers import SpeechT5HifiGan

        return SpeechT5HifiGan
    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]


def fingerprint(folder: Path, part: str) -> list[str]:
    """The hashes of a part's files: what a training that starts from it depends on."""
    return [sha256(file) for file in sorted((folder / part).glob("*")) if file.is_file()]


def start_autoencoder(autoencoder: AutoencoderKL, folder: Path) -> None:
    """Takes every weight, and the scale of the latents, from `folder`/vae. Raises UserError where one does not fit."""
    source = load_part(folder, "vae")
    restore(autoencoder, source.state_dict(), folder / "vae")
    autoencoder.register_to_config(scaling_factor=source.config.scaling_factor)


def start_eeg_encoder(encoder: ClipConv, path: Path) -> list[str]:
    """Takes the weights of a brainmagick checkpoint; returns the names of those that stay as they were initialised.

    Only the listeners' matrices may be new, where theirs are not as many, and the last convolution, where the
    embedding has another width. Its attention knows sensors where MNE's layout has them
    (`brainmagick.sensor_positions`), and ours lie up to an eighth of the head beside that: it must learn to move.

    Raises UserError where another tensor does not fit.
    """
    tensors, wanted = brainmagick.load(path, encoder.n_frames).state_dict(), encoder.state_dict()
    own = [name for name in _OF_THE_STUDY if tensors[name].shape != wanted[name].shape]
    restore(encoder, tensors | {name: wanted[name] for name in own}, path)
    return own


def start_denoiser(denoiser: Denoiser, folder: Path) -> list[str]:
    """Takes the UNet's weights from `folder`/unet; returns the names of those that stay as they were initialised.

    Only what the condition enters by may be new: the embedding of a FiLM of another width, the keys
    and values of cross-attention. Channels that time alignment adds to the input start at weight 0,
    so that training begins at the published function.

    Raises UserError where another tensor does not fit, or heads, norms or time embedding differ.
    """
    source, path = load_part(folder, "unet"), folder / "unet"
    if "film" not in denoiser.config.conditioning:
        raise UserError(f"{path} is conditioned by FiLM: add film to model.denoiser.conditioning to start from it")
    for key in _ALIKE:
        theirs, ours = (_plain(unet.config[key]) for unet in (source, denoiser.unet))
        if theirs != ours:
            cure = "; `import audioldm --head-dim` sets it anew" if key == "attention_head_dim" else ""
            raise UserError(f"{path}: its {key} is {theirs}, the config's {ours} (model.denoiser){cure}")
    tensors, wanted = source.state_dict(), denoiser.unet.state_dict()
    new = [n for n, t in wanted.items() if n in tensors and _may_be_new(n) and t.shape != tensors[n].shape]
    tensors |= {name: wanted[name] for name in new}
    tensors["conv_in.weight"] = _widened(tensors["conv_in.weight"], wanted["conv_in.weight"].shape[1])
    restore(denoiser.unet, tensors, path)
    return new


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _may_be_new(name: str) -> bool:
    return name == "class_embedding.weight" or name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


def _widened(kernel: Tensor, n_inputs: int) -> Tensor:
    """(O, I, h, w) with zeros for the inputs beyond the first I."""
    added = max(0, n_inputs - kernel.shape[1])
    return torch.cat([kernel, kernel.new_zeros(len(kernel), added, *kernel.shape[2:])], dim=1)
