"""`studies check` on data sets written in each format, whole and with faults; `studies` and the steps by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bids_fixture import write_eeg, write_meg, write_root, write_sound
from data_fixture import write_noise
from studies_fixture import AliceFixture, OldManFixture
from test_audioeeg import numbered
from test_audioeeg import write as write_audioeeg

from eeg2speech.__main__ import main
from eeg2speech.config import STUDIES, load_study
from eeg2speech.data.check import Checked, check


def checked(name: str, root: Path, *overrides: str) -> Checked:
    return check(load_study(name, None, [f"study.{text}" for text in overrides], root))


def sound(found: Checked) -> bool:
    """Nothing missing, nothing wrong."""
    return not found.faults and not found.missing


# Brennan & Hale 2019


@pytest.mark.parametrize("release", ["mat", "brainvision"])
def test_alice_is_counted_and_her_sound_found_in_the_recorded_channel(tmp_path: Path, release: str) -> None:
    alice = AliceFixture(tmp_path / "alice")
    alice.add("S01", release=release)
    alice.add("S26", release=release, audio=None)
    found = checked("brennan2019", alice.root, "subjects=all")
    assert sound(found), found.faults
    first, second = found.table.to_dict("records")
    assert (first["subject"], first["channels"], first["sfreq_hz"]) == ("S01", 8, 500.0)
    assert (first["sounds"], first["words"], first["heard"]) == (12, 96, "12 of 12")
    assert first["heard_min"] == pytest.approx(1.0)
    assert first["lag_ms"] <= 4.0
    assert (second["sounds"], second["words"], second["heard"]) == (11, 88, ""), "its first sound has no onset"
    assert "subjects: 2 here, 49 in the whole release" in found.notes
    assert "channels: 8 here, 60 in the whole release" in found.notes


def test_alice_s_missing_files_are_all_named_and_each_fault_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alice = AliceFixture(tmp_path / "alice")
    alice.add("S01")
    alice.add("S03", late_by_s=0.2)
    alice.add("S04", proc=False)
    whole = (alice.root / "S01.mat").read_bytes()
    (alice.root / "S05.mat").write_bytes(whole[: len(whole) // 2])
    shutil.copy(alice.root / "proc" / "S01.mat", alice.root / "proc" / "S05.mat")
    command = ["studies", "check", "brennan2019", "--dir", str(alice.root)]
    assert main([*command, "--set", "study.subjects=[S01, S03, S04, S05, S06]"]) == 2
    out, err = capsys.readouterr()
    assert {line for line in out.splitlines() if line.startswith("missing")} == {
        "missing: proc/S04.mat", "missing: S06.mat (or .vhdr)",
    }  # fmt: skip
    wrong = [line for line in out.splitlines() if line.startswith("wrong")]
    assert len(wrong) == 2
    assert "S03.mat: the recorded audio channel does not agree with the onsets" in wrong[0]
    assert "S05.mat: no MATLAB file that can be read" in wrong[1]
    assert "S01" in out, "the one that is right is still counted"
    assert "files that are missing: 2, things that are wrong: 2; each is named above" in err
    assert "studies get brennan2019 says where the files are from" in err


def test_a_folder_that_is_not_there_is_one_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("brennan2019", "broderick2019", "gwilliams2022", "bids", "audioeeg"):
        assert main(["studies", "check", name, "--dir", str(tmp_path / "nowhere")]) == 2
        assert "nowhere" in capsys.readouterr().out, name


# Broderick et al. 2019


def test_both_releases_of_the_old_man(tmp_path: Path) -> None:
    import mne

    names = mne.channels.make_standard_montage("biosemi128").ch_names
    old_man = OldManFixture(tmp_path / "mat")
    old_man.add_mat(1, (1, 2))
    old_man.add_mat(2, (1,))
    found = checked("broderick2019", old_man.root)
    assert sound(found), found.faults
    assert found.table["sfreq_hz"].unique() == [128.0]
    assert list(found.table["recording"]) == ["Subject1_run01", "Subject1_run02", "Subject2_run01"]
    assert any("no audio channel was recorded" in note for note in found.notes)
    bids = OldManFixture(tmp_path / "bids")
    bids.add_bids("sub-001", (1, 2), names)
    (bids.root / "stimuli" / "audio02.wav").unlink()
    found = checked("broderick2019", bids.root)
    assert found.missing == [str(bids.root / "stimuli" / "audio02.wav")]


# BIDS, and MEG-MASC


SOUND = {"onset": 2.0, "duration": 8.0, "stim_file": "alice.wav"}


def test_a_bids_folder_whose_sounds_do_not_fit_its_eeg(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_sound(root / "stimuli" / "alice.wav", 8.0, 0)
    write_eeg(root, "sub-01", "listen", 12.0, SOUND)
    assert sound(checked("bids", root, "montage=biosemi64"))
    write_eeg(root, "sub-02", "listen", 9.0, SOUND)
    write_eeg(root, "sub-03", "listen", 30.0, SOUND, SOUND | {"onset": 7.0})
    found = checked("bids", root, "montage=biosemi64")
    assert found.faults == [
        "sub-02_task-listen: alice plays from 2.00 to 10.00 s, the EEG lasts 9.00 s; check onsets",
        "sub-03_task-listen: alice and alice overlap by 3.00 s; check their onsets",
    ]
    assert list(found.table["subject"]) == ["sub-01", "sub-02", "sub-03"]


def test_meg_masc(tmp_path: Path) -> None:
    root = tmp_path / "masc"
    write_root(root)
    common = {"sound": "stimuli/audio/LW1_0.0.wav", "sound_id": 0.0, "sequence_id": 0.0}
    events = [
        {"onset": onset, "duration": lasts, "trial_type": str({"kind": kind, "start": start, "word": word} | common)}
        for onset, lasts, kind, start, word in (
            (1.0, 6.0, "sound", 0.0, ""), (2.0, 0.3, "word", 1.0, "tara"), (19.0, 0.3, "word", 9.0, "late"),
        )
    ]  # fmt: skip
    write_meg(root, "sub-01", "0", "0", 20.0, *events)
    write_sound(root / "stimuli" / "audio" / "lw1_0.wav", 6.0, 0)
    found = checked("gwilliams2022", root)
    assert len(found.faults) == 1
    assert "1 of 2 words fall where no sound plays, such as 'late' at 19.00 s" in found.faults[0]
    assert "channels: 8 here, 208 in the whole release" in found.notes


# The ancestor's set, and one's own


def test_the_ancestor_s_set(tmp_path: Path) -> None:
    write_audioeeg(tmp_path, **numbered())
    found = checked("audioeeg", tmp_path)
    assert sound(found), found.faults
    assert list(found.table["sounds"]) == [6, 2, 3]
    (tmp_path / "set" / "wavs" / "0.wav").unlink()
    assert checked("audioeeg", tmp_path).missing == [str(tmp_path / "set" / "wavs" / "0.wav")]


def write_own(root: Path, eeg: np.ndarray) -> Path:
    """A folder of one recording and a config for it."""
    root.mkdir()
    np.savez(root / "a.npz", eeg=eeg.astype(np.float32), sfreq=100.0)
    write_noise(root, "story", 6.0, 0)
    (root / "words.csv").write_text("word,onset_s,duration_s,sentence\nonce,1.5,0.3,0\nupon,2.0,0,0\n")
    row = {"file": "a.npz", "subject": "01", "audio": "story.wav", "onset_s": 1.0, "words": "words.csv"}
    (root / "manifest.json").write_text(json.dumps([row]))
    config = root / "mine.yaml"
    config.write_text(
        f"study: {{name: folder, root: {root}, manifest: manifest.json, montage: biosemi64, ch_names: [Cz, Pz, Oz]}}"
    )
    return config


def test_one_s_own_recordings_by_their_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eeg = np.random.default_rng(0).standard_normal((3, 1000))
    eeg[1] = 4.0
    eeg[2, 250:253] = np.nan
    config = write_own(tmp_path / "mine", eeg)
    assert main(["studies", "check", "folder", "--config", str(config)]) == 2
    out, err = capsys.readouterr()
    assert "things that are wrong: 2; each is named above\n" in err, "no download has one's own files"
    assert "note: a: 1 channels are constant: Pz" in out
    assert "wrong: a: 3 values are no numbers, the first at 2.50 s, in channel Oz; interpolate or drop it" in out
    assert "wrong: a: the word 'upon' at 2.00 s lasts 0.000 s" in out
    assert main(["studies", "check", "bids", "--config", str(config)]) == 2
    assert "its study is not bids" in capsys.readouterr().err
    assert main(["studies", "check", "folder", "--config", str(config), "--set", "splits.seed=1"]) == 2
    assert "only settings of the study" in capsys.readouterr().err


# The list, and what cannot be downloaded


def test_the_list_says_everything_of_every_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice = AliceFixture(tmp_path / "brennan2019")
    alice.add("S01")
    alice.add("S03", release="brainvision")
    assert main(["studies", "--data", str(tmp_path)]) == 0
    parts: dict[str, dict[str, str]] = {}
    for line in capsys.readouterr().out.splitlines():
        heading, _, text = line.strip().partition(":")
        if not line.startswith(" "):
            told = parts.setdefault(line, {})
        else:
            told[heading] = text.strip()
    assert set(parts) == set(STUDIES)
    facts = {"modality", "size", "licence", "consent", "citation", "get", "on disk"}
    assert all(set(told) == facts and all(told.values()) for told in parts.values())
    assert parts["brennan2019"]["size"] == "49 subjects, 60 channels, 9.8 hours"
    assert parts["brennan2019"]["on disk"] == f"{alice.root}, 2 recordings"
    assert parts["gwilliams2022"]["on disk"].startswith("no (")
    assert "simulated" in parts["matrix"]["modality"]


@pytest.mark.parametrize("name", ["brennan2019", "audioeeg", "folder", "bids", "matrix"])
def test_what_cannot_be_downloaded_comes_with_steps(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["studies", "get", name, "--to", str(tmp_path / "here")]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "here") in said or name == "matrix"
    assert "{to}" not in said
    assert not (tmp_path / "here").exists()


def test_a_study_that_there_is_not_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", "get", "alice"]) == 2
    assert "choose one of audioeeg, bids, brennan2019" in capsys.readouterr().err
