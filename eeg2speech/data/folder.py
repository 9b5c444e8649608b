"""Your own recordings: a folder of `.npz` or MNE-readable files, listed in a manifest or by a pattern."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator

from eeg2speech.data.base import SOUND_COLUMNS, WORD_COLUMNS, EEGSource, Recording, SpeechStudy
from eeg2speech.data.features import load_array
from eeg2speech.data.mne_files import electrodes, open_raw, picked, sensors, standard_montage
from eeg2speech.data.sources import MneSource, NpzSource, has_array, npz_array, npz_names, npz_number
from eeg2speech.errors import MissingFiles, UserError
from eeg2speech.files import atomic_path, digest
from eeg2speech.schema import Config, is_unset


class ManifestRow(Config):
    """A sound played in a recording: a row of the manifest (CSV header or JSON keys).

    Paths are relative to the study's root; `path:array` names an array in an `.npz`.
    """

    file: str = Field(description="the EEG; several rows with one file are several sounds of one recording")
    subject: str = Field(coerce_numbers_to_str=True)
    recording: str = Field(default="", coerce_numbers_to_str=True, description="unique name; default: the file's stem")
    audio: str = Field(default="", description="a sound file; this or `features`")
    features: str = Field(default="", description="an array (frames, bands) or (frames,)")
    rate: float | None = Field(default=None, gt=0, description="frames of `features` per second")
    onset_s: float = Field(default=0.0, description="recording time at which the sound starts")
    offset_s: float = Field(default=0.0, ge=0, description="where in the sound file playback starts")
    duration_s: float | None = Field(default=None, gt=0, description="how much was played; default: to the file's end")
    words: str = Field(
        default="", description="a CSV with columns word, onset_s (recording time), duration_s, sentence"
    )

    @model_validator(mode="after")
    def _has_speech(self) -> ManifestRow:
        if bool(self.audio) == bool(self.features):
            raise ValueError("give either audio or features")
        if self.features and self.rate is None:
            raise ValueError("features need a rate (frames per second)")
        return self


class FolderStudyConfig(Config):
    """Recordings under `root`, listed by `manifest`, or by `pattern` where all files are alike."""

    name: Literal["folder"] = "folder"
    root: Path
    manifest: Path | None = Field(default=None, description="CSV or JSON of ManifestRow, relative to root")
    pattern: str | None = Field(default=None, description="instead of a manifest: glob of the EEG files under root")
    subject_from: str = Field(
        default=r"^([^_]+)_", description="with pattern: regex on the file name; group 1: subject"
    )
    audio: str = Field(
        default="", description="with pattern: the sound file, where {file} and {stem} are the EEG file's"
    )
    features: str = Field(default="", description="with pattern: the feature array, such as '{file}:envelope'")
    rate: float | None = Field(default=None, gt=0, description="with pattern: frames of `features` per second")
    words: str = Field(default="", description="with pattern: the word table, such as '{stem}_words.csv'")
    eeg_array: str = Field(default="eeg", description="npz: name of the EEG array")
    samples_first: bool = Field(default=False, description="npz: True for (samples, channels)")
    sfreq: float | str | None = Field(
        default=None, description="npz: EEG rate in Hz, or the name of the array that holds it; default: sfreq"
    )
    ch_names: tuple[str, ...] | None = Field(
        default=None,
        description="in the order of the channels; default: of the file (npz: its array ch_names), else the montage's",
    )
    montage: str | None = Field(default=None, description="an MNE built-in montage; default: positions in the file")
    isolated_sentences: bool = Field(default=False, description="True: every sound is one sentence")
    modality: str = Field(default="EEG", description="EEG or MEG: which channels of an MNE file are taken")
    licence: str = "not stated"
    citation: str = "not stated"
    consent: str | None = Field(default=None, description="what participants agreed to", exclude_if=is_unset)

    @model_validator(mode="after")
    def _has_one_list(self) -> FolderStudyConfig:
        if (self.manifest is None) == (self.pattern is None):
            raise ValueError("give either manifest or pattern")
        return self

    def build(self) -> FolderStudy:
        return FolderStudy(self)


class FolderStudy(SpeechStudy):
    """Recordings the user brings; nothing is written into their folder."""

    steps: ClassVar[str] = (
        "These are your own recordings: put them into {to}, list them in {to}/manifest.csv, and copy\n"
        "configs/folder.yaml, which says what a manifest holds."
    )

    def __init__(self, config: FolderStudyConfig) -> None:
        self.config = config
        # instance attributes: what a built-in study knows of itself, the user states in the config
        self.modality, self.licence, self.citation = config.modality, config.licence, config.citation  # type: ignore[misc]
        self.consent = config.consent or type(self).consent  # type: ignore[misc]
        self.isolated_sentences = config.isolated_sentences  # type: ignore[misc]
        self._generated: Path | None = None

    def prepare(self, folder: Path) -> None:
        """Checks that every file of the manifest is there.

        Raises UserError naming the manifest, row and field, or the missing files.
        """
        self._generated = folder
        rows = self._rows
        self.has_audio = bool(rows[0].audio)
        if any(bool(row.audio) != self.has_audio for row in rows):
            raise UserError(f"{self._list}: some rows have audio, others only features; give all the same")
        named = sorted({_split(p)[0] for row in rows for p in (row.file, row.audio, row.features, row.words) if p})
        missing = [name for name in named if not (self.config.root / name).exists()]
        if missing:
            raise MissingFiles(missing, self._list, f" under {self.config.root}; put them there")

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({row.subject for row in self._rows}))

    def iter_recordings(self) -> Iterator[Recording]:
        by_file: dict[str, list[ManifestRow]] = {}
        for row in self._rows:
            by_file.setdefault(row.file, []).append(row)
        names: dict[str, str] = {}
        for file, rows in by_file.items():
            name = rows[0].recording or Path(file).stem
            if names.setdefault(name, file) != file:
                raise UserError(f"{self._list}: {file} and {names[name]} are both recording {name}; name them apart")
            if len({(row.subject, row.recording) for row in rows}) > 1:
                raise UserError(
                    f"{self._list}: rows of {file} differ in subject or recording; one file is one recording"
                )
            yield self._recording(name, self.config.root / file, rows)

    @property
    def _list(self) -> str:
        """What the user wrote the list of recordings in."""
        config = self.config
        return str(config.root / config.manifest) if config.manifest else f"{config.root}/{config.pattern}"

    @cached_property
    def _rows(self) -> list[ManifestRow]:
        config = self.config
        if not config.root.is_dir():
            raise UserError(f"{config.root} is no folder; set study.root to where the recordings are")
        raw = _read_manifest(config.root / config.manifest) if config.manifest else self._matched()
        known = ManifestRow.model_fields
        if unknown := [column for fields in raw for column in fields if column not in known]:
            raise UserError(f"{self._list}: unknown column {unknown[0]}; the columns are {', '.join(known)}")
        rows = []
        for number, fields in enumerate(raw, start=1):
            try:
                rows.append(ManifestRow.model_validate(fields))
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(str(part) for part in first["loc"]) or "row"
                raise UserError(f"{self._list}: entry {number}, {field}: {first['msg']}; correct it") from error
        if not rows:
            raise UserError(f"{self._list}: lists no recording; check study.root and study.pattern or study.manifest")
        return rows

    def _matched(self) -> list[dict[str, Any]]:
        config = self.config
        rows = []
        for path in sorted(config.root.glob(config.pattern or "")):
            found = re.search(config.subject_from, path.name)
            if found is None or not found.groups():
                raise UserError(
                    f"{path}: study.subject_from {config.subject_from!r} finds no subject (group 1) in its name"
                )
            file = path.relative_to(config.root)
            names = {"file": str(file), "stem": str(file.with_suffix(""))}
            speech = {key: getattr(config, key).format(**names) for key in ("audio", "features", "words")}
            rows.append({"file": str(file), "subject": found.group(1), "rate": config.rate, **speech})
        return rows

    def _recording(self, name: str, path: Path, rows: list[ManifestRow]) -> Recording:
        eeg, sfreq, ch_names, positions = self._open_npz(path) if path.suffix == ".npz" else self._open_mne(path)
        state = path.stat()
        config = self.config
        return Recording(
            subject=rows[0].subject,
            recording=name,
            sfreq=sfreq,
            ch_names=ch_names,
            positions=positions,
            eeg=eeg,
            sounds=pd.DataFrame([self._sound(row) for row in rows], columns=list(SOUND_COLUMNS)),
            words=self._words(rows),
            fingerprint=digest(
                [str(path), state.st_size, state.st_mtime_ns, config.eeg_array, config.samples_first, sfreq, ch_names]
            ),
        )

    def _open_npz(self, path: Path) -> tuple[EEGSource, float, tuple[str, ...], np.ndarray]:
        config = self.config
        source = NpzSource(path, config.eeg_array, config.samples_first)
        sfreq = config.sfreq
        if sfreq is None and has_array(path, "sfreq"):
            sfreq = "sfreq"
        if sfreq is None:
            raise UserError(
                f"{path}: an npz needs study.sfreq (Hz, or the name of the array that holds it) or an array sfreq"
            )
        if isinstance(sfreq, str):
            sfreq = npz_number(path, sfreq)
        montage = standard_montage(config.montage) if config.montage else None
        ch_names = config.ch_names or (tuple(montage.ch_names) if montage else ())
        if config.ch_names is None and has_array(path, "ch_names"):
            ch_names = npz_names(path, "ch_names")
        self._check_names(path, ch_names, source.n_channels)
        return source, sfreq, ch_names, electrodes(path, montage, ch_names)

    def _open_mne(self, path: Path) -> tuple[EEGSource, float, tuple[str, ...], np.ndarray]:
        config = self.config
        raw = open_raw(path)
        picks = picked(path, raw, config.modality)
        ch_names = config.ch_names or tuple(raw.ch_names[i] for i in picks)
        self._check_names(path, ch_names, len(picks))
        if config.modality.upper() == "MEG" and config.montage is None:
            positions = sensors(path, raw, picks)
        else:
            montage = standard_montage(config.montage) if config.montage else raw.get_montage()
            positions = electrodes(path, montage, ch_names)
        return MneSource(raw, picks), float(raw.info["sfreq"]), ch_names, positions

    def _check_names(self, path: Path, ch_names: tuple[str, ...], n_channels: int) -> None:
        if len(ch_names) != n_channels:
            hint = "set study.ch_names (or samples_first, if channels and samples are exchanged)"
            raise UserError(f"{path}: has {n_channels} EEG channels, {len(ch_names)} are named; {hint}")
        if len(set(ch_names)) < n_channels:
            raise UserError(f"{path}: two channels are named alike; set study.ch_names")

    def _sound(self, row: ManifestRow) -> tuple[str, float, float, str, float, float]:
        name, array = _split(row.audio or row.features)
        path = self.config.root / name
        if row.audio:
            import soundfile

            try:
                total_s = soundfile.info(str(path)).duration
            except (soundfile.LibsndfileError, OSError) as error:
                raise UserError(f"{path}: this sound file cannot be read ({error}); replace or re-export it") from error
            rate = np.nan
        else:
            if array:
                path = self._extract(path, array)
            rate = float(row.rate or np.nan)
            total_s = len(load_array(str(path))) / rate
        left_s = total_s - row.offset_s
        if left_s <= 0:
            raise UserError(f"{self._list}: {name} lasts {total_s:.2f} s, offset_s {row.offset_s:g} is past its end")
        return name, row.onset_s, min(row.duration_s or left_s, left_s), str(path), row.offset_s, rate

    def _extract(self, path: Path, array: str) -> Path:
        """An array of an npz as an `.npy` of its own, named by content: what is shared is stored once."""
        if self._generated is None:
            raise RuntimeError("FolderStudy.prepare must be called before reading")
        values = npz_array(path, array)
        target = (
            self._generated / "features" / f"{digest([values.shape, values.dtype.str, values.tobytes().hex()])}.npy"
        )
        if not target.exists():
            with atomic_path(target) as partial, partial.open("wb") as file:
                np.save(file, values)
        return target

    def _words(self, rows: list[ManifestRow]) -> pd.DataFrame:
        names = dict.fromkeys(row.words for row in rows if row.words)
        tables = [_word_table(self.config.root / name) for name in names]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(WORD_COLUMNS))


def _word_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=False)  # "null" and "nan" are words
        lacking = [column for column in WORD_COLUMNS if column not in table]
        if lacking:
            raise UserError(f"{path}: has no column {', '.join(lacking)}; a word table has {', '.join(WORD_COLUMNS)}")
        return table[list(WORD_COLUMNS)].astype({"word": str, "onset_s": float, "duration_s": float})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this word table cannot be read ({error}); write it as a CSV of numbers") from error


def _split(path: str) -> tuple[str, str]:
    """('file.npz', 'array') of 'file.npz:array'; the array is empty where none is named."""
    file, colon, array = path.rpartition(":")
    return (file, array) if colon and file.endswith(".npz") else (path, "")


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV (empty cells left out) or a JSON list."""
    if not path.exists():
        raise UserError(f"{path} does not exist: write it, or list the recordings by study.pattern")
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            rows = [{k: v for k, v in row.items() if v} for row in table.to_dict("records")]
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(
            f"{path} is no manifest ({error}): write a CSV with a header, or a JSON list of objects"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: must be a JSON list of objects with the keys of a manifest row")
    return rows
