"""Sessions of a simulated listener: sentences in an order of the listener's own, and the EEG they evoke.

Every stream of chance is seeded by (seed, purpose, listener, session) alone: neither the sound, nor
the number of threads, nor what else is simulated changes a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.fft import next_fast_len

from eeg2speech.data import forward_model
from eeg2speech.data.forward_model import Listener

SOA_S = 3.8
"""Mean time from one sentence onset to the next; jittered without regard to the sound, so that at
SNR -inf not even the timing of a recording depends on what was played."""
JITTER_S = 0.15
LISTENER, SESSION = 3, 4
"""Purposes of random streams; the corpus has 1 and 2."""


@dataclass(frozen=True)
class Session:
    """What one continuous recording is made of. C channels, T samples; volts, float32."""

    sentences: np.ndarray
    """(n,) int: which sentences were heard, in this order."""
    onsets: np.ndarray
    """(n,) int: the sample at which each began."""
    speech: np.ndarray
    """(T,) bool: samples with sound."""
    response: np.ndarray
    """(C, T) at unit gain."""
    background: np.ndarray
    """(C, T)."""
    artefacts: np.ndarray
    """(C, T): blinks and line noise."""
    response_variance: np.ndarray
    """(C,): between 1 and 40 Hz, where there is speech."""
    background_variance: np.ndarray
    """(C,): likewise."""

    def eeg(self, gain: float) -> np.ndarray:
        """(C, T). At gain 0 the response is not even looked at: nothing of the sound can get through."""
        sensed = self.background + self.artefacts
        if gain != 0.0:
            sensed += np.float32(gain) * self.response
        return sensed


def listen(
    features: Sequence[np.ndarray],
    sensors: np.ndarray,
    sfreq: float,
    n_sessions: int,
    seed: int,
    listener: int,
    pool: ThreadPoolExecutor,
) -> list[Session]:
    """The sessions in which the listener of this number hears every sentence once.

    `features`: (2 * N_BANDS, n) of each sentence at `sfreq`; `sensors`: (C, 3) metres.
    """
    rng = np.random.default_rng([seed, LISTENER, listener])
    brain = forward_model.make_listener(sensors, sfreq, rng)
    orders = np.array_split(rng.permutation(len(features)), n_sessions)
    streams = [np.random.default_rng([seed, SESSION, listener, part]) for part in range(n_sessions)]
    return list(pool.map(lambda order, stream: _session(order, features, brain, sfreq, stream), orders, streams))


def _session(
    order: np.ndarray, features: Sequence[np.ndarray], listener: Listener, sfreq: float, rng: np.random.Generator
) -> Session:
    jitter_s = rng.uniform(-JITTER_S, JITTER_S, len(order))
    onsets = np.round((1.0 + SOA_S * np.arange(len(order)) + jitter_s) * sfreq).astype(int)
    n_samples = next_fast_len(int(onsets[-1] + (SOA_S + 1.0) * sfreq), real=True)
    heard = np.zeros((2 * forward_model.N_BANDS, n_samples), dtype=np.float32)
    for sentence, onset in zip(order, onsets, strict=True):
        heard[:, onset : onset + features[sentence].shape[1]] = features[sentence]
    speech = heard[: forward_model.N_BANDS].max(axis=0) > 0
    response = forward_model.response(heard, listener)
    background = forward_model.background(n_samples, sfreq, listener, rng)
    return Session(
        sentences=order,
        onsets=onsets,
        speech=speech,
        response=response,
        background=background,
        artefacts=forward_model.artefacts(n_samples, sfreq, listener, rng),
        response_variance=forward_model.variance(response, speech, sfreq),
        background_variance=forward_model.variance(background, speech, sfreq),
    )


def gain(level_db: float, sessions: Sequence[Session]) -> float:
    """The factor on the responses that puts a listener's sessions together at an SNR of `level_db`; 0 at -inf.

    SNR: 10 log10 of the mean over channels of response variance / background variance, both between
    1 and 40 Hz and over the samples with speech of all sessions, without blinks and line noise.
    """
    if level_db == -math.inf:
        return 0.0
    weights = [np.count_nonzero(s.speech) for s in sessions]
    response = np.average([s.response_variance for s in sessions], axis=0, weights=weights)
    background = np.average([s.background_variance for s in sessions], axis=0, weights=weights)
    return float(np.sqrt(10.0 ** (level_db / 10.0) / np.mean(response / background)))
