"""Cards, curves, the page over several runs, sounds as files, and the page of benchmarks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from report_fixture import Fake, write_fake_run
from test_report import Reader

from eeg2speech import audio, config
from eeg2speech.errors import UserError
from eval.results import RunResult, load_examples
from reports import anchors, benchmarks, cards, comparison, curves, figures, tables
from reports.__main__ import main, named, parser
from reports.build import build
from reports.formatting import short


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pages") / "fake"
    write_fake_run(place, Fake(seconds=0.2))
    return place


@pytest.fixture(scope="module")
def run(folder: Path) -> RunResult:
    return RunResult.load(folder)


def test_accuracy_among_fewer_candidates_is_that_of_drawing_them() -> None:
    rng = np.random.default_rng(0)
    n, size, k = 9, 4, 2
    rank = rng.integers(1, n + 1, 30).astype(float)
    hits = []
    for r in rank:
        for _ in range(2_000):
            rivals = rng.choice(np.delete(np.arange(1, n + 1), int(r) - 1), size - 1, replace=False)
            hits.append((rivals < r).sum() < k)
    assert curves.accuracy_among(rank, n, size, k) == pytest.approx(np.mean(hits), abs=0.01)
    assert curves.accuracy_among(rank, n, n, k) == pytest.approx((rank <= k).mean())


def test_number_of_candidates_comes_from_exact_chance(run: RunResult) -> None:
    assert tables.candidates(run) == 12
    unknown = [m.model_copy(update={"chance": None}) for m in run.metrics]
    assert tables.candidates(run.model_copy(update={"metrics": unknown})) is None
    assert curves.candidate_curve(run.model_copy(update={"metrics": unknown}), pd.DataFrame()) is None


def test_curves_are_drawn_where_there_are_sizes(run: RunResult, folder: Path) -> None:
    assert [p.title for p in curves.set_size_curves(run)] == ["FAD against N (resemblyzer)", "FAD against N (whisper)"]
    bare = [r.model_copy(update={"curve": []}) for r in run.results]
    assert curves.set_size_curves(run.model_copy(update={"results": bare})) == []
    drawn = curves.candidate_curve(run, load_examples(folder))
    assert drawn is not None
    assert "12 of this test set" in drawn.caption


def test_cards_tell_what_was_measured(run: RunResult, folder: Path, tmp_path: Path) -> None:
    build([folder], tmp_path)
    texts = {name: (tmp_path / "runs/matrix_fake" / f"{name}_card.md").read_text() for name in ("model", "dataset")}
    for text in texts.values():
        front = text.split("---")[1]
        head = yaml.safe_load(front)
        assert head["tags"][:2] == ["eeg", "speech"]
        assert head["license"] == "other"
        assert head["license_name"]
        assert "Simulated EEG says nothing about real brains" in text
    assert "beats the best control" in texts["model"]
    wer = run.value("eeg", "wer")
    assert wer is not None
    assert wer.value is not None
    assert f"| WER | {100 * wer.value:.1f} % (95 % CI" in texts["model"]
    assert "; floors: shuffled " in texts["model"]
    assert "Not run for the claim: estoi." in texts["model"].replace("\\", "")
    assert "11,700,000 parameters" in texts["model"]
    assert "synthetic, no licence needed" in texts["dataset"]
    assert "900" in texts["dataset"]
    recorded = run.model_copy(update={"simulated": False, "audit": []})
    assert "says nothing about real brains" not in cards.model_card(recorded).markdown()
    assert "No leakage audit was made" in cards.dataset_card(recorded).markdown()


def test_sounds_as_files_are_the_stored_sounds(folder: Path, tmp_path: Path) -> None:
    assert main(["build", str(folder), "--output", str(tmp_path), "--sounds", "files"]) == 0
    reader = Reader((tmp_path / "index.html").read_text(encoding="utf-8"))
    players = [a["src"] or "" for t, a in reader.elements if t == "audio"]
    assert len(players) >= 16
    assert not [x for x in players if x.startswith("data:")]
    stored = [soundfile.read(p, dtype="int16")[0] for p in (folder / "wavs").glob("*.wav")]
    for place in set(players):
        content, rate = soundfile.read(io.BytesIO((tmp_path / place).read_bytes()), dtype="int16")
        assert rate == audio.SAMPLE_RATE
        assert any(len(content) == len(s) and np.abs(content - s).max() <= 1 for s in stored), "FLAC loses nothing"
    assert main(["build", str(folder), "--output", str(tmp_path)]) == 0
    assert not list(tmp_path.rglob("*.flac")), "nothing is left that no page plays"


def config_run(run: RunResult, name: str, seed: int, **config: object) -> RunResult:
    about = {"name": name, "seed": seed, "model": {"audio_encoder": {"name": "deep_mel"}}, **config}
    return run.model_copy(update={"name": name, "training_seeds": [seed], "config": about})


def test_only_trainings_of_one_configuration_share_a_cell(run: RunResult) -> None:
    runs = [
        config_run(run, "a", 0), config_run(run, "b", 1), config_run(run, "c", 2, snr_db=0), config_run(run, "d", 1),
    ]  # fmt: skip
    groups = comparison.configurations(runs)
    assert [[r.name for r in g.runs] for g in groups] == [["a", "b"], ["c"], ["d"]], "d repeats a seed of the first"
    column = tables.headline_columns(run)[0]

    def shifted(source: RunResult, by: float) -> RunResult:
        rows = [
            r.model_copy(update={"value": r.value + by, "n": r.n}) if r.metric == "wer" and r.value is not None else r
            for r in source.results
        ]
        return source.model_copy(update={"results": rows})

    wer = run.value("eeg", "wer")
    assert wer is not None
    assert wer.value is not None
    two = comparison.Configuration("A", [shifted(runs[0], 0.0), shifted(runs[1], 0.1)])
    shown = comparison.cell(two, "eeg", column)
    values = np.array([wer.value, wer.value + 0.1])
    assert shown.text == f"{100 * values.mean():.1f}"
    assert shown.spread == f"± {100 * values.std(ddof=1):.1f}"
    fewer = [r.model_copy(update={"n": r.n - 1}) for r in runs[1].results]
    refused = comparison.cell(
        comparison.Configuration("A", [runs[0], runs[1].model_copy(update={"results": fewer})]), "eeg", column
    )
    assert refused.text == "–"
    assert "not averaged" in refused.reason
    other_code = runs[1].model_copy(update={"environment": {"git": {"sha": "f" * 40}}})
    assert len(comparison.configurations([runs[0], other_code])) == 2


def test_a_published_figure_is_comparable_only_under_its_own_conditions(run: RunResult) -> None:
    metrics = [m.model_copy(update={"chance": 1 / 190}) if m.name == "top1" else m for m in run.metrics]
    config = {
        "splits": {"by": "stimulus", "seed": 12, "valid": 0.1, "test": 0.2},
        "model": {"audio_encoder": {"name": "wav2vec2"}},
    }
    same = run.model_copy(
        update={"study": "brennan2019", "simulated": False, "metrics": metrics, "config": config, "name": "ours"}
    )

    def verdicts(ours: RunResult) -> dict[tuple[str, str], str]:
        board = anchors.leaderboard([ours], ["runs/ours/index.html"])
        return {(e.conditions.study, f"{e.metric} {e.system}"): e.verdict for e in board if e.published}

    found = verdicts(same)
    assert found["Brennan 2019", "top10 best"] == "comparable with ours"
    assert [v for v in found.values() if v.startswith("comparable")] == ["comparable with ours"]
    assert "embedder" in found["Brennan 2019", "top10 mel regression"]
    for change in ({"study": "matrix"}, {"simulated": True}, {"config": {}}, {"metrics": run.metrics}):
        differs = verdicts(same.model_copy(update=change))
        assert all(v.startswith("not comparable: ") for v in differs.values())
    leaky = same.model_copy(update={"audit": []})
    assert verdicts(leaky)["Brennan 2019", "top10 best"] == "not comparable: audit"
    ours = [e.verdict for e in anchors.leaderboard([leaky], [""]) if not e.published]
    assert ours
    assert set(ours) == {"with nothing: no leakage audit was made"}
    fewer = verdicts(same.model_copy(update={"metrics": run.metrics}))
    assert "candidates (190 against 12)" in fewer["Brennan 2019", "top10 best"]


MEASURED = {
    "machine_info": {"device": "Imaginary GPU <b>", "clocks": "1410 MHz", "load_before": [0.1, 0.2, 0.3],
                     "environment": {"packages": {"torch": "2.13.0"}}},
    "datetime": "2026-01-01T00:00:00+00:00",
    "benchmarks": [
        {"group": "denoiser", "name": "test_forward_lever[default-bfloat16+compile]",
         "stats": {"median": 0.0125, "rounds": 9},
         "extra_info": {"unit": "clip", "items": 4, "clips_per_s": 320.0, "median_interval_s": [0.012, 0.013],
                        "interval_coverage": 0.96, "mfu": 0.415, "promised_mfu": 0.45,
                        "sm_mhz": 1410, "peak_flops_per_s": 312e12, "dtype": "bfloat16",
                        "peak_source": "data sheet", "device_peak_mib": 1234.5, "host_peak_mib": 9.0,
                        "held_back_by": ["power"], "energy_j_per_item": 1.5, "real_time_factor": 0.004}},
        {"group": "frechet", "name": "test_own", "stats": {"median": 2.5, "rounds": 1},
         "extra_info": {"unit": "distance", "items": 1, "distances_per_s": 0.4, "host_peak_mib": 640.0,
                        "median_interval_s": [2.5, 2.5], "interval_coverage": 0.0}},
        {"group": "original", "name": "test_training_step", "stats": {"median": 3.5, "rounds": 5},
         "extra_info": {"unit": "window", "items": 4, "median_interval_s": [3.25, 3.75], "interval_coverage": 0.9375}},
        {"group": "original", "name": "test_as_it_was_written_once", "stats": {"median": 3.5, "rounds": 7},
         "extra_info": {"unit": "window", "items": 4}},
    ],
    "ratios": [{"name": "kept one", "ratio": 12.5, "promise": 12, "ours": "a", "peer": "b"},
               {"name": "missed one", "ratio": 7.0, "promise": 12, "ours": "a", "peer": "b"},
               {"name": "free one", "ratio": 2.0, "promise": None, "ours": "a", "peer": "b"}],
}  # fmt: skip


def test_benchmarks_are_shown_by_device(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "gpu.json").write_text(json.dumps(MEASURED))
    other = MEASURED | {"machine_info": {"device": "Imaginary CPU"}, "ratios": []}
    (results / "cpu.json").write_text(json.dumps(other))
    assert main(["build", str(folder), "--output", str(tmp_path), "--benchmarks", str(results)]) == 0
    reader = Reader((tmp_path / "benchmarks.html").read_text(encoding="utf-8"))
    assert not reader.stack
    for text in ("Imaginary GPU <b>", "Imaginary CPU", "forward lever", "bfloat16+compile", "12.5 ms", "320 clips/s",
                 "0.004", "41.5 %", "1,234 MiB", "640 MiB", "1.50 J", "one round",
                 "3.25 s to 3.75 s (94 %, 5 rounds)", "7 rounds", "promised 45 %: missed", "1410 to 1410 MHz",
                 "power (1 of 1)",
                 "312 TFLOP/s, data sheet"):  # fmt: skip
        assert text in reader.words
    assert [r.verdict for r in benchmarks.read(results / "gpu.json").ratios] == ["kept", "missed", ""]
    assert "denoiser: forward lever" in reader.words, "what both devices ran stands side by side"
    assert ("a", "benchmarks.html") in [
        (t, a.get("href")) for t, a in Reader((tmp_path / "index.html").read_text()).elements
    ]


@pytest.mark.parametrize(
    ("change", "together"),
    [
        ({}, True),
        ({"clips_per_s": 9.0}, True),
        ({"items": 2}, False),
        ({"unit": "window"}, False),
        ({"flops": 4e12}, False),
        ({"parameters": 10}, False),
        ({"of": "large"}, False),
    ],
)
def test_only_equal_work_stands_side_by_side(tmp_path: Path, change: dict, together: bool) -> None:
    sizes = {"shapes": {"default": {"model": {"channels": 4}}, "large": {"model": {"channels": 8}}}}
    first = MEASURED["benchmarks"][0]
    other = first | {"extra_info": first["extra_info"] | change}
    for name, benchmark in (("a", first), ("b", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(MEASURED | {"benchmarks": [benchmark], "sizes": sizes}))
    rows = benchmarks.across(benchmarks.load(tmp_path))
    name = "denoiser: forward lever default · bfloat16+compile, 4 clips"
    assert rows == ([(name, ["12.5 ms", "12.5 ms"])] if together else [])


def test_a_shape_that_means_something_else_is_not_beside_it(tmp_path: Path) -> None:
    for channels in (4, 8):
        sizes = {"shapes": {"default": {"model": {"channels": channels}}}}
        (tmp_path / f"{channels}.json").write_text(json.dumps(MEASURED | {"sizes": sizes}))
    names = [name for name, _ in benchmarks.across(benchmarks.load(tmp_path))]
    assert [name.split(":")[0] for name in names] == ["frechet", "original", "original"]


def test_without_measurements_there_is_no_benchmarks_page(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    build([folder], tmp_path / "out", benchmark_results=tmp_path / "results")
    assert not (tmp_path / "out" / "benchmarks.html").exists()
    assert "benchmarks.html" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"machine_info": {}, "benchmarks": [{}]}'])
def test_a_broken_measurement_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "gpu.json").write_text(content)
    with pytest.raises(UserError, match=r"gpu\.json"):
        benchmarks.load(tmp_path)


def test_hashes_are_shortened_and_words_kept() -> None:
    assert short("a" * 64) == "a" * 12 + "…"
    assert short("whisper 1a5afae06a4d") == "whisper 1a5afae06a4d"


@pytest.mark.parametrize("more", [[], ["--name", "mine"], ["--set", "seed=3"], ["--set", "seed=3", "--name", "mine"]])
def test_the_page_is_of_the_run_that_the_same_arguments_made(more: list[str]) -> None:
    """By the name that a config gives itself, whether or not the config had to be read for it."""
    arguments = parser().parse_args(["build", "--config", "configs/tiny.yaml", *more])
    overrides, name = arguments.overrides, arguments.name
    assert named(arguments) == config.load(arguments.config, overrides, name).name


def test_chance_among_ranks_follows_from_the_candidates_and_not_from_the_worst_rank(
    run: RunResult, folder: Path
) -> None:
    examples = load_examples(folder)
    drawn = figures.rank_histogram(run, examples.assign(rank=examples["rank"].clip(upper=3)), 12)
    assert drawn is not None
    assert "among 12 candidates; the worst rank seen is 3." in drawn.caption
    unknown = figures.rank_histogram(run, examples, None)
    assert unknown is not None
    assert "dotted" not in unknown.caption
