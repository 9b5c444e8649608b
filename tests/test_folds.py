"""Folds over time: a small study by hand, and real EEG against a ridge decoder written here."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from eeg2speech import __main__ as training
from eeg2speech.config import load
from eeg2speech.data.splits import stretches
from eval.__main__ import main
from eval.results import RunResult

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("EEG2SPEECH_REALDATA", ROOT.parent / "shared" / "realdata")) / "dtu"
RATE = 64.0

# A small study


def write_study(root: Path, seconds: float = 45.0) -> Path:
    """Two listeners whose EEG holds the envelope in its first channel, and a config of three folds."""
    root.mkdir()
    envelope = np.random.default_rng(0).random(round(seconds * RATE)).astype(np.float32)
    for number in (1, 2):
        rng = np.random.default_rng(number)
        eeg = rng.standard_normal((len(envelope), 4), dtype=np.float32)
        np.savez(root / f"S{number}_0.npz", eeg=eeg, envelope=envelope)
    values: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "dtu.yaml").read_text(encoding="utf-8"))
    values["study"] |= {"root": str(root), "pattern": "S*.npz", "subject_from": r"(S\d+)_", "montage": "biosemi64"}
    values["study"]["ch_names"] = ["Fz", "Cz", "Pz", "Oz"]
    values["splits"] = {"by": "time", "n_folds": 3}
    values["model"]["eeg_encoder"]["lags"] = 5
    values["training"]["contrastive"] |= {"steps": 2, "batch_size": 8}
    values["evaluation"] |= {"n_resamples": 200}
    (root / "small.yaml").write_text(yaml.safe_dump(values))
    return root / "small.yaml"


def test_folds_are_pooled_by_their_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, runs = write_study(tmp_path / "study"), tmp_path / "runs"
    command = ["folds", "--config", str(config), "--runs", str(runs)]
    assert main(command) == 0
    result = RunResult.load(runs / "small")
    folds = [RunResult.load(runs / f"small-fold{k}") for k in range(3)]
    pooled = pd.read_parquet(runs / "small" / "examples.parquet")
    for system in ("eeg", "shuffled", "shifted"):
        cells = [run.value(system, "top1") for run in folds]
        whole = result.value(system, "top1")
        assert whole is not None
        assert whole.n == sum(cell.n for cell in cells if cell)
        hits = sum(cell.value * cell.n for cell in cells if cell and cell.value is not None)
        assert whole.value == pytest.approx(hits / whole.n)
        mine = pooled[pooled["system"] == system]
        assert mine["top1"].sum() / mine["top1_n"].sum() == pytest.approx(whole.value)
        assert mine["stimulus_id"].nunique() == sum(len(set(_stimuli(runs, k))) for k in range(3))
    gains = {c.system: c.gain for c in result.comparisons if c.metric == "top1"}
    eeg, shifted = result.value("eeg", "top1"), result.value("shifted", "top1")
    assert eeg is not None and shifted is not None  # noqa: PT018
    assert gains["shifted"] == pytest.approx(eeg.value - shifted.value)  # type: ignore[operator]
    info = next(m for m in result.metrics if m.name == "top1")
    candidates = [len(set(_stimuli(runs, k))) for k in range(3)]
    n = [run.value("eeg", "top1").n for run in folds]  # type: ignore[union-attr]
    assert info.chance == pytest.approx(sum(k / c for k, c in zip(n, candidates, strict=True)) / sum(n))
    sound = result.value("eeg", "mel_correlation")
    assert sound is None or (sound.value is None and sound.reason)
    table = pd.read_csv(runs / "small" / "folds.csv").set_index(["system", "metric"])
    per_fold = json.loads(table.loc[("eeg", "top1"), "per_fold"])
    assert per_fold == [run.value("eeg", "top1").value for run in folds]  # type: ignore[union-attr]
    assert table.loc[("eeg", "top1"), "folds_mean"] == pytest.approx(np.mean(per_fold))
    assert all(finding.passed for finding in result.audit)
    capsys.readouterr()
    before = (runs / "small" / "results.json").read_bytes()
    assert main(command) == 0
    assert capsys.readouterr().out.count("nothing to do") == 3
    assert (runs / "small" / "results.json").read_bytes() == before


def _stimuli(runs: Path, fold: int) -> pd.Series:
    examples = pd.read_parquet(runs / f"small-fold{fold}" / "examples.parquet")
    return examples.loc[examples["system"] == "eeg", "stimulus_id"]


def test_what_has_no_folds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_study(tmp_path / "study")
    command = ["folds", "--config", str(config), "--runs", str(tmp_path / "runs"), "--name", "x", "--set"]
    assert main([*command, "splits={by: time}"]) == 2
    assert "has no splits.n_folds" in capsys.readouterr().err
    assert main([*command, "splits.fold=1"]) == 2
    assert "all folds are run here" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# Real EEG

needs_dtu = pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not here")


TRIAL_S = 50.0


@cache
def recordings(low_hz: float) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Listener -> (EEG (n, 64), speech (n, 3)) of every trial to 9 Hz, at 32 Hz: envelope, its rises, its logarithm."""
    from scipy.signal import butter, sosfiltfilt

    band = butter(2, (low_hz, 9.0), "bandpass", fs=RATE, output="sos")
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path in sorted(REAL.glob("DTU_S*_*.npz")):
        with np.load(path) as archive:
            eeg, envelope = archive["eeg"].astype(float), archive["envelope"][:, 0].astype(float)
        rises = np.gradient(envelope).clip(min=0)
        speech = np.stack([envelope, rises, np.log(envelope + 0.05 * envelope.std())], axis=1)
        eeg, speech = (sosfiltfilt(band, x, axis=0)[::2] for x in (eeg, speech))
        found.setdefault(path.name.split("_")[1], []).append((eeg / eeg.std(), speech / speech.std(axis=0)))
    return found


def lagged(eeg: np.ndarray) -> np.ndarray:
    """(n, channels * lags): what follows by -94 to 438 ms."""
    before, after = 3, 14
    padded = np.pad(eeg, ((before, after), (0, 0)))
    return np.concatenate([padded[k : k + len(eeg)] for k in range(before + after + 1)], axis=1)


def training_seconds(parts: list[tuple[float, float, str]], margin_s: float) -> list[tuple[float, float]]:
    """Adjacent stretches of training together, `margin_s` away from where another split begins."""
    merged: list[tuple[float, float]] = []
    for start, stop in sorted((start, stop) for start, stop, split in parts if split == "train"):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return [
        (start if start == 0 else start + margin_s, stop if stop == TRIAL_S else stop - margin_s)
        for start, stop in merged
    ]


def ridge_hits(low_hz: float, n_features: int) -> float:
    """Hits of a backward model of each listener at the windows of the config's folds: of 8, the candidate whose
    features correlate best with those that were read from the EEG."""
    config, rate = load(ROOT / "configs" / "dtu.yaml"), RATE / 2
    length_s, stride_s = config.windows.length_s, config.windows.test_stride_s
    assert stride_s is not None
    n, hits = round(length_s * rate), []
    for fold in range(5):
        parts = stretches(TRIAL_S, length_s, config.splits.model_copy(update={"fold": fold}))
        (test_s,) = [start for start, _, split in parts if split == "test"]
        starts = np.round((test_s + stride_s * np.arange(8)) * rate).astype(int)
        seconds = training_seconds(parts, length_s + config.preprocessing.baseline_s)
        kept = np.concatenate([np.arange(round(start * rate), round(stop * rate)) for start, stop in seconds])
        for trials in recordings(low_hz).values():
            x = np.concatenate([lagged(eeg)[kept] for eeg, _ in trials])
            y = np.concatenate([speech[kept, :n_features] for _, speech in trials])
            gram = x.T @ x
            penalty = 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram))
            weights = np.linalg.solve(gram + penalty, x.T @ (y - y.mean(axis=0)))
            for eeg, speech in trials:
                read = lagged(eeg) @ weights
                alike = np.zeros((8, 8))
                for k in range(n_features):
                    estimates, candidates = (np.stack([z[s : s + n, k] for s in starts]) for z in (read, speech))
                    alike += np.corrcoef(estimates, candidates)[:8, 8:]
                hits.append(alike.argmax(axis=1) == np.arange(8))
    return float(np.mean(hits))


@needs_dtu
@pytest.mark.parametrize("by", ["recording", "subject"])
def test_trials_and_listeners_that_share_their_speech_are_no_split(
    by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every trial holds the same 50 s of speech: the audit refuses, and nothing is trained."""
    chosen = ["--config", str(ROOT / "configs" / "dtu.yaml"), "--runs", str(tmp_path), "--name", "leaky"]
    values = ["--set", f"study.root={REAL}", "--set", f"splits={{by: {by}}}"]
    assert training.main(["train", *chosen, *values]) == 2
    said = capsys.readouterr().err
    assert "the split leaks: shared stimulus identity" in said
    assert "duplicated audio" in said
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@needs_dtu
def test_a_linear_encoder_finds_in_real_eeg_what_a_ridge_decoder_does(tmp_path: Path) -> None:
    """A ridge decoder of the envelope at 1-9 Hz knows a quarter of 8 candidates (chance 12.5 %); one that goes down to
    0.5 Hz and reads the envelope's rises and logarithm as well knows as many as the encoder. No floor does as well."""
    command = ["folds", "--config", str(ROOT / "configs" / "dtu.yaml"), "--runs", str(tmp_path), "--name", "dtu_linear"]
    assert main([*command, "--set", f"study.root={REAL}"]) == 0
    result = RunResult.load(tmp_path / "dtu_linear")
    eeg = result.value("eeg", "top1")
    assert eeg is not None
    assert eeg.ci is not None
    low, high = eeg.ci
    assert eeg.n == 5 * 8 * 80
    assert low > ridge_hits(1.0, 1) == pytest.approx(0.24, abs=0.03)
    assert ridge_hits(0.5, 1) == pytest.approx(0.34, abs=0.03)
    assert low < ridge_hits(0.5, 3) < high
    info = next(m for m in result.metrics if m.name == "top1")
    assert info.chance == pytest.approx(0.125)
    for comparison in result.comparisons:
        if comparison.metric == "top1" and comparison.system in ("shuffled", "shifted"):
            assert comparison.gain is not None
            assert comparison.gain > 0
            assert comparison.p_holm is not None
            assert comparison.p_holm < 0.05, comparison.system
    assert all(finding.passed for finding in result.audit)
