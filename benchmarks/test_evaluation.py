"""Scoring one system, generation excluded: ours, and a plain script that takes clip by clip with the same libraries."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from metrics_fixture import make_test, per_listener

from benchmarks.measure import Comparison, Measure
from benchmarks.sizes import SIZES, clip_numbers
from benchmarks.speech import CLIP_S, spoken
from eeg2speech.audio import SAMPLE_RATE, log_mel
from eeg2speech.evaluation import MetricsConfig
from eval import statistics
from eval.metrics import build_metrics, frechet_package
from eval.metrics.base import SystemOutput, TestSet
from eval.metrics.embedders import Embedder
from eval.metrics.mel_cepstral import DB, N_CEPSTRA
from eval.metrics.mel_correlation import SPEECH_RANGE_DB
from eval.metrics.scorers import Scorers

RESAMPLES = SIZES.statistics.resamples
NAMES = ("top1", "mel_correlation", "mcd", "estoi", "fad")


def facts(n: int) -> dict[str, Any]:
    return {"metrics": NAMES, "items": n, "unit": "clip", "signal_s": n * CLIP_S}


def compared(n: int, side: Literal["ours", "peer"]) -> Comparison:
    return Comparison(f"scoring {n} clips without ASR", side, 4 if side == "ours" else None)


@lru_cache(maxsize=1)
def outcome(n: int) -> tuple[TestSet, SystemOutput]:
    speech, rng = spoken(n), np.random.default_rng(0)
    candidates = rng.standard_normal((n, 128, 150), dtype=np.float32)
    test = make_test(speech.texts, speech.true, candidates, n_subjects=1)
    estimate = candidates + 15 * rng.standard_normal(candidates.shape, dtype=np.float32)
    return test, per_listener(test, speech.generated, estimate)


def network(folder: Path) -> Embedder:
    embedder = Scorers(folder).embedder("resemblyzer")
    if reason := embedder.missing() or (None if frechet_package.available() else "frechet-audio-distance is missing"):
        pytest.skip(reason)
    return embedder


def by_the_metrics(folder: Path, n: int) -> dict[str, float]:
    test, output = outcome(n)
    found = {}
    for metric in build_metrics(MetricsConfig(names=NAMES, embedders=("resemblyzer",)), folder):
        measured = metric.measure(test, output)
        assert measured.value is not None, measured.reason
        found[measured.metric.name] = measured.value
        if measured.numerator is not None and measured.denominator is not None:
            subject = output.rows["subject"].to_numpy()
            statistics.ratio_bootstrap(
                measured.numerator, measured.denominator, output.stimulus, subject, n_resamples=RESAMPLES
            )
    return found


@pytest.mark.parametrize("n", clip_numbers())
def test_ours(measure: Measure, tmp_path: Path, n: int) -> None:
    network(tmp_path)
    measure(lambda: by_the_metrics(tmp_path, n), compare=compared(n, "ours"), **facts(n))


@pytest.mark.parametrize("n", clip_numbers())
def test_one_by_one(measure: Measure, tmp_path: Path, n: int) -> None:
    embedder = network(tmp_path)
    _ = embedder.network  # loaded before the clock starts
    found = measure(lambda: by_the_script(embedder, n), compare=compared(n, "peer"), rounds=1, **facts(n))
    assert found == pytest.approx(by_the_metrics(tmp_path, n), rel=1e-4)


def by_the_script(embedder: Embedder, n: int) -> dict[str, float]:
    from pystoi import stoi
    from scipy.fft import dct

    test, output = outcome(n)
    rows: dict[str, list[float]] = {name: [] for name in NAMES if name != "fad"}
    embedded: dict[str, list[np.ndarray]] = {"true": [], "generated": []}
    for i, (true, generated) in enumerate(zip(test.waveform, output.waveform, strict=True)):
        x, y = (log_mel(torch.from_numpy(clip[None]))[0, 0].double().numpy() for clip in (true, generated))
        level = 10 * np.log10(np.exp(2 * x).sum(axis=1))
        spoken_frames = level > level.max() - SPEECH_RANGE_DB
        x, y = x[spoken_frames], y[spoken_frames]
        rows["mel_correlation"].append(float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x.T, y.T, strict=True)])))
        cepstra = [dct(m, axis=-1)[:, 1 : N_CEPSTRA + 1] / m.shape[1] for m in (x, y)]
        rows["mcd"].append(float(np.mean([DB * np.linalg.norm(a - b) for a, b in zip(*cepstra, strict=True)])))
        rows["estoi"].append(stoi(true, generated, SAMPLE_RATE, extended=True))
        scores = [np.vdot(output.estimate[i], c / np.linalg.norm(c)) for c in test.candidates]
        rows["top1"].append(float(np.argmax(scores) == i))
        embedded["true"].append(embedder.embed(true[None])[0, 0])
        embedded["generated"].append(embedder.embed(generated[None])[0, 0])
    rng = np.random.default_rng(0)
    for values in rows.values():
        np.percentile([np.mean(rng.choice(values, n)) for _ in range(RESAMPLES)], [2.5, 97.5])
    kept = [np.arange(n) % 20 != group for group in range(20)]  # an interval of the distance, leaving out groups
    for rows_kept in (*kept, np.ones(n, dtype=bool)):
        moments = [frechet_package.statistics_of(np.array(embedded[side])[rows_kept]) for side in embedded]
        distance = frechet_package.frechet_distance(*moments[0], *moments[1])
    return {name: float(np.mean(values)) for name, values in rows.items()} | {"fad": distance}
