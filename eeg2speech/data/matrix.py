"""The embedded study: simulated listeners hearing five-word matrix sentences. Needs no download.

It is written to disk as a real study is (FIF recordings, wavs, event and word tables) and read
back through the same contract, so nothing downstream can tell. It says nothing about real brains:
it is the known truth on which the instrument itself is tested.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from eeg2speech import audio
from eeg2speech.data import simulation, speech_corpus
from eeg2speech.data.base import Recording, SpeechStudy
from eeg2speech.errors import UserError
from eeg2speech.files import digest, require_free_space, sha256, write_atomically
from eeg2speech.schema import Config

if TYPE_CHECKING:
    import mne

FORMAT = 5
"""Raised whenever the same configuration would synthesise other data."""
MONTAGE = "biosemi64"
DONE = "done.json"
"""Written last: a folder that has it is complete, and every other file's SHA-256 stands in it."""
MAX_SNR_DB = 100.0


class MatrixStudyConfig(Config):
    """The simulated listening experiment; the same values always make the same files."""

    name: Literal["matrix"] = "matrix"
    snr_db: float = Field(default=10.0, description="response over background, 1-40 Hz, on speech; -inf: no response")
    n_sentences: int = Field(default=1000, ge=10, le=speech_corpus.MAX_SENTENCES)
    n_subjects: int = Field(default=4, ge=1)
    recordings_per_subject: int = Field(default=4, ge=1)
    sfreq: float = Field(default=128.0, gt=100.0, le=1000.0, description="Hz; above twice the 50 Hz line frequency")
    seed: int = Field(default=0, ge=0)

    @field_validator("snr_db", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("must be a number of decibels or -.inf")
        return value

    @field_validator("snr_db")
    @classmethod
    def _is_a_level(cls, value: float) -> float:
        if value != -math.inf and not abs(value) <= MAX_SNR_DB:
            raise ValueError(f"must be a number of decibels from -{MAX_SNR_DB:g} to {MAX_SNR_DB:g}, or -.inf")
        return value

    @model_validator(mode="after")
    def _fills_recordings(self) -> MatrixStudyConfig:
        if self.recordings_per_subject > self.n_sentences:
            raise ValueError("recordings_per_subject must not exceed n_sentences: a recording would be empty")
        return self

    def build(self) -> MatrixStudy:
        return MatrixStudy(self)


@dataclass(frozen=True)
class FifSource:
    """An EEGSource over a FIF file."""

    raw: mne.io.BaseRaw

    @property
    def n_samples(self) -> int:
        return int(self.raw.n_times)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.raw.get_data(start=start, stop=stop).astype(np.float32)


class MatrixStudy(SpeechStudy):
    """Simulated EEG of listeners who all hear the same sentences in orders of their own."""

    modality = "EEG (simulated)"
    licence = "MIT; the speech is synthesised by hibari-tts (Apache-2.0)"
    citation = "this project; sentence form after Kollmeier et al., Int. J. Audiol. 54 (2015)"
    consent = "none needed: nobody was recorded"
    steps = "Nothing is to be got: the first run of a config with this study synthesises it."
    simulated = True
    isolated_sentences = True

    def __init__(self, config: MatrixStudyConfig) -> None:
        self.config = config
        self.folder: Path | None = None

    def prepare(self, folder: Path) -> None:
        """Synthesises the study into `folder/<digest>`, or finds it there complete.

        A second process waits for the first. Raises UserError naming a file that is not as it was written.
        """
        import filelock

        self.folder = folder / digest([FORMAT, self.config.model_dump()])
        done = self.folder / DONE
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder.with_suffix(".lock")), threads() as pool:
            if done.exists():
                self._check(pool)
                return
            shutil.rmtree(self.folder, ignore_errors=True)  # what an interrupted process left
            require_free_space(self.folder, self._n_bytes())
            self._synthesise(self.folder, pool)
            files = sorted(p for p in self.folder.rglob("*") if p.is_file())
            hashes = dict(zip((str(p.relative_to(self.folder)) for p in files), pool.map(sha256, files), strict=True))
            record = {"config": self.config.model_dump(mode="json"), "sha256": hashes}
            write_atomically(done, json.dumps(record, indent=1))

    def _n_bytes(self) -> int:
        """Room for the EEG and the readings, to within a few percent."""
        config = self.config
        eeg = config.n_subjects * simulation.SOA_S * config.sfreq * len(sensor_positions()) * 4
        return int(config.n_sentences * (eeg + speech_corpus.MAX_READING_S * audio.SAMPLE_RATE * 2))

    def _check(self, pool: ThreadPoolExecutor) -> None:
        def is_whole(name: str) -> bool:
            path = self._root / name
            return path.is_file() and sha256(path) == self._hashes[name]

        whole = pool.map(is_whole, self._hashes)
        damaged = [name for name, fine in zip(self._hashes, whole, strict=True) if not fine]
        if damaged:
            raise UserError(f"{self._root / damaged[0]} is missing or damaged: delete {self._root} and run again")

    def subjects(self) -> tuple[str, ...]:
        return tuple(f"listener{k + 1}" for k in range(self.config.n_subjects))

    def iter_recordings(self) -> Iterator[Recording]:
        import mne

        montage = mne.channels.make_standard_montage(MONTAGE)
        for subject in self.subjects():
            for part in range(self.config.recordings_per_subject):
                name = f"{subject}-{part + 1}"
                path = self._root / f"{name}_eeg.fif"
                raw = mne.io.read_raw_fif(path, verbose="error")
                events = pd.read_csv(self._root / f"{name}_events.csv", dtype={"sentence_id": str})
                yield Recording(
                    subject=subject,
                    recording=name,
                    sfreq=float(raw.info["sfreq"]),
                    ch_names=tuple(raw.ch_names),
                    positions=layout(montage, raw.ch_names),
                    eeg=FifSource(raw),
                    sounds=self._sounds(events),
                    words=self._words(events),
                    fingerprint=self._hashes[path.name],
                )

    @property
    def _root(self) -> Path:
        if self.folder is None:
            raise RuntimeError("MatrixStudy.prepare must be called before reading")
        return self.folder

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """File name -> SHA-256, as the files were written."""
        done = self._root / DONE
        try:
            hashes: dict[str, str] = json.loads(done.read_text(encoding="utf-8"))["sha256"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{done} is missing or damaged: delete {self._root} and run again") from error
        return hashes

    @cached_property
    def _sentences(self) -> pd.DataFrame:
        return pd.read_csv(self._root / "sentences.csv", dtype={"sentence_id": str}).set_index("sentence_id")

    def _sounds(self, events: pd.DataFrame) -> pd.DataFrame:
        sentences = self._sentences.loc[events["sentence_id"]].reset_index()
        return pd.DataFrame(
            {
                "sound": sentences["sentence_id"],
                "onset_s": events["onset_s"],
                "duration_s": sentences["duration_s"],
                "path": [str(self._root / "audio" / name) for name in sentences["path"]],
                "offset_s": 0.0,
                "sfreq_hz": np.nan,
            }
        )

    def _words(self, events: pd.DataFrame) -> pd.DataFrame:
        rows = [
            (word, event.onset_s + onset, duration, position)
            for position, event in enumerate(events.itertuples())
            for word, onset, duration in speech_corpus.word_times(
                self._sentences.at[event.sentence_id, "text"], self._sentences.at[event.sentence_id, "duration_s"]
            )
        ]
        return pd.DataFrame(rows, columns=["word", "onset_s", "duration_s", "sentence"])

    def _synthesise(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        import mne
        from tqdm import tqdm

        config = self.config
        texts = speech_corpus.sentences(config.n_sentences, config.seed)
        sentences = speech_corpus.synthesise(texts, config.seed, folder / "audio", pool)
        write_atomically(folder / "sentences.csv", sentences.to_csv(index=False))
        features = speech_corpus.features(sentences, folder / "audio", config.sfreq, pool)
        with mne.use_log_level("error"):
            for number, subject in enumerate(tqdm(self.subjects(), "listeners", leave=False, disable=None)):
                self._record(folder / subject, number, sentences["sentence_id"].to_numpy(), features, pool)

    def _record(
        self, stem: Path, listener: int, ids: np.ndarray, features: list[np.ndarray], pool: ThreadPoolExecutor
    ) -> None:
        """Writes `<stem>-<part>_eeg.fif` and `<stem>-<part>_events.csv` for each session of a listener."""
        import mne

        config = self.config
        montage = mne.channels.make_standard_montage(MONTAGE)
        info = mne.create_info(montage.ch_names, config.sfreq, "eeg").set_montage(montage)
        sessions = simulation.listen(
            features, sensor_positions(), config.sfreq, config.recordings_per_subject, config.seed, listener, pool
        )
        gain = simulation.gain(config.snr_db, sessions)

        def write(part: int) -> None:
            session = sessions[part]
            events = {"sentence_id": ids[session.sentences], "onset_s": session.onsets / config.sfreq}
            name = f"{stem}-{part + 1}"
            write_atomically(Path(f"{name}_events.csv"), pd.DataFrame(events).to_csv(index=False))
            raw = mne.io.RawArray(session.eeg(gain), info)
            raw.save(f"{name}_eeg.fif", fmt="single", buffer_size_sec=10)

        list(pool.map(write, range(len(sessions))))


def threads() -> ThreadPoolExecutor:
    """Threads, for what takes time here (speech network, FFTs, random draws, files) runs outside the interpreter."""
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1))


def sensor_positions() -> np.ndarray:
    """(C, 3) metres, x right, y front, z up: the montage of the simulated listeners."""
    import mne

    montage = mne.channels.make_standard_montage(MONTAGE)
    return np.stack([montage.get_positions()["ch_pos"][name] for name in montage.ch_names])


def layout(montage: mne.channels.DigMontage, ch_names: list[str]) -> np.ndarray:
    """(C, 2) in the unit square: azimuthal equidistant projection from the vertex; NaN where unknown."""
    known = montage.get_positions()["ch_pos"]
    return plane(np.array([known.get(name, np.full(3, np.nan)) for name in ch_names]))


def plane(xyz: np.ndarray) -> np.ndarray:
    """(C, 3) around the origin, z up -> (C, 2), as `layout` says."""
    xyz = xyz / np.linalg.norm(xyz, axis=1, keepdims=True)
    from_vertex = np.arccos(np.clip(xyz[:, 2], -1.0, 1.0))
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    flat = from_vertex[:, None] * np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    return (0.5 + flat / (2.0 * np.nanmax(np.abs(flat)))).astype(np.float32)
