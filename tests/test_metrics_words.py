"""Word errors against jiwer, counting and enumeration; transcription with the real Whisper where it is installed."""

from __future__ import annotations

import itertools
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eeg2speech.errors import UserError
from eval.metrics.base import SystemOutput, TestSet
from eval.metrics.ratio import SummedRatio
from eval.metrics.scorers import Scorers
from eval.metrics.transcription import (
    Heard,
    Transcriber,
    Transcript,
    TranscriptionOptions,
    guard,
    normalise,
    repeats,
)
from eval.metrics.word_errors import (
    ErrorRate,
    HallucinationRate,
    WrongTranscriptRate,
    chance_error_rate,
    count_edits,
    derangement,
    randomise_phases,
)
from eval.weights import WHISPER_TINY_EN, whisper_checkpoint
from tests.metrics_fixture import make_test, per_listener, per_stimulus, permuted, tones

needs_whisper = pytest.mark.skipif(WHISPER_TINY_EN.locate() is None, reason=f"{WHISPER_TINY_EN.distribution} is absent")
WORDS = st.sampled_from(["Peter", "wants", "seven", "7", "green", "chairs", "colour", "won't", "Mr."])
SENTENCES = st.lists(WORDS, min_size=1, max_size=7).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(SENTENCES, st.one_of(st.just(""), SENTENCES)), min_size=1, max_size=8))
def test_rates_equal_jiwer(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    normal = [normalise(r) for r in references], [normalise(h) for h in hypotheses]
    words = count_edits(references, hypotheses)
    assert words.total.sum() / words.length.sum() == pytest.approx(jiwer.wer(*normal))
    characters = count_edits(references, hypotheses, "character")
    assert characters.total.sum() / characters.length.sum() == pytest.approx(jiwer.cer(*normal))


def test_shares_by_hand() -> None:
    """ "a b c d" heard as "a x c e f": b -> x, d -> e, and f put in; nothing heard: four deletions."""
    edits = count_edits(["aa bb cc dd", "aa bb cc dd"], ["aa xx cc ee ff", ""])
    assert edits.substitutions.tolist() == [2, 0]
    assert edits.insertions.tolist() == [1, 0]
    assert edits.deletions.tolist() == [0, 4]


def test_numbers_and_case_do_not_count_as_errors() -> None:
    assert count_edits(["Peter wants seven green chairs"], ["peter wants 7 green chairs."]).total.tolist() == [0]


def test_an_empty_reference_is_not_scored() -> None:
    edits = count_edits(["", "..."], ["something", ""])
    assert np.isnan(edits.total).all()
    assert np.isnan(edits.length).all()


def test_summed_over_batches() -> None:
    metric = SummedRatio()
    metric.update(torch.tensor([1.0, float("nan")]), torch.tensor([5.0, float("nan")]))
    metric.update(torch.tensor([7.0]), torch.tensor([5.0]))
    assert float(metric.compute()) == pytest.approx(8 / 10)


def test_chance_of_matrix_sentences() -> None:
    """Two slots of three words: of the 8 other sentences 4 share one word, 4 none: (4 x 1 + 4 x 2) / (8 x 2)."""
    texts = tuple(f"{a} {b}" for a, b in itertools.product(("anna", "bert", "carl"), ("runs", "sits", "walks")))
    rate, how = chance_error_rate(texts) or (0.0, "")
    assert rate == pytest.approx(12 / 16)
    assert "72 ordered pairs" in how
    by_jiwer = [(r, h) for r, h in itertools.permutations(texts, 2)]
    assert chance_error_rate(texts, "character") is not None
    assert (chance_error_rate(texts, "character") or (0, ""))[0] == pytest.approx(
        jiwer.cer([r for r, _ in by_jiwer], [h for _, h in by_jiwer])
    )
    assert chance_error_rate(("same words", "same words")) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30), st.integers(0, 99))
def test_no_stimulus_keeps_its_own_text(texts: list[str], seed: int) -> None:
    partner = derangement(texts, seed)
    if partner is None:
        assert max(map(texts.count, texts)) > len(texts) / 2
    else:
        assert sorted(partner) == list(range(len(texts)))
        assert all(texts[i] != texts[p] for i, p in enumerate(partner))


def test_guard_reasons() -> None:
    loud = np.full((6, 100), 0.1, dtype=np.float32)
    loud[0] *= 1e-3
    transcripts = [
        Transcript("thank you", 0.1, -0.1, 1.0),
        Transcript("thank you", 0.9, -1.5, 1.0),
        Transcript("sure of it", 0.9, -0.2, 1.0),
        Transcript("la", 0.1, -0.1, 3.0),
        Transcript("the cat the cat the cat the cat", 0.1, -0.1, 1.5),
        Transcript("Peter wants seven green chairs", 0.1, -0.1, 0.8),
    ]
    assert guard(transcripts, loud) == ["silence", "no speech", None, "compressible", "repetition", None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a a a a", True), ("a a a b a", False), ("x a b a b a b a b y", True), ("a b a b a b", False), ("", False)],
)
def test_repetition(text: str, expected: bool) -> None:
    assert repeats(text.split()) is expected


def test_noise_has_the_level_and_spectrum_of_the_clip_and_belongs_to_the_stimulus() -> None:
    clips = tones(3)
    noise = randomise_phases(clips, np.arange(3), seed=1)
    assert np.allclose(np.abs(np.fft.rfft(noise)), np.abs(np.fft.rfft(clips)), atol=1e-3)
    assert abs(np.corrcoef(noise[0], clips[0])[0, 1]) < 0.2
    assert np.array_equal(randomise_phases(clips[[2, 0]], np.array([2, 0]), seed=1), noise[[2, 0]])


class Listener(Transcriber):
    """Hears the text whose number is the clip's first sample, and nothing in other clips."""

    name, weights = "listener", "none"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def listen(self, waveforms: np.ndarray) -> Heard:
        heard = [self.texts[int(w[0])] if w[0] >= 0 else "" for w in np.rint(waveforms)]
        return Heard([Transcript(t, 0.0, 0.0, 1.0) for t in heard], np.zeros((len(waveforms), 1), np.float32))


TEXTS = ["Anna sees two dogs", "Bert has five cats", "Carl wants nine birds", "Dora sold ten fish"]


@pytest.fixture
def case(tmp_path: Path) -> tuple[Scorers, TestSet, SystemOutput]:
    """Every stimulus heard right by P0; P1 hears stimulus 0's text in all."""
    waveform = np.repeat(np.arange(4.0, dtype=np.float32)[:, None], 50, axis=1)
    test = make_test(TEXTS, waveform)
    played = np.where(test.examples["subject"] == "P0", test.examples["stimulus"], 0)
    scorers = Scorers(tmp_path)
    scorers.transcriber = Listener(TEXTS)
    return scorers, test, per_listener(test, waveform[played])


def test_error_rate_of_a_system(case: tuple[Scorers, TestSet, SystemOutput]) -> None:
    scorers, test, output = case
    found = ErrorRate(scorers).measure(test, output)
    wrong = jiwer.process_words([normalise(t) for t in TEXTS[1:]], [normalise(TEXTS[0])] * 3)
    assert found.value == pytest.approx((wrong.substitutions + wrong.deletions + wrong.insertions) / 32)
    assert found.columns["substitutions"].sum() == wrong.substitutions
    assert found.columns["hypothesis"][1] == TEXTS[0]
    assert found.signature.startswith("wer|listener|none|16000|whisper-english|N8|-|")
    wrong_transcript = WrongTranscriptRate(scorers).measure(test, output)
    assert wrong_transcript.value is not None
    assert wrong_transcript.value > 0.7


def test_order_of_examples_changes_no_rate(case: tuple[Scorers, TestSet, SystemOutput]) -> None:
    scorers, test, output = case
    order = np.random.default_rng(0).permutation(8)
    for metric in (ErrorRate(scorers), ErrorRate(scorers, "character"), WrongTranscriptRate(scorers)):
        one, two = metric.measure(test, output), metric.measure(test, permuted(output, order))
        assert one.value == two.value
        assert one.numerator is not None
        assert two.numerator is not None
        assert np.array_equal(one.numerator[order], two.numerator)


def test_windows_without_words_are_counted_as_skipped(tmp_path: Path) -> None:
    test = make_test(["Anna sees", ""], np.zeros((2, 50), np.float32), n_subjects=1)
    scorers = Scorers(tmp_path)
    scorers.transcriber = Listener(["Anna sees"])
    found = ErrorRate(scorers).measure(test, per_listener(test, test.waveform))
    assert (found.value, found.n) == (0.0, 1)
    assert found.skipped == {"no word in the reference": 1}
    wordless = make_test(["", ""], np.zeros((2, 50), np.float32))
    assert ErrorRate(scorers).measure(wordless, per_stimulus(wordless, wordless.waveform)).reason == (
        "the study has no words"
    )


def test_hallucination_is_measured_on_the_reference_row_only(case: tuple[Scorers, TestSet, SystemOutput]) -> None:
    scorers, test, output = case
    metric = HallucinationRate(scorers, "silence")
    assert metric.measure(test, output).value is None
    found = metric.measure(test, per_stimulus(test, test.waveform))
    assert found.value == 1.0, "silence is clip 0, in which this listener hears a sentence"
    assert found.columns["hallucination_silence_guarded"].sum() == 0, "but the clip is silent"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@needs_whisper
def test_whisper_checkpoint_is_whole_and_made_once(real: Path) -> None:
    path = whisper_checkpoint(real)
    made = path.stat().st_mtime_ns
    assert whisper_checkpoint(real).stat().st_mtime_ns == made
    content = torch.load(path, weights_only=True)
    assert len(content["model_state_dict"]) == 167
    assert content["dims"]["n_audio_layer"] == content["dims"]["n_text_layer"] == 4
    shared = content["model_state_dict"]["encoder.positional_embedding"]
    # Whisper's own sinusoids, which the package shipped as weights: the reader put bytes where they belong.
    from whisper.model import sinusoids

    assert torch.allclose(shared, sinusoids(1500, 384), atol=1e-3)


def by_the_package(clip: np.ndarray, cache: Path) -> str:
    """As openai-whisper's README decodes one file."""
    import whisper

    model = whisper.load_model(str(whisper_checkpoint(cache)))
    options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)
    return whisper.decode(model, whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(clip))), options).text


@needs_whisper
def test_whisper_hears_speech_the_same_in_any_batch(real: Path) -> None:
    hibari = pytest.importorskip("hibari")
    from eeg2speech.audio import resample

    texts = ["Peter wants seven green chairs", "Kathy sold three old tables", "Alan has nine red flowers"]
    voice = hibari.Hibari()
    clips = [resample(np.asarray(voice(t, seed=1), dtype=np.float32).squeeze(), 24_000)[:48_000] for t in texts]
    waveforms = np.stack([np.pad(c, (0, 48_000 - len(c))) for c in clips])
    together = Transcriber(TranscriptionOptions(), real).transcribe(waveforms)
    alone = Transcriber(TranscriptionOptions(batch_size=1), real).transcribe(waveforms[::-1])[::-1]
    assert [t.text for t in together] == [t.text for t in alone] == [by_the_package(clip, real) for clip in waveforms]
    assert [t.avg_logprob for t in together] == pytest.approx([t.avg_logprob for t in alone], abs=1e-4)
    edits = count_edits(texts, [t.text for t in together])
    assert edits.total.sum() <= 3


@needs_whisper
def test_too_long_a_clip_and_a_wrong_checkpoint_are_refused(real: Path, tmp_path: Path) -> None:
    short = Transcriber(TranscriptionOptions(audio_context_s=5), real)
    with pytest.raises(UserError, match="audio_context_s"):
        short.transcribe(np.zeros((1, 96_000), np.float32))
    absent = Transcriber(TranscriptionOptions(checkpoint=tmp_path / "none.pt"), real)
    with pytest.raises(UserError, match=r"none\.pt"):
        absent.transcribe(np.zeros((1, 16_000), np.float32))
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no openai-whisper checkpoint"):
        Transcriber(TranscriptionOptions(checkpoint=tmp_path / "other.pt"), real).transcribe(
            np.zeros((1, 16_000), np.float32)
        )
