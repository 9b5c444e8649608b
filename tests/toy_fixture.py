"""A whole run in a second: two listeners, twenty sentences of noise, networks of a few hundred weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eeg2speech import config as configs
from eeg2speech.config import ExperimentConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from tests.data_fixture import sentence_study

STAGE = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
MODEL = {
    "embedding": {"dim": 6, "rate_hz": 10},
    "eeg_encoder": {"name": "clip_conv", "virtual_channels": 5, "fourier_size": 18, "channels": 8, "depth": 2},
    "audio_encoder": {"channels": 8, "depth": 2},
    "autoencoder": {"patch": 4, "channels": [8], "layers_per_block": 1, "mid_attention": False, "norm_groups": 4},
    "denoiser": {"channels": [8, 16], "layers_per_block": 1, "attention": [False, False], "norm_groups": 4},
    "vocoder": {"name": "griffin_lim", "iterations": 1},
}
VALUES: dict[str, Any] = {
    "study": {"name": "matrix"},
    "model": MODEL,
    "training": {"autoencoder": STAGE, "contrastive": STAGE, "diffusion": STAGE},
}


def toy_data(folder: Path) -> StudyData:
    """The sentences, prepared in `folder`."""
    study, splits = sentence_study(folder / "sounds", 20), SplitConfig(valid=0.2, test=0.3)
    return StudyData.prepare(study, folder, PreprocessingConfig(), WindowConfig(), splits, folder / "cache", "noise")


def toy_experiment(*sets: str) -> ExperimentConfig:
    """VALUES with overrides as `--set` takes them."""
    values = dict(VALUES)
    for override in sets:
        configs._override(values, override)
    return ExperimentConfig.model_validate(values)
