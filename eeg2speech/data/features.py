"""The speech representation of every stimulus, computed once into memory-mapped arrays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from eeg2speech import audio
from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest, new_array

if TYPE_CHECKING:
    from eeg2speech.models.speech_model import SpeechModel

VERSION = 1
"""Raised whenever the same sounds would give other numbers."""


class ContentHashes:
    """SHA-256 of the samples of a sound, whatever its file is called; each file is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, float], str] = {}

    def __call__(self, path: str, sfreq_hz: float) -> str:
        """`sfreq_hz` is NaN for a sound file and the frame rate of a feature array."""
        key = (str(path), -1.0 if np.isnan(sfreq_hz) else float(sfreq_hz))
        if key not in self._known:
            self._known[key] = _hash_sound(path) if key[1] < 0 else _hash_array(path, key[1])
        return self._known[key]


def _hash_sound(path: str) -> str:
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as file:
            running = hashlib.sha256(f"{file.samplerate} {file.channels}".encode())
            for block in file.blocks(blocksize=1 << 20, dtype="float32"):
                running.update(block.tobytes())
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: this sound file cannot be read ({error}); replace or re-export it") from error
    return running.hexdigest()


def _hash_array(path: str, sfreq_hz: float) -> str:
    array = load_array(path)
    return hashlib.sha256(f"{sfreq_hz} {array.shape}".encode() + array.astype(np.float32).tobytes()).hexdigest()


@lru_cache(maxsize=8)
def load_array(path: str) -> np.ndarray:
    """A feature array (frames, bands), memory-mapped. Raises UserError naming the file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this feature array cannot be read ({error}); write it by numpy.save") from error
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{path}: holds {array.dtype} {array.shape}, not floating (frames, bands); write it so")
    return array[:, None] if array.ndim == 1 else array


@dataclass(frozen=True)
class StimulusFeatures:
    """Row i belongs to row i of the stimulus table. All arrays are read-only memory maps."""

    features: np.ndarray
    """(n_stimuli, K, F) float32: log-mel (64, 100 frames a second), or the study's own array at its rate."""
    waveforms: np.ndarray | None
    """(n_stimuli, N) float32 at 16 kHz, silent after a reading ends; None without audio."""
    frame_rate_hz: float
    content: tuple[str, ...]
    """Hash of the samples of each row; empty where they are constant: silence is nobody's duplicate."""
    speech: np.ndarray | None = None
    """(n_stimuli, K', F') float32 of a pretrained speech model; None where none was asked for."""

    @property
    def heard(self) -> np.ndarray:
        """What the audio encoder takes: `speech`, else `features`."""
        return self.features if self.speech is None else self.speech

    def with_speech(self, model: SpeechModel, cache: Path) -> StimulusFeatures:
        """These, and what `model` makes of every row of sound by itself: no context crosses a split.

        Raises UserError where the study has no sound.
        """
        if self.waveforms is None:
            raise UserError("model.audio_encoder: a pretrained speech model needs sound, and this study has none")
        key = digest([VERSION, model.signature, self.waveforms.shape, self.content])
        path = cache / "features" / f"{key}.speech.npy"
        if not path.exists():
            _write_speech(self.waveforms, model, path)
        return replace(self, speech=np.asarray(np.load(path, mmap_mode="r")))

    @classmethod
    def prepare(cls, stimuli: pd.DataFrame, length_s: float, cache: Path) -> StimulusFeatures:
        """Computes what is not in the cache yet.

        Every row is computed from its own stretch of sound alone, so that no filter or spectrogram
        frame reaches over into speech of another split.
        """
        rates = stimuli["sfreq_hz"].dropna().unique()
        if len(rates) > 1 or (len(rates) == 1 and stimuli["sfreq_hz"].isna().any()):
            raise UserError(
                f"the study's sounds mix wavs or feature rates ({sorted(rates)} Hz); resample them to one rate"
            )
        fields = stimuli[["audio", "offset_s", "duration_s"]].to_numpy().tolist()
        stem = cache / "features" / digest([VERSION, length_s, fields])
        target, waves = stem.with_suffix(".features.npy"), stem.with_suffix(".waveforms.npy")
        has_audio = len(rates) == 0
        if not (target.exists() and (waves.exists() or not has_audio)):
            if has_audio:
                _write_waveforms(stimuli, length_s, waves)
                _write_log_mel(np.load(waves, mmap_mode="r"), target)
            else:
                _write_arrays(stimuli, float(rates[0]), length_s, target)
        features = np.asarray(np.load(target, mmap_mode="r"))
        waveforms = np.asarray(np.load(waves, mmap_mode="r")) if has_audio else None
        samples = features if waveforms is None else waveforms
        content = tuple(hashlib.sha256(row.tobytes()).hexdigest() if np.ptp(row) > 0 else "" for row in samples)
        return cls(features, waveforms, audio.FRAME_RATE_HZ if has_audio else float(rates[0]), content)


def _write_waveforms(stimuli: pd.DataFrame, length_s: float, path: Path) -> None:
    n_samples = round(length_s * audio.SAMPLE_RATE)
    with atomic_path(path) as partial:
        out = new_array(partial, (len(stimuli), n_samples))
        for row, stimulus in zip(out, stimuli.itertuples(index=False), strict=True):
            known = audio.load(stimulus.path, stimulus.offset_s, min(stimulus.duration_s, length_s))[:n_samples]
            row[: len(known)] = known
        out.flush()


def _write_log_mel(waveforms: np.ndarray, path: Path, at_once: int = 64) -> None:
    n_frames = waveforms.shape[1] // audio.HOP_LENGTH
    with atomic_path(path) as partial:
        out = new_array(partial, (len(waveforms), audio.N_MELS, n_frames))
        for start in range(0, len(waveforms), at_once):
            block = torch.from_numpy(np.array(waveforms[start : start + at_once]))
            out[start : start + at_once] = audio.log_mel(block).squeeze(1).transpose(1, 2).numpy()
        out.flush()


def _write_speech(waveforms: np.ndarray, model: SpeechModel, path: Path, at_once: int = 16) -> None:
    with atomic_path(path) as partial:
        out: np.ndarray | None = None
        for start in range(0, len(waveforms), at_once):
            made = model(np.array(waveforms[start : start + at_once])).numpy()
            if out is None:
                out = new_array(partial, (len(waveforms), *made.shape[1:]))
            out[start : start + at_once] = made
        assert isinstance(out, np.memmap)
        out.flush()


def _write_arrays(stimuli: pd.DataFrame, rate_hz: float, length_s: float, path: Path) -> None:
    n_frames = round(length_s * rate_hz)
    widths = {str(p): load_array(p).shape[1] for p in stimuli["path"].unique()}
    if len(set(widths.values())) > 1:
        odd = min(widths, key=lambda p: widths[p])
        raise UserError(
            f"{odd}: has {widths[odd]} bands where others have {max(widths.values())}; give all sounds the same"
        )
    with atomic_path(path) as partial:
        shape = (len(stimuli), next(iter(widths.values())), n_frames)
        out = new_array(partial, shape)
        for row, stimulus in zip(out, stimuli.itertuples(index=False), strict=True):
            start = round(stimulus.offset_s * rate_hz)
            lead = max(0, -start)  # silence, where a window starts before its sound
            stop = start + min(round(min(stimulus.duration_s, length_s) * rate_hz), n_frames)
            known = load_array(stimulus.path)[start + lead : max(0, stop)]
            row[:, lead : lead + len(known)] = known.T
        out.flush()
