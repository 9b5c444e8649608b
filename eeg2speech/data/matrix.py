"""The embedded study: simulated listeners hearing five-word matrix sentences. Needs no download.

It is written to disk as a real study is (FIF recordings, wavs, event and word tables) and read
back through the same contract, so nothing downstream can tell. It says nothing about real brains:
it is the known truth on which the instrument itself is tested.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator
from scipy.fft import next_fast_len

from eeg2speech import audio
from eeg2speech.data import forward_model, speech_corpus
from eeg2speech.data.base import Recording, SpeechStudy
from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest, write_atomically
from eeg2speech.schema import Config

if TYPE_CHECKING:
    import mne

FORMAT = 1
"""Raised whenever the same configuration would synthesise other data."""
MONTAGE = "biosemi64"
SOA_S = 3.8
"""Mean time from one sentence onset to the next; jittered without regard to the sound, so that at
SNR -inf not even the timing of a recording depends on what was played."""


class MatrixStudyConfig(Config):
    """The simulated listening experiment; the same values always make the same files."""

    name: Literal["matrix"] = "matrix"
    snr_db: float = Field(default=10.0, description="response over background, 1-40 Hz, on speech; -inf: no response")
    n_sentences: int = Field(default=1000, ge=10)
    n_subjects: int = Field(default=4, ge=1)
    recordings_per_subject: int = Field(default=4, ge=1)
    sfreq: float = Field(default=128.0, gt=100.0, description="Hz; above twice the 50 Hz line frequency")
    seed: int = 0

    @field_validator("snr_db")
    @classmethod
    def _is_a_level(cls, value: float) -> float:
        if math.isnan(value) or value == math.inf:
            raise ValueError("must be a number of decibels or -.inf")
        return value

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
    simulated = True
    isolated_sentences = True

    def __init__(self, config: MatrixStudyConfig) -> None:
        self.config = config
        self.folder: Path | None = None

    def prepare(self, folder: Path) -> None:
        """Synthesises the study into `folder/<digest>`, or finds it there complete.

        A file that no longer has the size it was written with is an error that names it.
        """
        self.folder = folder / digest([FORMAT, self.config.model_dump()])
        done = self.folder / "done.json"
        if done.exists():
            for name, size in json.loads(done.read_text())["sizes"].items():
                path = self.folder / name
                if not path.exists() or path.stat().st_size != size:
                    raise UserError(f"{path} is missing or damaged: delete {self.folder} and run again")
            return
        self._synthesise(self.folder)
        sizes = {
            str(p.relative_to(self.folder)): p.stat().st_size for p in sorted(self.folder.rglob("*")) if p.is_file()
        }
        write_atomically(done, json.dumps({"config": self.config.model_dump(mode="json"), "sizes": sizes}, indent=1))

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
                    fingerprint=digest([path.parent.name, path.name, path.stat().st_size]),
                )

    @property
    def _root(self) -> Path:
        if self.folder is None:
            raise RuntimeError("MatrixStudy.prepare must be called before reading")
        return self.folder

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

    def _synthesise(self, folder: Path) -> None:
        import mne
        from tqdm import tqdm

        config = self.config
        texts = speech_corpus.sentences(config.n_sentences, config.seed)
        sentences = speech_corpus.synthesise(texts, config.seed, folder / "audio")
        write_atomically(folder / "sentences.csv", sentences.to_csv(index=False))
        features = [
            forward_model.speech_features(audio.load(folder / "audio" / name), config.sfreq)
            for name in sentences["path"]
        ]
        montage = mne.channels.make_standard_montage(MONTAGE)
        sensors = np.stack([montage.get_positions()["ch_pos"][name] for name in montage.ch_names])
        for number, subject in enumerate(tqdm(self.subjects(), desc="listeners", leave=False)):
            rng = np.random.default_rng([config.seed, 3, number])
            listener = forward_model.make_listener(sensors, config.sfreq, rng)
            order = np.array_split(rng.permutation(config.n_sentences), config.recordings_per_subject)
            sessions = [self._session(part, features, listener, rng) for part in order]
            gain = _gain(config.snr_db, sessions, config.sfreq)
            for part, (which, session) in enumerate(zip(order, sessions, strict=True)):
                eeg = session.background if config.snr_db == -math.inf else session.background + gain * session.response
                eeg += forward_model.artefacts(eeg.shape[1], config.sfreq, listener, rng)
                name = f"{subject}-{part + 1}"
                events = pd.DataFrame(
                    {"sentence_id": sentences["sentence_id"].to_numpy()[which], "onset_s": session.onsets_s}
                )
                write_atomically(folder / f"{name}_events.csv", events.to_csv(index=False))
                _write_fif(folder / f"{name}_eeg.fif", eeg, config.sfreq, montage)

    def _session(
        self,
        sentences: np.ndarray,
        features: list[np.ndarray],
        listener: forward_model.Listener,
        rng: np.random.Generator,
    ) -> _Session:
        sfreq = self.config.sfreq
        onsets = np.round((1.0 + SOA_S * np.arange(len(sentences)) + rng.uniform(-0.15, 0.15, len(sentences))) * sfreq)
        n_samples = next_fast_len(int(onsets[-1] + (SOA_S + 1.0) * sfreq), real=True)
        heard = np.zeros((2 * forward_model.N_BANDS, n_samples), dtype=np.float32)
        for sentence, onset in zip(sentences, onsets.astype(int), strict=True):
            heard[:, onset : onset + features[sentence].shape[1]] = features[sentence]
        return _Session(
            onsets_s=onsets / sfreq,
            speech=heard[: forward_model.N_BANDS].max(axis=0) > 0,
            response=forward_model.response(heard, listener),
            background=forward_model.background(n_samples, sfreq, listener, rng),
        )


@dataclass(frozen=True)
class _Session:
    onsets_s: np.ndarray
    speech: np.ndarray
    response: np.ndarray
    background: np.ndarray


def _gain(level_db: float, sessions: list[_Session], sfreq: float) -> np.float32:
    """The factor on the responses that puts a listener's sessions together at `level_db`."""
    unit_db = forward_model.snr_db(
        np.concatenate([s.response for s in sessions], axis=1),
        np.concatenate([s.background for s in sessions], axis=1),
        np.concatenate([s.speech for s in sessions]),
        sfreq,
    )
    return np.float32(10.0 ** ((level_db - unit_db) / 20.0))


def _write_fif(path: Path, eeg: np.ndarray, sfreq: float, montage: mne.channels.DigMontage) -> None:
    import mne

    info = mne.create_info(montage.ch_names, sfreq, "eeg", verbose="error")
    raw = mne.io.RawArray(eeg, info, verbose="error")
    raw.set_montage(montage, verbose="error")
    with atomic_path(path) as partial:
        target = partial.with_name(partial.name + "_eeg.fif")
        raw.save(target, fmt="single", verbose="error")
        target.replace(partial)


def layout(montage: mne.channels.DigMontage, ch_names: list[str]) -> np.ndarray:
    """(C, 2) in the unit square: azimuthal equidistant projection from the vertex; NaN where unknown."""
    known = montage.get_positions()["ch_pos"]
    xyz = np.array([known.get(name, np.full(3, np.nan)) for name in ch_names])
    xyz = xyz / np.linalg.norm(xyz, axis=1, keepdims=True)
    from_vertex = np.arccos(np.clip(xyz[:, 2], -1.0, 1.0))
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    plane = from_vertex[:, None] * np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    return (0.5 + plane / (2.0 * np.nanmax(np.abs(plane)))).astype(np.float32)
