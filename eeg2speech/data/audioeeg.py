"""The set of AudioLDM-training-finetuning's EEG branch: wavs, each with an embedding of the EEG that heard it.

A root JSON `{"audioeeg": folder, "metadata": {"path": {"audioeeg": {"train": list, "val": list,
"test": list}}}}`; each list a JSON whose items (alone, or under "data") are `{"wav": ...,
"embedding": ..., "audio_embedding": ...}`; each embedding a tensor (1, 1024, T) saved by torch.
What an encoder made of EEG takes the place of EEG here: 1024 channels without positions.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from eeg2speech.data.base import SOUND_COLUMNS, WORD_COLUMNS, Recording, SpeechStudy
from eeg2speech.data.sources import fingerprint
from eeg2speech.errors import MissingFiles, UserError
from eeg2speech.files import digest
from eeg2speech.schema import Config, is_unset

LISTS = {"train": "train", "val": "valid", "test": "test"}
"""Its name of a list -> ours."""
N_FEATURES = 1024
MISALIGNED_S = 0.1
"""Embedding and wav of an item may differ in length by this much."""


class AudioEEGStudyConfig(Config):
    """Where the root JSON is, and what it does not say."""

    name: Literal["audioeeg"] = "audioeeg"
    root: Path = Field(description="the folder that holds the root JSON")
    metadata: Path = Field(default=Path("dataset_root.json"), description="the root JSON, relative to root")
    sfreq: float = Field(default=120.0, gt=0, description="frames of an embedding per second, the rate of its EEG")
    subject_from: str | None = Field(
        default=None, description="regex on the embedding's path; group 1: subject; null: all are taken for one"
    )
    licence: str = "not stated"
    citation: str = "not stated"
    consent: str | None = Field(default=None, description="what participants agreed to", exclude_if=is_unset)

    def build(self) -> AudioEEGStudy:
        return AudioEEGStudy(self)


@dataclass(frozen=True)
class _Item:
    """An entry of a list."""

    split: str
    subject: str
    wav: Path
    embedding: Path
    audio_embedding: Path | None


@dataclass(frozen=True)
class EmbeddingsSource:
    """An EEGSource over embeddings laid end to end; each is read when first asked for.

    One sample of zeros goes before them: preprocessing takes the first sample off, which of an
    embedding, unlike of EEG, would take off what lists differ in.
    """

    paths: tuple[Path, ...]
    starts: np.ndarray
    """(n + 1,) first sample of each, and the end; the first is 1."""

    @property
    def n_samples(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.starts, (max(start, 1), stop - 1), side="right") - 1
        parts = [np.zeros((N_FEATURES, max(0, min(stop, 1) - start)), dtype=np.float32)]
        parts += [
            embedding(self.paths[k])[:, max(0, start - self.starts[k]) : stop - self.starts[k]]
            for k in range(first, last + 1)
        ]
        return np.concatenate(parts, axis=1)


class AudioEEGStudy(SpeechStudy):
    """One recording per list and subject: its items end to end, so that all are scaled alike."""

    modality: ClassVar[str] = "EEG embeddings"
    source: ClassVar[str] = "https://github.com/inogii/AudioLDM-training-finetuning"
    steps: ClassVar[str] = (
        "The set is not published with its code: ask its authors, or write your own embeddings in its form.\n"
        "{to} must hold dataset_root.json, the lists that it names, and the wavs and .pt files that these name."
    )
    recordings_at: ClassVar[tuple[str, ...]] = ("*/**/*.pt",)
    isolated_sentences: ClassVar[bool] = True

    def __init__(self, config: AudioEEGStudyConfig) -> None:
        self.config = config
        self.licence, self.citation = config.licence, config.citation  # type: ignore[misc]
        self.consent = config.consent or type(self).consent  # type: ignore[misc]

    def prepare(self, folder: Path) -> None:
        """Raises UserError naming missing files, or an embedding whose shape or length cannot be that of its wav."""
        named = {path for item in self._items for path in (item.wav, item.embedding, item.audio_embedding) if path}
        missing = sorted(str(path) for path in named if not path.is_file())
        if missing:
            raise MissingFiles(missing, str(self._root_json), "; put them there")

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({item.subject for item in self._items}))

    def iter_recordings(self) -> Iterator[Recording]:
        groups: dict[tuple[str, str], list[_Item]] = {}
        for item in self._items:
            groups.setdefault((item.split, item.subject), []).append(item)
        for (split, subject), items in groups.items():
            lengths = [embedding(item.embedding).shape[1] for item in items]
            starts = 1 + np.concatenate([[0], np.cumsum(lengths)])
            yield Recording(
                subject=subject,
                recording=f"{subject}_{split}",
                sfreq=self.config.sfreq,
                ch_names=tuple(f"feature{k}" for k in range(N_FEATURES)),
                positions=np.full((N_FEATURES, 2), np.nan, dtype=np.float32),
                eeg=EmbeddingsSource(tuple(item.embedding for item in items), starts),
                sounds=self._sounds(items, starts / self.config.sfreq),
                words=pd.DataFrame(columns=list(WORD_COLUMNS)),
                fingerprint=digest([fingerprint(*(item.embedding for item in items)), self.config.sfreq]),
                split=split,
            )

    @property
    def _root_json(self) -> Path:
        return self.config.root / self.config.metadata

    @cached_property
    def _items(self) -> list[_Item]:
        root = _read_json(self._root_json)
        try:
            folder, lists = root["audioeeg"], root["metadata"]["path"]["audioeeg"]
            paths = {ours: str(lists[theirs]) for theirs, ours in LISTS.items()}
        except (KeyError, TypeError) as error:
            form = '{"audioeeg": FOLDER, "metadata": {"path": {"audioeeg": {"train": .., "val": .., "test": ..}}}}'
            raise UserError(f"{self._root_json}: has no {error}; its form is {form}") from error
        base = self.config.root / str(folder)
        items = []
        for split, name in paths.items():
            path = next((p for p in (self.config.root / name, base / name) if p.is_file()), self.config.root / name)
            found = _read_json(path)
            rows = found.get("data") if isinstance(found, dict) else found
            if not isinstance(rows, list) or not rows:
                raise UserError(f'{path}: must be a list of {{"wav", "embedding", "audio_embedding"}}, not empty')
            items += [self._item(path, number, row, split, base) for number, row in enumerate(rows, start=1)]
        return items

    def _item(self, path: Path, number: int, row: Any, split: str, base: Path) -> _Item:
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("wav"), str)
            or not isinstance(row.get("embedding"), str)
        ):
            raise UserError(f"{path}: item {number} needs wav and embedding, both paths; correct it")
        subject, pattern = "listener", self.config.subject_from
        if pattern is not None:
            found = re.search(pattern, row["embedding"])
            if found is None or not found.groups():
                raise UserError(f"{path}: item {number}: study.subject_from {pattern!r} finds no subject (group 1)")
            subject = found.group(1)
        other = row.get("audio_embedding")
        return _Item(split, subject, base / row["wav"], base / row["embedding"], base / other if other else None)

    def _sounds(self, items: list[_Item], starts_s: np.ndarray) -> pd.DataFrame:
        import soundfile

        rows = []
        for item, start_s, length_s in zip(items, starts_s, np.diff(starts_s), strict=False):
            try:
                wav_s = soundfile.info(str(item.wav)).duration
            except (soundfile.LibsndfileError, OSError) as error:
                raise UserError(f"{item.wav}: this sound file cannot be read ({error}); replace it") from error
            if abs(wav_s - length_s) > MISALIGNED_S:
                raise UserError(
                    f"{item.embedding}: lasts {length_s:.2f} s at {self.config.sfreq:g} Hz, its wav {item.wav.name} "
                    f"{wav_s:.2f} s; set study.sfreq to the rate of the embeddings, or pair them anew"
                )
            rows.append((item.wav.stem, start_s, min(wav_s, length_s), str(item.wav), 0.0, np.nan))
        return pd.DataFrame(rows, columns=list(SOUND_COLUMNS))


@lru_cache(maxsize=64)
def embedding(path: Path) -> np.ndarray:
    """(1024, T) float32. Nothing but tensors is unpickled. Raises UserError naming the file."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no tensor that can be read ({said}); save it by torch.save(tensor, path)") from error
    shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
    if not isinstance(values, torch.Tensor) or values.ndim != 3 or values.shape[:2] != (1, N_FEATURES):
        raise UserError(f"{path}: holds {shape}, not (1, {N_FEATURES}, T); save such a tensor")
    return values[0].float().numpy()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no JSON that can be read ({error}); see study.root and study.metadata") from error
