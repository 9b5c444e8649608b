"""Broderick et al. 2018/2019: EEG of 19 people who heard an hour of The Old Man and the Sea, in 20 runs.

Read from either release: MATLAB files at 128 Hz (Dryad, doi 10.5061/dryad.070jc), which have the
envelope of the speech and not the speech, or BIDS at 512 Hz with wavs and TextGrids (OpenNeuro
ds004408). See docs/studies.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from eeg2speech.data.base import SOUND_COLUMNS, WORD_COLUMNS, EEGSource, Recording, SpeechStudy
from eeg2speech.data.matlab import read_mat
from eeg2speech.data.matrix import layout
from eeg2speech.data.sources import AverageReferenced, MatSource, MneSource, fingerprint, mat_array
from eeg2speech.data.textgrid import read_words
from eeg2speech.errors import MissingFiles, UserError
from eeg2speech.files import atomic_path, digest
from eeg2speech.schema import Config

MONTAGE = "biosemi128"
N_CHANNELS = 128
ENVELOPE_HZ = 128.0
BOUNDARY_TOLERANCE_S = 0.005
"""`sentence_boundaries` are word offsets, rounded to hundredths of a second."""


class Broderick2019StudyConfig(Config):
    """The folder into which a release was downloaded and its archives unpacked."""

    name: Literal["broderick2019"] = "broderick2019"
    root: Path = Field(description="holds `Natural Speech/` (MATLAB release), or is ds004408")
    subjects: tuple[str, ...] | None = Field(default=None, description="such as Subject1 or sub-001; null: all")
    audio: Path | None = Field(
        default=None,
        description="MATLAB release: the stimuli/ folder of ds004408, for wavs in place of envelopes",
    )
    reference: Literal["mastoids", "average"] | None = Field(
        default=None, description="null: as recorded, like brainmagick; mastoids: MATLAB release only"
    )
    sentence_pause_s: float = Field(
        default=0.4, gt=0, description="TextGrids have no punctuation: a pause of this long ends a sentence"
    )

    def build(self) -> Broderick2019Study:
        return Broderick2019Study(self)


@dataclass(frozen=True, order=True)
class _Run:
    """One EEG file."""

    subject: str
    number: int
    path: Path


class Broderick2019Study(SpeechStudy):
    """One recording per run and listener; the speech begins with the EEG."""

    modality: ClassVar[str] = "EEG"
    licence: ClassVar[str] = "CC0 1.0"
    citation: ClassVar[str] = (
        "Broderick, Anderson, Di Liberto, Crosse & Lalor, Electrophysiological correlates of semantic dissimilarity "
        "reflect the comprehension of natural, narrative speech (Current Biology 28(5), 803-809, 2018); "
        "data: doi 10.5061/dryad.070jc and OpenNeuro ds004408"
    )
    source: ClassVar[str] = "https://openneuro.org/datasets/ds004408 or https://doi.org/10.5061/dryad.070jc"
    consent: ClassVar[str] = "told in the paper (doi 10.1016/j.cub.2018.01.080)"
    place: ClassVar[str] = "openneuro:ds004408"
    steps: ClassVar[str] = (
        "The MATLAB release is at https://doi.org/10.5061/dryad.070jc: download and unpack it there by hand, so that\n"
        "{to} holds Natural Speech/EEG, Natural Speech/Stimuli/Envelopes and Natural Speech/Stimuli/Text."
    )
    recordings_at: ClassVar[tuple[str, ...]] = (
        "sub-*/eeg/sub-*_task-listening_run-*_eeg.vhdr",
        "Natural Speech/EEG/Subject*/Subject*_Run*.mat",
        "EEG/Subject*/Subject*_Run*.mat",
    )
    expected: ClassVar[dict[str, float]] = {"subjects": 19, "channels": 128, "hours": 19.0}

    def __init__(self, config: Broderick2019StudyConfig) -> None:
        self.config = config
        self._generated: Path | None = None

    def prepare(self, folder: Path) -> None:
        """Checks that every run has its sound and words. Raises UserError naming what is missing."""
        self._generated = folder
        runs = self._runs
        if self.config.reference == "mastoids" and self._is_bids:
            raise UserError("study.reference: ds004408 has no mastoids; set it to average or leave it out")
        self.has_audio = self._is_bids or self.config.audio is not None
        needed = {path for number in {run.number for run in runs} for path in self._stimulus_files(number)}
        missing = sorted(str(path) for path in needed if not path.is_file())
        missing += [str(run.path) for run in runs if not run.path.is_file()]
        if missing:
            remedy = f"download the release again from {self.source}"
            raise MissingFiles(missing, "broderick2019", f" (or a link to what was not fetched); {remedy}")

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({run.subject for run in self._runs}))

    def iter_recordings(self) -> Iterator[Recording]:
        import mne

        montage = mne.channels.make_standard_montage(MONTAGE)
        positions = layout(montage, list(montage.ch_names))
        for run in self._runs:
            eeg, sfreq = _open_vhdr(run.path, montage.ch_names) if self._is_bids else self._open_mat(run.path)
            if self.config.reference == "average":
                eeg = AverageReferenced(eeg)
            yield Recording(
                subject=run.subject,
                recording=f"{run.subject}_run{run.number:02d}",
                sfreq=sfreq,
                ch_names=tuple(montage.ch_names),
                positions=positions,
                eeg=eeg,
                sounds=self._sound(run.number),
                words=self._words(run.number),
                fingerprint=digest(
                    [fingerprint(run.path, run.path.with_suffix(".eeg")), self.config.reference],
                ),
            )

    @cached_property
    def _natural_speech(self) -> Path:
        inner = self.config.root / "Natural Speech"
        return inner if inner.is_dir() else self.config.root

    @cached_property
    def _is_bids(self) -> bool:
        return not (self._natural_speech / "EEG").is_dir()

    @cached_property
    def _runs(self) -> tuple[_Run, ...]:
        root = self.config.root
        if not root.is_dir():
            raise UserError(f"{root} is no folder; set study.root to where a release is: {self.source}")
        if self._is_bids:
            paths = root.glob("sub-*/eeg/sub-*_task-listening_run-*_eeg.vhdr")
            form = r"(sub-\w+)_task-listening_run-(\d+)_eeg\.vhdr"
        else:
            paths = (self._natural_speech / "EEG").glob("Subject*/Subject*_Run*.mat")
            form = r"(Subject\d+)_Run(\d+)\.mat"
        named = [(path, re.fullmatch(form, path.name)) for path in paths]
        runs = sorted(_Run(found.group(1), int(found.group(2)), path) for path, found in named if found)
        if not runs:
            raise UserError(f"{root}: holds no run of either release of broderick2019; get it from {self.source}")
        chosen = self.config.subjects
        unknown = sorted(set(chosen or ()) - {run.subject for run in runs})
        if unknown:
            raise UserError(f"study.subjects: no run of {', '.join(unknown)} under {root}; there is {runs[0].subject}")
        return tuple(run for run in runs if chosen is None or run.subject in chosen)

    def _stimulus_files(self, number: int) -> list[Path]:
        """What run `number` needs besides its EEG: the sound, then the words."""
        if self._is_bids:
            folder = self.config.root / "stimuli"
            return [folder / f"audio{number:02d}.wav", folder / f"audio{number:02d}.TextGrid"]
        stimuli = self._natural_speech / "Stimuli"
        envelope = stimuli / "Envelopes" / f"audio{number}_128Hz.mat"
        audio = self.config.audio
        return [
            audio / f"audio{number:02d}.wav" if audio is not None else envelope,
            stimuli / "Text" / f"Run{number}.mat",
        ]

    def _open_mat(self, path: Path) -> tuple[EEGSource, float]:
        reference = "mastoids" if self.config.reference == "mastoids" else ""
        source = MatSource(path, "eegData", 1e-6, reference)
        if source.n_channels != N_CHANNELS:
            raise UserError(f"{path}: eegData has {source.n_channels} channels, not {N_CHANNELS}; get the file again")
        return source, float(np.ravel(read_mat(path, "fs")["fs"])[0])

    def _sound(self, number: int) -> pd.DataFrame:
        import soundfile

        path = self._stimulus_files(number)[0]
        if path.suffix == ".mat":
            array = mat_array(path, "env")
            stored, rate, sound_s = self._stored(path, array), ENVELOPE_HZ, len(array) / ENVELOPE_HZ
        else:
            try:
                stored, rate, sound_s = path, np.nan, soundfile.info(str(path)).duration
            except (soundfile.LibsndfileError, OSError) as error:
                raise UserError(f"{path}: this sound file cannot be read ({error}); download it again") from error
        row = (f"audio{number:02d}", 0.0, sound_s, str(stored), 0.0, rate)
        return pd.DataFrame([row], columns=list(SOUND_COLUMNS))

    def _stored(self, path: Path, array: np.ndarray) -> Path:
        """An envelope as the `.npy` that features are read from."""
        if self._generated is None:
            raise RuntimeError("Broderick2019Study.prepare must be called before reading")
        target = self._generated / "features" / f"{path.stem}-{fingerprint(path)}.npy"
        if not target.exists():
            with atomic_path(target) as partial, partial.open("wb") as file:
                np.save(file, array)
        return target

    def _words(self, number: int) -> pd.DataFrame:
        path = self._stimulus_files(number)[1]
        if path.suffix == ".TextGrid":
            words = read_words(path)
            stops = (words["onset_s"] + words["duration_s"]).to_numpy()
            pauses = words["onset_s"].to_numpy()[1:] - stops[:-1]
            words["sentence"] = np.cumsum([0, *(pauses >= self.config.sentence_pause_s - 1e-9)])[: len(words)]
            return words[list(WORD_COLUMNS)]
        values = read_mat(path, "wordVec", "onset_time", "offset_time", "sentence_boundaries")
        onset_s, offset_s, ends_s = (
            np.atleast_1d(np.asarray(values[name], dtype=float)).ravel()
            for name in ("onset_time", "offset_time", "sentence_boundaries")
        )
        spoken = [str(word).strip() for word in np.atleast_1d(np.asarray(values["wordVec"], dtype=object)).ravel()]
        if not len(spoken) == len(onset_s) == len(offset_s):
            raise UserError(f"{path}: wordVec, onset_time and offset_time differ in length; get the file again")
        # a word belongs to the sentence whose end is the first at or after its own
        sentence = np.searchsorted(np.sort(ends_s) + BOUNDARY_TOLERANCE_S, offset_s)
        rows = {"word": spoken, "onset_s": onset_s, "duration_s": offset_s - onset_s, "sentence": sentence}
        return pd.DataFrame(rows, columns=list(WORD_COLUMNS))


def _open_vhdr(path: Path, ch_names: list[str]) -> tuple[EEGSource, float]:
    import mne

    try:
        raw = mne.io.read_raw_brainvision(path, preload=False, verbose="error")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: MNE cannot read this BrainVision file ({error}); download it again") from error
    lacking = [name for name in ch_names if name not in raw.ch_names]
    if lacking:
        raise UserError(f"{path}: has no channel {', '.join(lacking[:3])}; its channels must be those of {MONTAGE}")
    return MneSource(raw, np.array([raw.ch_names.index(name) for name in ch_names])), float(raw.info["sfreq"])
