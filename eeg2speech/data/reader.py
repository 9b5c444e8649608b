"""Batches of windows, cut from memory-mapped EEG by a few threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from eeg2speech.batch import Batch
from eeg2speech.data.features import StimulusFeatures
from eeg2speech.data.preprocessing import PreprocessingConfig, baseline_and_clamp

AT_ONCE = 8
"""Windows whose baseline is taken off together: few enough to stay in the processor's cache."""
WORKERS = min(4, os.cpu_count() or 1)
"""Threads that share a batch: most of its time is copying, which holds no lock."""
UNSEEN_SUBJECT = -1
"""`Batch.subject` of a listener who is not among the training subjects."""


@dataclass(frozen=True, eq=False)
class WindowReader:
    """The window table as arrays of n, for a batch must not touch a DataFrame, and what its windows are read from."""

    recording: np.ndarray
    """Rows of `sources` and `positions`."""
    start: np.ndarray
    """First EEG sample in the recording."""
    stimulus: np.ndarray
    """Rows of the features."""
    subject: np.ndarray
    text: np.ndarray
    sources: list[tuple[slice | np.ndarray, np.ndarray]]
    """By recording: the rows of all C channels that its own go to, and its scaled EEG (its channels, samples)."""
    positions: np.ndarray
    """(recordings, C, 2)."""
    features: StimulusFeatures
    preprocessing: PreprocessingConfig
    n_times: int
    """T: EEG samples of a window."""

    def batch(self, rows: np.ndarray, starts: np.ndarray | None = None) -> Batch:
        """The windows of these rows, in this order; with `starts`, what their recordings hold from there on instead."""
        rows = np.asarray(rows)
        starts = self.start[rows] if starts is None else np.asarray(starts)
        recordings, stimulus = self.recording[rows], self.stimulus[rows]
        eeg = np.empty((len(rows), self.positions.shape[1], self.n_times), dtype=np.float32)
        features = np.empty((len(rows), *self.features.features.shape[1:]), dtype=np.float32)

        def fill(part: slice) -> None:
            self._fill(eeg[part], recordings[part], starts[part])
            self.features.features.take(
                stimulus[part], axis=0, out=features[part], mode="clip"
            )  # else through a buffer

        each = max(1, -(-len(rows) // WORKERS))
        list(_workers().map(fill, (slice(first, first + each) for first in range(0, len(rows), each))))
        return Batch(
            eeg=torch.from_numpy(eeg),
            positions=torch.from_numpy(self.positions[recordings]),
            subject=torch.from_numpy(self.subject[rows]),
            stimulus=torch.from_numpy(stimulus),
            features=torch.from_numpy(features),
            text=tuple(self.text[rows]),
            speech=None if self.features.speech is None else torch.from_numpy(self.features.speech[stimulus]),
        )

    def _fill(self, eeg: np.ndarray, recordings: np.ndarray, starts: np.ndarray) -> None:
        """Windows into `eeg` (n, C, T), a few at a time through one buffer."""
        n_before, n_mean = self.preprocessing.baseline
        known = np.empty((AT_ONCE, eeg.shape[1], n_before + self.n_times), dtype=np.float32)
        for first in range(0, len(eeg), AT_ONCE):
            out, start = eeg[first : first + AT_ONCE], starts[first : first + AT_ONCE]
            available = np.minimum(n_before, start)
            self._read(known[: len(out)], recordings[first : first + AT_ONCE], start, available, n_before)
            baseline_and_clamp(known[: len(out)], n_before, available, self.preprocessing.clamp, n_mean, out)

    def _read(
        self, out: np.ndarray, recordings: np.ndarray, starts: np.ndarray, available: np.ndarray, n_before: int
    ) -> None:
        """Slices of the recordings into `out` (n, C, n_before + T); 0 before their beginning and in channels that they
        lack."""
        for window, recording, start, before in zip(
            out, recordings.tolist(), starts.tolist(), available.tolist(), strict=True
        ):
            where, source = self.sources[recording]
            if before < n_before or len(source) < len(window):
                window.fill(0.0)
            window[where, n_before - before :] = source[:, start - before : start + self.n_times]


@lru_cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS, "windows")


if hasattr(os, "register_at_fork"):  # a forked process has none of these threads: it makes its own
    os.register_at_fork(after_in_child=_workers.cache_clear)
