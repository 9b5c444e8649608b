"""Whisper (Radford et al., ICML 2023) as the listener: what it hears in a clip, and how sure it is.

A clip is transcribed as Whisper was trained to, and as openai-whisper's README calls `decode`: padded with silent
samples to 30 s. Its `transcribe` pads the spectrogram with zeros, a level in the middle of its range, and hears a word
here and there otherwise (2 of 16 clean sentences of the embedded study). Whisper with a shorter
context is several times faster and agrees on clean speech, but hears other words in poor speech
(at 10 s, 25 of 40 sentences in noise of their own level change), so a shorter `audio_context_s` is a choice that
the signature shows, and not the default.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eeg2speech.audio import SAMPLE_RATE
from eeg2speech.device import device
from eeg2speech.errors import UserError
from eeg2speech.evaluation import TranscriptionOptions
from eeg2speech.files import sha256

if TYPE_CHECKING:
    from torch import Tensor
    from whisper import Whisper

NORMALISER = "whisper-english"


@dataclass(frozen=True)
class Transcript:
    text: str
    no_speech_prob: float
    avg_logprob: float
    compression_ratio: float


@dataclass(frozen=True)
class Heard:
    """What one pass of Whisper over n clips gives."""

    transcripts: list[Transcript]
    states: np.ndarray
    """(n, D) float32: the encoder's states, averaged over the frames of the clip and not its padding."""


class Transcriber:
    """A loaded Whisper. Raises UserError at first use where its weights are missing."""

    def __init__(self, options: TranscriptionOptions, cache: Path) -> None:
        self.options = options
        self._cache = cache
        self._heard: dict[bytes, tuple[Transcript, np.ndarray]] = {}

    @cached_property
    def checkpoint(self) -> Path:
        from eval.weights import whisper_checkpoint

        path = self.options.checkpoint or whisper_checkpoint(self._cache)
        if not path.exists():
            raise UserError(
                f"{path} (transcription.checkpoint) does not exist: name an openai-whisper .pt, or drop the option"
            )
        return path

    @cached_property
    def name(self) -> str:
        """Model and search, for the signature."""
        model = self.checkpoint.stem if self.options.checkpoint else "whisper-tiny.en"
        search = f"beam{self.options.beam_size}" if self.options.beam_size else "greedy"
        return f"{model}:{search}:t0:cap{self.options.tokens_per_s:g}/s:ctx{self.options.audio_context_s:g}s"

    @cached_property
    def weights(self) -> str:
        """First 12 digits of the SHA-256 of the weights as they were shipped."""
        from eval.weights import WHISPER_TINY_EN

        return (sha256(self.checkpoint) if self.options.checkpoint else WHISPER_TINY_EN.sha256)[:12]

    @cached_property
    def model(self) -> Whisper:
        return load_whisper(self.checkpoint, self.options.audio_context_s)

    def transcribe(self, waveforms: np.ndarray) -> list[Transcript]:
        """(n, N) float32 at 16 kHz -> n transcripts, the same whatever the batch size."""
        return self.listen(waveforms).transcripts

    def listen(self, waveforms: np.ndarray) -> Heard:
        """(n, N) float32 at 16 kHz -> transcripts and encoder states. A clip heard before is not heard again.

        Raises UserError where the clips are longer than the encoder's context.
        """
        duration_s = waveforms.shape[1] / SAMPLE_RATE
        if duration_s > self.options.audio_context_s:
            raise UserError(
                f"transcription.audio_context_s is {self.options.audio_context_s:g}, clips last {duration_s:g} s: "
                "raise it (to 30 at most) or cut the clips"
            )
        keys = [hashlib.sha256(np.asarray(w, dtype=np.float32).tobytes()).digest() for w in waveforms]
        new = list({key: row for row, key in enumerate(keys) if key not in self._heard}.items())
        for start in range(0, len(new), self.options.batch_size):
            batch = new[start : start + self.options.batch_size]
            self._heard.update(
                zip([key for key, _ in batch], self._decode(waveforms[[r for _, r in batch]]), strict=True)
            )
        known = [self._heard[key] for key in keys]
        return Heard([t for t, _ in known], np.array([state for _, state in known], dtype=np.float32))

    def _decode(self, waveforms: np.ndarray) -> list[tuple[Transcript, np.ndarray]]:
        """One batch: what each clip says, and the mean state (D,) over its own frames."""
        import torch
        from whisper.decoding import DecodingOptions, decode

        duration_s = waveforms.shape[1] / SAMPLE_RATE
        options = DecodingOptions(
            language="en",
            beam_size=self.options.beam_size,
            sample_len=math.ceil(self.options.tokens_per_s * duration_s),
            without_timestamps=True,
            fp16=False,
        )
        with torch.inference_mode():
            features = self.encode(waveforms)
            states = features[:, : math.ceil(duration_s * 50)].mean(dim=1).cpu().numpy()
            results = decode(self.model, features, options)
        transcripts = [Transcript(r.text, r.no_speech_prob, r.avg_logprob, r.compression_ratio) for r in results]
        return list(zip(transcripts, states, strict=True))

    def encode(self, waveforms: np.ndarray) -> Tensor:
        """(n, N) -> (n, T, D): Whisper's encoder states at 50 Hz over the whole context."""
        import torch
        from whisper import log_mel_spectrogram

        padded_length = self.model.dims.n_audio_ctx * 2 * 160
        mels = []
        for waveform in waveforms:
            # One by one: Whisper's spectrogram floors at the maximum of all it is given.
            clip = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)).to(self.model.device)
            mels.append(log_mel_spectrogram(torch.nn.functional.pad(clip, (0, padded_length - len(clip)))))
        # On a CPU one clip at a time keeps the activations in the cache.
        group = 1 if self.model.device.type == "cpu" else len(mels)
        return torch.cat([self.model.encoder(m) for m in torch.stack(mels).split(group)])


@lru_cache(maxsize=2)
def load_whisper(checkpoint: Path, audio_context_s: float = 30.0) -> Whisper:
    """A Whisper whose encoder sees `audio_context_s`. Raises UserError where the file is no Whisper checkpoint."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    try:
        dims, state = content["dims"], content["model_state_dict"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{checkpoint} is no openai-whisper checkpoint: it lacks {error}") from error
    frames = min(dims["n_audio_ctx"], round(audio_context_s * 50))
    position = "encoder.positional_embedding"
    model = Whisper(ModelDimensions(**{**dims, "n_audio_ctx": frames}))
    model.load_state_dict({**state, position: state[position][:frames]})
    return model.eval().to(device())


@lru_cache
def _normaliser() -> Callable[[str], str]:
    from whisper.normalizers import EnglishTextNormalizer

    return EnglishTextNormalizer()


@lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """Whisper's English normaliser: case, punctuation, spelling, and numbers as digits ("seven" -> "7").

    Without a letter or digit it is the empty string, where the normaliser leaves "." of "...".
    """
    found = _normaliser()(text).strip()
    return found if any(map(str.isalnum, found)) else ""


SILENCE_DBFS = -50.0
NO_SPEECH_PROB = 0.6
AVG_LOGPROB = -1.0
COMPRESSION_RATIO = 2.4
REPEATS = 4


def guard(transcripts: Sequence[Transcript], waveforms: np.ndarray) -> list[str | None]:
    """Why each transcript is not to be believed, or None.

    Silence: the clip's level is below -50 dBFS. No speech, unlikely and compressible text: the
    thresholds of Whisper's own long-form decoding (Radford et al., section 4.5), no-speech only
    together with a low likelihood. Repetition: one to four words at least four times in a row.
    """
    reasons: list[str | None] = []
    for transcript, waveform in zip(transcripts, waveforms, strict=True):
        level = 10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-20)
        if level < SILENCE_DBFS:
            reasons.append("silence")
        elif transcript.no_speech_prob > NO_SPEECH_PROB and transcript.avg_logprob < AVG_LOGPROB:
            reasons.append("no speech")
        elif transcript.compression_ratio > COMPRESSION_RATIO:
            reasons.append("compressible")
        elif repeats(normalise(transcript.text).split()):
            reasons.append("repetition")
        else:
            reasons.append(None)
    return reasons


def repeats(words: Sequence[str], times: int = REPEATS, longest: int = 4) -> bool:
    """Whether some run of one to `longest` words stands `times` times in a row."""
    for size in range(1, longest + 1):
        run = 0
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            if run == size * (times - 1):
                return True
    return False
