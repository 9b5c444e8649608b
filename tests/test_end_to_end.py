"""The whole path at toy size, through the commands: EEG in, scored speech and a report out.

Last in the file, the pair that guards the instrument: with the brain signal it is found, without it is not.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import soundfile
import yaml

from eeg2speech import __main__ as training
from eeg2speech.config import load
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.runs import RunFolder
from eeg2speech.training.loop import derived_seed
from eeg2speech.training.run import prepare_data
from eval import __main__ as evaluation
from eval.history import evaluations
from eval.results import Comparison, RunResult, load_examples
from eval.systems import SYSTEMS
from reports import __main__ as reports

pytest.importorskip("hibari")

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "tiny.yaml"
STAGES = ("autoencoder", "contrastive", "regression", "diffusion")
RANKED = {"eeg", "shuffled", "noise"}
"""The rows with an embedding of EEG of their own, which can be ranked among the speech."""


def call(command: ModuleType, verb: str, runs: Path, *more: str) -> int:
    """A command of the project, in this process."""
    return int(command.main([verb, "--config", str(CONFIG), "--runs", str(runs), *more]))


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of writing and hash of every file; every call writes the two that say what a run is."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    often = ("config.yaml", "audit.json")
    return {
        str(p.relative_to(folder)): (
            0 if p.name in often else p.stat().st_mtime_ns,
            hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in files
    }


def changed(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> set[str]:
    """The files that are no longer there, or were written since."""
    return {path for path, what in before.items() if after.get(path) != what}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs, in which `tiny` has been trained, evaluated and reported by the three commands."""
    folder = tmp_path_factory.mktemp("end") / "runs"
    chosen = ["--config", str(CONFIG), "--runs", str(folder)]
    commands = (
        ["eeg2speech", "train", *chosen],
        ["eval", "run", *chosen],
        ["reports", "build", str(folder / "tiny"), "--output", str(folder.parent / "page")],
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def result(runs: Path) -> RunResult:
    return RunResult.load(runs / "tiny")


@pytest.fixture
def copied(runs: Path) -> Path:
    """A copy of the finished run, named `copy`, to do harm to."""
    shutil.rmtree(runs / "copy", ignore_errors=True)
    shutil.copytree(runs / "tiny", runs / "copy")
    return runs / "copy"


# What a run leaves


def test_the_run_folder_holds_everything(runs: Path, result: RunResult) -> None:
    run = runs / "tiny"
    for stage in STAGES:
        assert {"weights.safetensors", "done.json", "metrics.jsonl"} <= {p.name for p in (run / stage).iterdir()}
    resolved = load(run / "config.yaml", name="tiny")
    assert resolved == load(CONFIG)
    assert result.config == yaml.safe_load((run / "config.yaml").read_text())
    assert all(finding.passed for finding in result.audit)
    assert (run / "data" / "audit.json").exists()
    assert [stage.name for stage in result.stages] == list(STAGES)
    assert result.provenance["command"] == f"nox -s evaluate -- --config {CONFIG}"
    spent = result.provenance["evaluation_wall_s"]
    assert spent.keys() == {*SYSTEMS, "all"}
    assert spent["all"] == pytest.approx(sum(spent[name] for name in SYSTEMS), abs=0.1)
    assert spent["all"] > 0
    assert all(stage.curve and stage.steps and stage.parameters for stage in result.stages)
    assert not list(runs.rglob("*.partial"))


def test_every_row_and_every_reason_is_there(result: RunResult) -> None:
    names = load(CONFIG).evaluation.metrics.names or ()
    assert [system.name for system in result.systems] == list(SYSTEMS)
    cells = {(r.system, r.metric): r for r in result.results if r.subject is None}
    assert set(cells) == set(itertools.product(SYSTEMS, names))
    for (system, metric), cell in cells.items():
        assert (cell.value is None) == bool(cell.reason), (system, metric, cell)
        if cell.value is not None:
            assert np.isfinite(cell.value)
            assert cell.signature.startswith(f"{metric}|")
    without_value = {key for key, cell in cells.items() if cell.value is None}
    assert without_value == {(s, m) for s in SYSTEMS if s not in RANKED for m in ("top1", "top5")}


def test_counts_are_those_of_the_test_split(runs: Path, result: RunResult) -> None:
    """Rows that hear EEG have every listener of a stimulus, the others one row a stimulus."""
    table = load_examples(runs / "tiny")
    for system in result.systems:
        rows = table[table["system"] == system.name]
        assert system.n_stimuli == 10 == rows["stimulus_id"].nunique()
        assert system.n_examples == len(rows) == (20 if SYSTEMS[system.name].hears_eeg else 10)
        assert system.n_subjects == (2 if SYSTEMS[system.name].hears_eeg else 0)


def test_eeg_beats_shuffled_in_retrieval(runs: Path, result: RunResult) -> None:
    (found,) = (c for c in result.comparisons if (c.metric, c.system) == ("top1", "shuffled"))
    assert found.gain is not None
    assert found.p is not None
    assert found.gain > 0
    assert found.p < 0.05
    table = load_examples(runs / "tiny")
    hits = table[table["system"] == "eeg"].groupby("stimulus_id")["top1"].max()
    assert scipy.stats.binomtest(int(hits.sum()), len(hits), 2 / 10, alternative="greater").pvalue < 0.05


def test_ceilings_are_above_floors(result: RunResult) -> None:
    """Even toy models keep the order of what is known: the recording, its reconstruction, speech of nothing."""
    correlation = {s: cell.value for s in SYSTEMS if (cell := result.value(s, "mel_correlation"))}
    wer = {s: cell.value for s in SYSTEMS if (cell := result.value(s, "wer"))}
    assert correlation["reference"] == pytest.approx(1.0, abs=1e-3)
    assert correlation["reconstruction"] is not None
    assert correlation["unconditional"] is not None
    assert correlation["reconstruction"] > correlation["unconditional"]
    assert wer["reference"] is not None
    assert wer["unconditional"] is not None
    assert wer["reference"] < 0.5 < wer["unconditional"]


def test_what_is_scored_can_be_listened_to(runs: Path) -> None:
    table = load_examples(runs / "tiny")
    assert table["wav"].notna().all()
    assert table["wav"].is_unique
    for wav in table["wav"]:
        info = soundfile.info(str(runs / "tiny" / wav))
        assert (info.samplerate, info.frames, info.channels) == (16_000, 48_000, 1)


def test_the_saved_pipeline_says_what_was_scored(runs: Path) -> None:
    """EEG of the study through `from_pretrained` gives the wav of the same row."""
    config = load(CONFIG)
    data = prepare_data(config, RunFolder(runs / "tiny"))
    pipeline = EEG2SpeechPipeline.from_pretrained(runs / "tiny" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    table = load_examples(runs / "tiny")
    row = table[table["system"] == "eeg"].iloc[5]
    keys = ["subject", "recording", "stimulus_id"]
    (window,) = np.flatnonzero((data.windows[keys] == row[keys]).all(axis=1))
    batch = data.batch(np.array([window]))
    seed = derived_seed(config.sampling.seed, "sample", row["stimulus_id"])
    waveform = pipeline(batch.eeg, batch.positions, batch.subject, seeds=[seed])[0]
    heard, _ = soundfile.read(str(runs / "tiny" / row["wav"]))
    np.testing.assert_allclose(waveform.numpy(), heard, atol=2 / 32768)


def test_the_readme_makes_a_trained_pipeline_speak(runs: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("runs/default", str(runs / "tiny")) + "\nprint(*waveforms.shape)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-2:] == ["4", "48000"]


def test_the_report_shows_every_row(runs: Path) -> None:
    page = (runs.parent / "page" / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    for system in SYSTEMS:
        assert system in text
    assert "simulated" in text.lower()
    assert "<audio" in page
    assert not re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css|png|wav)"', page)


def test_the_results_can_be_verified(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reports.main(["verify", str(runs / "tiny")]) == 0
    assert "0 mismatch" in capsys.readouterr().out


# Somebody else's sounds


def test_its_own_sounds_submitted_score_the_same(runs: Path, result: RunResult, tmp_path: Path) -> None:
    """By the template alone: the row eeg, handed in as wavs, gets the numbers of the row eeg."""
    chosen = ["--study", "matrix", "--run", str(runs / "tiny"), "--runs", str(tmp_path)]
    wavs = tmp_path / "again"
    assert evaluation.main(["manifest", *chosen, "--output", str(wavs)]) == 0
    stored = load_examples(runs / "tiny").query("system == 'eeg'").set_index(["recording", "stimulus_id"])["wav"]
    for row in pd.read_csv(wavs / "manifest.csv").itertuples():
        shutil.copy(runs / "tiny" / stored[row.recording, row.stimulus_id], wavs / str(row.wav))
    assert evaluation.main(["score", *chosen, "--wavs", str(wavs)]) == 0
    again = RunResult.load(tmp_path / "again")
    for metric in ("wer", "cer", "fad", "kad", "mel_correlation", "estoi"):
        was, now = result.value("eeg", metric), again.value("submission", metric)
        assert was is not None
        assert now is not None
        assert now.value == pytest.approx(was.value, rel=1e-3, abs=1e-3), metric
    assert {s.name for s in again.systems} == {*SYSTEMS, "submission", "submission_shuffled"}


# A second call


def test_a_second_call_recomputes_nothing_and_is_quick(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(runs)
    begun = time.perf_counter()
    assert call(training, "train", runs) == 0
    assert call(evaluation, "run", runs) == 0
    assert time.perf_counter() - begun < 20
    assert contents(runs) == before
    assert "nothing to do" in capsys.readouterr().out


def test_what_was_changed_after_the_evaluation_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number in results.json, and a sound of the claim's put in place of another."""
    assert reports.main(["verify", str(copied)]) == 0
    assert "files: 0 changed" in capsys.readouterr().out
    first, second = sorted((copied / "evaluation" / "eeg" / "wavs").glob("*.wav"))[:2]
    shutil.copy(first, second)
    path = copied / "results.json"
    path.write_text(path.read_text().replace('"training_seeds"', ' "training_seeds"'))
    assert reports.main(["verify", str(copied)]) == 1
    said = capsys.readouterr().out
    for changed_file in ("results.json", second.relative_to(copied)):
        assert f"changed    {changed_file} is not as the evaluation left it" in said


def test_every_evaluation_leaves_a_line(runs: Path, result: RunResult) -> None:
    (line,) = evaluations(RunFolder(runs / "tiny"))
    assert result.provenance["evaluated_before"] == []
    assert (line["primary"], line["gain"]) == (result.endpoint.metric, result.endpoint.gain)
    assert line["systems"] == list(SYSTEMS)


def test_an_interrupted_evaluation_continues(copied: Path, result: RunResult) -> None:
    """What one system lacks is done again, alone, and comes out the same."""
    before = contents(copied)
    for folder in (copied / "evaluation", copied / "evaluation" / "eeg"):
        (folder / "done.json").unlink()
    assert call(evaluation, "run", copied.parent, "--name", "copy") == 0
    after = contents(copied)
    again = changed(before, after)
    assert any(path.startswith("evaluation/eeg/") for path in again)
    assert [line["primary"] for line in RunResult.load(copied).provenance["evaluated_before"]] == ["wer"]
    assert not [p for p in again if p.startswith(STAGES) or re.match(r"evaluation/(?!eeg/|done\.json)", p)]
    assert {p: after[p][1] for p in after if p.endswith((".wav", ".parquet"))} == {
        p: before[p][1] for p in before if p.endswith((".wav", ".parquet"))
    }
    repeated = RunResult.load(copied)
    assert repeated.results == result.results
    assert repeated.comparisons == result.comparisons


def test_an_interrupted_training_continues_to_the_same_weights(copied: Path, runs: Path) -> None:
    """The last stage is trained again; nothing before it is, and evaluation has nothing to do."""
    before = contents(copied)
    (copied / "diffusion" / "done.json").unlink()
    assert call(training, "train", copied.parent, "--name", "copy") == 0
    after = contents(copied)
    assert after["diffusion/weights.safetensors"][1] == before["diffusion/weights.safetensors"][1]
    assert after["diffusion/weights.safetensors"][0] != before["diffusion/weights.safetensors"][0]
    assert {p for p in changed(before, after) if p.split("/")[0] in STAGES[:3]} == set()


@pytest.mark.parametrize(
    "change", ["sampling.seed=1", "model.vocoder.iterations=8", "evaluation.seed=1"], ids=lambda c: c.split("=")[0]
)
def test_what_depends_on_a_changed_value_is_done_again(copied: Path, change: str) -> None:
    """And the trainings, which do not, are not."""
    before = contents(copied)
    quick = ["--set", "evaluation.metrics.names=[top1, mel_correlation]", "--set", "evaluation.max_stimuli=4"]
    assert call(evaluation, "run", copied.parent, "--name", "copy", *quick) == 0
    first = contents(copied)
    assert call(evaluation, "run", copied.parent, "--name", "copy", *quick, "--set", change) == 0
    after = contents(copied)
    assert {p for p in changed(before, after) if p.split("/")[0] in STAGES} == set()
    assert "results.json" in changed(first, after)
    same = {p for p in after if p.endswith(".wav") and p in first and after[p][1] == first[p][1]}
    again = {p for p in after if p.startswith("evaluation/eeg/") and p.endswith(".wav")}
    assert again
    if change != "evaluation.seed=1":  # which draws other stimuli
        assert not again & same


# What is not as it was left


@pytest.mark.parametrize(
    "harmed",
    [
        "diffusion/weights.safetensors",
        "contrastive/metrics.jsonl",
        "evaluation/eeg/measurements.json",
        "evaluation/eeg/*.wav",
        "pipeline/denoiser/diffusion_pytorch_model.safetensors",
        "results.json",
        "examples.parquet",
    ],
)
@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_file_is_named(copied: Path, capsys: pytest.CaptureFixture[str], harmed: str, harm: str) -> None:
    path = sorted(copied.glob(harmed.replace("*", "wavs/*")))[0] if "*" in harmed else copied / harmed
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = contents(copied)
    code = call(evaluation, "run", copied.parent, "--name", "copy")
    if harmed == "results.json" and harm == "missing":  # what is made from all the rest is made again
        assert code == 0
        assert contents(copied).keys() == before.keys() | {"results.json"}
        return
    said = capsys.readouterr().err
    assert code == 2
    assert path.name in said
    assert "delete" in said or "restore" in said
    after = contents(copied)
    assert after.keys() == before.keys()
    assert changed(before, after) <= {"config.yaml"}, "which now has the name of the copy"


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    assert call(training, "train", tmp_path / "runs") == 2
    said = capsys.readouterr().err
    assert "hibari" in said
    assert "pip install" in said


def test_a_run_in_use_is_left_alone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(copied / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert call(evaluation, "run", copied.parent, "--name", "copy") == 2
        process.communicate("")
    assert "another process is writing this run" in capsys.readouterr().err


# The pair

QUICK = [
    "evaluation.metrics.names=[top1, top5, mrr, mel_correlation]",
    "evaluation.max_stimuli=null",
    "evaluation.primary=top1",
]


def judged(runs: Path, name: str, *sets: str) -> list[Comparison]:
    overrides = [part for value in (*QUICK, *sets) for part in ("--set", value)]
    assert call(evaluation, "run", runs, "--name", name, *overrides) == 0
    return RunResult.load(runs / name).comparisons


def test_the_brain_signal_is_found_where_it_is_and_nowhere_else(runs: Path) -> None:
    """The same code at the same size: at +20 dB it detects; at -inf, where the recording carries nothing
    about the sound, eeg is not told from shuffled in any metric and is better than no floor."""
    shutil.copytree(runs / "tiny", runs / "loud")
    weights = {s: (runs / "loud" / s / "weights.safetensors").stat().st_mtime_ns for s in STAGES}
    loud = judged(runs, "loud")
    assert {s: (runs / "loud" / s / "weights.safetensors").stat().st_mtime_ns for s in STAGES} == weights
    silent = judged(runs, "silent", "study.snr_db=-.inf")

    against_shuffled = {c.metric: c for c in loud if c.system == "shuffled"}
    for metric in ("top1", "top5", "mrr", "mel_correlation"):
        found = against_shuffled[metric]
        assert found.gain is not None
        assert found.gain > 0, metric
        assert found.p_holm is not None
        assert found.p_holm < 0.05, metric
    for missed in (c for c in silent if c.role == "floor" and c.gain is not None):
        assert missed.p_holm is not None
        if missed.system == "shuffled":
            assert missed.p_holm >= 0.05, missed
        assert not (missed.gain > 0 and missed.p_holm < 0.05), missed  # type: ignore[operator]
    assert {c.metric for c in silent if c.system == "shuffled" and c.p_holm is not None} == set(against_shuffled)
