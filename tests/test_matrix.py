"""The embedded study as its reader meets it: files, tables, and what may and may not be in the EEG."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mne
import numpy as np
import pandas as pd
import pytest
import soundfile
from pydantic import ValidationError
from scipy.signal import butter, sosfreqz

from eeg2speech.data import forward_model, speech_corpus
from eeg2speech.data.base import SOUND_COLUMNS, WORD_COLUMNS, Recording
from eeg2speech.data.matrix import MatrixStudy, MatrixStudyConfig
from eeg2speech.errors import UserError
from eeg2speech.files import sha256

SMALL = {"n_sentences": 14, "n_subjects": 2, "recordings_per_subject": 2}
NOTHING = float("-inf")


def made(folder: Path, **values: Any) -> MatrixStudy:
    study = MatrixStudyConfig(**(SMALL | values)).build()
    study.prepare(folder)
    return study


def hashes(study: MatrixStudy, pattern: str = "*") -> dict[str, str]:
    assert study.folder is not None
    root = study.folder
    return {str(p.relative_to(root)): sha256(p) for p in root.rglob(pattern) if p.is_file() and p.name != "done.json"}


def whole(recording: Recording) -> np.ndarray:
    return recording.eeg.read(0, recording.eeg.n_samples).astype(np.float64)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> MatrixStudy:
    return made(tmp_path_factory.mktemp("matrix"), snr_db=3.0)


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> MatrixStudy:
    """The same experiment at SNR -inf."""
    return made(tmp_path_factory.mktemp("mute"), snr_db=NOTHING)


@pytest.fixture(scope="module")
def recordings(study: MatrixStudy) -> list[Recording]:
    return list(study.iter_recordings())


def test_speech_is_loud_and_not_clipped(study: MatrixStudy) -> None:
    assert study.folder is not None
    wavs = sorted((study.folder / "audio").glob("*.wav"))
    assert len(wavs) == SMALL["n_sentences"]
    for path in wavs:
        waveform, rate = soundfile.read(path)
        assert rate == 16_000
        assert waveform.ndim == 1
        assert 1.0 < len(waveform) / rate <= 2.6
        assert np.abs(waveform).max() < 0.999
        assert np.sqrt(np.mean(waveform**2)) == pytest.approx(0.06, rel=0.02)
        spectrum = np.abs(np.fft.rfft(waveform)) ** 2
        hz = np.fft.rfftfreq(len(waveform), 1 / rate)
        assert spectrum[(hz > 80) & (hz < 4000)].sum() > 0.9 * spectrum.sum()
        silent = np.abs(waveform) < 0.02 * np.abs(waveform).max()
        assert not silent[: len(silent) // 10].all(), "begins within a tenth of the reading"


# the experiment


def test_all_listeners_hear_the_same_readings_in_orders_of_their_own(recordings: list[Recording]) -> None:
    heard: dict[str, list[tuple[str, str]]] = {}
    for recording in recordings:
        heard.setdefault(recording.subject, []).extend(recording.sounds[["sound", "path"]].itertuples(index=False))
    first, second = heard.values()
    assert sorted(first) == sorted(second)
    assert len(set(first)) == len(first) == SMALL["n_sentences"]
    assert first != second


def test_recordings_keep_the_contract(study: MatrixStudy, recordings: list[Recording]) -> None:
    assert [r.recording for r in recordings] == ["listener1-1", "listener1-2", "listener2-1", "listener2-2"]
    assert tuple(sorted({r.subject for r in recordings})) == study.subjects()
    assert len({r.fingerprint for r in recordings}) == 4
    assert study.simulated
    assert study.isolated_sentences
    assert study.has_audio
    for recording in recordings:
        assert tuple(recording.sounds.columns) == SOUND_COLUMNS
        assert tuple(recording.words.columns) == WORD_COLUMNS
        assert recording.positions.shape == (64, 2)
        assert (recording.positions >= 0).all()
        assert (recording.positions <= 1).all()
        assert np.ptp(recording.positions, axis=0).min() > 0.8
        ends = recording.sounds["onset_s"] + recording.sounds["duration_s"]
        assert ends.iloc[-1] + 0.5 < recording.eeg.n_samples / recording.sfreq
        assert recording.sounds["onset_s"].iloc[0] > 0.5, "room for a baseline"
        gaps = recording.sounds["onset_s"].to_numpy()[1:] - ends.to_numpy()[:-1]
        assert gaps.min() > 0.4, "a response is over before the next sentence"
        for path, duration in zip(recording.sounds["path"], recording.sounds["duration_s"], strict=True):
            assert soundfile.info(path).duration == duration


def test_words_are_those_of_the_sentences_and_inside_their_sounds(recordings: list[Recording]) -> None:
    for recording in recordings:
        folder = Path(recording.sounds["path"].iloc[0]).parents[1]
        texts = pd.read_csv(folder / "sentences.csv", dtype={"sentence_id": str}).set_index("sentence_id")["text"]
        for (number, words), sound in zip(
            recording.words.groupby("sentence"), recording.sounds.itertuples(), strict=True
        ):
            assert recording.sounds["sound"].iloc[number] == sound.sound
            assert " ".join(words["word"]) == texts[sound.sound]
            assert words["onset_s"].is_monotonic_increasing
            assert words["onset_s"].iloc[0] == sound.onset_s
            last = words["onset_s"].iloc[-1] + words["duration_s"].iloc[-1]
            assert last == pytest.approx(sound.onset_s + sound.duration_s)


def test_mne_reads_the_files_as_it_reads_any_other(study: MatrixStudy, recordings: list[Recording]) -> None:
    assert study.folder is not None
    files = sorted(study.folder.glob("*_eeg.fif"))
    assert len(files) == 4
    for path, recording in zip(files, recordings, strict=True):
        raw = mne.io.read_raw(path, verbose="error")
        assert raw.info["sfreq"] == recording.sfreq == 128.0
        assert set(raw.get_channel_types()) == {"eeg"}
        assert np.isfinite([ch["loc"][:3] for ch in raw.info["chs"]]).all(), "the montage is in the file"
        volts = raw.get_data()
        assert np.isfinite(volts).all()
        assert 2e-6 < np.median(np.abs(volts)) < 50e-6
        np.testing.assert_array_equal(recording.eeg.read(200, 500), volts[:, 200:500].astype(np.float32))


# what is in the EEG


def test_the_snr_is_what_its_definition_says(
    study: MatrixStudy, mute: MatrixStudy, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From files alone: response = EEG with sound - EEG without; background = a recording without artefacts.

    Speech is where the loudness of the wavs says so, and the pass band is applied as a spectrum.
    """
    monkeypatch.setattr(forward_model, "artefacts", lambda n, sfreq, listener, rng: np.zeros((64, n), np.float32))
    bare = made(tmp_path, snr_db=NOTHING)
    sos = butter(4, (1.0, 40.0), "bandpass", fs=128.0, output="sos")
    for subject in study.subjects():
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for loud, silent, clean in zip(recordings, mute.iter_recordings(), bare.iter_recordings(), strict=True):
            if loud.subject != subject:
                continue
            speech = np.zeros(loud.eeg.n_samples, dtype=bool)
            for sound in loud.sounds.itertuples():
                waveform, rate = soundfile.read(sound.path)
                padded = np.pad(waveform, 512)
                at = (np.arange(int(len(waveform) / rate * 128)) / 128 * rate).astype(int)
                loudness = np.array([np.abs(np.fft.rfft(padded[i : i + 1024] * np.hanning(1024))).max() for i in at])
                start = round(sound.onset_s * 128)
                speech[start : start + len(at)] = loudness > 0.05
            for pieces, eeg in zip(parts, (whole(loud) - whole(silent), whole(clean)), strict=True):
                shape = np.abs(sosfreqz(sos, np.fft.rfftfreq(eeg.shape[1], 1 / 128), fs=128.0)[1]) ** 2
                pieces.append(np.fft.irfft(shape * np.fft.rfft(eeg), eeg.shape[1])[:, speech])
        response, background = (np.concatenate(pieces, axis=1).var(axis=1) for pieces in parts)
        assert 10 * np.log10(np.mean(response / background)) == pytest.approx(3.0, abs=0.1)


def test_at_minus_infinity_other_speech_makes_the_same_eeg(
    study: MatrixStudy, mute: MatrixStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = speech_corpus.features

    def reversed_order(*arguments: Any) -> list[np.ndarray]:
        return hear(*arguments)[::-1]

    monkeypatch.setattr(speech_corpus, "features", reversed_order)
    assert hashes(made(tmp_path, snr_db=NOTHING), "*.fif") == hashes(mute, "*.fif")
    loud = hashes(made(tmp_path, snr_db=3.0), "*.fif")
    assert all(loud[name] != value for name, value in hashes(study, "*.fif").items()), "and at 3 dB it does not"


def test_another_process_and_another_number_of_threads_write_the_same_bytes(study: MatrixStudy, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from concurrent.futures import ThreadPoolExecutor; from eeg2speech.data import matrix\n"
        "matrix.threads = lambda: ThreadPoolExecutor(3)\n"
        f"matrix.MatrixStudyConfig(snr_db=3.0, **{SMALL!r}).build().prepare(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == "", "quiet where nobody watches"
    again = MatrixStudyConfig(snr_db=3.0, **SMALL).build()  # type: ignore[arg-type]
    again.prepare(tmp_path)
    assert hashes(again) == hashes(study)


def test_a_seed_changes_everything(study: MatrixStudy, tmp_path: Path) -> None:
    other = hashes(made(tmp_path, snr_db=3.0, seed=1))
    assert not set(other.values()) & set(hashes(study).values())


# what can go wrong


def test_a_second_call_writes_nothing(study: MatrixStudy) -> None:
    assert study.folder is not None
    before = {p: p.stat().st_mtime_ns for p in study.folder.rglob("*")}
    study.prepare(study.folder.parent)
    assert {p: p.stat().st_mtime_ns for p in study.folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *product(["listener2-1_eeg.fif", "listener1-2_events.csv", "audio/00003.wav"], ["changed", "removed"]),
        ("done.json", "changed"),
    ],
)
def test_a_damaged_file_is_named(mute: MatrixStudy, name: str, harm: str) -> None:
    assert mute.folder is not None
    path = mute.folder / name
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-40] + bytes(40)) if harm == "changed" else path.unlink()
        again = MatrixStudyConfig(snr_db=NOTHING, **SMALL).build()  # type: ignore[arg-type]
        with pytest.raises(UserError) as caught:
            again.prepare(mute.folder.parent)
        assert str(path) in str(caught.value)
        assert f"delete {mute.folder} and run again" in str(caught.value)
    finally:
        path.write_bytes(content)


def test_an_interrupted_folder_is_made_anew(mute: MatrixStudy, tmp_path: Path) -> None:
    assert mute.folder is not None
    unfinished = tmp_path / mute.folder.name / "audio"
    unfinished.mkdir(parents=True)
    (unfinished / "00001.wav").write_bytes(b"half a file")
    (unfinished / "99999.wav").write_bytes(b"of another size")
    assert hashes(made(tmp_path, snr_db=NOTHING)) == hashes(mute)


def test_the_room_it_takes_is_asked_for(study: MatrixStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.folder is not None
    taken = sum(path.stat().st_size for path in study.folder.rglob("*") if path.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0.9 * taken))
    with pytest.raises(UserError, match=r"GB are needed, 0.00 GB are free"):
        made(tmp_path, snr_db=3.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1.3 * taken))
    made(tmp_path, snr_db=3.0)


def test_a_missing_voice_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(UserError, match=r"hibari-tts: pip install 'eeg2speech\[matrix\]'"):
        made(tmp_path)
    assert not list(tmp_path.rglob("done.json"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "abc", "", None, True, 101.0, -1e9, [3]])
def test_an_snr_that_is_no_level_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="snr_db"):
        MatrixStudyConfig(snr_db=value)


@pytest.mark.parametrize("value", [NOTHING, "-inf", -100, 0, 12.5])
def test_an_snr_that_is_a_level_survives_its_json(value: Any) -> None:
    config = MatrixStudyConfig(snr_db=value)
    assert config.snr_db == float(value)
    assert MatrixStudyConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    "values", [{"sfreq": 100.0}, {"sfreq": float("inf")}, {"n_sentences": 5}, {"n_subjects": 0}, {"seed": -1}]
)
def test_experiments_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        MatrixStudyConfig(**values)


def test_more_recordings_than_sentences_are_refused() -> None:
    with pytest.raises(ValidationError, match="recordings_per_subject must not exceed n_sentences"):
        MatrixStudyConfig(n_sentences=10, recordings_per_subject=11)
