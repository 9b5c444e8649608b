"""Another system's sounds, scored beside the rows of a run: the same numbers, and nothing that is not complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile

from eeg2speech.__main__ import main as train_main
from eeg2speech.evaluation import EvaluationConfig, MetricsConfig
from eeg2speech.training import run as training_run
from eval import runner
from eval.__main__ import main
from eval.metrics import build_metrics
from eval.metrics.base import SystemOutput, TestSet
from eval.results import MetricResult, RunResult, SystemInfo, load_examples
from eval.submission import CLAIM, FLOOR
from reports.__main__ import main as reports
from tests.metrics_fixture import make_test, per_listener, per_stimulus, tones
from tests.report_fixture import write_fake_run
from tests.toy_fixture import VALUES

CHOSEN = MetricsConfig(names=("mel_correlation", "top1", "audio_to_speech_top1"), embedders=())
N_STIMULI, SECONDS = 8, 0.5


def known(test: TestSet, output: SystemOutput) -> SystemOutput:
    rows = output.rows.assign(study="matrix", recording=output.rows.subject.map(lambda s: s and f"{s}-r1"))
    return SystemOutput(output.system, output.hears_eeg, rows, output.waveform)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/default` as the runner writes it, of four systems whose sounds are known, with the tables of its split."""
    place = tmp_path_factory.mktemp("submission") / "runs" / "default"
    clips = np.round(tones(N_STIMULI, round(SECONDS * 16_000)) * 32768).astype(np.float32) / 32768
    test = make_test([f"word {i}" for i in range(N_STIMULI)], clips)
    heard = np.repeat(clips, 2, axis=0)  # of each stimulus by two listeners
    rng = np.random.default_rng(0)
    said = {"eeg": heard + 0.02 * rng.standard_normal(heard.shape), "shuffled": np.roll(heard, 2, axis=0)}
    outputs = [known(test, per_stimulus(test, clips))]
    outputs += [known(test, per_listener(test, w.astype(np.float32), system=name)) for name, w in said.items()]
    metrics = build_metrics(CHOSEN, place.parent / "cache" / "weights")
    results = []
    for output in outputs:
        where = place / "evaluation" / output.system
        runner.score_output(output, test, 0, metrics, where)
        for m in json.loads((where / runner.MEASUREMENTS).read_text()):
            kept = {key: m[key] for key in ("embedder", "value", "n", "reason", "signature")}
            results.append(MetricResult(system=output.system, metric=m["metric"]["name"], **kept))
    roles = {"reference": "ceiling", "eeg": "claim", "shuffled": "floor"}
    shown = [
        SystemInfo(name=o.system, role=roles[o.system], description="", n_examples=1, n_stimuli=1, n_subjects=1)
        for o in outputs
    ]
    evaluation = EvaluationConfig(metrics=CHOSEN, primary="mel_correlation")
    fake = write_fake_run(place.parent.parent / "fake")
    update = {
        "name": "default", "results": results, "systems": shown, "metrics": [m.describe(test) for m in metrics],
        "config": {"evaluation": evaluation.model_dump(mode="json"), "study": write_study(place.parent / "recorded")},
        "comparisons": [],
        "data": fake.data | {"window_s": SECONDS, "fingerprint": "f00d"},
    }  # fmt: skip
    fake.model_copy(update=update).save(place)
    parts = [pd.read_parquet(place / "evaluation" / o.system / runner.EXAMPLES) for o in outputs]
    pd.concat(parts, ignore_index=True).to_parquet(place / "examples.parquet")
    _write_tables(test, place.parent / "cache" / "matrix-f00d")
    return place.parent


def write_study(root: Path) -> dict[str, Any]:
    """What was recorded of both listeners, and the config of a study that reads it."""
    root.mkdir()
    np.save(root / "heard.npy", np.ones(64, dtype=np.float32))
    for name in ("P0-r1", "P1-r1"):
        np.savez(root / f"{name}.npz", eeg=np.zeros((2, 128), dtype=np.float32), sfreq=64.0)
    lines = [f"P{k}-r1.npz,P{k},heard.npy,64" for k in (0, 1)]
    (root / "manifest.csv").write_text("\n".join(["file,subject,features,rate", *lines]))
    placed = {"ch_names": ["Cz", "Pz"], "montage": "biosemi64"}
    return {"name": "folder", "root": str(root), "manifest": "manifest.csv", **placed}


def _write_tables(test: TestSet, cache: Path) -> None:
    """Windows and stimuli of the split: those of the test set, and one training sentence of each listener."""
    cache.mkdir(parents=True)
    ids = [*test.stimuli["stimulus_id"], "learnt"]
    text = [*test.stimuli["text"], "taught words"]
    split = ["test"] * N_STIMULI + ["train"]
    rows = [
        ("matrix", subject, f"{subject}-r1", k, ids[k], 1.0 + 4 * k, SECONDS, text[k], split[k])
        for subject in ("P0", "P1")
        for k in range(len(ids))
    ]
    columns = ["study", "subject", "recording", "stimulus", "stimulus_id", "onset_s", "length_s", "text", "split"]
    pd.DataFrame(rows, columns=columns).to_parquet(cache / "windows.parquet")
    sounds = pd.DataFrame({"stimulus_id": ids, "path": [f"{i}.wav" for i in ids], "offset_s": 0.0})
    sounds.to_parquet(cache / "stimuli.parquet")


@pytest.fixture
def submitted(runs: Path, tmp_path: Path) -> Path:
    """A folder `theirs` with the sounds of the run's own row eeg, in another order and under other names."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    rows = load_examples(runs / "default").query("system == 'eeg'").sample(frac=1, random_state=1)
    names = [f"{number}.wav" for number in range(len(rows))]
    for name, wav in zip(names, rows["wav"], strict=True):
        shutil.copy(runs / "default" / wav, folder / name)
    rows[["subject", "recording", "stimulus_id"]].assign(wav=names).to_csv(folder / "manifest.csv", index=False)
    return folder


def score(runs: Path, folder: Path, *more: str) -> int:
    return main(["score", "--wavs", str(folder), "--study", "matrix", "--runs", str(runs), *more])


def cells(run: RunResult, system: str, metric: str) -> dict[str | None, MetricResult]:
    return {r.subject: r for r in run.results if (r.system, r.metric) == (system, metric)}


# What it scores


def test_the_runs_own_sounds_score_what_the_run_scored(runs: Path, submitted: Path) -> None:
    assert score(runs, submitted) == 0
    run = RunResult.load(runs / "theirs")
    ours, theirs = (cells(run, name, "mel_correlation") for name in ("eeg", CLAIM))
    assert set(ours) == {None, "P0", "P1"}
    for subject, cell in ours.items():
        assert theirs[subject].value == pytest.approx(cell.value, abs=1e-9)
        assert theirs[subject].ci == pytest.approx(cell.ci, abs=1e-9)
    roles = {s.name: s.role for s in run.systems}
    assert roles == {"reference": "ceiling", "eeg": "rival", "shuffled": "floor", CLAIM: "claim", FLOOR: "floor"}
    assert run.submission is not None
    assert run.submission.n_sounds == 2 * N_STIMULI
    assert run.training_seeds == []


def test_its_own_floor_is_its_sounds_for_other_stimuli(runs: Path, submitted: Path) -> None:
    """By the wavs: each of a listener's sounds once, and never at the stimulus it was made for."""
    assert score(runs, submitted) == 0
    examples = load_examples(runs / "theirs").set_index(["system", "subject", "stimulus_id"])["wav"]
    sound = {key: (runs / "theirs" / wav).read_bytes() for key, wav in examples.items()}
    for subject in ("P0", "P1"):
        mine = {i: sound[CLAIM, subject, i] for s, u, i in sound if (s, u) == (CLAIM, subject)}
        floor = {i: sound[FLOOR, subject, i] for i in mine}
        assert sorted(floor.values()) == sorted(mine.values())
        assert not [i for i in mine if floor[i] == mine[i]]
    endpoint = RunResult.load(runs / "theirs").endpoint
    assert endpoint.best_floor in (FLOOR, "shuffled")
    assert endpoint.gain is not None
    assert endpoint.gain > 0.1
    assert endpoint.p is not None
    assert endpoint.p < 0.05


def test_what_needs_an_encoder_is_not_run(runs: Path, submitted: Path) -> None:
    assert score(runs, submitted) == 0
    run = RunResult.load(runs / "theirs")
    cell = run.value(CLAIM, "top1")
    assert cell is not None
    assert cell.value is None
    assert cell.reason == "this system makes no embedding from EEG"
    for system in (CLAIM, "eeg"):  # the fixture scores all by their sounds alone
        cell = run.value(system, "audio_to_speech_top1")
        assert cell is not None
        assert cell.reason is not None
        assert "submitted or stored sounds are scored without a model" in cell.reason
    chance = next(m.chance for m in run.metrics if m.name == "top1")
    assert chance == pytest.approx(1 / N_STIMULI)


def test_a_second_call_does_nothing_and_another_sound_is_another_score(
    runs: Path, submitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(runs, submitted) == 0
    before = RunResult.load(runs / "theirs")
    capsys.readouterr()
    assert score(runs, submitted) == 0
    assert "nothing to do" in capsys.readouterr().out
    shutil.copy(submitted / "1.wav", submitted / "0.wav")
    assert score(runs, submitted) == 0
    after = RunResult.load(runs / "theirs")
    assert after.value(CLAIM, "mel_correlation") != before.value(CLAIM, "mel_correlation")
    assert after.value("eeg", "mel_correlation") == before.value("eeg", "mel_correlation")
    assert after.signature != before.signature


def test_the_report_says_what_it_is(runs: Path, submitted: Path, tmp_path: Path) -> None:
    assert score(runs, submitted, "--name", "theirs") == 0
    page = tmp_path / "page"
    assert reports(["build", str(runs / "theirs"), "--output", str(page)]) == 0
    text = (page / "index.html").read_text()
    assert "A submission of 16 sounds" in text
    assert "The submission beats the best control" in text
    assert "Model of" not in text
    card = (page / "runs" / "theirs" / "model_card.md").read_text()
    assert "Submission card" in card
    assert "latent diffusion" not in card
    assert reports(["verify", str(runs / "theirs"), "--cell", f"{CLAIM}/mel_correlation"]) == 0


# What it refuses


def edit(folder: Path, change: str) -> None:
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    if change == "missing":
        table = table.iloc[1:]
    elif change == "doubled":
        table = pd.concat([table, table.iloc[:1]])
    elif change == "unknown":
        table.loc[0, "subject"] = "P7"
    elif change == "no wav":
        table.loc[0, "wav"] = ""
    elif change == "no file":
        (folder / table.loc[0, "wav"]).unlink()
    elif change == "no column":
        table = table.drop(columns="recording")
    elif change == "no sound":
        (folder / table.loc[0, "wav"]).write_text("hello")
    elif change in ("long", "short"):
        soundfile.write(folder / table.loc[0, "wav"], np.zeros(9_000 if change == "long" else 7_000), 16_000)
    elif change == "nan":
        sound = np.full(round(SECONDS * 16_000), np.nan)
        soundfile.write(folder / table.loc[0, "wav"], sound, 16_000, subtype="FLOAT")
    table.to_csv(folder / "manifest.csv", index=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "stimulus_id {stimulus_id} is missing"),
        ("doubled", "subject {subject}, recording {recording}, stimulus_id {stimulus_id} is listed twice"),
        ("unknown", "subject P7, recording {recording}, stimulus_id {stimulus_id} is not in the test set"),
        ("no wav", "stimulus_id {stimulus_id} is listed without a wav"),
        ("no file", "{wav} does not exist"),
        ("no column", "has no column recording"),
        ("no sound", "{wav}: this sound file cannot be read"),
        ("long", "{wav} lasts 0.562 s: every sound lasts 0.5 s"),
        ("short", "{wav} lasts 0.438 s: every sound lasts 0.5 s"),
        ("nan", "{wav} holds values that are no numbers"),
    ],
)
def test_what_is_not_complete_is_refused_by_name(
    runs: Path, submitted: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    first = pd.read_csv(submitted / "manifest.csv", dtype=str).iloc[0]
    edit(submitted, change)
    assert score(runs, submitted, "--name", f"refused-{change.replace(' ', '-')}") == 2
    error = capsys.readouterr().err
    assert said.format(**first) in error
    assert not (runs / f"refused-{change.replace(' ', '-')}" / "results.json").exists()


def test_a_run_is_not_overwritten_and_a_submission_is_no_yardstick(
    runs: Path, submitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (runs / "default" / "results.json").read_bytes()
    assert score(runs, submitted, "--name", "default") == 2
    assert "no submission (results.json): give this one another --name" in capsys.readouterr().err
    assert (runs / "default" / "results.json").read_bytes() == before
    assert score(runs, submitted) == 0  # `default` is still the only run of the study
    assert main(["score", "--wavs", str(submitted), "--run", str(runs / "theirs"), "--runs", str(runs)]) == 2
    assert "is a scored submission itself" in capsys.readouterr().err


def test_sounds_that_are_odd_are_scored_and_shown(
    runs: Path, submitted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n_samples = round(SECONDS * 16_000)
    for name in ("3.wav", "5.wav"):
        soundfile.write(submitted / name, np.zeros(n_samples), 16_000)
    soundfile.write(submitted / "7.wav", 20 * tones(1, n_samples)[0] / 0.5, 16_000, subtype="FLOAT")
    assert score(runs, submitted, "--name", "odd") == 0
    assert "sounds that are silent: 3.wav, 5.wav\n" in caplog.text
    assert "louder than full scale and scaled down to it: 7.wav\n" in caplog.text
    assert reports(["build", str(runs / "odd"), "--output", str(tmp_path / "page")]) == 0
    shown = "15 different ones; 2 silent; 1 louder than full scale and scaled down to it"
    assert shown in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.parametrize("begun", ["config.yaml", "autoencoder/metrics.jsonl", "pipeline/model_index.json"])
def test_a_run_that_is_not_evaluated_is_not_written_into(
    runs: Path, submitted: Path, capsys: pytest.CaptureFixture[str], begun: str
) -> None:
    name = f"trained-{Path(begun).stem}"
    (runs / name / begun).parent.mkdir(parents=True)
    (runs / name / begun).write_text("{}")
    assert score(runs, submitted, "--name", name) == 2
    assert f"no submission ({Path(begun).parts[0]}): give this one another --name" in capsys.readouterr().err
    assert not (runs / name / "results.json").exists()
    assert not (runs / name / "evaluation").exists()


def test_a_run_does_not_replace_a_submission(
    runs: Path, submitted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "prepare_data", lambda *_: pytest.fail("begun before it was refused"))
    assert score(runs, submitted) == 0
    config = submitted.parent / "theirs.yaml"
    config.write_text(json.dumps(VALUES))
    for program, command in ((main, "run"), (train_main, "train")):
        assert program([command, "--config", str(config), "--runs", str(runs)]) == 2
        assert "theirs holds a scored submission, which this run would replace" in capsys.readouterr().err


def test_what_to_score_against_must_be_clear(
    runs: Path, submitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = tmp_path / "runs"
    for name in ("one", "two"):
        (several / name).mkdir(parents=True)
        shutil.copy(runs / "default" / "results.json", several / name)
    wavs, run = ["--wavs", str(submitted)], ["--run", str(runs / "default")]
    for arguments, said in (
        (["--runs", str(several), "--study", "matrix"], "choose one by --run"),
        (["--runs", str(several), "--study", "bids"], "holds no evaluated run of study bids"),
        (["--runs", str(several), "--study", "matrixx"], "there is no study matrixx; choose one of audioeeg, bids"),
        ([*run, "--study", "nights"], "default is of study matrix"),
        ([], "name what to score against"),
        (["--study", "matrix", "--set", "seed=1"], "name one by --config"),
    ):
        assert main(["score", *wavs, *arguments]) == 2
        assert said in capsys.readouterr().err


# The list to fill in


def test_the_template_asks_for_every_example_and_gives_no_answer_away(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "asked"
    command = ["manifest", "--study", "matrix", "--runs", str(runs), "--output", str(folder)]
    assert main(command) == 0
    asked, training = (pd.read_csv(folder / name) for name in ("manifest.csv", "training.csv"))
    examples = load_examples(runs / "default").query("system == 'eeg'")
    keys = ["subject", "recording", "stimulus_id"]
    assert set(map(tuple, asked[keys].to_numpy())) == set(map(tuple, examples[keys].to_numpy()))
    assert (asked["onset_s"] == 1.0 + 4 * asked["stimulus_id"].str[1:].astype(int)).all()
    assert asked["wav"].is_unique
    assert not any("word" in str(value) for value in asked.to_numpy().ravel())
    for table in (asked, training):
        assert [Path(eeg).stem for eeg in table["eeg"]] == list(table["recording"])
        assert all(Path(eeg).is_file() for eeg in table["eeg"])
    assert set(training["stimulus_id"]) == {"learnt"}
    assert set(training["text"]) == {"taught words"}
    assert main(command) == 2
    assert "manifest.csv exists" in capsys.readouterr().err
    for wav in asked["wav"]:
        soundfile.write(folder / wav, tones(1, 8_000)[0], 16_000)
    assert score(runs, folder, "--name", "asked") == 0


def test_a_template_is_written_where_the_recordings_are_not(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = tmp_path / "runs"
    shutil.copytree(runs / "default", copied / "default")
    shutil.copytree(runs / "cache", copied / "cache")
    results = copied / "default" / "results.json"
    results.write_text(results.read_text().replace("/recorded", "/elsewhere"))
    assert main(["manifest", "--study", "matrix", "--runs", str(copied), "--output", str(tmp_path / "asked")]) == 0
    assert "elsewhere is no folder" in caplog.text
    assert pd.read_csv(tmp_path / "asked" / "manifest.csv")["eeg"].isna().all()


def test_a_config_is_enough_where_nothing_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The true recordings, taken from the study's own sounds, are at the ceiling."""
    from eval import yardstick
    from tests.toy_fixture import toy_data

    data = toy_data(tmp_path)
    monkeypatch.setattr(yardstick, "prepare_data", lambda config, folder: data)
    config = tmp_path / "toy.yaml"
    evaluation = {"metrics": {"names": ["mel_correlation"], "embedders": []}, "primary": "mel_correlation"}
    config.write_text(json.dumps(VALUES | {"evaluation": evaluation}))
    chosen = ["--config", str(config), "--runs", str(tmp_path / "runs")]
    folder = tmp_path / "truth"
    assert main(["manifest", *chosen, "--output", str(folder)]) == 0
    table = pd.read_csv(folder / "manifest.csv")
    waveforms = data.features.waveforms
    assert waveforms is not None
    place = {name: k for k, name in enumerate(data.stimuli["stimulus_id"])}
    for row in table.itertuples():
        soundfile.write(folder / str(row.wav), waveforms[place[str(row.stimulus_id)]], 16_000)
    assert main(["score", "--wavs", str(folder), *chosen]) == 0
    run = RunResult.load(tmp_path / "runs" / "truth")
    assert [s.name for s in run.systems] == ["reference", CLAIM, FLOOR]
    value = {s.name: run.value(s.name, "mel_correlation") for s in run.systems}
    assert value[CLAIM].value == pytest.approx(value["reference"].value, abs=1e-6)  # type: ignore[union-attr]
    assert value[FLOOR].value < value[CLAIM].value  # type: ignore[union-attr, operator]
