"""The instrument where the truth is known: false positives, power, the ladder, and their page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_fixture import Fake, write_fake_run
from scipy import stats

from eeg2speech.errors import UserError
from eval import calibration, nulls
from eval.__main__ import main
from eval.results import Calibration, MetricResult, RunResult
from eval.statistics import Pairs
from reports import psychometric
from reports.build import build

CONFIG = Path(__file__).parents[1] / "configs" / "calibrate.yaml"


@pytest.mark.parametrize("experiment", [nulls.retrieval, nulls.word_errors])
def test_without_signal_few_experiments_are_significant(experiment: nulls.Experiment) -> None:
    found = nulls.series("", "", "", [experiment(seed) for seed in range(40)])
    assert found.ci[0] <= nulls.ALPHA
    assert 0 < np.mean(found.p) < 1
    assert found.beats <= found.significant


def test_a_planted_effect_is_found_as_often_as_computed() -> None:
    found = nulls.series("", "", "", [nulls.planted(seed) for seed in range(60)], nulls.computed_power())
    assert found.ci[0] <= found.expected <= found.ci[1]
    assert found.beats == found.significant, "none is significant the wrong way round"


@pytest.mark.slow
def test_a_thousand_experiments_of_known_truth() -> None:
    """The rate's interval holds the level of the test or lies below it; the power's holds the computed power."""
    for found in nulls.drawn_series(1_000):
        assert found.ci[0] <= found.expected, found.name
        assert found.truth == "null" or found.expected <= found.ci[1], found.name


def test_a_test_that_forgot_what_listeners_share_would_be_caught() -> None:
    """The same experiments with every listener flipped by itself: far more than one in twenty."""
    outcomes = []
    for seed in range(40):
        rng, rows = np.random.default_rng([seed, 11]), nulls.crossed()
        values, ones = nulls.clustered(rng, rows), np.ones(len(rows))
        each_its_own = np.arange(len(rows))
        outcomes.append(nulls.outcome(Pairs(values, ones, 0 * ones, ones, each_its_own, each_its_own), True, seed))
    assert nulls.series("", "", "", outcomes).ci[0] > nulls.ALPHA


def test_computed_power_is_that_of_simulated_t_tests() -> None:
    rng = np.random.default_rng(0)
    error = np.sqrt(2 * (nulls.SHARED + (1 - nulls.SHARED) / nulls.N_SUBJECTS))
    draws = nulls.planted_size() + error * rng.normal(size=(20_000, nulls.N_STIMULI))
    assert nulls.computed_power() == pytest.approx((stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean(), abs=0.01)
    assert nulls.computed_power(0.0) == pytest.approx(nulls.ALPHA)


def test_listeners_share_what_they_are_said_to_share() -> None:
    rows = nulls.crossed(4_000, 2)
    values = nulls.clustered(np.random.default_rng(1), rows).reshape(4_000, 2)
    assert np.corrcoef(values.T)[0, 1] == pytest.approx(nulls.SHARED, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.03)


def test_exact_interval_by_the_beta_quantiles() -> None:
    """Clopper & Pearson 1934: quantiles of beta distributions."""
    expected = stats.beta.ppf(0.025, 7, 34), stats.beta.ppf(0.975, 8, 33)
    assert nulls.exact_interval(7, 40) == pytest.approx(expected)
    assert nulls.exact_interval(0, 40)[0] == 0


def test_rungs_differ_in_their_snr_alone() -> None:
    low, high = (calibration.rung_config(CONFIG, snr) for snr in (-math.inf, 10.0))
    assert (low.name, high.name) == ("snr-inf", "snr+10")
    one, two = (c.model_dump(mode="json") for c in (low, high))
    assert one["study"].pop("snr_db") == -math.inf
    assert two["study"].pop("snr_db") == 10.0
    assert {k: v for k, v in one.items() if k != "name"} == {k: v for k, v in two.items() if k != "name"}


def test_retrained_experiments_share_no_seed_and_hear_nothing() -> None:
    one, two = (calibration.null_config(CONFIG, seed) for seed in (1, 2))
    for config in (one, two):
        assert config.study.snr_db == -math.inf
        assert config.training.diffusion is None
        assert config.training.contrastive.steps > 0
    assert one.seed != two.seed
    assert one.study.seed != two.study.seed
    assert one.evaluation.seed != two.evaluation.seed
    assert one.name != two.name


def fake_calibration(folder: Path) -> Calibration:
    """Three rungs of made-up runs, the middle one's EEG half way up."""
    write_fake_run(folder, Fake(seconds=0.2))
    run = RunResult.load(folder)
    rungs = []
    for snr, shift in ((-math.inf, 0.0), (-10.0, 0.1), (10.0, 0.2)):
        cells = [
            r.model_copy(update={"value": r.value - shift}) if r.system == "eeg" and r.value is not None else r
            for r in run.results
        ]
        found = calibration.rung(run.model_copy(update={"results": cells}))
        rungs.append(found.model_copy(update={"snr_db": snr}))
    outcomes = [nulls.Outcome(p, 1.0) for p in np.linspace(0.001, 1, 100)]
    return Calibration(
        name="fake",
        study="matrix",
        simulated=True,
        alpha=0.05,
        metrics=run.metrics,
        rungs=rungs,
        series=[nulls.series("without signal", "Made up.", "mrr", outcomes)],
        config={"study": {"name": "matrix"}},
        environment={"python": "3"},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    folder = tmp_path_factory.mktemp("calibration") / "run"
    return folder, fake_calibration(folder)


def test_results_come_back_as_they_were_saved(made: tuple[Path, Calibration], tmp_path: Path) -> None:
    path = made[1].save(tmp_path)
    back = Calibration.load(path)
    assert back == made[1]
    assert back.rungs[0].snr_db == -math.inf
    path.write_text("{}")
    with pytest.raises(UserError, match=r"calibration\.json"):
        psychometric.load(tmp_path)
    assert psychometric.load(tmp_path / "absent") is None


def test_points_stand_at_their_snr_and_no_response_left_of_all(made: tuple[Path, Calibration]) -> None:
    rungs = made[1].rungs
    axis = psychometric.Axis((-math.inf, -10.0, 10.0))
    found = psychometric.points(list(reversed(rungs)), axis, "eeg", "wer", None)
    assert [p.x for p in found] == [axis.place(-math.inf), -10, 10]
    assert found[0].x < -10
    assert np.allclose(np.diff([p.value for p in found]), -0.1)


def test_a_rung_that_was_not_scored_leaves_a_gap_and_no_number(made: tuple[Path, Calibration]) -> None:
    rungs = list(made[1].rungs)
    cells = [MetricResult(system=r.system, metric=r.metric, embedder=r.embedder, reason="no") for r in rungs[1].results]
    rungs[1] = rungs[1].model_copy(update={"results": cells})
    axis = psychometric.Axis((-math.inf, -10.0, 10.0))
    assert [p.x for p in psychometric.points(rungs, axis, "eeg", "wer", None)] == [axis.place(-math.inf), 10]


def test_the_report_links_to_the_page_of_the_calibration(made: tuple[Path, Calibration], tmp_path: Path) -> None:
    folder, found = made
    found.save(tmp_path / "known")
    page = build([folder], tmp_path / "out", calibration_results=tmp_path / "known")
    assert 'href="calibration.html"' in page.read_text(encoding="utf-8")
    text = (tmp_path / "out" / "calibration.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 1 + len(psychometric.curves(found))
    assert "5 of 100 experiments are significant (5.0 %" in text
    assert "band of floors" in text
    without = build([folder], tmp_path / "plain", calibration_results=tmp_path / "nothing")
    assert "calibration.html" not in without.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("hits", "truth", "words"),
    [
        (5, "null", "contains the expected 5.0 %"),
        (0, "null", "conservative"),
        (30, "null", "claims too much"),
        (30, "effect", "below the computed power"),
    ],
)
def test_the_verdict_says_where_the_interval_lies(hits: int, truth: str, words: str) -> None:
    outcomes = [nulls.Outcome(0.01 if i < hits else 0.5, 1.0) for i in range(100)]
    expected = 0.8 if truth == "effect" else 0.05
    assert words in psychometric.verdict(nulls.series("", "", "", outcomes, expected, truth))


def test_levels_and_a_study_without_snr_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("study: {name: brennan2019, folder: nowhere}\n")
    assert main(["calibrate", "--config", str(other), "--runs", str(tmp_path)]) == 2
    assert "other.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["calibrate", "--snr-db=loud"])


@pytest.mark.slow
def test_a_calibration_from_the_command_line_is_not_done_twice(tmp_path: Path) -> None:
    arguments = ["calibrate", "--config", str(CONFIG), "--runs", str(tmp_path), "--output", str(tmp_path / "out")]
    arguments += ["--snr-db=", "--drawn", "5", "--trained", "1"]
    assert main(arguments) == 0
    done = tmp_path / "calibrate" / "null-000" / "evaluation" / "done.json"
    before = done.stat().st_mtime_ns
    assert main(arguments) == 0
    assert done.stat().st_mtime_ns == before
    found = Calibration.load(tmp_path / "out" / "calibration.json")
    assert [s.n for s in found.series] == [5, 5, 5, 1]
    assert 0 < found.series[-1].p[0] <= 1
