"""Batches against what was written into the recordings, sample by sample."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_fixture import ListedStudy, recording, sentence_study, sounds, story_study, words, write_noise
from hypothesis import given
from hypothesis import strategies as st

from eeg2speech import audio
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig, baseline_and_clamp
from eeg2speech.data.reader import AT_ONCE, UNSEEN_SUBJECT
from eeg2speech.data.sampler import TrainingSampler
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError


def load(study: ListedStudy, cache: Path, splits: SplitConfig | None = None, clamp: float = 20.0) -> StudyData:
    return StudyData.prepare(
        study, cache / "study", PreprocessingConfig(clamp=clamp), WindowConfig(), splits or SplitConfig(), cache
    )


def quartiles(data: StudyData, eeg: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Median and IQR (C, 1) of a 120-Hz recording over its train windows."""
    table = data.windows[(data.windows["recording"] == name) & (data.windows["split"] == "train")]
    seen = np.zeros(eeg.shape[1], dtype=bool)
    for onset in table["onset_s"]:
        start = round((onset + 0.15) * 120)
        seen[start : start + 360] = True
    q25, q50, q75 = np.percentile(eeg[:, seen].astype(np.float64), (25, 50, 75), axis=1)
    return q50[:, None], (q75 - q25)[:, None]


def test_a_batch_is_the_eeg_150_ms_after_its_audio_less_the_half_second_before(tmp_path: Path) -> None:
    study = sentence_study(tmp_path)
    data = load(study, tmp_path / "cache", clamp=1.2)
    rows = np.random.default_rng(0).permutation(len(data.windows))[:25]
    batch = data.batch(rows)
    assert batch.eeg.shape == (25, 2, 360)
    for i, row in enumerate(rows):
        window = data.windows.iloc[row]
        eeg = next(r for r in study.recordings if r.recording == window["recording"]).eeg.read(0, 10**6)
        middle, width = quartiles(data, eeg, window["recording"])
        scaled = (eeg - middle) / width
        start = round((window["onset_s"] + 0.15) * 120)
        expected = scaled[:, start : start + 360] - scaled[:, start - 60 : start].mean(axis=1, keepdims=True)
        np.testing.assert_allclose(batch.eeg[i], expected.clip(-1.2, 1.2), atol=1e-4)
        assert batch.text[i] == window["text"]
        assert data.subjects[batch.subject[i]] == window["subject"]
        assert batch.stimulus[i] == window["stimulus"]
    assert batch.eeg.abs().max() == pytest.approx(1.2)


def test_baseline_uses_what_the_recording_has(tmp_path: Path) -> None:
    path = write_noise(tmp_path, "s", 2.0, 0)
    heard = sounds(*(("s", t, 2.0, path, 0.0, np.nan) for t in (-0.15, 0.1, 5.0)))
    study = ListedStudy([recording("r", heard)], isolated=True)
    splits = SplitConfig(strict=False, test=0.001, valid=0.001)
    data = load(study, tmp_path / "cache", splits)
    eeg = study.recordings[0].eeg.read(0, 10**6)
    middle, width = quartiles(data, eeg, "r")
    scaled = (eeg - middle) / width
    batch = data.batch(np.array([0, 1, 2]))
    expected = [
        scaled[:, :360],  # nothing before it
        scaled[:, 30:390] - scaled[:, :30].mean(axis=1, keepdims=True),
        scaled[:, 618:978] - scaled[:, 558:618].mean(axis=1, keepdims=True),
    ]
    np.testing.assert_allclose(batch.eeg, np.stack(expected), atol=1e-4)


def test_what_a_window_is_does_not_depend_on_what_is_served_with_it(tmp_path: Path) -> None:
    """Windows are prepared a few at a time; to the bit as if all at once, or each alone."""
    data = load(sentence_study(tmp_path), tmp_path / "cache")
    rows = np.random.default_rng(0).choice(len(data.windows), 3 * AT_ONCE + 1)
    served = data.batch(rows).eeg
    assert torch.equal(served, torch.cat([data.batch(rows[i : i + 1]).eeg for i in range(len(rows))]))
    known = np.zeros((len(rows), data.n_channels, 60 + data.n_times), dtype=np.float32)
    starts = data.starts(rows)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        eeg = data.eeg[data.windows["recording"].iloc[row]]
        before = min(60, start)
        known[i, :, 60 - before :] = eeg[:, start - before : start + data.n_times]
    np.testing.assert_array_equal(served, baseline_and_clamp(known, 60, np.minimum(60, starts), 20.0))


def test_no_windows_and_windows_in_a_forked_process(tmp_path: Path) -> None:
    data = load(sentence_study(tmp_path), tmp_path / "cache")
    assert data.batch(np.zeros(0, dtype=np.int64)).eeg.shape == (0, data.n_channels, data.n_times)
    first = data.batch(np.arange(3)).eeg  # the threads of this process run
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        np.testing.assert_array_equal(pool.submit(_eeg, data, 3).result(timeout=30), first)


def _eeg(data: StudyData, n: int) -> np.ndarray:
    return data.batch(np.arange(n)).eeg.numpy()


def test_a_stimulus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    data = load(sentence_study(tmp_path), tmp_path / "cache")
    wrong = replace(data, windows=data.windows.assign(stimulus=10**6))
    with pytest.raises(ValueError, match="names a stimulus that is not there"):
        wrong.batch(np.arange(2))


def test_speech_of_a_window_is_the_file_s(tmp_path: Path) -> None:
    data = load(sentence_study(tmp_path, 20), tmp_path / "cache")
    rows = data.indices("test")
    wanted = np.stack([audio.load(data.stimuli.loc[s, "path"], 0.0, 3.0) for s in data.windows["stimulus"].iloc[rows]])
    assert (data.n_bands, data.n_frames, data.has_audio) == (64, 300, True)
    np.testing.assert_array_equal(data.waveform(rows), wanted)
    np.testing.assert_allclose(data.batch(rows).log_mel, audio.log_mel(torch.from_numpy(wanted)), atol=1e-5)


def test_feature_arrays_are_sliced_at_their_own_rate(tmp_path: Path) -> None:
    data = load(story_study(tmp_path), tmp_path / "cache")
    envelope = np.load(tmp_path / "story.npy")
    rows = data.indices("train")[:20]
    batch = data.batch(rows)
    starts = (data.stimuli["offset_s"].to_numpy()[batch.stimulus] * 64).astype(int)
    np.testing.assert_array_equal(batch.features, np.stack([envelope[None, s : s + 192] for s in starts]))
    assert (data.n_bands, data.n_frames, data.has_audio) == (1, 192, False)
    with pytest.raises(UserError, match="has no audio"):
        data.waveform(rows)


def test_channels_are_joined_by_name(tmp_path: Path) -> None:
    study = sentence_study(tmp_path)
    one, other = study.recordings
    study.recordings = [one, replace(other, ch_names=("E1", "E9"))]
    data = load(study, tmp_path / "cache")
    assert data.ch_names == ("E0", "E1", "E9")
    for number, (name, present) in enumerate((("ann", [0, 1]), ("bob", [1, 2]))):
        rows = np.flatnonzero(data.windows["recording"] == name)[:4]
        batch = data.batch(rows)
        absent = 2 if number == 0 else 0
        assert (batch.eeg[:, absent] == 0).all()
        assert batch.positions[:, absent].isnan().all()
        np.testing.assert_array_equal(batch.positions[0, present], study.recordings[number].positions)
        assert (batch.eeg[:, present].std(dim=-1) > 0.1).all()
    np.testing.assert_array_equal(data.positions[[0, 1]], one.positions)
    np.testing.assert_array_equal(data.positions[2], other.positions[1])


@dataclass(frozen=True)
class Unreadable:
    n_samples: int

    def read(self, start: int, stop: int) -> np.ndarray:
        raise AssertionError("the cache must answer")


def test_a_second_preparation_reads_no_eeg_and_changes_nothing(tmp_path: Path) -> None:
    study = sentence_study(tmp_path)
    first = load(study, tmp_path / "cache")
    study.recordings = [replace(r, eeg=Unreadable(r.eeg.n_samples)) for r in study.recordings]
    second = load(study, tmp_path / "cache")
    assert first.fingerprint == second.fingerprint
    rows = np.arange(30)
    assert torch.equal(first.batch(rows).eeg, second.batch(rows).eeg)


def test_fingerprint_follows_everything_that_determines_the_data(tmp_path: Path) -> None:
    study = sentence_study(tmp_path)
    prints = {load(study, tmp_path / "cache").fingerprint, load(study, tmp_path / "cache", clamp=3.0).fingerprint}
    prints.add(load(study, tmp_path / "cache", SplitConfig(seed=1)).fingerprint)
    write_noise(tmp_path, "s7", 2.0, seed=99)
    prints.add(load(study, tmp_path / "cache").fingerprint)
    study.recordings[0] = replace(study.recordings[0], fingerprint="other EEG")
    prints.add(load(study, tmp_path / "cache").fingerprint)
    assert len(prints) == 5


def test_tables_audit_and_facts_are_written(tmp_path: Path) -> None:
    data = load(sentence_study(tmp_path), tmp_path / "cache")
    verdict = json.loads((data.folder / "audit.json").read_text())
    assert verdict["passed"]
    assert [f["check"] for f in verdict["findings"]] == [f.check for f in data.audit]
    pd.testing.assert_frame_equal(pd.read_parquet(data.folder / "windows.parquet"), data.windows)
    facts = json.loads(json.dumps(data.facts()))
    assert sum(facts["splits"][s]["windows"] for s in facts["splits"]) == len(data.windows) == 80
    assert facts["splits"]["test"]["stimuli"] == data.windows.loc[data.indices("test"), "stimulus"].nunique()
    assert facts["hours"] == pytest.approx(2 * (1 + 39 * 3.8 + 4) / 3600, abs=1e-4)
    assert facts["audit_passed"]


def test_windows_that_are_left_out_are_said_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(sentence_study(tmp_path), tmp_path / "cache")
    assert not caplog.messages, "nothing was left out"
    late = recording("late", sounds(("s0", 1.0, 2.0, str(tmp_path / "s0.wav"), 0.0, np.nan)), duration_s=3.5)
    study = ListedStudy([*sentence_study(tmp_path).recordings, late], isolated=True)
    load(study, tmp_path / "cache")
    assert caplog.messages == ["study listed: 80 windows; left out: EEG outside the recording: 1"]


@pytest.mark.parametrize("by", ["recording", "subject"])
def test_strict_refuses_what_all_listeners_heard(tmp_path: Path, by: str) -> None:
    study = sentence_study(tmp_path, 20, ("ann", "bob", "cyd"))
    with pytest.raises(UserError, match=r"shared stimulus identity.*splits\.strict"):
        load(study, tmp_path / "cache", SplitConfig.model_validate({"by": by}))
    assert not json.loads(next((tmp_path / "cache").glob("*/audit.json")).read_text())["passed"]
    leaky = load(study, tmp_path / "cache", SplitConfig.model_validate({"by": by, "strict": False}))
    assert not leaky.facts()["audit_passed"]
    assert set(leaky.stimuli["split"]) == {"test+train+valid"}


def test_unseen_subjects_who_heard_other_speech_are_a_split(tmp_path: Path) -> None:
    recordings = []
    for number, subject in enumerate(("ann", "bob", "cyd", "dan", "eve")):
        names = [f"{subject}{k}" for k in range(6)]
        rows = [
            (n, 1 + 4.0 * k, 2.0, write_noise(tmp_path, n, 2.0, 10 * number + k), 0.0, np.nan)
            for k, n in enumerate(names)
        ]
        spoken = [(n, 1 + 4.0 * k, 1.0, k) for k, n in enumerate(names)]
        recordings.append(recording(subject, sounds(*rows), words(*spoken)))
    data = load(ListedStudy(recordings, isolated=True), tmp_path / "cache", SplitConfig(by="subject"))
    assert data.n_subjects == 3
    unseen = data.batch(data.indices("test"))
    assert (unseen.subject == UNSEEN_SUBJECT).all()
    assert unseen.eeg.std() == pytest.approx(1 / 1.349, rel=0.1)  # noise scaled by the others' IQR
    assert set(data.batch(data.indices("train")).subject.tolist()) == {0, 1, 2}


# The sampler


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 64), st.integers(0, 5))
def test_an_epoch_is_each_window_once(n_rows: int, n_stimuli: int, batch_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, stimulus = rng.permutation(1000)[:n_rows], rng.integers(0, n_stimuli, n_rows)
    sampler = TrainingSampler(rows, stimulus, batch_size, seed)
    of = dict(zip(rows.tolist(), stimulus.tolist(), strict=True))
    steps = [sampler.rows(step) for step in range(sampler.steps_per_epoch)]
    assert {len(step) for step in steps} == {min(batch_size, n_rows)}
    taken = np.concatenate(steps)
    assert len(set(taken.tolist())) == len(taken)
    assert set(taken.tolist()) <= set(rows.tolist())
    assert n_rows - len(taken) < min(batch_size, n_rows)
    if np.bincount(stimulus).max() <= sampler.steps_per_epoch:
        assert all(len({of[row] for row in step.tolist()}) == len(step) for step in steps)


def test_a_step_depends_on_seed_and_number_alone() -> None:
    rows, stimulus = np.arange(100), np.arange(100) % 25

    def order(seed: int, steps: range) -> list[list[int]]:
        sampler = TrainingSampler(rows, stimulus, 10, seed)
        return [sampler.rows(step).tolist() for step in steps]

    assert order(0, range(35))[20:] == order(0, range(20, 35))
    assert order(0, range(10)) != order(1, range(10))
    assert order(0, range(10)) != order(0, range(10, 20))


def test_epochs_mix_listeners_and_leave_none_behind() -> None:
    """The rest that does not fill a batch is another one each epoch."""
    sampler = TrainingSampler(np.arange(103), np.arange(103) // 4, 10, 0)
    seen = np.concatenate([sampler.rows(step) for step in range(20 * 10)])
    counts = np.bincount(seen, minlength=103)
    assert counts.min() >= 15
    assert counts.max() <= 20
