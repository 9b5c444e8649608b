"""The sentences and the voice of the embedded study."""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from eeg2speech.data import speech_corpus
from eeg2speech.errors import UserError
from eval.weights import WHISPER_TINY_EN, whisper_checkpoint


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_sentences_never_repeat_and_every_word_is_as_frequent_as_the_next(n: int, seed: int) -> None:
    sentences = speech_corpus.sentences(n, seed)
    assert len(set(sentences)) == len(sentences) == n
    for slot, column in zip(speech_corpus.SLOTS.values(), zip(*map(str.split, sentences), strict=True), strict=True):
        counts = Counter(column)
        assert set(counts) <= set(slot)
        assert max(counts.values()) - min(counts[word] for word in slot) <= 1


def test_no_more_sentences_than_there_are() -> None:
    with pytest.raises(UserError, match="n_sentences is 20001: choose between 1 and 20000"):
        speech_corpus.sentences(20_001, 0)


@given(st.integers(0, 500), st.floats(0.5, 2.6))
@settings(deadline=None)
def test_word_times_share_out_the_reading(which: int, duration_s: float) -> None:
    text = speech_corpus.sentences(501, 0)[which]
    words = speech_corpus.word_times(text, duration_s)
    assert " ".join(word for word, _, _ in words) == text
    assert words[0][1] == 0.0
    ends = [onset + length for _, onset, length in words]
    assert ends[:-1] == pytest.approx([onset for _, onset, _ in words[1:]])
    assert ends[-1] == pytest.approx(duration_s)
    letters = {len(word): length for word, _, length in words}
    assert [letters[k] for k in sorted(letters)] == sorted(letters.values())


def test_a_slow_voice_is_asked_to_hurry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voice that takes 4 s at speed 1, and does not speed up quite as asked."""
    asked: list[float] = []

    def speak(_: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        asked.append(speed)
        return np.random.default_rng(seed).standard_normal(round(24_000 * 4.0 / speed**0.9)).astype(np.float32)

    monkeypatch.setitem(sys.modules, "hibari", SimpleNamespace(Hibari=lambda: speak))
    with ThreadPoolExecutor(1) as pool:
        table = speech_corpus.synthesise(["a", "b", "c"], 0, tmp_path, pool)
    assert (table["duration_s"] <= 2.6).all()
    assert (table["duration_s"] > 2.3).all(), "no faster than it must"
    assert len(asked) <= 1 + 3 * 3


@pytest.mark.slow
@pytest.mark.skipif(WHISPER_TINY_EN.locate() is None, reason=f"{WHISPER_TINY_EN.distribution} is absent")
def test_whisper_hears_the_sentences(tmp_path: Path) -> None:
    import jiwer
    import whisper
    from whisper.normalizers import EnglishTextNormalizer

    with ThreadPoolExecutor(2) as pool:
        table = speech_corpus.synthesise(speech_corpus.sentences(20, 7), 7, tmp_path, pool)
    model = whisper.load_model(str(whisper_checkpoint(tmp_path)), device="cpu")
    normal = EnglishTextNormalizer()
    heard = []
    for name in table["path"]:
        waveform = soundfile.read(tmp_path / name, dtype="float32")[0]
        answer = whisper.transcribe(model, waveform, language="en", temperature=0.0, fp16=False)
        heard.append(normal(str(answer["text"])))
    assert jiwer.wer([normal(text) for text in table["text"]], heard) < 0.10
