"""A trained run sampled in other ways: what is tried, what comes of it, and how the report draws it."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

from eeg2speech import config as configs
from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.evaluation import SamplingConfig
from eeg2speech.runs import RunFolder
from eeg2speech.training import run as training
from eval import __main__ as command
from eval import runner
from eval.results import EXAMPLE_KEYS, RunResult, SweepResult
from eval.sweep import SETTING, Plan, require_trained, subset, sweep
from reports import sweeps
from reports.build import build
from tests.toy_fixture import VALUES, toy_data, toy_experiment

METRICS = ("mel_correlation", "top1")
QUICK = (
    "sampling.num_inference_steps=2",
    f"evaluation.metrics.names=[{', '.join(METRICS)}]",
    "evaluation.systems=[eeg, shuffled, reconstruction]",
    "evaluation.primary=mel_correlation",
    "evaluation.max_stimuli=4",
    "evaluation.n_resamples=100",
)
PLAN = Plan(schedulers=("dpmsolver++", "ddim"), steps=(1, 2, 3), guidance=(1.0, 2.0, 4.0))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, ExperimentConfig]:
    """A run that was trained, evaluated and swept."""
    folder = tmp_path_factory.mktemp("sweep")
    data, config = toy_data(folder / "noise"), toy_experiment(*QUICK).model_copy(update={"name": "toy"})
    run = RunFolder(folder / "toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "prepare_data", lambda *_: data)
        runner.run(config, run, "nox -s evaluate")
        sweep(config, run, PLAN)
        before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*.wav")}
        sweep(config, run, PLAN)
        assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*.wav")} == before, "what is done is not done again"
    return run, config


def of(run: RunFolder) -> SweepResult:
    result = SweepResult.load(run.path)
    assert result is not None
    return result


# What is tried


def settings(plan: Plan, *sets: str) -> list[tuple[object, ...]]:
    return [tuple(getattr(s, name) for name in SETTING) for s in plan.settings(toy_experiment(*sets))]


def test_steps_and_guidance_are_varied_one_at_a_time() -> None:
    """Each scheduler with each number of steps; each guidance with each rescale; each setting once."""
    plan = Plan(("ddim", "dpmsolver++"), (5, 10), (1.0, 2.0), (0.0, 0.7), (0.5, 1.0))
    assert settings(plan) == [
        ("dpmsolver++", 10, 1.0, 0.0, 1.0),
        ("ddim", 5, 1.0, 0.0, 1.0),
        ("ddim", 10, 1.0, 0.0, 1.0),
        ("dpmsolver++", 5, 1.0, 0.0, 1.0),
        ("dpmsolver++", 10, 1.0, 0.7, 1.0),
        ("dpmsolver++", 10, 2.0, 0.0, 1.0),
        ("dpmsolver++", 10, 2.0, 0.7, 1.0),
        ("dpmsolver++", 10, 1.0, 0.0, 0.5),
    ]
    flow = (
        "model.schedule={objective: flow_matching}",
        "training.diffusion.min_snr_gamma=null",
        "sampling.scheduler=heun",
    )
    assert settings(Plan(("euler",), (4,)), *flow)[1:] == [("euler", 4, 1.0, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (Plan(steps=(0,)), "num_inference_steps 0"),
        (Plan(guidance=(-1.0,)), "guidance_scale -1.0"),
        (Plan(rescale=(2.0,)), "guidance_rescale 2.0"),
        (Plan(schedulers=("leap",)), "scheduler 'leap'"),
        (Plan(schedulers=("euler",), steps=(4,)), "euler does not solve the objective"),
        (Plan(), "nothing differs from the config's own sampling"),
        (Plan(steps=(10,)), "nothing differs from the config's own sampling"),
    ],
)
def test_an_impossible_setting_is_refused(plan: Plan, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        plan.settings(toy_experiment())


def test_what_is_not_trained_is_refused(
    swept: tuple[RunFolder, ExperimentConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = swept
    require_trained(config, run)
    require_trained(config.model_copy(update={"sampling": SamplingConfig(num_inference_steps=7)}), run)
    with pytest.raises(UserError, match=r"config.yaml: the run was trained with another seed and training"):
        require_trained(toy_experiment("seed=1", "training.diffusion.steps=3"), run)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    arguments = ["sweep", "--config", str(path), "--runs", str(tmp_path / "runs"), "--steps", "2,5"]
    assert command.main(arguments) == 2
    assert "mine is not trained (autoencoder, contrastive, diffusion): run `nox -s train`" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "mine" / "diffusion").exists()
    assert command.main([*arguments, "--metrics", "charm"]) == 2
    assert "charm" in capsys.readouterr().err
    assert command.main([*arguments, "--stimuli", "1"]) == 2
    assert "--stimuli 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*arguments, "--steps", "many"])


def test_the_command_sweeps_a_copy_of_the_run(
    swept: tuple[RunFolder, ExperimentConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its arguments: a flat list of settings, fewer stimuli, one metric; the run's own results stay."""
    run, config = swept
    shutil.copytree(run.path, tmp_path / "runs" / "toy")
    monkeypatch.setattr(training, "prepare_data", lambda *_: toy_data(tmp_path / "noise"))
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"name"})))
    chosen = ["--config", str(path), "--runs", str(tmp_path / "runs"), "--steps", "1", "--guidance", "1,3"]
    assert command.main(["sweep", *chosen, "--rescale", "0,.7", "--stimuli", "3", "--metrics", "mel_correlation"]) == 0
    result = of(RunFolder(tmp_path / "runs" / "toy"))
    assert [(p.num_inference_steps, p.guidance_scale, p.guidance_rescale) for p in result.points] == [
        (2, 1.0, 0.0), (1, 1.0, 0.0), (2, 1.0, 0.7), (2, 3.0, 0.0), (2, 3.0, 0.7)
    ]  # fmt: skip
    assert result.n_stimuli == 3
    assert {r.metric for p in result.points for r in p.results} == {"mel_correlation"}
    kept = [(folder / "results.json").read_bytes() for folder in (run.path, tmp_path / "runs" / "toy")]
    assert kept[0] == kept[1]


def test_a_setting_is_chosen_on_the_validation_split(
    swept: tuple[RunFolder, ExperimentConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stimuli are none of the test split's, its sounds lie apart, and the figure says so."""
    run, config = swept
    shutil.copytree(run.path, tmp_path / "toy")
    data, copied = toy_data(tmp_path / "noise"), RunFolder(tmp_path / "toy")
    monkeypatch.setattr(training, "prepare_data", lambda *_: data)
    sweep(config, copied, Plan(temperatures=(0.0, 0.5)), "valid")
    result = of(copied)
    assert (result.split, [p.temperature for p in result.points]) == ("valid", [1.0, 0.0, 0.5])
    valid = data.windows.iloc[data.indices("valid")]
    table = pd.read_parquet(copied.path / "sweep.parquet")
    assert set(table["stimulus_id"]) == set(data.stimuli.iloc[valid["stimulus"].unique()]["stimulus_id"])
    assert not set(table["stimulus_id"]) & set(pd.read_parquet(run.path / "sweep.parquet")["stimulus_id"])
    assert table["wav"].str.startswith("sweep/valid/").all()
    (drawn, *_) = sweeps.pictures(copied.path, RunResult.load(copied.path))
    assert "against temperature" in drawn.title
    assert "validation stimuli, one training" in drawn.caption


def test_a_subset_is_of_stimuli_and_metrics() -> None:
    config = toy_experiment()
    chosen = subset(config, 12, ("wer",)).evaluation
    assert (chosen.max_stimuli, chosen.metrics.names) == (12, ("wer",))
    assert subset(config, None, None) == config


# What comes of it


def test_every_point_is_scored_with_its_floor(swept: tuple[RunFolder, ExperimentConfig]) -> None:
    run, config = swept
    result = of(run)
    assert [tuple(getattr(p, n) for n in SETTING) for p in result.points] == settings(PLAN, *QUICK)
    assert [p.network_calls for p in result.points] == [2, 1, 3, 1, 2, 3, 4, 4]
    for point in result.points:
        cells = {(r.system, r.metric): r.value for r in point.results}
        assert cells.keys() == {(s, m) for s in ("eeg", "shuffled") for m in METRICS}
        assert all(isinstance(value, float) for value in cells.values())
        for c in point.comparisons:
            gain = cells["eeg", c.metric] - cells["shuffled", c.metric]  # type: ignore[operator]
            assert c.gain == pytest.approx(gain, abs=1e-9)
    assert {r.metric for r in result.ceiling_results if r.value is not None} == {"mel_correlation"}


def test_its_first_point_is_the_run_itself(swept: tuple[RunFolder, ExperimentConfig]) -> None:
    """And the run's own files are as the evaluation left them."""
    run, config = swept
    result, own = of(run), RunResult.load(run.path)
    for cell in result.points[0].results:
        found = own.value(cell.system, cell.metric)
        assert found is not None
        assert cell.value == found.value
        assert cell.ci == found.ci
    assert result.weights_sha256 == own.provenance["weights_sha256"]
    assert configs.ExperimentConfig.model_validate(yaml.safe_load(run.config.read_text())) == config


def test_only_what_is_sampled_changes(swept: tuple[RunFolder, ExperimentConfig]) -> None:
    """Retrieval ranks the EEG's own embedding, which no sampler touches; the mel correlation is of what is spoken."""
    for metric, distinct in (("top1", 1), ("mel_correlation", 8)):
        values = [r.value for p in of(swept[0]).points for r in p.results if (r.system, r.metric) == ("eeg", metric)]
        assert len(set(values)) == distinct, metric


def test_the_table_of_examples_adds_up(swept: tuple[RunFolder, ExperimentConfig]) -> None:
    run, _ = swept
    table = pd.read_parquet(run.path / "sweep.parquet")
    assert not table.duplicated([*EXAMPLE_KEYS, *SETTING]).any()
    for point in of(run).points:
        mine = table[np.logical_and.reduce([table[name] == getattr(point, name) for name in SETTING])]
        for cell in point.results:
            rows = mine[mine.system == cell.system]
            assert rows[cell.metric].sum() / rows[f"{cell.metric}_n"].sum() == pytest.approx(cell.value)
        assert all((run.path / wav).is_file() for wav in mine.wav)


# The figures


def test_the_report_draws_it(swept: tuple[RunFolder, ExperimentConfig]) -> None:
    run, _ = swept
    own = RunResult.load(run.path)
    drawn = sweeps.pictures(run.path, own)
    titles = [picture.title for picture in drawn]
    assert len(titles) == 2, "one of steps and one of guidance; retrieval, which nothing changes, is in neither"
    assert "against steps" in titles[0]
    assert titles[1].startswith("Guidance and dependence on the EEG")
    for picture in drawn:
        text = " ".join(ElementTree.fromstring(str(picture.svg)).itertext())
        assert "higher is better" in text or "gain over shuffled EEG" in text
        assert "4 test stimuli, one training" in picture.caption
    assert "dpmsolver++" in drawn[0].svg
    assert "ddim" in drawn[0].svg
    assert [str(p.svg) for p in sweeps.pictures(run.path, own)] == [str(p.svg) for p in drawn], "the same bytes"


def test_the_page_holds_the_figures(swept: tuple[RunFolder, ExperimentConfig], tmp_path: Path) -> None:
    page = build([swept[0].path], tmp_path).read_text(encoding="utf-8")
    assert page.count("against steps") >= 1
    assert page.count("Guidance and dependence on the EEG") >= 1


def test_a_sweep_of_other_weights_is_not_shown(swept: tuple[RunFolder, ExperimentConfig]) -> None:
    run, _ = swept
    own = RunResult.load(run.path)
    other = own.model_copy(update={"provenance": {"weights_sha256": {"diffusion": "0"}}})
    with pytest.raises(UserError, match=r"sweep.json is of other weights than results.json"):
        sweeps.pictures(run.path, other)


def test_no_sweep_is_no_figure_and_a_damaged_one_is_named(
    swept: tuple[RunFolder, ExperimentConfig], tmp_path: Path
) -> None:
    own = RunResult.load(swept[0].path)
    assert sweeps.pictures(tmp_path, own) == []
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json cannot be read"):
        sweeps.pictures(tmp_path, own)
