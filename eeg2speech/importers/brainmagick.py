"""brainmagick's trained `clip_conv` (Défossez et al., Nat. Mach. Intell. 2023) in our `ClipConv`, weight for weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eeg2speech.errors import UserError
from eeg2speech.models.eeg_encoder import ClipConv

if TYPE_CHECKING:
    import mne

_HEADS = "merger.heads"
_RENAMED = (
    (r"merger\.heads", "attention.heads"),
    (r"initial_linear\.0\.", "initial."),
    (r"subject_layers\.weights", "subject.matrices"),
    (r"encoders\.meg\.sequence\.(\d+)\.", r"convs.convs.\1."),
    (r"encoders\.meg\.glus\.(\d+)\.", r"convs.gates.\1."),
    (r"final\.", "head."),
)


def load(path: Path, n_frames: int) -> ClipConv:
    """The encoder of a brainmagick checkpoint, its best epoch where it kept one, in eval mode.

    `n_frames` is the length of the output; brainmagick's own is that of the input, 343 or 361 samples.
    The file is a `.safetensors`, or a pickle of tensors alone: nothing in it is executed.
    Raises UserError where it cannot be read, or holds another model.
    """
    try:
        return from_state_dict(_read(path), n_frames)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def from_state_dict(state: Mapping[str, Tensor], n_frames: int) -> ClipConv:
    """`state` of a `SimpleConv` built with `conf/model/clip_conv.yaml`, of any width and depth."""
    prefix = next((key.removesuffix(_HEADS) for key in state if key.endswith(_HEADS)), None)
    if prefix is None:
        raise UserError("no merger.heads among the weights: not a brainmagick clip_conv; name its checkpoint")
    ours = {_renamed(key.removeprefix(prefix)): value for key, value in state.items() if key.startswith(prefix)}
    try:
        # (in, out) of each listener there, (out, in) here; the last convolution is a transposed one there.
        ours["subject.matrices"] = ours["subject.matrices"].transpose(1, 2)
        ours["head.2.weight"] = ours["head.2.weight"].transpose(0, 1)
        virtual_channels, fourier_size = ours["attention.heads"].shape
        encoder = ClipConv(
            n_subjects=len(ours["subject.matrices"]),
            dim=len(ours["head.2.weight"]),
            n_frames=n_frames,
            virtual_channels=virtual_channels,
            fourier_size=fourier_size,
            channels=len(ours["head.0.weight"]) // 2,
            depth=sum(re.fullmatch(r"convs\.convs\.\d+\.0\.weight", key) is not None for key in ours),
        )
        encoder.load_state_dict(ours)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"its weights are not those of a clip_conv ({error}); only that model is read") from error
    return encoder.eval()


def sensor_positions(info: mne.Info) -> np.ndarray:
    """(C, 2) float32 as brainmagick places sensors: MNE's layout, each axis scaled to [0, 1]; NaN where it has none.

    Give these to an imported encoder: the equidistant projection of our studies differs by some per cent.
    """
    import mne

    known = mne.find_layout(info)
    place = dict(zip(known.names, known.pos[:, :2], strict=True))
    # MNE appends the number of the device to the names of some MEG systems.
    xy = np.array([place.get(name.rsplit("-", 1)[0], (np.nan, np.nan)) for name in info.ch_names])
    low, high = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    return ((xy - low) / (high - low)).astype(np.float32)


def _renamed(key: str) -> str:
    for pattern, ours in _RENAMED:
        key, changed = re.subn(f"^{pattern}", ours, key)
        if changed:
            break
    return key


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError("does not exist; give the path of a brainmagick checkpoint") from error
    except Exception as error:  # noqa: BLE001 - torch and pickle raise anything on a damaged or refused file
        raise UserError(
            f"cannot be read as tensors alone ({type(error).__name__}); save its state dict with safetensors"
        ) from error
    return _tensors(stored)


def _tensors(stored: Any) -> dict[str, Tensor]:
    """The weights in a solver's checkpoint, or the state dict that the file is."""
    for name in ("best_state", "all_models", "model", "state_dict"):
        if isinstance(stored, dict) and isinstance(stored.get(name), dict):
            stored = stored[name]
            break
    if not isinstance(stored, dict):
        raise UserError(f"holds a {type(stored).__name__}, not a state dict; name a brainmagick checkpoint")
    return {key: value for key, value in stored.items() if isinstance(value, Tensor)}
