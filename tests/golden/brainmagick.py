"""Makes `brainmagick.safetensors`: what the original `clip_conv` gives for known weights and inputs.

    git clone https://github.com/facebookresearch/brainmagick ORIGINAL
    git -C ORIGINAL checkout 1aa77d2dbd801b4901aeadfd8606d26a89ee7e3e
    python tests/golden/brainmagick.py ORIGINAL

The original (Défossez et al. 2023, CC-BY-NC 4.0) is imported and run, none of it is kept. Positions are
what its `PositionGetter` makes of an `mne.Info`; some channels are no EEG and so have none. The model has
the structure of `conf/model/clip_conv.yaml` at small widths; the metadata hold parameter counts at full size.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mne
import numpy as np
import torch
from safetensors.torch import save_file

COMMIT = "1aa77d2dbd801b4901aeadfd8606d26a89ee7e3e"
CLIP_CONV = {
    "depth": 10, "dilation_period": 5, "kernel_size": 3, "batch_norm": True, "skip": True,
    "glu": 2, "glu_context": 1, "gelu": True, "merger": True,
    "subject_layers": True, "subject_dim": 0, "complex_out": True,
}  # fmt: skip
SMALL = {"merger_channels": 10, "initial_linear": 10, "merger_pos_dim": 32, "hidden": {"meg": 12}}
FULL = {"merger_channels": 270, "initial_linear": 270, "merger_pos_dim": 2048, "hidden": {"meg": 320}}
SIZES = {"small": (7, 3), "brennan": (1024, 33), "mel": (120, 27)}
"""Outputs and listeners."""
LAYOUTS = {"60": "easycap-M10", "128": "biosemi128", "208": ""}
MISSING = {"60": (3, 59), "128": (0, 64, 65), "208": (10, 100, 200, 207)}
N_TIMES, BATCH = 40, 2


def original(root: Path) -> Any:
    """The module `bm.models.simpleconv`; what its package imports besides is not needed, and replaced."""
    for name, path in (("bm", "bm"), ("bm.models", "bm/models"), ("bm.studies", None)):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(root / path)] if path else []
    for name, content in (("bm.studies.api", {"Recording": object}), ("torchaudio", {})):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    import importlib

    return importlib.import_module("bm.models.simpleconv")


def info(count: int, montage: str, missing: tuple[int, ...]) -> mne.Info:
    """`count` channels, those of `missing` without a place on the scalp."""
    if montage:
        known = mne.channels.make_standard_montage(montage)
    else:  # a spiral over the upper half of a sphere
        angle, height = np.arange(count) * 2.39996, np.linspace(0.05, 1.0, count)
        ring = np.sqrt(1.0 - height**2)
        xyz = 0.09 * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
        known = mne.channels.make_dig_montage({f"S{i}": place for i, place in enumerate(xyz)})
    names = known.ch_names[:count]
    types = ["misc" if i in missing else "eeg" for i in range(count)]
    return mne.create_info(names, 120.0, types).set_montage(known, on_missing="ignore", verbose="error")


class Segments:
    """As much of the original's batch as its model reads."""

    def __init__(self, meg: torch.Tensor, mne_info: mne.Info, subject: torch.Tensor, index: int) -> None:
        recording = SimpleNamespace(
            recording_index=index, mne_info=mne_info, study_name=lambda: "golden", recording_uid=str(index)
        )
        self.meg, self.subject_index, self._recordings = meg, subject, [recording] * len(meg)

    def __len__(self) -> int:
        return len(self.meg)


def disturb(model: torch.nn.Module) -> None:
    """Weights and statistics that no initialisation gives, so that none can be left out unnoticed.

    They are large, for at its initialisation the output hardly depends on the EEG; the last layer
    brings it back to an amplitude near 1, at which an absolute tolerance of 1e-5 is meant.
    """
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand_like(value))
            elif value.is_floating_point():
                value.add_(0.2 * torch.randn_like(value))
        model.final[2].weight.div_(15.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path, help="a checkout of the original")
    simpleconv = original(parser.parse_args().original)

    def build(name: str, **widths: Any) -> torch.nn.Module:
        outputs, listeners = SIZES[name]
        model = simpleconv.SimpleConv({"meg": 1}, outputs, n_subjects=listeners, **CLIP_CONV, **widths)
        return model.eval()

    torch.manual_seed(0)
    counts = {name: sum(p.numel() for p in build(name, **FULL).parameters()) for name in ("brennan", "mel")}
    model = build("small", **SMALL)
    disturb(model)
    counts["small"] = sum(p.numel() for p in model.parameters())
    tensors = {f"state.{name}": value.clone() for name, value in model.state_dict().items()}
    for index, (count, montage) in enumerate(LAYOUTS.items()):
        eeg = torch.randn(BATCH, int(count), N_TIMES)
        batch = Segments(eeg, info(int(count), montage, MISSING[count]), torch.tensor([2, 0]), index)
        with torch.no_grad():
            output = model({"meg": eeg}, batch)
        positions = model.merger.position_getter.get_positions(batch)
        absent = model.merger.position_getter.is_invalid(positions)
        assert absent[0].nonzero().flatten().tolist() == list(MISSING[count])
        tensors |= {
            f"{count}.eeg": eeg,
            f"{count}.positions": positions.masked_fill(absent[..., None], torch.nan),
            f"{count}.subject": batch.subject_index,
            f"{count}.output": output,
        }
    metadata = {"commit": COMMIT, "parameters": json.dumps(counts), "sizes": json.dumps(SIZES)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, Path(__file__).with_suffix(".safetensors"), metadata)


if __name__ == "__main__":
    main()
