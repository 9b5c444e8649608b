"""Every stimulus as a latent, encoded once and stored beside the stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from eeg2speech.data.loader import StudyData
from eeg2speech.device import device
from eeg2speech.files import atomic_path, digest
from eeg2speech.models.autoencoder import fit_scale, to_image
from eeg2speech.runs import is_done, step

SCALE_STIMULI = 512
BATCH = 32
LATENTS = "latents.safetensors"


def encoded_stimuli(
    autoencoder: AutoencoderKL, data: StudyData, place: Path, depends: str, *, cached: bool, published: bool
) -> Tensor:
    """(n_stimuli, L, T / 4, 16): each stimulus encoded, at the scale of the training split; the autoencoder keeps it.

    Not `cached`, it is but as many training stimuli as that scale needs. A `published` denoiser knows
    latents at the scale that was published with its autoencoder. `depends` is the hash of all that the
    autoencoder's weights depend on; what is stored in `place` for the same is not encoded again.
    """
    depends = digest([depends, cached, published])
    if not is_done(place, depends):
        with step(place, depends), atomic_path(place / LATENTS) as partial:
            save_file(_encode(autoencoder, data, cached, published), partial)
    stored = load_file(place / LATENTS)
    if not published:
        autoencoder.register_to_config(**{key: stored[key].tolist() for key in ("latents_mean", "latents_std")})
    return stored["latents"]


@torch.no_grad()
def _encode(autoencoder: AutoencoderKL, data: StudyData, cached: bool, published: bool) -> dict[str, Tensor]:
    """The latents, and the mean and deviation that scaled them unless that was published."""
    features, training = data.features.features, _training_rows(data)
    autoencoder.to(device())
    rows = np.arange(len(features)) if cached else evenly(training, SCALE_STIMULI)
    encoded = []
    for start in range(0, len(rows), BATCH):
        log_mel = torch.from_numpy(np.array(features[rows[start : start + BATCH]])).transpose(1, 2).unsqueeze(1)
        image = to_image(autoencoder, log_mel.to(autoencoder.device))
        encoded.append(autoencoder.encode(image).latent_dist.mode().cpu())
    latents = torch.cat(encoded)
    if published:
        return {"latents": (latents * autoencoder.config.scaling_factor).contiguous()}
    fit_scale(autoencoder, latents[training] if cached else latents)
    scale = {key: torch.tensor(autoencoder.config[key]) for key in ("latents_mean", "latents_std")}
    mean, std = (each.view(1, -1, 1, 1) for each in scale.values())
    return {"latents": ((latents - mean) / std).contiguous()} | scale


def training_stimuli(data: StudyData, features: np.ndarray) -> Tensor:
    """(n, K, F) of features of all stimuli: some of the training split, enough for a mean and a deviation."""
    return torch.from_numpy(np.array(features[evenly(_training_rows(data), SCALE_STIMULI)]))


def evenly(rows: np.ndarray, n: int) -> np.ndarray:
    """At most n of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]


def _training_rows(data: StudyData) -> np.ndarray:
    return np.unique(data.windows["stimulus"].to_numpy()[data.indices("train")])
