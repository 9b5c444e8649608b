"""Small test sets and outputs for the tests of the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from eval.metrics.base import SystemOutput, TestSet


def make_test(
    texts: Sequence[str],
    waveform: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    n_subjects: int = 2,
    embed_audio: Callable[[np.ndarray], np.ndarray] | None = None,
) -> TestSet:
    ids = [f"s{i}" for i in range(len(texts))]
    rows = [("study", f"P{u}", ids[i], i, text) for i, text in enumerate(texts) for u in range(n_subjects)]
    examples = pd.DataFrame(rows, columns=["study", "subject", "stimulus_id", "stimulus", "text"])
    examples.insert(0, "example", range(len(rows)))
    if candidates is None:
        candidates = np.random.default_rng(0).normal(size=(len(texts), 4, 6)).astype(np.float32)
    return TestSet(examples, pd.DataFrame({"stimulus_id": ids, "text": texts}), waveform, candidates, embed_audio)


def per_listener(
    test: TestSet, waveform: np.ndarray | None = None, estimate: np.ndarray | None = None, system: str = "eeg"
) -> SystemOutput:
    """An output with a row per example."""
    rows = test.examples[["subject", "stimulus_id", "stimulus", "text"]]
    return SystemOutput(system, True, rows, waveform, None if waveform is not None else "no vocoder", estimate)


def per_stimulus(test: TestSet, waveform: np.ndarray | None, system: str = "reference") -> SystemOutput:
    """An output with a row per stimulus."""
    rows = test.stimuli.assign(subject="", stimulus=range(len(test.stimuli)))
    return SystemOutput(system, False, rows, waveform, None if waveform is not None else "no vocoder")


def permuted(output: SystemOutput, order: np.ndarray) -> SystemOutput:
    return SystemOutput(
        output.system,
        output.hears_eeg,
        output.rows.iloc[order].reset_index(drop=True),
        None if output.waveform is None else output.waveform[order],
        output.waveform_reason,
        None if output.estimate is None else output.estimate[order],
    )


def tones(n: int, length: int = 16_000, seed: int = 0) -> np.ndarray:
    """(n, length) float32: speech-like enough for spectra: modulated harmonic sounds and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(length) / 16_000
    clips = []
    for _ in range(n):
        pitch, rate = rng.uniform(90, 250), rng.uniform(2, 6)
        envelope = 0.5 - 0.5 * np.cos(2 * np.pi * rate * t + rng.uniform(0, 6))
        voice = sum(rng.uniform(0.2, 1) * np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 25))
        clips.append(0.1 * envelope * voice + 0.001 * rng.normal(size=length))
    return np.array(clips, dtype=np.float32)
