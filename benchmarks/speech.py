"""Spoken sentences to score: the embedded study's own, in its synthetic voice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from eeg2speech import audio
from eeg2speech.data import speech_corpus

CLIP_S = 3.0


@dataclass(frozen=True)
class Speech:
    texts: list[str]
    true: np.ndarray
    """(n, N) float32 at 16 kHz"""
    generated: np.ndarray
    """The same in white noise 10 dB below it: something for a metric to find."""


@lru_cache
def spoken(n: int) -> Speech:
    """Skips where the voice is not installed."""
    pytest.importorskip("hibari", reason="hibari-tts is not installed")
    texts = speech_corpus.sentences(n, seed=0)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        speech_corpus.synthesise(texts, 0, Path(folder), pool)
        true = np.stack([audio.load(path, duration_s=CLIP_S) for path in sorted(Path(folder).glob("*.wav"))])
    level = np.sqrt((true**2).mean(axis=1, keepdims=True) / 10)
    noise = np.random.default_rng(0).standard_normal(true.shape, dtype=np.float32)
    return Speech(texts, true, true + level * noise)
