"""BIDS folders: what is read of files, events and sounds, and every refusal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from bids_fixture import NAMES, SFREQ, write_eeg, write_meg, write_root, write_sound, write_tsv
from studies_fixture import write_textgrid

from eeg2speech.data.base import Recording
from eeg2speech.data.bids import BidsStudyConfig
from eeg2speech.data.gwilliams2022 import Gwilliams2022StudyConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError

REAL = Path(os.environ.get("EEG2SPEECH_REALDATA", Path(__file__).parents[2] / "shared" / "realdata")) / "readers"


def read(root: Path, **fields: Any) -> list[Recording]:
    declared = {"root": root, "montage": "biosemi64", **fields}
    study = BidsStudyConfig.model_validate(declared).build()
    study.prepare(root.parent / "generated")
    return list(study.iter_recordings())


SOUND = {"onset": 2.0, "duration": 4.0, "trial_type": "sound", "stim_file": "alice.wav", "word": "n/a"}
WORDS = [
    {"onset": onset, "duration": 0.3, "trial_type": "word", "stim_file": "alice.wav", "word": word, "line": line}
    for onset, word, line in ((2.5, "once", 7), (3.0, "null", 7), (3.5, "upon", 9))
]
COLUMNS = {"kind": "trial_type", "word": "word", "sentence": "line"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    write_eeg(root, "sub-02", "listen", 12.0, SOUND, *WORDS)
    write_sound(root / "stimuli" / "alice.wav", 8.0, 0)
    return root


def test_files_events_and_sounds_are_read_as_written(root: Path) -> None:
    eeg = write_eeg(root, "sub-01", "listen", 10.0, SOUND)
    first, second = read(root, events=COLUMNS | {"sentence": None})
    assert [r.recording for r in (first, second)] == ["sub-01_task-listen", "sub-02_task-listen"]
    assert (first.subject, first.sfreq, first.ch_names) == ("sub-01", SFREQ, NAMES), "an EOG is no EEG"
    np.testing.assert_allclose(first.eeg.read(10, 90), eeg[:4, 10:90] * 1e-6, atol=6e-10)
    assert second.sounds.iloc[0].to_dict() | {"sfreq_hz": 0} == {
        "sound": "alice", "onset_s": 2.0, "duration_s": 8.0, "path": str(root / "stimuli" / "alice.wav"),
        "offset_s": 0.0, "sfreq_hz": 0,
    }  # fmt: skip
    assert first.words.empty
    # Fz lies in front of Cz, and Oz behind Pz
    assert (np.diff(first.positions[:, 1]) < 0).all()


def test_a_column_tells_sentences_apart_or_a_pause_does(root: Path) -> None:
    (recording,) = read(root, events=COLUMNS)
    assert list(recording.words["word"]) == ["once", "null", "upon"]
    assert list(recording.words["sentence"].diff().fillna(0)) == [0, 0, 1]
    (recording,) = read(root, events=COLUMNS | {"sentence": None}, sentence_pause_s=0.2)
    assert recording.words["sentence"].nunique() == 3
    (recording,) = read(root, events=COLUMNS | {"sentence": None})
    assert recording.words["sentence"].nunique() == 1


def test_an_event_may_say_how_much_was_played(root: Path) -> None:
    (recording,) = read(root, events=COLUMNS, sound_duration="events")
    assert recording.sounds["duration_s"].iloc[0] == 4.0


def test_words_of_a_textgrid_are_those_that_were_played(root: Path) -> None:
    event = {"onset": 2.0, "duration": 3.0, "stim_file": "alice.wav", "from": 1.0}
    write_eeg(root, "sub-02", "listen", 12.0, event)
    tier = [(0.5, 0.9, "down"), (1.5, 2.0, "the"), (2.0, 2.5, "rabbit"), (3.5, 4.5, "hole")]
    write_textgrid(root / "stimuli" / "alice.TextGrid", {"words": tier}, 8.0)
    fields = {"events": {"offset": "from"}, "textgrid": "{stem}.TextGrid", "sound_duration": "events"}
    (recording,) = read(root, **fields)
    assert recording.sounds[["onset_s", "offset_s", "duration_s"]].iloc[0].tolist() == [2.0, 1.0, 3.0]
    assert recording.words[["word", "onset_s"]].to_numpy().tolist() == [["the", 2.5], ["rabbit", 3.0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"root": "nowhere"}, "nowhere has no dataset_description"),
        ({"subjects": ["sub-09"]}, "holds no eeg recording of sub-09"),
        ({"tasks": ["rest"]}, "holds no eeg recording of the chosen"),
        ({"datatype": "meg"}, "holds no meg recording"),
        ({"stimuli": "sounds"}, r"sounds/alice\.wav not found; see study\.stimuli"),
        ({"events": {"sound": "wav"}}, r"events\.tsv: has no column wav, only onset, duration"),
        ({"events": {"kind": "trial_type", "sound_kind": "story"}}, r"events\.tsv: no row names a sound"),
        ({"events": {"onset": "word", "kind": "trial_type"}}, r"column word has 'n/a' where"),
        ({"montage": None}, r"no position is known for any of Fz.*study\.montage"),
        ({"montage": "biosemi65"}, r"study\.montage: MNE has no"),
        ({"textgrid": "{stem}.TextGrid"}, r"alice\.TextGrid not found"),
    ],
)
def test_every_mistake_is_one_sentence(root: Path, fields: dict[str, Any], message: str) -> None:
    fields = {"events": {"kind": "trial_type"}, **fields}
    if "root" in fields:
        fields["root"] = root.parent / fields["root"]
    with pytest.raises(UserError, match=message) as caught:
        read(**{"root": root, **fields})
    assert "\n" not in str(caught.value)


def test_files_that_are_not_what_they_should_be(root: Path) -> None:
    eeg = root / "sub-02" / "eeg" / "sub-02_task-listen_eeg.eeg"
    whole = eeg.read_bytes()
    eeg.write_bytes(whole[: len(whole) // 2 // 10 * 10])  # whole frames: only the sidecar knows
    with pytest.raises(UserError, match=r"lasts 6\.00 s, of 12\.00 s that .*_eeg\.json states"):
        read(root, events=COLUMNS)
    eeg.write_bytes(whole)
    (root / "stimuli" / "alice.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"alice\.wav: this sound file cannot be read"):
        read(root, events=COLUMNS)
    (root / "sub-02" / "eeg" / "sub-02_task-listen_events.tsv").unlink()
    with pytest.raises(UserError, match=r"has no events\.tsv"):
        read(root, events=COLUMNS)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not here")
def test_a_real_bids_folder_is_read_and_a_cut_one_refused(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(REAL / "tiny_bids", root, copy_function=shutil.copyfile)
    root.chmod(0o755)
    write_sound(root / "stimuli" / "show_stimulus.wav", 1.0, 0)
    folder = root / "sub-01" / "ses-eeg" / "eeg"
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    stem = "sub-01_ses-eeg_task-rest"
    write_tsv(folder / f"{stem}_events.tsv", {"onset": 0.2, "duration": 1, "stim_file": "show_stimulus.wav"})
    (recording,) = read(root, montage="biosemi64")
    raw = mne.io.read_raw_brainvision(folder / f"{stem}_eeg.vhdr", verbose="error")
    assert (recording.sfreq, recording.eeg.n_samples) == (5000.0, raw.n_times)
    expected = raw.get_data(picks=list(recording.ch_names), stop=50)
    np.testing.assert_allclose(recording.eeg.read(0, 50), expected, rtol=1e-6)
    eeg = folder / f"{stem}_eeg.eeg"
    eeg.write_bytes(eeg.read_bytes()[:690_001])
    with pytest.raises(UserError, match=rf"{stem}_eeg\.(eeg|vhdr)"):
        read(root, montage="biosemi64")


# MEG-MASC


def told(kind: str, onset: float, duration: float, **values: Any) -> dict[str, Any]:
    values = {"story": "lw1", "kind": kind, "sound_id": 0.0, "sound": "stimuli/audio/LW1_0.0.wav", **values}
    return {"onset": onset, "duration": duration, "trial_type": repr(values), "value": 1, "sample": 0}


def story(onset_s: float, duration_s: float) -> list[dict[str, Any]]:
    """A sound with half-second words in sentences of eight, and a phoneme in each word."""
    events = [told("sound", onset_s, duration_s, start=0.0)]
    for k in range(round(2 * duration_s)):
        start = 0.5 * k
        events.append(told("word", onset_s + start, 0.4, start=start, word=f"w{k}", sequence_id=float(k // 8)))
        events.append(told("phoneme", onset_s + start, 0.1, start=start, phoneme="w_B", sequence_id=float(k // 8)))
    return events


def masc(root: Path, **fields: Any) -> Any:
    study = Gwilliams2022StudyConfig.model_validate({"root": root, **fields}).build()
    study.prepare(root.parent / "generated")
    return study


def test_meg_masc_is_read_from_dicts_that_are_not_run(tmp_path: Path) -> None:
    root = tmp_path / "masc"
    for subject, session in (("sub-01", "0"), ("sub-01", "1"), ("sub-02", "0")):
        write_meg(root, subject, session, "0", 15.0, *story(1.5, 12.0))
    write_sound(root / "stimuli" / "audio" / "lw1_0.wav", 12.0, 0)
    study = masc(root)
    recordings = list(study.iter_recordings())
    assert (study.modality, study.subjects()) == ("MEG", ("sub-01", "sub-02"))
    assert [r.recording for r in recordings] == [
        "sub-01_ses-0_task-0", "sub-01_ses-1_task-0", "sub-02_ses-0_task-0",
    ]  # fmt: skip
    last = recordings[-1]
    assert len(last.ch_names) == 8
    assert np.isfinite(last.positions).all()
    assert last.sounds[["sound", "onset_s", "duration_s"]].iloc[0].tolist() == ["lw1_0", 1.5, 12.0]
    assert list(last.words["word"]) == [f"w{k}" for k in range(24)]
    np.testing.assert_allclose(last.words["onset_s"], 1.5 + 0.5 * np.arange(24))
    assert last.words["sentence"].tolist() == [1 + k // 8 for k in range(24)]
    assert [r.recording for r in masc(root, sessions=["1"]).iter_recordings()] == ["sub-01_ses-1_task-0"]
    assert masc(root, subjects=["sub-02"]).subjects() == ("sub-02",)


def test_meg_masc_becomes_batches(tmp_path: Path) -> None:
    root = tmp_path / "masc"
    for subject in ("sub-01", "sub-02"):
        write_meg(root, subject, "0", "0", 64.0, *story(1.5, 60.0))
    write_sound(root / "stimuli" / "audio" / "lw1_0.wav", 60.0, 0)
    splits = SplitConfig(by="time", valid=0.2, test=0.3)
    parts = (PreprocessingConfig(), WindowConfig(), splits)
    data = StudyData.prepare(masc(root), tmp_path / "generated", *parts, tmp_path / "cache")
    assert (data.has_audio, data.n_bands, data.n_channels) == (True, 64, 8)
    assert data.batch(data.indices("test")).text[0].startswith("w")


EVIL = "__import__('pathlib').Path('evil').touch()"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"onset": 1, "duration": 1, "trial_type": EVIL}], r"_events\.tsv: line 2: trial_type is no dict"),
        ([{"onset": 1, "duration": 1, "trial_type": "[1]"}], r"_events\.tsv: line 2: trial_type is no dict"),
        ([*story(1, 2), {"onset": 1, "duration": 1, "trial_type": "{'a'"}], r"line 11: trial_type is no dict"),
        ([{"onset": 1, "duration": 1, "trial_type": "{'kind': 'sound'}"}], r"no trial_type says 'sound'"),
        ([{"onset": 1, "duration": 1}], r"has no column trial_type"),
        (story(1, 2), r"lw1_0\.wav not found"),
    ],
)
def test_meg_masc_that_is_not_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_meg(tmp_path / "masc", "sub-01", "0", "0", 4.0, *events)
    with pytest.raises(UserError, match=message) as caught:
        masc(tmp_path / "masc")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_an_empty_bids_folder_says_what_it_lacks(tmp_path: Path) -> None:
    write_root(tmp_path / "masc")
    with pytest.raises(UserError, match="holds no meg recording"):
        masc(tmp_path / "masc")
