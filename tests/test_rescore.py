"""The stored sounds give the numbers that were stored with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from report_fixture import write_fake_run

from eeg2speech.errors import UserError
from eeg2speech.evaluation import EvaluationConfig, MetricsConfig
from eval import runner
from eval.metrics import build_metrics
from eval.metrics.base import SystemOutput, TestSet
from eval.rescore import rescore
from eval.results import MetricResult, RunResult, SystemInfo
from eval.weights import RESEMBLYZER
from reports.__main__ import main
from tests.metrics_fixture import make_test, per_listener, per_stimulus, tones

CHOSEN = MetricsConfig(names=("fad", "kad", "mel_correlation"), embedders=("resemblyzer",))


@dataclass(frozen=True)
class Stored:
    """A system whose output is known."""

    name: str
    output: SystemOutput

    def run(self, bench: object) -> SystemOutput:
        return self.output


def described(test: TestSet) -> TestSet:
    examples = test.examples.assign(recording=test.examples.subject + "-r1")
    return TestSet(examples, test.stimuli.assign(study="study", recording=""), test.waveform, test.candidates)


def output_of(output: SystemOutput) -> SystemOutput:
    rows = output.rows.assign(study="study", recording=output.rows.subject)
    return SystemOutput(output.system, output.hears_eeg, rows, output.waveform)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the runner writes it, of two systems whose sounds are known."""
    if RESEMBLYZER.locate() is None:
        pytest.skip("Resemblyzer is not installed")
    place = tmp_path_factory.mktemp("runs") / "run"
    clips = np.round(tones(8, 8_000) * 32768).astype(np.float32) / 32768  # as a wav holds them
    test = described(make_test([f"word {i}" for i in range(8)], clips))
    systems = [
        Stored("reference", output_of(per_stimulus(test, clips))),
        Stored("eeg", output_of(per_listener(test, tones(16, 8_000, seed=1)))),
    ]
    bench = SimpleNamespace(test=test, sampling=SimpleNamespace(seed=0))
    metrics = build_metrics(CHOSEN, place.parent / "cache" / "weights")
    results = []
    for system in systems:
        where = place / "evaluation" / system.name
        runner.score(system, bench, metrics, where)  # type: ignore[arg-type]
        for m in json.loads((where / runner.MEASUREMENTS).read_text()):
            kept = {key: m[key] for key in ("embedder", "value", "n", "reason", "signature")}
            results.append(MetricResult(system=system.name, metric=m["metric"]["name"], **kept))
    run = write_fake_run(place.parent / "fake")
    infos = [m.describe(test) for m in metrics]
    shown = [
        SystemInfo(name=s.name, role="claim", description="", n_examples=1, n_stimuli=1, n_subjects=1) for s in systems
    ]
    evaluation = EvaluationConfig(metrics=CHOSEN).model_dump(mode="json")
    run.model_copy(
        update={"results": results, "metrics": infos, "systems": shown, "config": {"evaluation": evaluation}}
    ).save(place)
    parts = [pd.read_parquet(place / "evaluation" / s.name / runner.EXAMPLES) for s in systems]
    pd.concat(parts, ignore_index=True).to_parquet(place / "examples.parquet")
    return place


def test_scored_again_the_numbers_are_the_stored_ones(folder: Path) -> None:
    stored = {(r.system, r.metric): r for r in RunResult.load(folder).results}
    again = rescore(folder)
    assert {(a.system, a.metric) for a in again} == set(stored)
    for a in again:
        assert a.value == pytest.approx(stored[a.system, a.metric].value, rel=1e-6, abs=1e-9)
    assert stored["eeg", "fad"].value > 0.01  # type: ignore[operator]
    one = rescore(folder, ["eeg/kad|resemblyzer"])
    assert [(a.system, a.metric) for a in one] == [("eeg", "kad")]


def test_verify_scores_sets_from_their_sounds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = ["--cell", "eeg/fad"]
    assert main(["verify", str(folder), *cell]) == 2
    assert "--sounds" in capsys.readouterr().err
    assert main(["verify", str(folder), *cell, "--sounds"]) == 0
    assert "match      eeg/fad|resemblyzer" in capsys.readouterr().out
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    wavs = sorted((other / "evaluation" / "eeg" / "wavs").glob("*.wav"))
    for wav in wavs[1:]:
        shutil.copy(wavs[0], wav)
    assert main(["verify", str(other), *cell, "--sounds"]) == 1
    assert "mismatch   eeg/fad|resemblyzer" in capsys.readouterr().out


def test_a_missing_sound_is_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(folder, other)
    next((other / "evaluation" / "eeg" / "wavs").glob("*.wav")).unlink()
    with pytest.raises(UserError, match=r"\.wav"):
        rescore(other, ["eeg/fad"])
