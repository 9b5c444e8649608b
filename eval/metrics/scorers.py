"""The pretrained models that several metrics share, each run once per set of clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from eval.metrics.base import SystemOutput, TestSet, sound
from eval.metrics.embedders import Embedder, EmbedderOptions, build_embedder
from eval.metrics.transcription import Transcriber, Transcript, TranscriptionOptions


class Scorers:
    """Transcripts and embeddings, kept for as long as the clips they came from."""

    def __init__(
        self, cache: Path, transcription: TranscriptionOptions | None = None, embedding: EmbedderOptions | None = None
    ) -> None:
        self.transcriber = Transcriber(transcription or TranscriptionOptions(), cache)
        self._embedding = embedding or EmbedderOptions()
        self._cache = cache
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
            self._embedders[name] = build_embedder(name, self._embedding, self._cache)
        return self._embedders[name]

    def transcripts(self, output: SystemOutput) -> list[Transcript]:
        """One per row of the output."""
        return self.once(output, "transcripts", lambda: self.transcriber.transcribe(sound(output)))

    def embeddings(self, name: str, owner: TestSet | SystemOutput) -> np.ndarray:
        """(n, d) float64: one embedding per clip."""
        return self.once(owner, f"embeddings/{name}", lambda: self.embedder(name).embed(sound(owner)))
