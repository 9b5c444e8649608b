"""The user's own folder: read as declared, and refused in one sentence where it cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data_fixture import write_noise

from eeg2speech.data.folder import FolderStudy, FolderStudyConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.data.mne_files import standard_montage
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("EEG2SPEECH_REALDATA", ROOT.parent / "shared" / "realdata"))
CH_NAMES = ("Fz", "Cz", "Pz", "Oz")


def config(root: Path, **fields: Any) -> FolderStudyConfig:
    declared = {
        "pattern": "P_S*.npz",
        "subject_from": r"P_(S\d+)_",
        "sfreq": 64,
        "samples_first": True,
        "ch_names": CH_NAMES,
        "montage": "biosemi64",
        "features": "{file}:envelope",
        "rate": 64,
    }
    return FolderStudyConfig.model_validate({"root": root, **declared, **fields})


def from_manifest(root: Path, name: str = "manifest.csv", **fields: Any) -> FolderStudyConfig:
    return config(root, **{"pattern": None, "manifest": name, "features": "", "rate": None, **fields})


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    """Three listeners, two trials each, all of the same 50 s: the form of the real study."""
    root = tmp_path / "trials"
    root.mkdir()
    rng = np.random.default_rng(0)
    envelope = rng.random((3200, 1), dtype=np.float32)
    for subject in (1, 2, 3):
        for trial in (0, 1):
            eeg = rng.standard_normal((3200, 4)).astype(np.float32)
            np.savez(root / f"P_S{subject}_{trial}.npz", eeg=eeg, envelope=envelope)
    return root


def prepare(study: FolderStudy, folder: Path, splits: SplitConfig) -> StudyData:
    return StudyData.prepare(
        study, folder / "generated", PreprocessingConfig(), WindowConfig(test_stride_s=1.0), splits, folder / "cache"
    )


def test_what_the_files_say_is_what_is_read(replica: Path, tmp_path: Path) -> None:
    study = config(replica, licence="CC0", citation="us").build()
    study.prepare(tmp_path / "generated")
    recordings = list(study.iter_recordings())
    assert study.subjects() == ("S1", "S2", "S3")
    assert [r.recording for r in recordings] == [f"P_S{s}_{t}" for s in (1, 2, 3) for t in (0, 1)]
    assert (study.has_audio, study.licence, study.citation) == (False, "CC0", "us")
    third = recordings[2]
    stored = np.load(replica / "P_S2_0.npz")
    np.testing.assert_array_equal(third.eeg.read(100, 200), stored["eeg"][100:200].T)
    assert (third.sfreq, third.ch_names, third.eeg.n_samples) == (64.0, CH_NAMES, 3200)
    sound = third.sounds.iloc[0]
    np.testing.assert_array_equal(np.load(sound["path"]), stored["envelope"])
    assert (sound["onset_s"], sound["duration_s"], sound["sfreq_hz"]) == (0.0, 50.0, 64.0)
    # Fz lies in front of Cz, and Oz behind Pz
    assert third.positions[0, 1] > third.positions[1, 1] > third.positions[2, 1] > third.positions[3, 1]
    assert np.ptp(third.positions[:, 0]) < 0.05


def test_nothing_is_added_to_the_user_s_folder_and_shared_speech_is_stored_once(replica: Path, tmp_path: Path) -> None:
    before = sorted(replica.iterdir())
    study = config(replica).build()
    study.prepare(tmp_path / "generated")
    paths = {r.sounds["path"].iloc[0] for r in study.iter_recordings()}
    assert sorted(replica.iterdir()) == before
    assert len(paths) == len(list((tmp_path / "generated").rglob("*.npy"))) == 1


def assert_time_is_the_only_split(study: FolderStudy, folder: Path) -> StudyData:
    for by in ("recording", "subject"):
        with pytest.raises(UserError, match="shared stimulus identity"):
            prepare(study, folder, SplitConfig.model_validate({"by": by}))
    data = prepare(study, folder, SplitConfig(by="time", test=0.22))
    assert all(finding.passed for finding in data.audit)
    return data


def test_one_shared_story_can_only_be_split_by_time(replica: Path, tmp_path: Path) -> None:
    data = assert_time_is_the_only_split(config(replica).build(), tmp_path)
    assert data.stimuli["audio"].nunique() == 1
    assert data.n_subjects == 3


@pytest.mark.skipif(not (REAL / "dtu").is_dir(), reason="the real recordings are not here")
def test_the_real_study_can_only_be_split_by_time(tmp_path: Path) -> None:
    declared = yaml.safe_load((ROOT / "configs" / "dtu.yaml").read_text(encoding="utf-8"))
    study = FolderStudyConfig.model_validate({**declared["study"], "root": REAL / "dtu"}).build()
    data = assert_time_is_the_only_split(study, tmp_path)
    assert (data.n_channels, data.n_subjects, len(data.eeg)) == (64, 8, 80)
    test = data.windows.iloc[data.indices("test")]
    assert len(test) == 8 * 80
    assert test["stimulus"].nunique() == 8
    batch = data.batch(data.indices("train")[:64])
    assert batch.eeg.shape == (64, 64, 360)
    assert batch.features.shape == (64, 1, 192)


def write_story(root: Path) -> None:
    """A FIF recording of 20 s with one trigger channel, a wav of 12 s played from second 4, and its words."""
    import mne

    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    info = mne.create_info([*CH_NAMES, "STI"], 250.0, ["eeg"] * 4 + ["stim"])
    raw = mne.io.RawArray(1e-5 * rng.standard_normal((5, 5000)), info, verbose="error")
    raw.set_montage("biosemi64", verbose="error")
    raw.save(root / "night_eeg.fif", verbose="error")
    write_noise(root, "story", 12.0, 0)
    (root / "words.csv").write_text("word,onset_s,duration_s,sentence\nonce,4.5,0.3,0\nupon,5.0,0.4,0\n")


ROW = {"file": "night_eeg.fif", "subject": "01", "audio": "story.wav", "onset_s": "4.0", "words": "words.csv"}


def write_manifest(root: Path, form: str, *rows: dict[str, str]) -> None:
    if form == "json":
        (root / "manifest.json").write_text(json.dumps(list(rows)))
    else:
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines = [",".join(keys)] + [",".join(row.get(key, "") for key in keys) for row in rows]
        (root / "manifest.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_manifest_of_an_mne_file_with_audio_and_words(tmp_path: Path, form: str) -> None:
    import mne

    root = tmp_path / "mine"
    write_story(root)
    write_manifest(root, form, ROW)
    study = from_manifest(root, f"manifest.{form}", montage=None, ch_names=None, sfreq=None).build()
    study.prepare(tmp_path / "generated")
    (recording,) = study.iter_recordings()
    raw = mne.io.read_raw_fif(root / "night_eeg.fif", verbose="error")
    assert (recording.subject, recording.recording, recording.sfreq) == ("01", "night_eeg", 250.0)
    assert recording.ch_names == CH_NAMES, "the trigger channel is no EEG"
    np.testing.assert_allclose(recording.eeg.read(10, 50), raw.get_data(picks="eeg", start=10, stop=50), rtol=1e-6)
    sound = recording.sounds.iloc[0]
    assert (sound["onset_s"], sound["duration_s"], sound["offset_s"]) == (4.0, 12.0, 0.0)
    assert list(recording.words["word"]) == ["once", "upon"]
    assert study.has_audio


def test_channels_of_an_mne_file_can_be_named_in_the_config(tmp_path: Path) -> None:
    write_story(tmp_path)
    write_manifest(tmp_path, "csv", ROW)
    study = from_manifest(tmp_path, ch_names=("F3", "C3", "P3", "O1")).build()
    study.prepare(tmp_path / "generated")
    (recording,) = study.iter_recordings()
    assert recording.ch_names == ("F3", "C3", "P3", "O1")
    assert (recording.positions[:, 0] < 0.5).all(), "these lie on the left"


def test_changed_eeg_changes_the_fingerprint(replica: Path, tmp_path: Path) -> None:
    def fingerprint() -> str:
        study = config(replica).build()
        study.prepare(tmp_path)
        return next(study.iter_recordings()).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    path = replica / "P_S1_0.npz"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    assert fingerprint() != before


def read(declared: FolderStudyConfig, folder: Path) -> None:
    study = declared.build()
    study.prepare(folder / "generated")
    for recording in study.iter_recordings():
        recording.eeg.read(0, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"root": "nowhere"}, "nowhere is no folder; set study.root"),
        ({"pattern": "*.bdf"}, r"\*\.bdf: lists no recording"),
        ({"subject_from": "X(.)"}, r"P_S1_0\.npz: study\.subject_from"),
        ({"sfreq": None}, r"P_S1_0\.npz: an npz needs study\.sfreq"),
        ({"sfreq": "rate"}, r"P_S1_0\.npz: array 'rate' cannot be read"),
        ({"eeg_array": "meg"}, r"P_S1_0\.npz: array 'meg' cannot be read"),
        ({"samples_first": False}, r"has 3200 EEG channels, 4 are named.*samples_first"),
        ({"ch_names": ("Fz", "Cz", "Pz", "Cz")}, "two channels are named alike"),
        ({"ch_names": ("A", "B", "C", "D")}, r"no position is known for any of A, B"),
        ({"montage": "biosemi65"}, r"study\.montage: MNE has no 'biosemi65'; choose one of"),
        ({"features": "{file}:pitch"}, r"array 'pitch' cannot be read"),
        ({"rate": None}, r"P_S\*\.npz: entry 1, row: .*features need a rate"),
        ({"features": "{stem}.npy"}, r"P_S1_0\.npy, P_S1_1\.npy, P_S2_0\.npy and 3 more not found under"),
        ({"features": ""}, r"entry 1, row: .*either audio or features"),
    ],
)
def test_every_mistake_in_the_config_is_one_sentence(
    replica: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(config(**{"root": replica, **fields}), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "file": "gone.fif"}], r"manifest\.csv: gone\.fif not found under"),
        ([{**ROW, "onset_s": "soon"}], r"manifest\.csv: entry 1, onset_s: "),
        ([ROW, {**ROW, "speaker": "x"}], r"manifest\.csv: unknown column speaker; the columns are file, subject, "),
        (
            [{"sound" if k == "audio" else k: v for k, v in ROW.items()}],
            r"unknown column sound; the columns are ",
        ),
        ([{k: v for k, v in ROW.items() if k != "subject"}], r"manifest\.csv: entry 1, subject: Field required"),
        ([ROW, {**ROW, "subject": "02"}], r"rows of night_eeg\.fif differ in subject"),
        ([ROW, {**ROW, "file": "copy/night_eeg.fif"}], r"are both recording night_eeg; name them apart"),
        ([{**ROW, "offset_s": "13"}], r"story\.wav lasts 12\.00 s, offset_s 13 is past its end"),
        ([{**ROW, "file": "words.csv"}], r"words\.csv: MNE cannot read this EEG"),
        ([{**ROW, "audio": "words.csv"}], r"words\.csv: this sound file cannot be read"),
        ([{**ROW, "words": "manifest.csv"}], r"manifest\.csv: has no column word, duration_s, sentence"),
    ],
)
def test_every_mistake_in_a_manifest_is_one_sentence(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    root = tmp_path / "mine"
    write_story(root)
    (root / "copy").mkdir()
    (root / "copy" / "night_eeg.fif").write_bytes((root / "night_eeg.fif").read_bytes())
    write_manifest(root, "csv", *rows)
    with pytest.raises(UserError, match=message) as caught:
        read(from_manifest(root, montage=None), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_absent_or_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.csv does not exist"):
        read(from_manifest(tmp_path), tmp_path)
    for text in ("{", '{"file": "a"}'):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(UserError, match=r"m\.json"):
            read(from_manifest(tmp_path, "m.json"), tmp_path)


def test_an_npz_may_say_its_own_rate(tmp_path: Path) -> None:
    eeg = np.random.default_rng(0).standard_normal((4, 640)).astype(np.float32)
    np.save(tmp_path / "envelope.npy", np.ones(640, dtype=np.float32))
    row = {"subject": "01", "features": "envelope.npy", "rate": "64"}
    np.savez(tmp_path / "a.npz", eeg=eeg, sfreq=128.0)
    np.savez(tmp_path / "b.npz", eeg=eeg, sfreq=[128.0, 64.0])
    for name, message in (("a.npz", None), ("b.npz", r"b\.npz: sfreq holds float64 \(2,\), not one number")):
        write_manifest(tmp_path, "json", {"file": name, **row})
        study = from_manifest(tmp_path, "manifest.json", sfreq=None, samples_first=False).build()
        study.prepare(tmp_path / "generated")
        if message is None:
            (recording,) = study.iter_recordings()
            assert recording.sfreq == 128.0
        else:
            with pytest.raises(UserError, match=message):
                list(study.iter_recordings())


def test_an_npz_may_name_its_own_channels(tmp_path: Path) -> None:
    eeg = np.random.default_rng(0).standard_normal((4, 640)).astype(np.float32)
    np.save(tmp_path / "envelope.npy", np.ones(640, dtype=np.float32))
    np.savez(tmp_path / "a.npz", eeg=eeg, ch_names=["Oz", "Pz", "Cz", "Fz"])
    np.savez(tmp_path / "b.npz", eeg=eeg, ch_names=np.array(CH_NAMES, dtype=object))
    np.savez(tmp_path / "c.npz", eeg=eeg, ch_names=[1, 2, 3, 4])
    own: dict[str, Any] = {
        "samples_first": False,
        "subject_from": "(.)",
        "features": "envelope.npy",
    }
    for name, declared, said in (
        ("a", None, "Oz Pz Cz Fz"),
        ("a", CH_NAMES, "Fz Cz Pz Oz"),
        ("b", CH_NAMES, "Fz Cz Pz Oz"),
        ("b", None, r"b\.npz: ch_names cannot be read .*; write numpy\.array\(names, dtype=str\)"),
        ("c", None, r"c\.npz: ch_names holds int64 \(4,\), not a row of strings"),
    ):
        study = config(tmp_path, **own | {"pattern": f"{name}.npz", "ch_names": declared}).build()
        study.prepare(tmp_path / "generated")
        if said.startswith(("Fz", "Oz")):
            assert next(study.iter_recordings()).ch_names == tuple(said.split())
        else:
            with pytest.raises(UserError, match=said):
                next(study.iter_recordings())


@pytest.mark.filterwarnings("error")
def test_a_montage_by_its_former_name_is_taken_without_a_warning() -> None:
    assert standard_montage("standard_1020").ch_names == standard_montage("colin27_1020").ch_names
    with pytest.raises(UserError, match="MNE has no 'standard_1021'; choose one of"):
        standard_montage("standard_1021")


def test_null_is_a_word_and_a_time_is_a_number(tmp_path: Path) -> None:
    write_story(tmp_path)
    write_manifest(tmp_path, "csv", ROW)
    head = "word,onset_s,duration_s,sentence\n"
    (tmp_path / "words.csv").write_text(f"{head}null,4.5,0.3,0\nNA,5.0,0.4,0\n")
    study = from_manifest(tmp_path, montage=None, ch_names=None, sfreq=None).build()
    study.prepare(tmp_path / "generated")
    (recording,) = study.iter_recordings()
    assert list(recording.words["word"]) == ["null", "NA"]
    (tmp_path / "words.csv").write_text(f"{head}once,soon,0.3,0\n")
    with pytest.raises(UserError, match=r"words\.csv: this word table cannot be read .*soon"):
        list(study.iter_recordings())
