"""Brennan & Hale 2019, from both releases in small: every correction of docs/studies.md, and every refusal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
from studies_fixture import NO_FIRST_MARKER, AliceFixture

from eeg2speech.config import ExperimentConfig
from eeg2speech.data.base import Recording
from eeg2speech.data.brennan2019 import (
    EVERYONE,
    NOT_IN_BRAINMAGICK,
    NOT_IN_PAPER,
    SELECTIONS,
    WORD_TABLE,
    Brennan2019Study,
    Brennan2019StudyConfig,
)
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.textgrid import read_tiers
from eeg2speech.data.windows import WindowConfig, cut
from eeg2speech.errors import UserError

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("EEG2SPEECH_REALDATA", ROOT.parent / "shared" / "realdata")) / "alice"
SAMPLE_S = 0.002
TRAINING = {"contrastive": {"steps": 1, "batch_size": 2, "learning_rate": 0.001}}


@pytest.fixture
def alice(tmp_path: Path) -> AliceFixture:
    return AliceFixture(tmp_path / "alice")


def study(alice: AliceFixture, *named: str, **fields: Any) -> Brennan2019Study:
    fields = {"root": alice.root, "subjects": named, **fields}
    made = Brennan2019StudyConfig.model_validate(fields).build()
    made.prepare(alice.root.parent / "generated")
    return made


def only(alice: AliceFixture, subject: str, **fields: Any) -> Recording:
    (recording,) = study(alice, subject, **fields).iter_recordings()
    return recording


# What is read


@pytest.mark.parametrize("how", [{"release": "mat"}, {"release": "mat", "v73": True}, {"release": "brainvision"}])
def test_both_releases_give_what_was_recorded_in_volts(alice: AliceFixture, how: dict[str, Any]) -> None:
    written = alice.add("S01", n_channels=60, **how)
    recording = only(alice, "S01")
    assert (recording.subject, recording.sfreq, recording.eeg.n_samples) == ("S01", 500.0, written.shape[1])
    assert recording.ch_names == tuple(str(n) for n in range(1, 62) if n != 29)
    assert not np.isnan(recording.positions).any()
    np.testing.assert_allclose(recording.eeg.read(700, 900), written[:, 700:900] * 1e-6, atol=6e-10)
    np.testing.assert_allclose(recording.sounds["onset_s"], alice.began_s)
    assert list(recording.words["word"]) == [f"w{k}" for k in range(96)]
    assert list(recording.words["sentence"]) == [1 + k // 4 for k in range(96)]


def test_matlab_files_are_unpacked_once(alice: AliceFixture) -> None:
    alice.add("S01")
    first = only(alice, "S01")
    copies = sorted((alice.root.parent / "generated").glob("*.npy"))
    stamps = [path.stat().st_mtime_ns for path in copies]
    second = only(alice, "S01")
    assert len(copies) == 1
    assert [path.stat().st_mtime_ns for path in copies] == stamps
    assert first.fingerprint == second.fingerprint


def test_files_are_unpacked_side_by_side_and_none_stays_in_memory(alice: AliceFixture) -> None:
    names = ("S03", "S01", "S05", "S04", "S06")
    written = {name: alice.add(name) for name in names}
    recordings = list(study(alice, *names).iter_recordings())
    assert [r.subject for r in recordings] == sorted(names)
    for recording in recordings:
        expected = written[recording.subject][:, -90:] * 1e-6
        n = recording.eeg.n_samples
        np.testing.assert_allclose(recording.eeg.read(n - 90, n), expected, atol=6e-10)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(alice.root.parent / "generated") not in maps.read_text()


def test_the_first_listener_whose_file_is_damaged_is_named_before_any_other(alice: AliceFixture) -> None:
    for name in ("S01", "S03", "S04"):
        alice.add(name)
    (alice.root / "S03.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    read = study(alice, "S01", "S03", "S04").iter_recordings()
    assert next(read).subject == "S01"
    with pytest.raises(UserError, match=r"S03\.mat: no MATLAB file"):
        next(read)


def test_the_study_prepares_from_files_to_batches(alice: AliceFixture, tmp_path: Path) -> None:
    alice.add("S01", release="mat")
    alice.add("S03", release="brainvision")
    alice.add("S26", release="mat")
    windows, splits = WindowConfig(length_s=1.0), SplitConfig(block_s=1.0, valid=0.2, test=0.3, gap_s=0.0, strict=False)
    made = study(alice, "S01", "S03", "S26")
    data = StudyData.prepare(made, tmp_path / "generated", PreprocessingConfig(), windows, splits, tmp_path / "cache")
    assert data.subjects == ("S01", "S03", "S26")
    assert data.batch(data.indices("train")[:4]).eeg.shape == (4, 8, 120)
    heard = data.windows.groupby("subject")["stimulus_id"].agg(set)
    assert heard["S01"] == heard["S03"]
    assert heard["S26"] < heard["S01"]  # the speech is the same, less the first segment
    split_of_speech = data.windows.groupby("stimulus_id")["split"].nunique()
    assert (split_of_speech == 1).all()


# The corrections


def test_onsets_are_start_less_offset(alice: AliceFixture) -> None:
    alice.add("S01")
    trl = scipy.io.loadmat(alice.root / "proc" / "S01.mat", simplify_cells=True)["proc"]["trl"]
    words = only(alice, "S01").words
    np.testing.assert_allclose(words["onset_s"], (trl[:, 0] - trl[:, 2]) / 500)
    np.testing.assert_allclose(words["onset_s"] - trl[:, 0] / 500, 0.3)  # what comes of leaving the offset out


def test_the_longer_form_of_proc_says_the_same(alice: AliceFixture) -> None:
    """get_alice2_trials.m as published appends the table's columns, one of which is named offset as well."""
    alice.add("S01")
    expected = only(alice, "S01")
    path = alice.root / "proc" / "S01.mat"
    trl = scipy.io.loadmat(path, simplify_cells=True)["proc"]["trl"]
    start, stop, offset, segment, tmin, order = trl.T
    longer = np.stack([start, stop, offset, np.ones(len(trl)), segment, tmin, tmin + 0.5, order], axis=1)
    names = np.array(["trigger", "passage", "onset", "offset", "Order"], dtype=object)
    _rewritten(path, "proc", trl=longer, varnames=names)
    again = only(alice, "S01")
    pd.testing.assert_frame_equal(again.sounds, expected.sounds)
    pd.testing.assert_frame_equal(again.words, expected.words)


@pytest.mark.parametrize("table_columns", [16, 17])
def test_the_lag_is_added_to_raw_triggers_only(tmp_path: Path, table_columns: int) -> None:
    alice = AliceFixture(tmp_path / "alice", table_columns)
    alice.add("S01", release="brainvision")
    by_trigger = only(alice, "S01", onsets="triggers")
    by_proc = only(alice, "S01", onsets="proc")
    # the fixture's markers stand 60 ms before the first sound and 50 ms before every other
    np.testing.assert_allclose(by_trigger.sounds["onset_s"], alice.began_s, atol=1e-9)
    np.testing.assert_allclose(by_proc.sounds["onset_s"], alice.began_s, atol=1e-9)
    np.testing.assert_allclose(by_trigger.words["onset_s"], by_proc.words["onset_s"], atol=SAMPLE_S)
    (alice.root / "proc" / "S01.mat").unlink()
    pd.testing.assert_frame_equal(only(alice, "S01").sounds, by_trigger.sounds)


@pytest.mark.parametrize("subject", sorted(NO_FIRST_MARKER))
@pytest.mark.parametrize("onsets", ["proc", "triggers"])
def test_those_without_a_first_marker_keep_eleven_segments_by_their_right_names(
    alice: AliceFixture, subject: str, onsets: str
) -> None:
    alice.add(subject, release="brainvision")
    recording = only(alice, subject, onsets=onsets)  # and the recorded audio agrees
    names = [f"DownTheRabbitHoleFinal_SoundFile{n}" for n in range(2, 13)]
    assert list(recording.sounds["sound"]) == names
    np.testing.assert_allclose(recording.sounds["onset_s"], alice.began_s[1:], atol=1e-9)
    assert list(recording.words["word"]) == [f"w{k}" for k in range(8, 96)]
    relative = recording.words["onset_s"].to_numpy().reshape(11, 8) - alice.began_s[1:, None]
    np.testing.assert_allclose(relative, np.tile(0.2013 + 0.5571 * np.arange(8), (11, 1)), atol=SAMPLE_S)


def test_anybody_else_without_a_marker_is_refused_by_name(alice: AliceFixture) -> None:
    alice.add("S26", release="brainvision", proc=False)
    for path in alice.root.glob("S26.*"):
        renamed = path.with_name(path.name.replace("S26", "S27"))
        renamed.write_bytes(path.read_bytes().replace(b"S26.", b"S27."))
    with pytest.raises(UserError, match=r"S27\.vhdr: has 11 stimulus markers for 12 segments; leave S27 out"):
        only(alice, "S27")


@pytest.mark.parametrize("audio", ["AUD", "Aux5"])
def test_onsets_are_checked_against_the_recorded_audio(alice: AliceFixture, audio: str) -> None:
    alice.add("S01", audio=audio)
    table = study(alice, "S01").alignment("S01")
    assert table is not None
    assert len(table) == 12
    assert table["lag_s"].abs().max() <= 2 * SAMPLE_S
    assert table["correlation"].min() > 0.95
    alice.add("S03", audio=audio, late_by_s=0.3)  # the size of brainmagick's error
    with pytest.raises(UserError, match=r"S03\.mat: the recorded audio .*_SoundFile1 is found -300 ms from its onset"):
        only(alice, "S03")
    late = only(alice, "S03", verify_alignment=False)
    np.testing.assert_allclose(late.sounds["onset_s"] - alice.began_s, 0.3)


def test_segments_called_by_wrong_names_do_not_pass(alice: AliceFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    alice.add("S26")
    monkeypatch.setattr("eeg2speech.data.brennan2019_onsets.NO_FIRST_MARKER", ())
    with pytest.raises(UserError, match=r"S26\.mat: the recorded audio channel does not agree with the onsets"):
        only(alice, "S26")


def test_without_an_audio_channel_there_is_nothing_to_check(alice: AliceFixture) -> None:
    alice.add("S01", audio=None, late_by_s=0.3)
    assert study(alice, "S01").alignment("S01") is None
    np.testing.assert_allclose(only(alice, "S01").sounds["onset_s"] - alice.began_s, 0.3)


@pytest.mark.skipif(not (REAL / "datasets.mat").is_file(), reason="no real word table beside the repository")
def test_the_real_word_table_read_by_the_loader_has_190_test_segments(tmp_path: Path) -> None:
    grids = [read_tiers(REAL / "textgrids" / f"DownTheRabbitHoleFinal_SoundFile{n}.TextGrid") for n in range(1, 13)]
    durations_s = [round(5 * grid["words"][-1][1]) / 5 for grid in grids]
    alice = AliceFixture(tmp_path / "alice", table=pd.read_csv(REAL / WORD_TABLE), durations_s=durations_s)
    alice.add("S01", n_channels=2)
    alice.add("S26", release="brainvision", n_channels=2)
    values = {"protocol": "brainmagick", "study": {"name": "brennan2019", "root": alice.root}, "training": TRAINING}
    config = ExperimentConfig.model_validate(values)
    recordings = list(study(alice, "S01", "S26").iter_recordings())
    tables = cut("brennan2019", recordings, False, config.windows, config.splits, config.preprocessing)
    tested = tables.windows[tables.windows["split"] == "test"].groupby("subject")["stimulus_id"].agg(set)
    first = tables.stimuli["sound"].eq("DownTheRabbitHoleFinal_SoundFile1") & tables.stimuli["split"].eq("test")
    assert len(tested["S01"]) == 190
    assert tested["S01"] - tested["S26"] == set(tables.stimuli["stimulus_id"][first])
    assert tested["S26"] < tested["S01"]


# Who takes part


def test_paper_and_brainmagick_both_have_33_subjects_and_differ_by_eight() -> None:
    paper, brainmagick = set(SELECTIONS["paper"]), set(SELECTIONS["brainmagick"])
    assert len(paper) == len(brainmagick) == 33
    assert brainmagick - paper == {"S07", "S09", "S23", "S43"}
    assert paper - brainmagick == NO_FIRST_MARKER
    assert paper | set(NOT_IN_PAPER) == brainmagick | set(NOT_IN_BRAINMAGICK) == set(EVERYONE)
    assert NOT_IN_PAPER["S46"] == "high noise and a low score in the quiz"


@pytest.mark.skipif(not (REAL / "datasets.mat").is_file(), reason="no real datasets.mat beside the repository")
def test_the_papers_subjects_are_those_of_its_datasets_mat() -> None:
    real = scipy.io.loadmat(REAL / "datasets.mat", simplify_cells=True)
    names = {key: {str(name).removesuffix(".mat") for name in real[key]} for key in ("use", "low_perf", "high_noise")}
    assert set(SELECTIONS["paper"]) == names["use"]
    assert {s for s, why in NOT_IN_PAPER.items() if "noise" in why} == names["high_noise"]
    low = {s for s, why in NOT_IN_PAPER.items() if "score" in why}
    assert low == names["low_perf"] | {"S46", "S47"}
    scores = (REAL / "comprehension-scores.txt").read_text()
    assert all(f"{s} " in scores for s in low)


def test_subjects_are_chosen_by_list_or_by_what_is_there(alice: AliceFixture) -> None:
    alice.add("S01", proc=True)
    alice.add("S28", release="brainvision", proc=False)
    alice.add("S29", release="mat", proc=False)
    assert study(alice, "S28", "S01").subjects() == ("S01", "S28")
    assert study(alice, subjects="all").subjects() == ("S01", "S28")  # nothing says when S29's sounds began


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        ("paper", r"S03\.mat \(or \.vhdr\), S04\.mat .* and 28 more not found under .*; download them from https"),
        (("S01", "S29"), r"brennan2019: proc/S29\.mat not found"),
        (("S50",), r"study\.subjects: brennan2019 has no S50; its subjects are S01 to S49"),
    ],
)
def test_missing_files_are_named(alice: AliceFixture, subjects: Any, message: str) -> None:
    alice.add("S01")
    alice.add("S29", proc=False)
    with pytest.raises(UserError, match=message):
        study(alice, subjects=subjects)


def test_a_wrong_folder_and_a_missing_sound_are_named(alice: AliceFixture, tmp_path: Path) -> None:
    alice.add("S01")
    (alice.root / "audio" / "DownTheRabbitHoleFinal_SoundFile7.wav").unlink()
    with pytest.raises(UserError, match=r"SoundFile7\.wav not found"):
        study(alice, "S01")
    with pytest.raises(UserError, match=r"nowhere is no folder; set study\.root"):
        study(alice, "S01", root=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"study\.onsets: S01\.mat has no markers"):
        study(alice, "S01", onsets="triggers")


# Damaged files


@pytest.mark.parametrize("file", ["S01.mat", "proc/S01.mat"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused_by_name(alice: AliceFixture, file: str, share: float) -> None:
    alice.add("S01")
    path = alice.root / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"{file}: no MATLAB file that can be read"):
        only(alice, "S01")


def _rewritten(path: Path, variable: str, **fields: Any) -> None:
    values = scipy.io.loadmat(path, simplify_cells=True)[variable]
    values.update(fields)
    values = {key: value for key, value in values.items() if value is not None}
    scipy.io.savemat(path, {variable: values})


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("S01.mat", {"fsample": 250.0}, r"S01\.mat: is sampled at 250 Hz"),
        ("S01.mat", {"sampleinfo": np.array([101.0, 999.0])}, r"S01\.mat: sampleinfo starts at 101"),
        ("S01.mat", {"trial": None}, r"S01\.mat: has no field trial"),
        ("S01.mat", {"label": np.array(["1", "2"], dtype=object)}, r"S01\.mat: trial has shape .* for 2 labels"),
        ("proc/S01.mat", {"varnames": np.array(["a", "b"], dtype=object)}, r"trl has 6 columns, proc.varnames names 5"),
        ("proc/S01.mat", {"varnames": np.array(["a", "tmin", "Order"], dtype=object)}, r"no segment or passage"),
        ("proc/S01.mat", {"trl": None}, r"proc/S01\.mat: has no field trl"),
    ],
)
def test_fields_that_are_wrong_are_named(alice: AliceFixture, file: str, fields: dict[str, Any], message: str) -> None:
    alice.add("S01")
    _rewritten(alice.root / file, "raw" if file == "S01.mat" else "proc", **fields)
    with pytest.raises(UserError, match=message):
        only(alice, "S01")


def test_epochs_that_do_not_agree_on_a_beginning_are_refused(alice: AliceFixture) -> None:
    alice.add("S01")
    path = alice.root / "proc" / "S01.mat"
    trl = scipy.io.loadmat(path, simplify_cells=True)["proc"]["trl"]
    trl[20, :2] += 40  # a word of the third segment
    _rewritten(path, "proc", trl=trl)
    with pytest.raises(UserError, match=r"proc/S01\.mat: the words of segment 3 in proc\.trl do not agree"):
        only(alice, "S01")


def test_a_word_table_of_another_make_is_refused(alice: AliceFixture) -> None:
    alice.add("S01")
    table = pd.read_csv(alice.root / "AliceChapterOne-EEG.csv")
    table.drop(columns=["Sentence"]).to_csv(alice.root / "AliceChapterOne-EEG.csv", index=False)
    with pytest.raises(UserError, match=r"AliceChapterOne-EEG\.csv: has no column Sentence"):
        only(alice, "S01")
