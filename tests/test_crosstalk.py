"""Sound in the EEG by wire: a known amount is found, and what a brain or chance does is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, resample_poly, sosfiltfilt
from scipy.stats import binomtest

from eeg2speech.data.base import ArraySource, Recording
from eeg2speech.data.crosstalk import BOUND, crosstalk, measure, played, strongest
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError
from tests.data_fixture import ListedStudy, recording, sounds, write_envelope, write_noise

SFREQ = 250.0
RNG = np.random.default_rng


def heard(folder: Path, n: int = 20) -> list[tuple]:
    """Sentences of noise, 3.8 s from onset to onset."""
    paths = [write_noise(folder, f"s{i}", 2.0, i) for i in range(n)]
    return [(f"s{i}", 1.0 + 3.8 * i, 2.0, path, 0.0, np.nan) for i, path in enumerate(paths)]


def listener(rows: list[tuple], name: str = "ann", sfreq: float = SFREQ, seed: int = 0) -> Recording:
    """Four channels of noise in microvolts, as long as the sentences."""
    n = round((rows[-1][1] + 4.0) * sfreq)
    eeg = 5e-6 * RNG(seed).standard_normal((4, n)).astype(np.float32)
    return recording(name, sounds(*rows), eeg=eeg, sfreq=sfreq, ch_names=("Fz", "Cz", "Pz", "Oz"))


def with_sound(clean: Recording, share: float, channel: int = 2, form: int = 0, lag: int = 2) -> Recording:
    """`share` of the channel's power above 50 Hz becomes that of the waveform (form 0) or its magnitude (1)."""
    eeg = clean.eeg.read(0, clean.eeg.n_samples).astype(np.float64)
    wire = np.roll(played(clean, 0, eeg.shape[1])[form], lag)

    def power(x: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(x)) ** 2
        return float(spectrum[np.fft.rfftfreq(len(x), 1 / clean.sfreq) >= 50].sum())

    eeg[channel] += wire * np.sqrt(share / (1 - share) * power(eeg[channel]) / power(wire))
    return replace(clean, eeg=ArraySource(eeg.astype(np.float32)), fingerprint=f"{clean.fingerprint}{share}{channel}")


# What it finds


@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("share", [0.03, 0.2])
def test_a_known_share_is_found_in_its_channel_at_its_lag(tmp_path: Path, share: float, form: int) -> None:
    found = measure(with_sound(listener(heard(tmp_path)), share, form=form))
    assert (found.channel, round(found.lag_s * SFREQ)) == ("Pz", 2)
    # white noise under white sound: the phase transform keeps pi / 4 of a squared correlation
    error = 4 / np.sqrt(2 * (0.45 * SFREQ - 50) * 74)  # four deviations of a correlation of so many values
    assert np.sqrt(found.share) == pytest.approx(np.sqrt(np.pi / 4 * share), abs=error)
    assert not found.passed


def test_the_audit_names_it_and_stops(tmp_path: Path) -> None:
    rows = heard(tmp_path / "sounds", 40)
    study = ListedStudy([listener(rows), with_sound(listener(rows, "bob", seed=1), 0.1)], isolated=True)
    splits = SplitConfig(valid=0.2, test=0.3)
    parts = (PreprocessingConfig(), WindowConfig())
    with pytest.raises(UserError, match=r"audio crosstalk \(1 recordings, such as: .* channel Pz .* in bob"):
        StudyData.prepare(study, tmp_path, *parts, splits, tmp_path / "cache")
    leaky = splits.model_copy(update={"strict": False})
    data = StudyData.prepare(study, tmp_path, *parts, leaky, tmp_path / "cache")
    assert [f.check for f in data.audit if not f.passed] == ["audio crosstalk"]
    study.recordings[1] = listener(rows, "bob", seed=1)
    assert StudyData.prepare(study, tmp_path, *parts, splits, tmp_path / "cache").facts()["audit_passed"]


def test_mains_in_both_do_not_hide_it_and_are_not_it(tmp_path: Path) -> None:
    """50 Hz at ten times the EEG, and in the sound."""
    import soundfile

    rows = heard(tmp_path)
    for row in rows:
        wave, rate = soundfile.read(row[3])
        hum = 0.005 * np.sin(2 * np.pi * 50 * (np.arange(len(wave)) / rate + row[1]))
        soundfile.write(row[3], wave + hum, rate)
    clean = listener(rows)
    eeg = clean.eeg.read(0, clean.eeg.n_samples)
    humming = replace(clean, eeg=ArraySource(eeg + 5e-5 * np.sin(2 * np.pi * 50 * np.arange(eeg.shape[1]) / SFREQ)))
    assert measure(humming).passed
    assert measure(humming).share < BOUND
    found = measure(with_sound(humming, 0.0005))  # of a power that is nearly all mains: 5 % of the rest
    assert (found.channel, found.passed) == ("Pz", False)


# What it does not


def test_it_claims_no_more_often_than_it_says() -> None:
    """400 pairs of independent EEG and sound: autocorrelated, bursting, with mains in both."""
    hits = 0
    n, sfreq = 10_000, 250.0
    t = np.arange(n) / sfreq
    sos = butter(2, (60, 110), "bandpass", fs=sfreq, output="sos")
    for seed in range(400):
        rng = RNG(seed)
        voice = sosfiltfilt(sos, rng.standard_normal(n)) * (np.sin(2 * np.pi * 0.3 * t + rng.uniform(0, 6)) > 0)
        voice += 0.1 * np.sin(2 * np.pi * 50 * t + rng.uniform(0, 6))
        eeg = rng.standard_normal((4, n)) + 5 * sosfiltfilt(sos, rng.standard_normal((4, n)))
        eeg += 5 * np.sin(2 * np.pi * 50 * t + rng.uniform(0, 6))
        hits += strongest(eeg, np.stack([voice, np.abs(voice)]), sfreq)[3] <= 0.05
    assert binomtest(hits, 400, 0.05).proportion_ci(0.99, "exact").low <= 0.05, hits
    assert hits > 0, "a test that never rejects is not calibrated either"


def test_a_brain_that_follows_the_envelope_passes(tmp_path: Path) -> None:
    """A perfect response below 40 Hz, with no noise at all, and a following response of 0.2 µV under 5 µV."""
    clean = listener(heard(tmp_path))
    n = clean.eeg.n_samples
    envelope = played(clean, 0, n)[1]
    slow = sosfiltfilt(butter(8, 30, "lowpass", fs=SFREQ, output="sos"), envelope)
    eeg = clean.eeg.read(0, n)
    cortex = replace(clean, eeg=ArraySource(eeg + 1e-4 * np.roll(slow, 25) / slow.std()))
    assert measure(cortex).passed
    pitch = played(clean, 0, n)[0]
    following = replace(clean, eeg=ArraySource(eeg + 2e-7 * np.roll(pitch, 2) / pitch.std()))
    assert measure(following).passed
    assert measure(following).share < BOUND


# What it compares with


def test_the_sound_is_laid_where_it_was_played(tmp_path: Path) -> None:
    import soundfile

    rows = heard(tmp_path, 15)
    one = listener(rows)
    n = one.eeg.n_samples
    whole = played(one, 0, n)
    wave = soundfile.read(rows[4][3])[0]
    first = round(rows[4][1] * SFREQ)
    np.testing.assert_allclose(whole[0, first : first + 500], resample_poly(wave, 1, 64), atol=1e-6)
    np.testing.assert_allclose(whole[1, first : first + 500], resample_poly(np.abs(wave), 1, 64), atol=1e-6)
    assert (whole[:, first + 500 : first + 900] == 0).all()
    np.testing.assert_array_equal(played(one, 300, n - 300), whole[:, 300 : n - 300])


# What is not tested is said


def test_what_cannot_be_tested_says_why(tmp_path: Path) -> None:
    rows = heard(tmp_path)
    slow = listener(rows, sfreq=128.0)
    short = listener(rows[:5], "bob")
    path = write_envelope(tmp_path, "story", 60.0, 0)
    silent = recording("cyd", sounds(("story", 1.0, 60.0, path, 0.0, 64.0)), sfreq=SFREQ)
    finding = crosstalk([slow, short, silent, listener(rows, "dan")], tmp_path)
    assert finding.passed
    for said in ("sampled at 128 Hz; 160 Hz are needed", "less than 60 s", "the study has no audio", "1 recordings"):
        assert said in finding.detail
    assert finding.tested, "one of them was"
    assert not crosstalk([slow, short, silent], tmp_path).tested


def test_a_second_audit_reads_no_eeg(tmp_path: Path) -> None:
    class Unreadable:
        n_samples = 10**6

        def read(self, start: int, stop: int) -> np.ndarray:
            raise AssertionError("the cache must answer")

    one = listener(heard(tmp_path / "sounds"))
    first = crosstalk([one], tmp_path)
    (stored,) = (tmp_path / "crosstalk").glob("*.json")
    assert json.loads(stored.read_text())["recording"] == "ann"
    assert crosstalk([replace(one, eeg=Unreadable())], tmp_path) == first
