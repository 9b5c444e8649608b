"""Scores the sounds that a run has stored once more, from nothing but them: no model, no study, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eeg2speech import audio
from eeg2speech.errors import UserError
from eeg2speech.evaluation import EvaluationConfig
from eval.metrics import build_metrics
from eval.metrics.base import Metric, SystemOutput, TestSet
from eval.results import RunResult, load_examples

TRUTH = "reference"
"""The row whose stored sounds are the true recordings."""


@dataclass(frozen=True)
class Again:
    """A cell once more; `value` is None where the stored sounds do not give it."""

    system: str
    metric: str
    embedder: str | None
    value: float | None
    reason: str | None


def rescore(folder: Path, cells: Sequence[str] = ()) -> list[Again]:
    """The cells (`system/metric` or `system/metric|embedder`; all where none is named) that sounds alone decide.

    Raises UserError where the run stored no true recordings, or a sound is missing.
    """
    run, examples = RunResult.load(folder), load_examples(folder)
    evaluation = EvaluationConfig.model_validate(run.config.get("evaluation", {}))
    metrics = build_metrics(evaluation.metrics, folder.parent / "cache" / "weights")
    truth = stored_test_set(folder, examples)
    found = []
    for system in run.systems:
        wanted = [m for m in metrics if _asked(system.name, m, cells)]
        rows = examples[examples["system"] == system.name]
        if wanted and rows["wav"].notna().all():
            output = stored_output(folder, system.name, rows, truth)
            found += [_again(metric, truth, output) for metric in wanted]
    return found


def _asked(system: str, metric: Metric, cells: Sequence[str]) -> bool:
    name = f"{system}/{metric.info.name}"
    return not cells or name in cells or f"{name}|{metric.embedder}" in cells


def _again(metric: Metric, truth: TestSet, output: SystemOutput) -> Again:
    measured = metric.measure(truth, output)
    return Again(output.system, metric.info.name, metric.embedder, measured.value, measured.reason)


def stored_test_set(folder: Path, examples: pd.DataFrame) -> TestSet:
    """The stimuli in the order in which they were scored.

    No embedding is stored: the candidates are the sounds themselves, which tell how many differ and rank nothing.
    """
    rows = examples[examples["system"] == TRUTH]
    if rows.empty or rows["wav"].isna().any():
        raise UserError(f"{folder}: the run has no sounds of the row {TRUTH!r}, against which the others are scored")
    stimuli = pd.DataFrame({"stimulus_id": rows["stimulus_id"].to_numpy(), "text": _texts(rows)})
    waveform = _waveforms(folder, rows)
    return TestSet(examples, stimuli, waveform, waveform[:, None])


def stored_output(folder: Path, system: str, rows: pd.DataFrame, truth: TestSet) -> SystemOutput:
    place = {name: index for index, name in enumerate(truth.stimuli["stimulus_id"])}
    subject = rows["subject"].fillna("")
    heard = rows[["stimulus_id"]].assign(
        subject=subject, stimulus=rows["stimulus_id"].map(place).astype(np.int64), text=_texts(rows)
    )
    return SystemOutput(system, bool(subject.any()), heard.reset_index(drop=True), _waveforms(folder, rows))


def _texts(rows: pd.DataFrame) -> np.ndarray:
    return rows["reference"].fillna("").to_numpy(object)


def _waveforms(folder: Path, rows: pd.DataFrame) -> np.ndarray:
    """(n, N) float32"""
    return np.stack([audio.load(folder / wav) for wav in rows["wav"]])
