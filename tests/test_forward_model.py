"""The simulated brain against closed forms: spectra, topographies, latencies, and the definition of the SNR."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import mne
import numpy as np
import pytest
from scipy.signal import butter, sosfilt, sosfreqz, welch

from eeg2speech import audio
from eeg2speech.data import forward_model as fm
from eeg2speech.data import simulation

SFREQ = 128.0
MONTAGE = mne.channels.make_standard_montage("biosemi64")
SENSORS = np.stack([MONTAGE.get_positions()["ch_pos"][name] for name in MONTAGE.ch_names])
PLACE = {name: row for row, name in enumerate(MONTAGE.ch_names)}


def listener(seed: int = 0) -> fm.Listener:
    return fm.make_listener(SENSORS, SFREQ, np.random.default_rng(seed))


def band_noise(hz: float, duration_s: float = 1.0) -> np.ndarray:
    """Noise about `hz`, a third of an octave wide."""
    sos = butter(4, (hz * 2 ** (-1 / 6), hz * 2 ** (1 / 6)), "bandpass", fs=audio.SAMPLE_RATE, output="sos")
    white = np.random.default_rng(0).standard_normal(round(duration_s * audio.SAMPLE_RATE))
    return (0.2 * sosfilt(sos, white)).astype(np.float32)


@pytest.mark.parametrize("hz", [150.0, 500.0, 1000.0, 2500.0, 6000.0])
def test_noise_excites_the_band_it_lies_in(hz: float) -> None:
    """Edges from Slaney's scale: 200/3 Hz a mel below 1 kHz, 27 mel to a factor of 6.4 above."""
    levels = fm.speech_features(band_noise(hz), SFREQ)[: fm.N_BANDS, 20:-20].mean(axis=1)

    def mel(x: float) -> float:
        return x * 3 / 200 if x < 1000 else 15 + np.log(x / 1000) * 27 / np.log(6.4)

    position = mel(hz) / mel(8000.0) * 65 - 1  # in mel bands, of which four adjacent ones are averaged
    assert levels.argmax() in {int(np.clip(np.floor((position + shift) / 4), 0, 15)) for shift in (-0.6, 0.0, 0.6)}


def test_silence_is_zero_and_an_onset_is_where_the_sound_begins() -> None:
    silence = np.zeros(audio.SAMPLE_RATE // 2, dtype=np.float32)
    assert not fm.speech_features(silence, SFREQ).any()
    features = fm.speech_features(np.concatenate([silence, band_noise(1000.0, 0.5)]), SFREQ)
    assert features.shape == (2 * fm.N_BANDS, SFREQ)
    assert (features >= 0).all()
    levels, onsets = np.split(features, 2)
    assert not levels[:, :58].any()
    assert levels[:, 70:122].max(axis=0).min() > 0
    first = int(onsets.max(axis=0)[:122].argmax())
    assert abs(first - 64) <= 5, "within the 32 ms that half an analysis window reaches, and a frame"


def test_the_response_to_a_click_is_kernel_times_topography() -> None:
    brain = listener()
    clicks = np.zeros((2 * fm.N_BANDS, 400), dtype=np.float32)
    clicks[5, 100] = 2.0
    evoked = fm.response(clicks, brain)
    expected = np.zeros((64, 400))
    expected[:, 100 : 100 + brain.kernels.shape[1]] = 2.0 * np.outer(brain.mixing[:, 5], brain.kernels[5])
    np.testing.assert_allclose(evoked, expected, atol=1e-5)
    assert brain.kernels.shape[1] == int(0.4 * SFREQ), "0 to 400 ms"


def test_responses_add_up() -> None:
    brain, rng = listener(), np.random.default_rng(1)
    a, b = rng.random((2, 2 * fm.N_BANDS, 700), dtype=np.float32)
    np.testing.assert_allclose(
        fm.response(a + 3 * b, brain), fm.response(a, brain) + 3 * fm.response(b, brain), atol=2e-4
    )


def test_kernels_have_p1_n1_p2_at_latencies_of_their_own() -> None:
    kernels = np.concatenate([listener(seed).kernels for seed in range(10)])
    mean = kernels.mean(axis=0)
    at = {peak: round(s * SFREQ) for peak, s in {"p1": 0.05, "n1": 0.1, "p2": 0.19}.items()}
    assert mean[at["p1"]] > 0.05
    assert mean[at["n1"]] < -0.05
    assert mean[at["p2"]] > 0.05
    n1_ms = kernels[:, 6:20].argmin(axis=1) / SFREQ * 1000
    assert 3 < n1_ms.std() < 20, "milliseconds of jitter from source to source"
    np.testing.assert_allclose(np.linalg.norm(kernels, axis=1), 1.0, rtol=1e-5)


def test_topographies_are_smooth_referenced_and_the_listeners_own() -> None:
    brain = listener()
    for topography in (brain.mixing, brain.background):
        assert np.abs(topography.sum(axis=0)).max() < 1e-3 * np.abs(topography).max()
    close, far = (PLACE["C3"], PLACE["C5"]), (PLACE["C3"], PLACE["P6"])
    correlation = np.corrcoef(brain.background)
    assert correlation[close] > 0.7 > correlation[far]
    assert np.linalg.matrix_rank(brain.mixing) >= 30, "bands can be told apart by where they come from"
    alike = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(brain.mixing.T, listener(1).mixing.T, strict=True)]
    assert np.mean(alike) < 0.8


def test_a_dipole_is_coulombs_law_of_two_near_charges() -> None:
    place, moment, gap = np.array([0.01, 0.02, 0.03]), np.array([0.0, 0.6, 0.8]), 1e-6
    charges = [1.0 / np.linalg.norm(SENSORS - (place + sign * gap / 2 * moment), axis=1) for sign in (1.0, -1.0)]
    np.testing.assert_allclose(fm._dipole(SENSORS, place, moment), (charges[0] - charges[1]) / gap, rtol=1e-3, atol=0.5)


def test_background_has_its_amplitude_slope_and_occipital_alpha() -> None:
    brain = listener()
    eeg = fm.background(128 * 240, SFREQ, brain, np.random.default_rng(0))
    assert eeg.dtype == np.float32
    expected = np.sqrt(np.sum(brain.background**2, axis=1) + fm.SENSOR_NOISE_V**2)
    np.testing.assert_allclose(eeg.std(axis=1), expected, rtol=0.1)
    assert np.abs(eeg.mean(axis=1)).max() < 1e-7, "no constant"

    hz, density = welch(eeg, SFREQ, nperseg=1024)
    quiet = (hz > 1.5) & (hz < 25) & ((hz < 6) | (hz > 14))
    net = density.mean(axis=0) - fm.SENSOR_NOISE_V**2 / (SFREQ / 2)
    slope = np.polyfit(np.log(hz[quiet]), np.log(net[quiet]), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.1)

    def alpha_peak(name: str) -> float:
        beside = density[PLACE[name], [np.abs(hz - 6).argmin(), np.abs(hz - 15).argmin()]].mean()
        return density[PLACE[name], np.abs(hz - 10).argmin()] / beside

    assert alpha_peak("Oz") > 3
    assert alpha_peak("Oz") > alpha_peak("Fz")


def test_artefacts_are_frontal_blinks_every_four_seconds_and_a_50_hz_line() -> None:
    brain = listener()
    n = 128 * 300
    artefacts = fm.artefacts(n, SFREQ, brain, np.random.default_rng(0))
    hz, density = welch(artefacts, SFREQ, nperseg=1024)
    high = hz > 30
    assert (np.abs(hz[high][density[:, high].argmax(axis=1)] - 50) < 0.5).all()
    line = np.sqrt(np.trapezoid(density[:, high], hz[high], axis=1) * 2)
    np.testing.assert_allclose(line, brain.line, rtol=0.1)
    still = fm.artefacts(n, SFREQ, replace(brain, line=np.zeros_like(brain.line)), np.random.default_rng(0))
    front = still[PLACE["Fp1"]]
    blinks = np.count_nonzero(np.diff((front > 0.5 * front.max()).astype(int)) == 1)
    assert blinks == pytest.approx(300 / 4, rel=0.3)
    assert still[PLACE["Fp1"]].max() > 5 * np.abs(still[PLACE["Oz"]]).max()


@pytest.mark.parametrize(("hz", "passed"), [(0.1, 0.0), (10.0, 1.0), (25.0, 1.0), (60.0, 0.0)])
def test_variance_is_that_of_the_pass_band(hz: float, passed: float) -> None:
    signal = 3e-6 * np.sin(2 * np.pi * hz * np.arange(128 * 120) / SFREQ)[None]
    speech = np.random.default_rng(0).random(signal.shape[1]) < 0.6
    assert fm.variance(signal, speech, SFREQ)[0] == pytest.approx(passed * 4.5e-12, abs=0.02 * 4.5e-12)


@pytest.fixture(scope="module")
def sessions() -> list[simulation.Session]:
    rng = np.random.default_rng(5)
    features = [rng.random((2 * fm.N_BANDS, n), dtype=np.float32) ** 4 for n in rng.integers(200, 330, 24)]
    with ThreadPoolExecutor(2) as pool:
        return simulation.listen(features, SENSORS, SFREQ, 3, seed=0, listener=0, pool=pool)


@pytest.mark.parametrize("level_db", [-20.0, 0.0, 7.5])
def test_gain_puts_the_response_where_it_should_be(sessions: list[simulation.Session], level_db: float) -> None:
    """Measured another way: the same pass band applied to whole sessions in the frequency domain."""
    gain = simulation.gain(level_db, sessions)
    band = butter(4, fm.SNR_BAND_HZ, "bandpass", fs=SFREQ, output="sos")

    def power(part: str) -> np.ndarray:
        pieces = []
        for session in sessions:
            signal = getattr(session, part).astype(np.float64)
            hz = np.fft.rfftfreq(signal.shape[1], 1 / SFREQ)
            zero_phase = np.abs(sosfreqz(band, hz, fs=SFREQ)[1]) ** 2
            pieces.append(np.fft.irfft(zero_phase * np.fft.rfft(signal), signal.shape[1])[:, session.speech])
        return np.var(np.concatenate(pieces, axis=1), axis=1)

    measured = 10 * np.log10(np.mean(gain**2 * power("response") / power("background")))
    assert measured == pytest.approx(level_db, abs=0.1)


def test_at_minus_infinity_the_response_is_not_even_read(sessions: list[simulation.Session]) -> None:
    gain = simulation.gain(-np.inf, sessions)
    deaf = replace(sessions[0], response=np.full_like(sessions[0].response, np.nan))
    np.testing.assert_array_equal(deaf.eeg(gain), sessions[0].background + sessions[0].artefacts)


def test_a_draw_depends_on_seed_listener_and_session_alone(sessions: list[simulation.Session]) -> None:
    """Other sound, another number of threads: the same order, onsets, background and artefacts."""
    other_sound = [np.ones((2 * fm.N_BANDS, 10), dtype=np.float32)] * 24
    with ThreadPoolExecutor(1) as pool:
        again = simulation.listen(other_sound, SENSORS, SFREQ, 3, seed=0, listener=0, pool=pool)
        other = simulation.listen(other_sound, SENSORS, SFREQ, 3, seed=0, listener=1, pool=pool)
    for a, b in zip(sessions, again, strict=True):
        for part in ("sentences", "onsets", "background", "artefacts"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
    assert not np.array_equal(sessions[0].sentences, other[0].sentences)
    assert not np.array_equal(sessions[0].background[:, :500], other[0].background[:, :500])
    assert not np.array_equal(sessions[0].background[:, :500], sessions[1].background[:, :500])
    assert sorted(np.concatenate([s.sentences for s in sessions])) == list(range(24))
