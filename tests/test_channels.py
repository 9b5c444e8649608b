"""Channels by name and by type: what must not be among the inputs, and what sees the eyes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pytest

from eeg2speech.data.channels import eye_channels, eyes_only, kind_of
from eeg2speech.data.loader import StudyData
from eeg2speech.data.mne_files import open_raw, picked
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError
from tests.data_fixture import ListedStudy, recording, sentence_study, sounds


def prepare(study: ListedStudy, folder: Path, preprocessing: PreprocessingConfig | None = None) -> StudyData:
    splits = SplitConfig(valid=0.2, test=0.3)
    return StudyData.prepare(study, folder, preprocessing or PreprocessingConfig(), WindowConfig(), splits, folder)


@pytest.mark.parametrize(
    "name", ["Trigger", "STI 014", "STI101", "Status", "DIN1", "TRIG1", "EEGTrigger", "Stim", "TTL", "stim_marker"]
)
def test_triggers_are_known_by_name(name: str) -> None:
    assert kind_of(name) == "trigger"


@pytest.mark.parametrize("name", ["AUD", "Aux5", "AUX 1", "audioLeft", "Audio", "Sound_L", "envelope", "EEG Audio"])
def test_sound_is_known_by_name(name: str) -> None:
    assert kind_of(name) == "sound"


def test_no_electrode_of_any_montage_is_taken_for_one() -> None:
    names = {n for m in mne.channels.get_builtin_montages() for n in mne.channels.make_standard_montage(m).ch_names}
    assert len(names) > 300
    assert {kind_of(n) for n in names} == {"brain"}
    assert {kind_of(n) for n in ("EXG1", "MEG0111", "EEG 001", "ECG", "MISC 1", "28")} == {"brain"}


@pytest.mark.parametrize(("name", "said"), [("Trigger", "a trigger channel"), ("AUD", "a sound channel")])
def test_they_are_refused_as_inputs_of_any_study(tmp_path: Path, name: str, said: str) -> None:
    study = sentence_study(tmp_path / "sounds", 20)
    study.recordings[1] = replace(study.recordings[1], ch_names=("E0", name))
    with pytest.raises(UserError, match=rf"recording bob: channel {name} is by its name {said}.*leave it out"):
        prepare(study, tmp_path)
    splits = SplitConfig(valid=0.2, test=0.3, strict=False)
    with pytest.raises(UserError, match=name):  # nor may they be kept in a demonstration
        StudyData.prepare(study, tmp_path, PreprocessingConfig(), WindowConfig(), splits, tmp_path)


def test_by_their_type_they_are_no_inputs_and_by_their_name_no_eeg(tmp_path: Path) -> None:
    """Whatever a study calls the channels of its file afterwards."""
    noise = np.random.default_rng(0).standard_normal((4, 1000)) * 1e-5
    for types, kept in ((["eeg", "eeg", "stim", "misc"], ["Cz", "Pz"]), (["eeg", "eeg", "eeg", "misc"], None)):
        info = mne.create_info(["Cz", "Pz", "STI 014", "Audio"], 100.0, types)
        path = tmp_path / f"{types[2]}_raw.fif"
        mne.io.RawArray(noise, info, verbose="error").save(path, verbose="error")
        raw = open_raw(path)
        if kept is None:
            with pytest.raises(UserError, match=r"eeg_raw\.fif: channel STI 014 is by its name a trigger"):
                picked(path, raw, "EEG")
        else:
            assert [raw.ch_names[i] for i in picked(path, raw, "EEG")] == kept


def test_the_channels_that_see_the_eyes() -> None:
    known = np.zeros((4, 2), dtype=np.float32)
    assert eye_channels(["Fp1", "Cz", "VEOG", "HEOG"], known) == [2, 3]
    assert eye_channels(["Fp1", "Cz", "AF8", "Oz"], known) == [0, 2]
    assert eye_channels(["C3", "Cz", "C4", "Oz"], known) == []
    unplaced = known.copy()
    unplaced[2:] = np.nan
    assert eye_channels(["Fp1", "Cz", "VEOG", "HEOG"], unplaced) == [0]


def test_eyes_alone_are_prepared_as_a_study_of_their_own(tmp_path: Path) -> None:
    study = sentence_study(tmp_path / "sounds", 20, n_channels=3)
    study.recordings = [replace(r, ch_names=("Fp1", "Cz", "Fp2")) for r in study.recordings]
    everything = prepare(study, tmp_path)
    eyes = prepare(study, tmp_path, PreprocessingConfig(channels="eyes"))
    assert eyes.ch_names == ("Fp1", "Fp2")
    assert eyes.fingerprint != everything.fingerprint
    rows = np.arange(5)
    np.testing.assert_array_equal(eyes.batch(rows).eeg, everything.batch(rows).eeg[:, [0, 2]])
    np.testing.assert_array_equal(eyes.batch(rows).positions, everything.batch(rows).positions[:, [0, 2]])
    blind = recording("ann", sounds(("s", 1.0, 2.0, "", 0.0, np.nan)))
    with pytest.raises(UserError, match="recording ann: .*finds no channel named EOG"):
        eyes_only(blind)
