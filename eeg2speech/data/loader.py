"""A study, prepared: tables, memory-mapped EEG and features, and what is said about them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eeg2speech import audio
from eeg2speech.batch import Batch
from eeg2speech.data.base import Recording, SpeechStudy
from eeg2speech.data.channels import eyes_only, require_inputs
from eeg2speech.data.crosstalk import crosstalk
from eeg2speech.data.duplicates import near_duplicates
from eeg2speech.data.features import StimulusFeatures
from eeg2speech.data.preprocessing import PreprocessingConfig, Scaler, preprocess_all
from eeg2speech.data.reader import UNSEEN_SUBJECT, WindowReader
from eeg2speech.data.splits import SPLITS, Finding, SplitConfig, audit, require_clean
from eeg2speech.data.windows import Cut, WindowConfig, cut
from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyData:
    """Everything training and evaluation may know about a study. Make it by `prepare`."""

    study: SpeechStudy
    name: str
    folder: Path
    """Holds `windows.parquet`, `stimuli.parquet`, `audit.json`."""
    stimuli: pd.DataFrame
    windows: pd.DataFrame
    dropped: dict[str, int]
    preprocessing: PreprocessingConfig
    length_s: float
    features: StimulusFeatures
    eeg: dict[str, np.ndarray]
    """Recording name -> (C of the recording, T) scaled EEG, memory-mapped."""
    ch_names: tuple[str, ...]
    """The union over recordings; a channel that a recording lacks is 0 there, at position NaN."""
    channel_rows: dict[str, np.ndarray]
    """Recording name -> rows of the union its channels go to."""
    recording_positions: dict[str, np.ndarray]
    """Recording name -> (C, 2) in the union's order."""
    subjects: tuple[str, ...]
    """The training subjects."""
    audit: tuple[Finding, ...]
    fingerprint: str
    """Changes whenever a number in any batch could."""

    @classmethod
    def prepare(
        cls,
        study: SpeechStudy,
        study_folder: Path,
        preprocessing: PreprocessingConfig,
        windows: WindowConfig,
        splits: SplitConfig,
        cache: Path,
        name: str | None = None,
    ) -> StudyData:
        """Reads the study, cuts, preprocesses and audits it; what is in `cache` already is reused.

        Raises UserError where files are missing or damaged, or a trigger or sound is among the channels, and,
        unless `splits.strict` is off, where the audit finds a leak. `audit.json` is written either way.
        """
        study.prepare(study_folder)
        name = name or type(study).__name__.removesuffix("Study").lower()
        recordings = list(study.iter_recordings())
        for recording in recordings:
            require_inputs(recording.recording, recording.ch_names)
        if preprocessing.channels == "eyes":
            recordings = [eyes_only(recording) for recording in recordings]
        isolated = study.isolated_sentences
        tables = cut(name, recordings, isolated, windows, splits, preprocessing)
        if tables.dropped:
            counts = ", ".join(f"{reason}: {n}" for reason, n in tables.dropped.items())
            logger.warning("study %s: %d windows; left out: %s", name, len(tables.windows), counts)
        features = StimulusFeatures.prepare(tables.stimuli, windows.length_s, cache)
        tables.stimuli["content"] = features.content
        paths = preprocess_all(recordings, tables.windows, windows.length_s, preprocessing, cache)
        train, test = (np.flatnonzero(tables.windows["split"] == split) for split in ("train", "test"))
        findings = audit(
            tables.stimuli,
            tables.windows,
            isolated=isolated,
            length_s=windows.length_s,
            shift_s=preprocessing.shift_s,
            edge_s=max(preprocessing.edge_s(r.sfreq) for r in recordings),
            fitted={recording: Scaler.load(path).fit_intervals for recording, path in paths.items()},
            used={"encoder train": train, "diffusion test": test},
        )
        findings.append(near_duplicates(tables.stimuli, tables.windows, features))
        findings.append(crosstalk(recordings, cache))
        fingerprint = _fingerprint(recordings, tables, preprocessing, windows, splits)
        folder = cache / f"{name}-{fingerprint}"
        _write_tables(folder, tables, findings)
        if splits.strict:
            require_clean(findings)
        ch_names = tuple(dict.fromkeys(channel for r in recordings for channel in r.ch_names))
        row = {channel: i for i, channel in enumerate(ch_names)}
        rows = {r.recording: np.array([row[channel] for channel in r.ch_names]) for r in recordings}
        trained = tables.windows.loc[tables.windows["split"] == "train", "subject"]
        return cls(
            study=study,
            name=name,
            folder=folder,
            stimuli=tables.stimuli,
            windows=tables.windows,
            dropped=tables.dropped,
            preprocessing=preprocessing,
            length_s=windows.length_s,
            features=features,
            eeg={recording: np.asarray(np.load(path, mmap_mode="r")) for recording, path in paths.items()},
            ch_names=ch_names,
            channel_rows=rows,
            recording_positions={
                r.recording: _spread(r.positions, rows[r.recording], len(ch_names)) for r in recordings
            },
            subjects=tuple(sorted(trained.unique())),
            audit=tuple(findings),
            fingerprint=fingerprint,
        )

    @property
    def n_channels(self) -> int:
        return len(self.ch_names)

    @property
    def n_subjects(self) -> int:
        return len(self.subjects)

    @property
    def n_times(self) -> int:
        """T: EEG samples of a window."""
        return self.preprocessing.n_samples(self.length_s)

    @property
    def n_bands(self) -> int:
        """K: 64 where the study has audio."""
        return self.features.features.shape[1]

    @property
    def n_frames(self) -> int:
        """F: feature frames of a window."""
        return self.features.features.shape[2]

    @property
    def has_audio(self) -> bool:
        return self.features.waveforms is not None

    @property
    def simulated(self) -> bool:
        return self.study.simulated

    @property
    def positions(self) -> np.ndarray:
        """(C, 2) float32: each sensor where the first recording that knows it has it."""
        stacked = np.stack(list(self.recording_positions.values()))
        known = (~np.isnan(stacked).any(axis=2)).argmax(axis=0)
        return stacked[known, np.arange(self.n_channels)]

    def indices(self, split: str) -> np.ndarray:
        """Rows of `windows` in a split, ascending."""
        return np.flatnonzero((self.windows["split"] == split).to_numpy())

    def waveform(self, rows: np.ndarray) -> np.ndarray:
        """(n, N) float32 at 16 kHz: the speech of windows. Raises UserError where the study has none."""
        if self.features.waveforms is None:
            raise UserError(f"study {self.name} has no audio, only feature arrays; leave the audio metrics out")
        return self.features.waveforms[self._reader.stimulus[rows]]

    def starts(self, rows: np.ndarray) -> np.ndarray:
        """(n,) first EEG sample of windows in their recording."""
        return self._reader.start[np.asarray(rows)]

    def batch(self, rows: np.ndarray, starts: np.ndarray | None = None) -> Batch:
        """The windows of these rows, in this order; with `starts`, what their recordings hold from there on instead."""
        return self._reader.batch(rows, starts)

    def facts(self) -> dict[str, Any]:
        """What a report says about the data: plain values only."""
        per_split = {}
        for split in SPLITS:
            table = self.windows.iloc[self.indices(split)]
            heard_s = len(table["stimulus"].unique()) * self.length_s if len(table) else 0.0
            per_split[split] = {
                "windows": len(table),
                "stimuli": int(table["stimulus"].nunique()),
                "subjects": int(table["subject"].nunique()),
                "hours": round(len(table) * self.length_s / 3600, 4),
                "unique_hours": round(heard_s / 3600, 4),
            }
        hours = sum(eeg.shape[1] for eeg in self.eeg.values()) / self.preprocessing.sfreq / 3600
        return {
            "study": self.name,
            "modality": self.study.modality,
            "licence": self.study.licence,
            "citation": self.study.citation,
            "consent": self.study.consent,
            "simulated": self.simulated,
            "has_audio": self.has_audio,
            "subjects": int(self.windows["subject"].nunique()),
            "recordings": len(self.eeg),
            "hours": round(hours, 4),
            "channels": self.n_channels,
            "sfreq_hz": self.preprocessing.sfreq,
            "window_s": self.length_s,
            "splits": per_split,
            "dropped_windows": dict(self.dropped),
            "audit_passed": all(finding.passed for finding in self.audit),
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def _reader(self) -> WindowReader:
        names = list(self.eeg)
        number = {name: i for i, name in enumerate(names)}
        subject = {name: i for i, name in enumerate(self.subjects)}
        everything = np.arange(self.n_channels)
        stimulus = self.windows["stimulus"].to_numpy(np.int64)
        if len(stimulus) and not 0 <= stimulus.min() <= stimulus.max() < len(self.features.features):
            raise ValueError("a window names a stimulus that is not there")
        return WindowReader(
            recording=self.windows["recording"].map(number).to_numpy(np.int64),
            start=self.preprocessing.slice_start(self.windows["onset_s"].to_numpy(float)),
            stimulus=stimulus,
            subject=np.array([subject.get(s, UNSEEN_SUBJECT) for s in self.windows["subject"]], dtype=np.int64),
            text=self.windows["text"].to_numpy(object),
            sources=[
                # a whole row range is copied several times faster than one picked by an index array
                (slice(None) if np.array_equal(self.channel_rows[n], everything) else self.channel_rows[n], self.eeg[n])
                for n in names
            ],
            positions=np.stack([self.recording_positions[n] for n in names]),
            features=self.features,
            preprocessing=self.preprocessing,
            n_times=self.n_times,
        )


def _spread(positions: np.ndarray, rows: np.ndarray, n_channels: int) -> np.ndarray:
    out = np.full((n_channels, 2), np.nan, dtype=np.float32)
    out[rows] = positions
    return out


def _fingerprint(
    recordings: Sequence[Recording],
    tables: Cut,
    preprocessing: PreprocessingConfig,
    windows: WindowConfig,
    splits: SplitConfig,
) -> str:
    rows = pd.util.hash_pandas_object(tables.windows, index=False).to_numpy()
    content = list(tables.stimuli["content"])
    configs = [c.model_dump(mode="json") for c in (preprocessing, windows, splits)]
    return digest([[r.fingerprint for r in recordings], configs, content, rows.tolist(), audio.SAMPLE_RATE])


def _write_tables(folder: Path, tables: Cut, findings: Sequence[Finding]) -> None:
    for name, table in (("stimuli", tables.stimuli), ("windows", tables.windows)):
        _write_if_new(folder / f"{name}.parquet", table.to_parquet(index=False))
    verdict = {
        "passed": all(f.passed for f in findings),
        "dropped": tables.dropped,
        "findings": [asdict(f) for f in findings],
    }
    _write_if_new(folder / "audit.json", json.dumps(verdict, indent=1).encode())


def _write_if_new(path: Path, content: bytes) -> None:
    """Runs share these files: one that finds them as they should be does not take them from under another."""
    if not path.exists() or path.read_bytes() != content:
        with atomic_path(path) as partial:
            partial.write_bytes(content)
