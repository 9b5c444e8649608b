"""Brennan & Hale 2019: EEG of 49 people who heard the first chapter of Alice's Adventures in Wonderland.

Read from either release of the authors: FieldTrip `.mat` (doi 10.7302/Z29C6VNH) or BrainVision
(doi 10.7302/746w-g237), each with `proc/*.mat` (where the authors' epochs lie), `audio/*.wav` and
the word table. What is corrected here, and why, is told in docs/studies.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from eeg2speech.data.alignment import alignment, require_aligned
from eeg2speech.data.base import SOUND_COLUMNS, EEGSource, Recording, SpeechStudy
from eeg2speech.data.brennan2019_onsets import N_SEGMENTS, SFREQ, Onsets, onsets_from_markers, onsets_from_proc
from eeg2speech.data.matlab import open_fieldtrip
from eeg2speech.data.matrix import layout
from eeg2speech.data.sources import MneSource, RowsSource, fingerprint
from eeg2speech.errors import MissingFiles, UserError
from eeg2speech.schema import Config

if TYPE_CHECKING:
    import mne

MONTAGE = "easycap-M10"
WORKERS = 4
"""Files that are unpacked at a time, each of which takes twice its size of memory meanwhile."""
AUDIO_CHANNELS = ("AUD", "Aux5")
WORD_TABLE = "AliceChapterOne-EEG.csv"
WORD_TABLE_COLUMNS = ("Word", "Segment", "onset", "offset", "Order", "Sentence")
PROC_FOLDERS = ("proc", "timelock-preprocessing")
_NOISE, _QUIZ, _BOTH = "high noise", "low score in the comprehension quiz", "high noise and a low score in the quiz"
NOT_IN_PAPER = {
    **dict.fromkeys(("S02", "S28", "S29", "S31", "S33", "S49"), _NOISE),
    **dict.fromkeys(("S07", "S09", "S23", "S24", "S27", "S30", "S32", "S43"), _QUIZ),
    **dict.fromkeys(("S46", "S47"), _BOTH),
}
"""Whom Brennan & Hale left out of their 49, and why (datasets.mat and comprehension-scores.txt)."""
NOT_IN_BRAINMAGICK = {
    **dict.fromkeys(("S28", "S29", "S31", "S33", "S46", "S47", "S49"), "no proc file"),
    **dict.fromkeys(("S24", "S26", "S27", "S30", "S32", "S34", "S35", "S36"), "proc.trl has not all 2129 words"),
    "S02": "proc.trl called bad",
}
"""Whom brainmagick's study file leaves out, and why: it keeps four low scorers of the quiz (S07, S09,
S23, S43) and loses the four without a first marker."""
EVERYONE = tuple(f"S{number:02d}" for number in range(1, 50))
SELECTIONS = {
    "paper": tuple(s for s in EVERYONE if s not in NOT_IN_PAPER),
    "brainmagick": tuple(s for s in EVERYONE if s not in NOT_IN_BRAINMAGICK),
}


class Brennan2019StudyConfig(Config):
    """The folder into which a release was downloaded and its archives unpacked."""

    name: Literal["brennan2019"] = "brennan2019"
    root: Path
    subjects: Literal["paper", "brainmagick", "all"] | tuple[str, ...] = Field(
        default="paper",
        description="paper: the 33 of Brennan & Hale; brainmagick: its 33, who are others; all: whoever has a file",
    )
    onsets: Literal["proc", "triggers"] | None = Field(
        default=None, description="null: proc.trl where the subject has one, else the markers of the BrainVision file"
    )
    verify_alignment: bool = Field(
        default=True, description="compare onsets with the recorded audio channel, where there is one"
    )

    def build(self) -> Brennan2019Study:
        return Brennan2019Study(self)


@dataclass(frozen=True)
class _Signals:
    """What one EEG file holds."""

    path: Path
    ch_names: tuple[str, ...]
    eeg: EEGSource
    audio: EEGSource | None
    markers: tuple[tuple[float, str], ...]
    """(s, description) of its stimulus markers; the `.mat` release has none."""


class Brennan2019Study(SpeechStudy):
    """One recording per listener: 12 sounds, 12 minutes, 60 channels at 500 Hz."""

    modality: ClassVar[str] = "EEG"
    licence: ClassVar[str] = "CC BY 4.0"
    citation: ClassVar[str] = (
        "Brennan & Hale, Hierarchical structure guides rapid linguistic predictions during naturalistic listening "
        "(PLoS ONE 14(1), e0207741, 2019); data: doi 10.7302/Z29C6VNH and 10.7302/746w-g237"
    )
    consent: ClassVar[str] = "told in the paper (doi 10.1371/journal.pone.0207741)"
    source: ClassVar[str] = "https://deepblue.lib.umich.edu/data/concern/data_sets/bn999738r"
    steps: ClassVar[str] = (
        "Deep Blue Data has no plain download of the whole set; its firewall turns many programs away.\n"
        "1. Open https://deepblue.lib.umich.edu/data/concern/data_sets/bn999738r (BrainVision, S01.vhdr, S01.eeg and\n"
        "   S01.vmrk of each subject) or https://deepblue.lib.umich.edu/data/concern/data_sets/bg257f92t (FieldTrip,\n"
        "   S01.mat of each subject). One of the two is enough.\n"
        "2. Download into {to}: AliceChapterOne-EEG.csv, audio.zip, proc.zip and the files of the subjects you want;\n"
        "   all of them at once by the page's Globus link.\n"
        "3. mkdir -p {to}/audio {to}/proc && unzip -j {to}/audio.zip '*.wav' -d {to}/audio &&\n"
        "   unzip -j {to}/proc.zip '*.mat' -d {to}/proc\n"
        "Then {to} must hold S*.mat or S*.vhdr, proc/S*.mat, audio/DownTheRabbitHoleFinal_SoundFile*.wav and\n"
        "AliceChapterOne-EEG.csv."
    )
    recordings_at: ClassVar[tuple[str, ...]] = ("S??.mat", "S??.vhdr")
    expected: ClassVar[dict[str, float]] = {"subjects": 49, "channels": 60, "hours": 9.8}

    def __init__(self, config: Brennan2019StudyConfig) -> None:
        self.config = config
        self._generated: Path | None = None

    def prepare(self, folder: Path) -> None:
        """Checks that the files of every selected subject are there; `.mat` files are unpacked into `folder`."""
        self._generated = folder
        root = self.config.root
        if not root.is_dir():
            raise UserError(f"{root} is no folder; set study.root to where the release is, which is at {self.source}")
        missing = [name for name in (WORD_TABLE, *map(_wav, range(1, N_SEGMENTS + 1))) if not (root / name).is_file()]
        for subject in self.subjects():
            if self._file(subject) is None:
                missing.append(f"{subject}.mat (or .vhdr)")
            elif self._onsets(subject) == "proc" and self._proc(subject) is None:
                missing.append(f"proc/{subject}.mat")
        if missing:
            remedy = (
                f"download them from {self.source}, unpack audio.zip and proc.zip there, or choose other study.subjects"
            )
            raise MissingFiles(missing, "brennan2019", f" under {root}; {remedy}", shown=4)

    def subjects(self) -> tuple[str, ...]:
        chosen = self.config.subjects
        if chosen == "all":
            return tuple(s for s in EVERYONE if self._file(s) and (self._proc(s) or self._has_markers(s)))
        named = SELECTIONS[chosen] if isinstance(chosen, str) else tuple(sorted(set(chosen)))
        unknown = sorted(set(named) - set(EVERYONE))
        if unknown:
            raise UserError(f"study.subjects: brennan2019 has no {', '.join(unknown)}; its subjects are S01 to S49")
        return named

    def iter_recordings(self) -> Iterator[Recording]:
        import mne

        montage = mne.channels.make_standard_montage(MONTAGE)
        for subject, signals in self._opened(montage):
            onsets = self._segment_onsets(subject, signals)
            sounds = self._sounds(onsets)
            if signals.audio is not None and self.config.verify_alignment:
                require_aligned(alignment(signals.audio, SFREQ, sounds), str(signals.path))
            yield Recording(
                subject=subject,
                recording=subject,
                sfreq=SFREQ,
                ch_names=signals.ch_names,
                positions=layout(montage, list(signals.ch_names)),
                eeg=signals.eeg,
                sounds=sounds,
                words=self._words(onsets),
                fingerprint=fingerprint(signals.path, signals.path.with_suffix(".eeg")),
            )

    def _opened(self, montage: mne.channels.DigMontage) -> Iterator[tuple[str, _Signals]]:
        """(subject, signals) in order; `.mat` files are unpacked side by side."""
        subjects = self.subjects()
        files = {subject: path for subject in subjects if (path := self._file(subject)) and path.suffix == ".mat"}
        if self._generated is None:
            raise RuntimeError("Brennan2019Study.prepare must be called before reading")
        with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
            unpacked = {s: pool.submit(open_fieldtrip, path, "raw", self._generated) for s, path in files.items()}
            try:
                for subject in subjects:
                    if subject in unpacked:
                        unpacked[subject].result()
                    yield subject, self._open(subject, montage)
            finally:
                pool.shutdown(cancel_futures=True)

    def alignment(self, subject: str) -> pd.DataFrame | None:
        """`data.alignment.alignment` of a subject's sounds; None where the file has no audio channel."""
        import mne

        signals = self._open(subject, mne.channels.make_standard_montage(MONTAGE))
        if signals.audio is None:
            return None
        return alignment(signals.audio, SFREQ, self._sounds(self._segment_onsets(subject, signals)))

    def _file(self, subject: str) -> Path | None:
        candidates = (self.config.root / f"{subject}{suffix}" for suffix in (".vhdr", ".mat"))
        return next((path for path in candidates if path.is_file()), None)

    def _proc(self, subject: str) -> Path | None:
        candidates = (self.config.root / folder / f"{subject}.mat" for folder in PROC_FOLDERS)
        return next((path for path in candidates if path.is_file()), None)

    def _has_markers(self, subject: str) -> bool:
        file = self._file(subject)
        return file is not None and file.suffix == ".vhdr"

    def _onsets(self, subject: str) -> str:
        if self.config.onsets == "triggers" and not self._has_markers(subject):
            raise UserError(f"study.onsets: {subject}.mat has no markers, only BrainVision files have; set it to proc")
        return self.config.onsets or ("triggers" if self._has_markers(subject) and not self._proc(subject) else "proc")

    def _open(self, subject: str, montage: mne.channels.DigMontage) -> _Signals:
        path = self._file(subject)
        if path is None or self._generated is None:
            raise RuntimeError("Brennan2019Study.prepare must be called before reading")
        signals = (_open_vhdr if path.suffix == ".vhdr" else _open_mat)(path, montage, self._generated)
        if not len(signals.ch_names):
            raise UserError(f"{path}: none of its channels is one of {MONTAGE} ('1' to '61'); is it of this study?")
        return signals

    @cached_property
    def _table(self) -> pd.DataFrame:
        path = self.config.root / WORD_TABLE
        try:
            table = pd.read_csv(path, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no word table that can be read ({error}); download it again") from error
        lacking = [name for name in WORD_TABLE_COLUMNS if name not in table]
        if lacking or table["Order"].duplicated().any():
            said = f"has no column {', '.join(lacking)}" if lacking else "two rows have one Order"
            raise UserError(f"{path}: {said}; take the table of the release")
        return table[list(WORD_TABLE_COLUMNS)].set_index("Order", drop=False)

    def _segment_onsets(self, subject: str, signals: _Signals) -> Onsets:
        if self._onsets(subject) == "triggers":
            return onsets_from_markers(signals.markers, subject, signals.path)
        proc = self._proc(subject)
        assert proc is not None  # prepare has seen it
        return onsets_from_proc(proc, subject)

    def _sounds(self, onsets: Onsets) -> pd.DataFrame:
        import soundfile

        rows = []
        for segment, onset_s in sorted(onsets.segments.items()):
            path = self.config.root / _wav(segment)
            try:
                duration_s = soundfile.info(str(path)).duration
            except (soundfile.LibsndfileError, OSError) as error:
                raise UserError(f"{path}: this sound file cannot be read ({error}); unpack audio.zip again") from error
            rows.append((path.stem, onset_s, duration_s, str(path), 0.0, np.nan))
        return pd.DataFrame(rows, columns=list(SOUND_COLUMNS))

    def _words(self, onsets: Onsets) -> pd.DataFrame:
        """Where `proc.trl` has a word, its own onset; else the sound's plus the table's."""
        table = self._table[self._table["Segment"].isin(list(onsets.segments))]
        from_sound = table["Segment"].map(onsets.segments) + table["onset"]
        words = pd.DataFrame(
            {
                "word": table["Word"].astype(str),
                "onset_s": onsets.words.reindex(table.index).fillna(from_sound),
                "duration_s": table["offset"] - table["onset"],
                "sentence": table["Sentence"],
            }
        )
        return words.reset_index(drop=True)


def _wav(segment: int) -> str:
    return f"audio/DownTheRabbitHoleFinal_SoundFile{segment}.wav"


def _open_vhdr(path: Path, montage: mne.channels.DigMontage, folder: Path) -> _Signals:
    import mne

    try:
        raw = mne.io.read_raw_brainvision(path, preload=False, verbose="error")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: MNE cannot read this BrainVision file ({error}); download it again") from error
    _check_rate(path, float(raw.info["sfreq"]))
    known = set(montage.ch_names)
    picks = np.array([i for i, name in enumerate(raw.ch_names) if name in known])
    heard = np.array([i for i, name in enumerate(raw.ch_names) if name in AUDIO_CHANNELS])
    said = zip(raw.annotations.onset, raw.annotations.description, strict=True)
    return _Signals(
        path=path,
        ch_names=tuple(raw.ch_names[i] for i in picks),
        eeg=MneSource(raw, picks),
        audio=MneSource(raw, heard[:1]) if len(heard) else None,
        markers=tuple((float(t), str(d)) for t, d in said if str(d).startswith("Stimulus")),
    )


def _open_mat(path: Path, montage: mne.channels.DigMontage, folder: Path) -> _Signals:
    raw = open_fieldtrip(path, "raw", folder)
    _check_rate(path, raw.sfreq)
    known = set(montage.ch_names)
    rows = np.array([i for i, name in enumerate(raw.labels) if name in known])
    heard = np.array([i for i, name in enumerate(raw.labels) if name in AUDIO_CHANNELS])
    return _Signals(
        path=path,
        ch_names=tuple(raw.labels[i] for i in rows),
        eeg=RowsSource(raw.data, rows, 1e-6),
        audio=RowsSource(raw.data, heard[:1], 1.0) if len(heard) else None,
        markers=(),
    )


def _check_rate(path: Path, sfreq: float) -> None:
    if sfreq != SFREQ:
        raise UserError(f"{path}: is sampled at {sfreq:g} Hz; the onsets count samples at {SFREQ:g} Hz")
