"""Broderick et al., from both releases in small: what is read, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from studies_fixture import OLD_MAN, OldManFixture, write_textgrid

from eeg2speech.data.broderick2019 import Broderick2019Study, Broderick2019StudyConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError

CHANNELS = mne.channels.make_standard_montage("biosemi128").ch_names


def study(root: Path, **fields: Any) -> Broderick2019Study:
    made = Broderick2019StudyConfig.model_validate({"root": root, **fields}).build()
    made.prepare(root.parent / "generated")
    return made


@pytest.fixture
def old_man(tmp_path: Path) -> OldManFixture:
    return OldManFixture(tmp_path / "release")


def sentences(study: Broderick2019Study, recording: int = 0) -> list[str]:
    words = list(study.iter_recordings())[recording].words
    return [" ".join(rows["word"].str.lower()) for _, rows in words.groupby("sentence")]


# What is read


@pytest.mark.parametrize("v73", [False, True])
def test_the_matlab_release_has_envelopes_and_sentences(old_man: OldManFixture, v73: bool) -> None:
    written = {subject: old_man.add_mat(subject, (1, 2, 10), v73) for subject in (1, 12)}
    made = study(old_man.root)
    recordings = list(made.iter_recordings())
    assert made.subjects() == ("Subject1", "Subject12")
    assert [r.recording for r in recordings] == [f"Subject{s}_run{n}" for s in (1, 12) for n in ("01", "02", "10")]
    assert not made.has_audio
    last = recordings[-1]
    assert (last.sfreq, last.ch_names, last.eeg.n_samples) == (128.0, tuple(CHANNELS), 2880)
    np.testing.assert_allclose(last.eeg.read(50, 90), written[12][10][:, 50:90] * 1e-6, rtol=1e-6)
    sound = last.sounds.iloc[0]
    assert (sound["sound"], sound["onset_s"], sound["duration_s"], sound["sfreq_hz"]) == ("audio10", 0.0, 22.0, 128.0)
    np.testing.assert_allclose(np.load(sound["path"])[:, 0], np.random.default_rng(10).random((2816, 1))[:, 0], 1e-6)
    assert list(last.words[["word", "onset_s", "sentence"]].itertuples(index=False, name=None)) == [
        (word, onset, sentence) for word, onset, _, sentence in old_man.words(10)
    ]
    np.testing.assert_allclose(last.words["duration_s"], 0.4)


def test_references(old_man: OldManFixture) -> None:
    eeg = old_man.add_mat(1, (1,))[1].astype(float)
    expected = {
        "mastoids": eeg - (eeg[:2] + 1).mean(axis=0),
        "average": eeg - eeg.mean(axis=0),
        None: eeg,
    }
    prints = set()
    for reference, values in expected.items():
        (recording,) = study(old_man.root, reference=reference).iter_recordings()
        np.testing.assert_allclose(recording.eeg.read(7, 99), values[:, 7:99] * 1e-6, atol=1e-11)
        prints.add(recording.fingerprint)
    assert len(prints) == 3


def test_the_bids_release_has_speech_and_textgrids(old_man: OldManFixture) -> None:
    shuffled = [*reversed(CHANNELS), "EXG1"]
    written = old_man.add_bids("sub-003", (1, 2), shuffled)
    made = study(old_man.root)
    first, second = made.iter_recordings()
    assert made.has_audio
    assert (second.subject, second.recording, second.sfreq) == ("sub-003", "sub-003_run02", 512.0)
    assert second.ch_names == tuple(CHANNELS)  # in the order of the montage, whatever the file's
    np.testing.assert_allclose(second.eeg.read(9, 99), written[2][:128][::-1, 9:99] * 1e-6, atol=6e-10)
    assert (first.sounds["path"].iloc[0], first.sounds["duration_s"].iloc[0]) == (
        str(old_man.root / "stimuli" / "audio01.wav"), 22.0,
    )  # fmt: skip
    assert sentences(made) == [" ".join(OLD_MAN[(k + 1) % 4]) for k in range(4)]  # a pause ends a sentence
    assert len(sentences(study(old_man.root, sentence_pause_s=0.6))) == 1


def test_the_matlab_release_takes_speech_from_the_other(old_man: OldManFixture, tmp_path: Path) -> None:
    old_man.add_mat(1, (1,))
    old_man.write_stimuli(tmp_path / "stimuli", (1,))
    made = study(old_man.root, audio=tmp_path / "stimuli")
    (recording,) = made.iter_recordings()
    assert made.has_audio
    assert recording.sounds["path"].iloc[0] == str(tmp_path / "stimuli" / "audio01.wav")
    assert np.isnan(recording.sounds["sfreq_hz"].iloc[0])
    assert sentences(made) == [" ".join(OLD_MAN[(k + 1) % 4]) for k in range(4)]


@pytest.mark.parametrize("release", ["mat", "bids"])
def test_the_study_prepares_from_files_to_batches(old_man: OldManFixture, tmp_path: Path, release: str) -> None:
    runs = tuple(range(1, 7))
    if release == "mat":
        old_man.add_mat(1, runs)
        old_man.add_mat(2, runs)
    else:
        old_man.add_bids("sub-001", runs, CHANNELS)
    splits = SplitConfig(by="recording", block_s=3.0, strict=False)
    made = study(old_man.root)
    data = StudyData.prepare(
        made, tmp_path / "generated", PreprocessingConfig(), WindowConfig(), splits, tmp_path / "cache"
    )
    assert data.has_audio == (release == "bids")
    assert data.n_bands == (64 if release == "bids" else 1)
    assert data.batch(data.indices("train")[:3]).eeg.shape == (3, 128, 360)
    assert set(data.windows["split"]) == {"train", "valid", "test"}
    heard = {r.recording: r.words for r in made.iter_recordings()}
    for window in data.windows.itertuples():
        words, start, stop = heard[window.recording], window.onset_s - 1e-6, window.onset_s + 3.0 + 1e-6
        inside = (words["onset_s"] >= start) & (words["onset_s"] + words["duration_s"] <= stop)
        assert window.text == " ".join(words["word"][inside])


def test_subjects_are_chosen_by_name(old_man: OldManFixture) -> None:
    for subject in (1, 2, 3):
        old_man.add_mat(subject, (1,))
    assert study(old_man.root, subjects=("Subject3", "Subject1")).subjects() == ("Subject1", "Subject3")
    with pytest.raises(UserError, match=r"study\.subjects: no run of sub-001 under .*; there is Subject1"):
        study(old_man.root, subjects=("sub-001",))


# Refusals


def test_what_is_missing_is_named(old_man: OldManFixture, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"release is no folder; set study\.root"):
        study(old_man.root)
    old_man.root.mkdir()
    with pytest.raises(UserError, match=r"holds no run of either release of broderick2019; get it from https"):
        study(old_man.root)
    old_man.add_mat(1, (1, 2))
    (old_man.root / "Natural Speech" / "Stimuli" / "Text" / "Run2.mat").unlink()
    with pytest.raises(UserError, match=r"Text/Run2\.mat not found"):
        study(old_man.root)


def test_files_that_were_not_fetched_are_named(old_man: OldManFixture) -> None:
    """A clone of ds004408 holds links to files until they are fetched one by one."""
    old_man.add_bids("sub-001", (1,), CHANNELS)
    for name in ("stimuli/audio01.wav", "sub-001/eeg/sub-001_task-listening_run-01_eeg.vhdr"):
        path = old_man.root / name
        kept = path.read_bytes()
        path.unlink()
        path.symlink_to(old_man.root / ".git" / "annex" / "nowhere")
        with pytest.raises(UserError, match=rf"{path.name} not found \(or a link to what was not fetched\)"):
            study(old_man.root)
        path.unlink()
        path.write_bytes(kept)
    with pytest.raises(UserError, match=r"study\.reference: ds004408 has no mastoids"):
        study(old_man.root, reference="mastoids")


@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("file", ["EEG/Subject1/Subject1_Run1.mat", "Stimuli/Text/Run1.mat"])
def test_a_truncated_matlab_file_is_refused_by_name(old_man: OldManFixture, file: str, share: float) -> None:
    old_man.add_mat(1, (1,))
    path = old_man.root / "Natural Speech" / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"{path.name}: (no MATLAB file that can be read|holds no variable)"):
        [recording.eeg.read(0, 9) for recording in study(old_man.root).iter_recordings()]


@pytest.mark.parametrize("ending", ["vhdr", "TextGrid", "wav"])
def test_a_truncated_file_of_the_bids_release_is_refused_by_name(old_man: OldManFixture, ending: str) -> None:
    old_man.add_bids("sub-001", (1,), CHANNELS)
    (path,) = old_man.root.rglob(f"*.{ending}")
    path.write_bytes(path.read_bytes()[: 20 if ending == "wav" else 300])
    with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
        list(study(old_man.root).iter_recordings())


def test_other_channels_are_refused(old_man: OldManFixture) -> None:
    old_man.add_bids("sub-001", (1,), CHANNELS[:-1])
    with pytest.raises(UserError, match=r"run-01_eeg\.vhdr: has no channel D32"):
        list(study(old_man.root).iter_recordings())


def test_a_textgrid_without_words_is_refused(old_man: OldManFixture) -> None:
    old_man.add_bids("sub-001", (1,), CHANNELS)
    write_textgrid(old_man.root / "stimuli" / "audio01.TextGrid", {"phone": []}, 22.0)
    with pytest.raises(UserError, match=r"audio01\.TextGrid: has interval tiers phone"):
        list(study(old_man.root).iter_recordings())
