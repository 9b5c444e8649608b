"""The one place where frechet-audio-distance is imported: its arithmetic, and its embedding models.

The package imports laion_clap, whose own import asks a model hub for files, and libraries that do
not work beside every build of torch. None of them takes part in the arithmetic, so while the
package is imported inert modules stand in for those that are absent, and for laion_clap always
unless CLAP is what is wanted.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from eeg2speech.audio import SAMPLE_RATE
from eeg2speech.errors import UserError

HOW_TO_ADD = "pip install --no-deps frechet-audio-distance"
_OPTIONAL = ("resampy", "encodec", "torchlibrosa", "torchlibrosa.stft", "torchlibrosa.augmentation")
_WEIGHTS = {
    "vggish": ("checkpoints/vggish-10086976.pth", 16_000),
    "pann": ("Cnn14_16k_mAP%3D0.438.pth", 16_000),
    "clap": ("630k-audioset-best.pt", 48_000),
    "encodec": ("checkpoints/encodec_24khz-d7cc33bc.th", 24_000),
}
"""Model -> where torch.hub or the package looks for its weights below `ckpt_dir`, and its sample rate in Hz."""
_NEEDS = {"vggish": ("resampy",), "pann": ("torchlibrosa",), "clap": ("laion_clap",), "encodec": ("encodec",)}


class _Inert(ModuleType):
    """Any name imported from it is a class that says which module is missing when it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module = self.__name__

        def refuse(*_: object, **__: object) -> None:
            raise ImportError(f"{module}.{name} was asked for, but {module} is not loaded here")

        return type(name, (), {"__init__": refuse})


@contextmanager
def _stand_ins(names: list[str]) -> Iterator[None]:
    known = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: _Inert(name) for name in names})
    try:
        yield
    finally:
        for name, module in known.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("frechet_audio_distance") is not None


@lru_cache
def _package(with_clap: bool = False) -> Any:
    """The package's class FrechetAudioDistance."""
    absent = [name for name in _OPTIONAL if importlib.util.find_spec(name.partition(".")[0]) is None]
    with _stand_ins([*absent, *([] if with_clap else ["laion_clap"])]):
        if with_clap:
            for name in [n for n in sys.modules if n.startswith("frechet_audio_distance")]:
                del sys.modules[name]
        return importlib.import_module("frechet_audio_distance").FrechetAudioDistance


def version() -> str:
    from importlib.metadata import version as installed

    return f"frechet-audio-distance-{installed('frechet-audio-distance')}"


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """The package's value for means (d,) and covariances (d, d).

    Raises ValueError where its matrix square root, which is complex, is not real.
    """
    fad = object.__new__(_package())  # the method uses no state; the constructor would load a model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm(disp=): the project holds SciPy below 1.18
        return float(fad.calculate_frechet_distance(mu1, sigma1, mu2, sigma2))


def statistics_of(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The package's mean (d,) and covariance (d, d) of samples (n, d)."""
    return object.__new__(_package()).calculate_embd_statistics(samples)


def weight_file(name: str, folder: Path) -> Path:
    return folder / _WEIGHTS[name][0]


def missing_weights(name: str, folder: Path | None) -> str | None:
    """Why the package's embedding model `name` cannot run offline and how to get it; None where it can."""
    if not available():
        return f"frechet-audio-distance is not installed: {HOW_TO_ADD}"
    for module in _NEEDS[name]:
        if importlib.util.find_spec(module) is None:
            return f"{name} needs the package {module}: pip install {module}"
    if folder is None:
        return f"weights absent: name the folder that holds {_WEIGHTS[name][0]} in metrics.embedding.checkpoints"
    if not weight_file(name, folder).exists():
        return f"weights absent: {weight_file(name, folder)} does not exist"
    if name == "vggish" and not (folder / "harritaylor_torchvggish_master").is_dir():
        return f"weights absent: {folder} lacks harritaylor_torchvggish_master, a copy of harritaylor/torchvggish"
    return None


def load_model(name: str, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """(N,) float32 at 16 kHz -> (f, d): f embeddings of one clip, by the package's own loader and model.

    The model is called directly: the package's `get_embeddings` prints and swallows every error.
    """
    import torch
    from scipy.signal import resample_poly

    reason = missing_weights(name, folder)
    if reason:
        raise UserError(f"metrics.embedders: {name}: {reason}")
    rate = _WEIGHTS[name][1]
    hub = torch.hub.get_dir()
    try:
        fad = _package(with_clap=name == "clap")(ckpt_dir=str(folder), model_name=name, sample_rate=rate)
    finally:
        torch.hub.set_dir(hub)  # the package moves torch.hub to its own folder for the whole process

    def embed(waveform: np.ndarray) -> np.ndarray:
        divisor = int(np.gcd(rate, SAMPLE_RATE))
        clip = resample_poly(waveform, rate // divisor, SAMPLE_RATE // divisor).astype(np.float32)
        with torch.inference_mode():
            batch = torch.from_numpy(clip)[None].to(fad.device)
            if name == "vggish":
                out = fad.model.forward(clip, rate)
            elif name == "pann":
                out = fad.model(batch, None)["embedding"]
            elif name == "clap":
                out = fad.model.get_audio_embedding_from_data(batch, use_tensor=True)
            else:
                out = fad.model.encoder(batch[None])[0].T
        return np.atleast_2d(out.cpu().numpy())

    return embed
