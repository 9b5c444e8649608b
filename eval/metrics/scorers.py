"""The pretrained models that several metrics share, each run once per set of clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from eeg2speech.evaluation import EmbedderOptions, TranscriptionOptions
from eval.metrics.base import SystemOutput, TestSet, sound
from eval.metrics.embedders import Embedder, WhisperEncoder, build_embedder
from eval.metrics.transcription import Heard, Transcriber, Transcript


class Scorers:
    """Transcripts and embeddings, kept for as long as the clips they came from."""

    def __init__(
        self, cache: Path, transcription: TranscriptionOptions | None = None, embedding: EmbedderOptions | None = None
    ) -> None:
        self.transcriber = Transcriber(transcription or TranscriptionOptions(), cache)
        self._embedding = embedding or EmbedderOptions()
        self._embedders: dict[str, Embedder] = {}
        self._kept: WeakKeyDictionary[TestSet | SystemOutput, dict[str, Any]] = WeakKeyDictionary()

    def once(self, owner: TestSet | SystemOutput, key: str, make: Callable[[], Any]) -> Any:
        """`make()`, or what it returned the first time for this owner and key."""
        kept = self._kept.setdefault(owner, {})
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def embedder(self, name: str) -> Embedder:
        """The named embedder, its weights not yet loaded. Raises UserError where the name is unknown."""
        if name not in self._embedders:
            self._embedders[name] = build_embedder(name, self._embedding, self.transcriber)
        return self._embedders[name]

    def transcripts(self, output: SystemOutput) -> list[Transcript]:
        """One per row of the output."""
        return self._heard(output).transcripts

    def _heard(self, owner: TestSet | SystemOutput) -> Heard:
        return self.once(owner, "heard", lambda: self.transcriber.listen(sound(owner)))

    def embeddings(self, name: str, owner: TestSet | SystemOutput) -> np.ndarray:
        """(n, f, d) float64: f embeddings of each clip."""
        embedder = self.embedder(name)
        if isinstance(embedder, WhisperEncoder):
            return self._heard(owner).states[:, None].astype(np.float64)  # the pass that transcribes has them already
        return self.once(owner, f"embeddings/{name}", lambda: embedder.embed(sound(owner)))
