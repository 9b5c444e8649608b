"""The log-mel front end against transformers' own filter bank and spectrogram; reading and writing sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram

from eeg2speech import audio
from eeg2speech.errors import UserError
from tests.metrics_fixture import tones


def oracle_bank() -> np.ndarray:
    """(513, 64) Slaney bank of another library."""
    return mel_filter_bank(513, 64, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")


def test_the_mel_basis_is_slaneys() -> None:
    np.testing.assert_allclose(audio.mel_basis().numpy(), oracle_bank().T, atol=1e-8)


def test_the_mel_basis_is_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    bank = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=64, fmin=0.0, fmax=8000.0)
    np.testing.assert_allclose(audio.mel_basis().numpy(), bank, atol=1e-8)


def test_log_mel_is_that_of_another_library() -> None:
    clips = tones(2, 48_000)
    for clip, ours in zip(clips, audio.log_mel(torch.from_numpy(clips))[:, 0].numpy(), strict=True):
        theirs = spectrogram(
            np.pad(clip.astype(np.float64), 432, mode="reflect"),
            np.hanning(1025)[:-1],
            frame_length=1024,
            hop_length=160,
            center=False,
            mel_filters=oracle_bank(),
            mel_floor=1e-5,
            log_mel="log",
        )
        np.testing.assert_allclose(ours, theirs.T, atol=2e-3)


def test_three_seconds_are_three_hundred_frames() -> None:
    assert audio.log_mel(torch.zeros(2, 48_000)).shape == (2, 1, 300, 64)


def test_silence_is_the_floor() -> None:
    assert torch.equal(audio.log_mel(torch.zeros(1, 1600)), torch.full((1, 1, 10, 64), 1e-5).log())


def test_a_frame_is_centred_on_its_ten_milliseconds() -> None:
    """A click in the middle of frame 50 shows there most."""
    click = torch.zeros(1, 16_000)
    click[0, 50 * 160 + 80] = 1.0
    assert int(audio.magnitude(click)[0].sum(dim=0).argmax()) == 50


def test_a_stretch_of_a_file_is_read_and_padded(tmp_path: Path) -> None:
    left, right = tones(2, 16_000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    read = audio.load(tmp_path / "a.wav", start_s=0.75, duration_s=0.5)
    assert read.shape == (8000,)
    np.testing.assert_allclose(read[:4000], (left + right)[12_000:] / 2, atol=1e-7)
    assert not read[4000:].any()
    assert not audio.load(tmp_path / "a.wav", start_s=2.0, duration_s=0.1).any()


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    """A 440 Hz tone stays one of the same size and phase."""
    t = np.arange(rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * t), rate, subtype="FLOAT")
    read = audio.load(tmp_path / "a.wav", duration_s=1.0)
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(read[800:-800], wanted[800:-800], atol=2e-3)


@pytest.mark.parametrize("content", [None, b"", b"RIFF nothing here"])
def test_a_file_that_is_no_sound_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.wav"):
        audio.load(tmp_path / "a.wav")


def test_what_is_saved_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    quiet, loud = tones(1, 1600)[0], 3.0 * np.sin(np.arange(1600) / 20)
    for name, waveform, wanted in (("quiet", quiet, quiet), ("loud", loud, loud / np.abs(loud).max())):
        audio.save(tmp_path / f"{name}.wav", waveform)
        np.testing.assert_allclose(soundfile.read(tmp_path / f"{name}.wav")[0], wanted, atol=2 / 32768)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loud.wav", "quiet.wav"]


def test_the_magnitude_is_that_of_frames_cut_by_hand() -> None:
    clip = tones(1, 4800)[0]
    window = scipy.signal.get_window("hann", 1024)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(clip, 432, mode="reflect"), 1024)[::160]
    wanted = np.abs(np.fft.rfft(frames * window)).T
    np.testing.assert_allclose(audio.magnitude(torch.from_numpy(clip)[None])[0].numpy(), wanted, atol=1e-4)
