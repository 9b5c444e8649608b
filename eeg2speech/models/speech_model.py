"""Pretrained speech models: waveform -> features, frozen, computed once per stimulus and kept in the cache.

Their weights are read from disk alone. Where they are missing, that is said before anything is trained.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from eeg2speech import audio
from eeg2speech.device import device
from eeg2speech.errors import UserError
from eeg2speech.files import digest
from eeg2speech.models.audio_encoder import SpeechHead
from eeg2speech.schema import Config


class SpeechModel(ABC):
    """A frozen network over 16 kHz speech. Every row of its output depends on that row of sound alone."""

    def __init__(self, model: Any, about: dict[str, Any]) -> None:
        self.device = device()
        self.model = model.eval().requires_grad_(False).to(self.device)
        weights = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            weights.update(name.encode() + value.cpu().numpy().tobytes())
        self.signature = digest([about, weights.hexdigest()])
        """Changes where the weights do, or what is read from them."""

    @property
    @abstractmethod
    def n_bands(self) -> int:
        """K': width of the features."""

    @abstractmethod
    def __call__(self, waveform: np.ndarray) -> Tensor:
        """(B, N) at 16 kHz -> (B, K', F')."""


class PretrainedConfig(Config):
    """Frozen features of a pretrained model; a 1x1 convolution brings them to D where their width is another."""

    def build(self, *, n_bands: int, dim: int, n_frames: int) -> SpeechHead:
        return SpeechHead(n_bands=n_bands, dim=dim, n_frames=n_frames)


class Wav2Vec2EncoderConfig(PretrainedConfig):
    """wav2vec 2.0 (Baevski et al., NeurIPS 2020), the mean of some hidden layers: brainmagick's target."""

    name: Literal["wav2vec2"] = "wav2vec2"
    path: str = Field(default="facebook/wav2vec2-large-xlsr-53", description="a folder, or a name in the hub's cache")
    layers: tuple[int, ...] = Field(default=(14, 15, 16, 17, 18), min_length=1, description="0: below the first layer")

    def pretrained(self) -> Wav2Vec2Features:
        """Raises UserError where the weights are not on this machine, or have fewer layers."""
        from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

        # The vector that masks frames in training stands in no checkpoint of a finished model.
        model = _weights(Wav2Vec2Model, self.name, self.path, optional={"masked_spec_embed"})
        extractor = _read(Wav2Vec2FeatureExtractor.from_pretrained, self.name, self.path)
        depth = model.config.num_hidden_layers
        if not 0 <= min(self.layers) <= max(self.layers) <= depth:
            raise UserError(f"model.audio_encoder.layers: {self.path} has layers 0 to {depth}, not {self.layers}")
        return Wav2Vec2Features(model, extractor, self.layers)


class Wav2Vec2Features(SpeechModel):
    """The mean of hidden states, 50 frames a second, (B, hidden size, F')."""

    def __init__(self, model: Any, extractor: Any, layers: tuple[int, ...]) -> None:
        super().__init__(model, {"layers": layers, "extractor": extractor.to_dict()})
        self.extractor, self.layers = extractor, layers

    @property
    def n_bands(self) -> int:
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def __call__(self, waveform: np.ndarray) -> Tensor:
        inputs = self.extractor(list(waveform), sampling_rate=audio.SAMPLE_RATE, return_tensors="pt")
        hidden = self.model(inputs.input_values.to(self.device), output_hidden_states=True).hidden_states
        return torch.stack([hidden[layer] for layer in self.layers]).mean(dim=0).transpose(1, 2).cpu()


class ClapEncoderConfig(PretrainedConfig):
    """CLAP (Wu et al., ICASSP 2023), AudioLDM's condition: one vector for a window, which has no timing."""

    name: Literal["clap"] = "clap"
    path: str = Field(default="laion/clap-htsat-unfused", description="a folder, or a name in the hub's cache")

    def pretrained(self) -> ClapFeatures:
        """Raises UserError where the weights are not on this machine."""
        from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

        model = _weights(ClapAudioModelWithProjection, self.name, self.path)
        return ClapFeatures(model, _read(ClapFeatureExtractor.from_pretrained, self.name, self.path))


class ClapFeatures(SpeechModel):
    """The audio tower's projection at unit length, (B, 512, 1)."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, {"extractor": extractor.to_dict()})
        self.extractor = extractor

    @property
    def n_bands(self) -> int:
        return int(self.model.config.projection_dim)

    @torch.no_grad()
    def __call__(self, waveform: np.ndarray) -> Tensor:
        """Raises UserError where a window is longer than CLAP hears: it would take a random part of it."""
        from scipy.signal import resample_poly

        rate, longest_s = self.extractor.sampling_rate, self.extractor.max_length_s
        if waveform.shape[1] > longest_s * audio.SAMPLE_RATE:
            raise UserError(f"windows.length_s: CLAP hears {longest_s} s at once; choose shorter windows, or wav2vec2")
        resampled = resample_poly(waveform, rate, audio.SAMPLE_RATE, axis=1)
        inputs = self.extractor(list(resampled), sampling_rate=rate, return_tensors="pt")
        # Only a clip beyond 10 s is longer, and none is. (The extractor marks one of a batch at random.)
        longer = torch.zeros(len(waveform), 1, dtype=torch.bool, device=self.device)
        embedding = self.model(inputs.input_features.to(self.device), is_longer=longer).audio_embeds
        return nn.functional.normalize(embedding, dim=1).unsqueeze(2).cpu()


def _weights(kind: Any, name: str, path: str, optional: Collection[str] = ()) -> Any:
    """A model of which no weight was left as it was drawn."""
    load = partial(kind.from_pretrained, output_loading_info=True, dtype=torch.float32)
    model, report = _read(load, name, path)
    unset = set(report["missing_keys"]) - set(optional)
    if unset or report["mismatched_keys"]:
        few = ", ".join(sorted(unset)[:3]) or "sizes differ"
        raise UserError(f"model.audio_encoder.path: {path} holds no whole {name} model ({few}...); {_how(name, path)}")
    return model


def _read(from_pretrained: Callable[..., Any], name: str, path: str) -> Any:
    try:
        return from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"model.audio_encoder.path: {name} weights {path} are missing here or cannot be read; {_how(name, path)}"
        ) from error


def _how(name: str, path: str) -> str:
    """The command that fetches the weights, and how a machine without a network gets them."""
    published = {"wav2vec2": Wav2Vec2EncoderConfig().path, "clap": ClapEncoderConfig().path}
    is_hub_name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and not path.startswith("weights/")
    source = path if is_hub_name else published[name]
    folder = f"weights/{source.rpartition('/')[2]}"
    return (
        f"run `hf download {source} --local-dir {folder}` (without a network: there where one is, and copy the folder) "
        f"and set model.audio_encoder.path to {folder}"
    )
