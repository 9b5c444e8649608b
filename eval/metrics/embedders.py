"""Pretrained networks that turn a clip into a point, for distances between sets of clips.

Each says by name where its weights come from; where they are absent the metrics that need them are
not run, and the report says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from eeg2speech.audio import SAMPLE_RATE
from eeg2speech.errors import UserError
from eeg2speech.evaluation import EmbedderOptions
from eeg2speech.files import sha256
from eval.metrics.transcription import Transcriber
from eval.weights import RESEMBLYZER


class Embedder(ABC):
    """f embeddings of each clip: one of the whole, or one per frame where the network gives frames."""

    name: str

    def missing(self) -> str | None:
        """Why this embedder cannot run and how to get it; None where it can."""
        return None

    @property
    @abstractmethod
    def weights(self) -> str:
        """First 12 digits of the weights' SHA-256."""

    @abstractmethod
    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """(n, N) float32 at 16 kHz -> (n, f, d) float64, the same whatever the batch size."""


class WhisperEncoder(Embedder):
    """Mean over time of the states of Whisper's encoder (tiny.en: d = 384): what was said, blind to mild noise."""

    name = "whisper"

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber

    @property
    def weights(self) -> str:
        return self.transcriber.weights

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        return self.transcriber.listen(waveforms).states[:, None].astype(np.float64)


class Resemblyzer(Embedder):
    """The speaker encoder of Wan et al. (ICASSP 2018, GE2E) with Resemblyzer's weights: d = 256, a voice's identity.

    Its own preprocessing cuts out pauses by a voice detector; a generated clip's pauses are part of
    what is judged here, so they stay.
    """

    name = "resemblyzer"
    FRAMES, STEP = 160, 77
    """A partial utterance lasts 1.6 s, and a new one starts 1.3 times a second."""
    LEVEL_DBFS = -30.0

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def missing(self) -> str | None:
        return None if RESEMBLYZER.locate() else f"weights absent: pip install {RESEMBLYZER.distribution}"

    @property
    def weights(self) -> str:
        return RESEMBLYZER.sha256[:12]

    @cached_property
    def network(self) -> SpeakerEncoder:
        state = torch.load(RESEMBLYZER.require(), map_location="cpu", weights_only=True)["model_state"]
        network = SpeakerEncoder()
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith("similarity_")})
        return network.eval()

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        starts = self._starts(waveforms.shape[1] // 160 + 1)
        frames = starts[-1] + self.FRAMES
        embedded = []
        with torch.inference_mode():
            for clips in _batches(waveforms, self.batch_size):
                level = clips.square().mean(dim=1, keepdim=True).clamp(min=1e-20).sqrt()
                louder = (10 ** (self.LEVEL_DBFS / 20) / level).clamp(min=1.0)
                mel = speaker_mel(nn.functional.pad(clips * louder, (0, max(0, frames * 160 - clips.shape[1]))))
                partials = torch.stack([mel[:, s : s + self.FRAMES] for s in starts], dim=1)
                mean = self.network(partials.flatten(0, 1)).unflatten(0, partials.shape[:2]).mean(dim=1)
                embedded.append(nn.functional.normalize(mean).double().numpy())
        return np.concatenate(embedded)[:, None]

    def _starts(self, frames: int) -> list[int]:
        """First frames of the partial utterances; the last one must hold three quarters of real sound."""
        starts = list(range(0, max(1, frames - self.FRAMES + self.STEP + 1), self.STEP))
        if len(starts) > 1 and (frames - starts[-1]) / self.FRAMES < 0.75:
            starts.pop()
        return starts


class SpeakerEncoder(nn.Module):
    """(B, 160, 40) power mel -> (B, 256), non-negative and of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mel: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mel)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])))


def speaker_mel(waveform: Tensor) -> Tensor:
    """(B, N) -> (B, T, 40): power in 40 Slaney mel bands, 25-ms Hann windows every 10 ms, no logarithm."""
    from transformers.audio_utils import mel_filter_bank

    spectrum = torch.stft(
        waveform, 400, 160, window=torch.hann_window(400), center=True, pad_mode="constant", return_complex=True
    )
    filters = mel_filter_bank(201, 40, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.einsum("bft,fm->btm", spectrum.abs().square(), torch.from_numpy(filters).float())


class PackageEmbedder(Embedder):
    """VGGish, PANN, CLAP or EnCodec as frechet-audio-distance loads them, from weights already on this machine."""

    def __init__(self, name: str, options: EmbedderOptions) -> None:
        self.name, self.folder = name, options.checkpoints

    @cached_property
    def _model(self) -> Callable[[np.ndarray], np.ndarray]:
        from eval.metrics.frechet_package import load_model

        assert self.folder is not None  # `missing` said so
        return load_model(self.name, self.folder)

    def missing(self) -> str | None:
        from eval.metrics.frechet_package import missing_weights

        return missing_weights(self.name, self.folder)

    @property
    def weights(self) -> str:
        from eval.metrics.frechet_package import weight_file

        assert self.folder is not None
        return sha256(weight_file(self.name, self.folder))[:12]

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        return np.stack([self._model(np.asarray(w, dtype=np.float32)) for w in waveforms]).astype(np.float64)


def _batches(waveforms: np.ndarray, size: int) -> list[Tensor]:
    return [
        torch.from_numpy(np.array(waveforms[i : i + size], dtype=np.float32)) for i in range(0, len(waveforms), size)
    ]


def build_embedder(name: str, options: EmbedderOptions, transcriber: Transcriber) -> Embedder:
    """Raises UserError where the name is unknown."""
    from eval.metrics.yamnet import YAMNet

    makers: dict[str, Callable[[], Embedder]] = {
        "yamnet": lambda: YAMNet(options.yamnet, options.batch_size),
        "resemblyzer": lambda: Resemblyzer(options.batch_size),
        "whisper": lambda: WhisperEncoder(transcriber),
        **{n: partial(PackageEmbedder, n, options) for n in ("vggish", "pann", "clap", "encodec")},
    }
    if name not in makers:
        raise UserError(f"evaluation.metrics.embedders: {name!r} is unknown; choose among {', '.join(sorted(makers))}")
    return makers[name]()
