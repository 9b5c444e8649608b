"""The table over seeds: its arithmetic against scipy and by hand, what it refuses, and two small runs for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

from eeg2speech.errors import UserError
from eeg2speech.training import run as training
from eval import __main__ as command
from eval.ablation import KEYS, AblationConfig, ablate, experiments, over_seeds, read, tabulate
from eval.results import Comparison, Endpoint, MetricResult, RunResult, StageSummary
from tests.toy_fixture import VALUES, toy_data

ROOT = Path(__file__).parents[1]
BLANK = {"base": "base.yaml", "seeds": [0, 1], "sets": {"plain": {}}}
Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """An ablation beside a base config."""

    def write(values: dict[str, Any]) -> Path:
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(VALUES))
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(BLANK | values, sort_keys=False))
        return path

    return write


def result(seed: int, wer: float | None, gain: float | None = 0.1, **config: object) -> RunResult:
    """A run of which only what the table reads is filled."""
    cells = [
        MetricResult(system="eeg", metric="wer", value=wer, reason=None if wer is not None else "no weights"),
        MetricResult(system="eeg", metric="wer", subject="ann", value=0.9),
        MetricResult(system="eeg", metric="fad", embedder="yamnet", value=3.0 + seed),
        MetricResult(system="eeg", metric="fad", embedder="resemblyzer", value=5.0),
    ]
    return RunResult(
        name=f"run{seed}", study="matrix", simulated=True, training_seeds=[seed], sampling_seed=0, signature="s",
        config={"name": f"run{seed}", "seed": seed, "training": {"steps": 5}} | config, data={}, audit=[], systems=[],
        metrics=[], results=cells, comparisons=[Comparison(metric="wer", system="noise", role="floor", gain=gain)],
        endpoint=Endpoint(metric="wer", best_floor="noise", gain=gain), stages=[], environment={},
    )  # fmt: skip


def row(table: pd.DataFrame, name: str, **key: str) -> dict[str, Any]:
    chosen = {"system": "eeg", "against": "", "metric": "wer", "embedder": ""} | key
    (found,) = table[np.logical_and.reduce([table["set"] == name, *(table[k] == v for k, v in chosen.items())])].index
    return dict(table.loc[found])


# The arithmetic


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.31, 0.27, 0.36, 0.29]
    mean, (low, high) = over_seeds(values)
    wanted = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx((wanted.low, wanted.high))
    assert over_seeds([0.3]) == (0.3, (None, None)), "one seed is one sample"
    assert over_seeds([0.3, None]) == (None, (None, None)), "nothing is averaged over what is missing"


def test_differences_are_paired_by_seed() -> None:
    """Seeds that move both sets alike leave the difference its narrow interval."""
    plain, changed = [0.2, 0.5, 0.8], [0.31, 0.60, 0.90]
    table = tabulate(
        {
            "plain": [result(s, v) for s, v in enumerate(plain)],
            "changed": [result(s, v) for s, v in enumerate(changed)],
        }
    )
    found, test = row(table, "changed"), scipy.stats.ttest_rel(changed, plain)
    interval = test.confidence_interval(0.95)
    assert found["mean"] == pytest.approx(np.mean(changed))
    assert found["difference"] == pytest.approx(np.mean(np.subtract(changed, plain)))
    assert (found["difference_ci_low"], found["difference_ci_high"]) == pytest.approx((interval.low, interval.high))
    assert found["ci_high"] - found["ci_low"] > 20 * (interval.high - interval.low)
    assert row(table, "plain")["difference"] == 0.0
    assert json.loads(found["values"]) == changed
    assert found["n_seeds"] == 3


def test_every_value_and_gain_has_its_row_and_no_listener_has() -> None:
    table = tabulate({"plain": [result(0, 0.4), result(1, 0.6)]})
    keys = {tuple(values) for values in table[list(KEYS)].itertuples(index=False)}
    assert keys == {
        ("eeg", "", "wer", ""),
        ("eeg", "", "fad", "yamnet"),
        ("eeg", "", "fad", "resemblyzer"),
        ("eeg", "noise", "wer", ""),
        ("eeg", "best floor", "wer", ""),
    }
    assert row(table, "plain", metric="fad", embedder="yamnet")["mean"] == 3.5
    assert row(table, "plain", against="noise")["mean"] == pytest.approx(0.1)


def test_what_a_seed_did_not_give_has_no_mean_but_a_reason() -> None:
    found = row(tabulate({"plain": [result(0, 0.4), result(1, None)]}), "plain")
    assert pd.isna(found["mean"])
    assert found["reason"] == "no weights"
    assert json.loads(found["values"]) == [0.4, None]


# What is refused


def test_different_configurations_are_never_averaged() -> None:
    other = result(1, 0.5, training={"steps": 6}, splits={"test": 0.1})
    with pytest.raises(UserError, match=r"plain: run0 and run1 differ in training\.steps, splits\.test, and are not"):
        tabulate({"plain": [result(0, 0.4), other]})
    with pytest.raises(UserError, match="two studies"):
        tabulate({"plain": [result(0, 0.4), result(1, 0.5).model_copy(update={"study": "folder"})]})


def test_different_precisions_are_never_averaged() -> None:
    def trained(seed: int, precision: str) -> RunResult:
        stage = StageSummary(name="diffusion", parameters=1, steps=1, wall_s=1.0, precision=precision, curve=[])
        return result(seed, 0.4).model_copy(update={"stages": [stage]})

    tabulate({"plain": [trained(0, "float32"), trained(1, "float32")]})
    with pytest.raises(UserError, match="run0 and run1 were trained in different precision"):
        tabulate({"plain": [trained(0, "float32"), trained(1, "bfloat16")]})


def test_a_seed_counts_once() -> None:
    with pytest.raises(UserError, match="a seed is there twice"):
        tabulate({"plain": [result(0, 0.4), result(0, 0.4)]})
    with pytest.raises(UserError, match="not run with the same seeds"):
        tabulate({"plain": [result(0, 0.4)], "changed": [result(1, 0.4)]})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seeds": [1, 1]}, "seeds: a seed that stands twice"),
        ({"seeds": []}, "seeds"),
        ({"sets": {}}, "sets"),
        ({"sets": {"plain": {"seed": 3}}}, "sets: plain sets seed"),
        ({"common": {"seed": 3}}, "common: seed is averaged over"),
        ({"common": {"model.denoiser.aligned": 8}}, "model.denoiser.aligned: is not a known key"),
        ({"bases": 1}, "bases"),
        ({"sets": {"plain": {}, "again": {"model.denoiser.aligned_channels": 8}}}, "sets.again is the same"),
        ({"sets": {"plain": {"model.denoiser.aligned": 8}}}, "model.denoiser.aligned: is not a known key"),
        ({"sets": {"pl/ain": {}}}, "run name 'mine-pl/ain-seed0'"),
        ({"base": "absent.yaml"}, "absent.yaml"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(
    written: Write, values: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(values)
    assert command.main(["ablate", "--config", str(path), "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_missing_ablation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read"):
        read(tmp_path / "none.yaml")


def test_the_encoders_are_compared_at_equal_size() -> None:
    path = ROOT / "configs" / "ablation_encoders.yaml"
    counts = {}
    for (name, _), config in experiments(path, read(path)).items():
        sizes = {"n_subjects": config.study.n_subjects, "dim": config.model.embedding.dim, "n_frames": 300}
        encoder = config.model.eeg_encoder.build(n_channels=64, **sizes)
        counts[name] = sum(p.numel() for p in encoder.parameters())
    assert counts["aligned_conv"] == pytest.approx(1.12e6, rel=0.01)
    assert counts["clip_conv"] == pytest.approx(counts["aligned_conv"], rel=0.01)
    assert counts["clip_conv_slower"] == counts["clip_conv"]


def test_the_projects_own_ablation_is_valid() -> None:
    path = ROOT / "configs" / "ablation.yaml"
    found = experiments(path, read(path))
    assert len({seed for _, seed in found}) >= 3
    kinds = {name: config.model.denoiser.conditioning for (name, _), config in found.items()}
    assert {"film", "cross_attention", "time_aligned"} <= set(kinds)
    assert any(len(kind) == 3 for kind in kinds.values())


# For real


def test_two_sets_and_two_seeds(written: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run once, what the sets share trained once a seed, and means of exactly what the runs say."""
    quick = {
        "sampling.num_inference_steps": 1,
        "evaluation.metrics.names": ["mel_correlation"],
        "evaluation.systems": ["eeg", "shuffled"],
        "evaluation.primary": "mel_correlation",
        "evaluation.max_stimuli": 4,
        "evaluation.n_resamples": 100,
    }
    path = written({"common": quick, "sets": {"plain": {}, "film": {"model.denoiser.conditioning": ["film"]}}})
    data = toy_data(tmp_path / "noise")
    monkeypatch.setattr(training, "prepare_data", lambda *_: data)
    trained: list[str] = []
    train_stage = training.train_stage
    monkeypatch.setattr(
        training, "train_stage", lambda stage, *rest: (trained.append(stage.name), train_stage(stage, *rest))[1]
    )
    table = pd.read_csv(ablate(path, tmp_path / "runs"), keep_default_na=False)
    assert sorted(trained) == ["autoencoder"] * 2 + ["contrastive"] * 2 + ["diffusion"] * 4
    runs = {name: RunResult.load(tmp_path / "runs" / f"mine-{name}") for name in RUNS}
    assert len({run.signature for run in runs.values()}) == 4
    for name in ("plain", "film"):
        cells = [runs[f"{name}-seed{seed}"].value("eeg", "mel_correlation") for seed in (0, 1)]
        values = [cell.value for cell in cells if cell is not None]
        found = row(table, name, metric="mel_correlation")
        assert float(found["mean"]) == pytest.approx(np.mean(values))
        assert json.loads(found["values"]) == values
        assert values[0] != values[1]
    record = json.loads((tmp_path / "runs" / "mine.json").read_text())
    assert record["runs"] == {run.name: run.signature for run in runs.values()}
    assert len(record["rows"]) == len(table)
    assert record["rows"][0]["values"] == json.loads(table["values"][0])
    assert AblationConfig.model_validate(record["ablation"]) == read(path)
    before = (tmp_path / "runs" / "mine.csv").read_bytes()
    ablate(path, tmp_path / "runs")
    assert len(trained) == 8, "a second call trains nothing"
    assert (tmp_path / "runs" / "mine.csv").read_bytes() == before


RUNS = ("plain-seed0", "plain-seed1", "film-seed0", "film-seed1")
