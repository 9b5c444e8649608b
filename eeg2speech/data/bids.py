"""Any BIDS folder of EEG or MEG whose events say which sound was played when (Pernet et al., Sci. Data 2019)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from eeg2speech.data.base import SOUND_COLUMNS, WORD_COLUMNS, Recording, SpeechStudy
from eeg2speech.data.mne_files import electrodes, open_raw, picked, sensors, standard_montage
from eeg2speech.data.sources import MneSource, fingerprint
from eeg2speech.data.textgrid import read_words
from eeg2speech.errors import MissingFiles, UserError
from eeg2speech.files import digest
from eeg2speech.schema import Config, is_unset

if TYPE_CHECKING:
    import mne
    import mne_bids

EXTENSIONS = (".vhdr", ".edf", ".bdf", ".set", ".fif", ".con", ".sqd", ".ds", ".EDF")
ABSENT = ("", "n/a", "nan")
SHORT_S = 1.0
"""A recording may be this much shorter than its sidecar says: many round."""


class EventColumns(Config):
    """Which columns of `*_events.tsv` hold what. A row with a sound file is a sound, one with a word is a word."""

    onset: str = Field(default="onset", description="s from the first sample, as BIDS has it")
    duration: str = Field(default="duration", description="of a word, s")
    sound: str = Field(default="stim_file", description="the sound file, below `stimuli` or the root")
    offset: str | None = Field(default=None, description="s into the sound file at which playback starts; null: 0")
    word: str | None = Field(default=None, description="the word; null: the events have none")
    sentence: str | None = Field(
        default=None, description="changes with every sentence; null: a pause of sentence_pause_s ends one"
    )
    kind: str | None = Field(default=None, description="tells rows apart where those of words name the sound as well")
    sound_kind: str = Field(default="sound", description="value of `kind` in rows of sounds")
    word_kind: str = Field(default="word", description="value of `kind` in rows of words")


class BidsStudyConfig(Config):
    """A BIDS folder; null takes every subject, session, task and run there is."""

    name: Literal["bids"] = "bids"
    root: Path
    datatype: Literal["eeg", "meg"] = "eeg"
    subjects: tuple[str, ...] | None = Field(default=None, description="labels, with or without sub-")
    sessions: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    stimuli: str = Field(default="stimuli", description="folder of the sounds, below root")
    events: EventColumns = EventColumns()
    textgrid: str = Field(
        default="", description="where events have no words: the TextGrid below `stimuli`, such as '{stem}.TextGrid'"
    )
    sound_duration: Literal["file", "events"] = Field(
        default="file", description="how much was played: to the file's end, or as long as the event says"
    )
    sentence_pause_s: float = Field(default=0.4, gt=0)
    montage: str | None = Field(default=None, description="EEG: an MNE built-in montage; null: electrodes.tsv")
    isolated_sentences: bool = Field(default=False, description="true: every sound is one sentence")
    licence: str = "as stated in dataset_description.json"
    citation: str = "as stated in dataset_description.json"
    consent: str | None = Field(default=None, description="what participants agreed to", exclude_if=is_unset)

    @model_validator(mode="after")
    def _has_one_source_of_words(self) -> BidsStudyConfig:
        if self.textgrid and self.events.word is not None:
            raise ValueError("words come from events.word or from textgrid; give one of them")
        return self

    def build(self) -> BidsStudy:
        return BidsStudy(self)


class BidsStudy(SpeechStudy):
    """One recording per file."""

    steps: ClassVar[str] = (
        "This is any BIDS folder: your own in {to}, or one that you name, such as\n"
        "  python -m eeg2speech studies get bids --from openneuro:ds004408 --to {to}\n"
        "then copy configs/bids.yaml, which says what its events must hold."
    )

    def __init__(self, config: BidsStudyConfig) -> None:
        self.config = config
        # instance attributes: what a built-in study knows of itself, the user states in the config
        self.modality = config.datatype.upper()  # type: ignore[misc]
        self.licence, self.citation = config.licence, config.citation  # type: ignore[misc]
        self.consent = config.consent or type(self).consent  # type: ignore[misc]
        self.isolated_sentences = config.isolated_sentences  # type: ignore[misc]
        self._tables: dict[str, tuple[Path, pd.DataFrame]] = {}

    def prepare(self, folder: Path) -> None:
        """Reads every table of events. Raises UserError naming what is missing: events, sounds, TextGrids."""
        needed: set[Path] = set()
        for path in self._paths:
            for name in self._sound_rows(path)["sound"]:
                sound = self._sound_file(str(name))
                needed |= {sound, *([self._textgrid(sound)] if self.config.textgrid else [])}
        missing = sorted(str(path) for path in needed if not path.is_file())
        if missing:
            raise MissingFiles(missing, str(self.config.root), "; see study.stimuli")

    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({f"sub-{path.subject}" for path in self._paths}))

    def iter_recordings(self) -> Iterator[Recording]:
        for path in self._paths:
            raw = self._open(path)
            file = Path(path.fpath)
            picks = picked(file, raw, self.config.datatype)
            ch_names = tuple(raw.ch_names[i] for i in picks)
            parts = [Path(name) for name in raw.filenames if name]
            yield Recording(
                subject=f"sub-{path.subject}",
                recording=path.basename.rpartition("_")[0],
                sfreq=float(raw.info["sfreq"]),
                ch_names=ch_names,
                positions=self._positions(file, raw, picks, ch_names),
                eeg=MneSource(raw, picks),
                sounds=self._sounds(path),
                words=self._words(path),
                fingerprint=digest([fingerprint(file, *parts), ch_names]),
            )

    @cached_property
    def _paths(self) -> list[mne_bids.BIDSPath]:
        import mne_bids

        config = self.config
        if not (config.root / "dataset_description.json").is_file():
            raise UserError(f"{config.root} has no dataset_description.json, so it is no BIDS folder; set study.root")
        bare = None if config.subjects is None else [name.removeprefix("sub-") for name in config.subjects]
        found = mne_bids.find_matching_paths(
            config.root,
            subjects=bare,
            sessions=config.sessions,
            tasks=config.tasks,
            runs=config.runs,
            datatypes=config.datatype,
            suffixes=config.datatype,
            extensions=list(EXTENSIONS),
        )
        # the parts of a long FIF are one recording, which MNE follows from the first
        paths = [path for path in found if path.split in (None, "01", "1")]
        absent = sorted(set(bare or ()) - {path.subject for path in paths})
        if not paths or absent:
            of = f" of sub-{', sub-'.join(absent)}" if absent else ""
            raise UserError(
                f"{config.root}: holds no {config.datatype} recording{of} of the chosen sessions, tasks and runs; "
                "correct study.datatype, subjects, sessions, tasks or runs"
            )
        return sorted(paths, key=lambda path: str(path.fpath))

    def _open(self, path: mne_bids.BIDSPath) -> mne.io.BaseRaw:
        import mne_bids

        file = Path(path.fpath)
        raw = open_raw(file, lambda: mne_bids.read_raw_bids(path, verbose="error"))
        sidecar = path.find_matching_sidecar(suffix=self.config.datatype, extension=".json", on_error="ignore")
        said = json.loads(Path(sidecar).read_text(encoding="utf-8-sig")) if sidecar else {}
        stated_s, has_s = said.get("RecordingDuration"), raw.n_times / raw.info["sfreq"]
        if isinstance(stated_s, int | float) and has_s < stated_s - min(SHORT_S, 0.1 * stated_s):
            raise UserError(f"{file}: lasts {has_s:.2f} s, of {stated_s:.2f} s that {sidecar} states; copy it again")
        return raw

    def _positions(self, file: Path, raw: mne.io.BaseRaw, picks: np.ndarray, ch_names: tuple[str, ...]) -> np.ndarray:
        if self.config.datatype == "meg":
            return sensors(file, raw, picks)
        montage = standard_montage(self.config.montage) if self.config.montage else raw.get_montage()
        return electrodes(file, montage, ch_names)

    def _events(self, path: mne_bids.BIDSPath) -> tuple[Path, pd.DataFrame]:
        """The table of a recording, as text. Raises UserError naming the file, or the column that it lacks."""
        if path.basename in self._tables:
            return self._tables[path.basename]
        found = path.find_matching_sidecar(suffix="events", extension=".tsv", on_error="ignore")
        if found is None:
            raise UserError(f"{path.fpath}: has no events.tsv, so nobody knows what was heard; add it")
        try:
            table = pd.read_csv(found, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"{found}: no table of events that can be read ({error}); write it with tabs") from error
        table = self.unfold(Path(found), table)
        columns = self.config.events
        wanted = (columns.onset, columns.sound, columns.offset, columns.word, columns.sentence, columns.kind)
        lacking = [name for name in wanted if name is not None and name not in table]
        if lacking:
            raise UserError(
                f"{found}: has no column {', '.join(lacking)}, only {', '.join(table.columns)}; set study.events"
            )
        self._tables[path.basename] = Path(found), table
        return Path(found), table

    def unfold(self, path: Path, table: pd.DataFrame) -> pd.DataFrame:
        """For studies that keep several values in one column of their events."""
        return table

    def _rows(self, path: mne_bids.BIDSPath, column: str, kind: str) -> tuple[Path, pd.DataFrame]:
        file, table = self._events(path)
        chosen = ~table[column].astype(str).str.lower().isin(ABSENT)
        if self.config.events.kind is not None:
            chosen &= table[self.config.events.kind] == kind
        return file, table[chosen].reset_index(drop=True)

    def _sound_rows(self, path: mne_bids.BIDSPath) -> pd.DataFrame:
        """sound, onset_s, offset_s, played_s (infinite: to the end of the file)."""
        columns = self.config.events
        file, rows = self._rows(path, columns.sound, columns.sound_kind)
        if rows.empty:
            raise UserError(f"{file}: no row names a sound in column {columns.sound}; set study.events")
        limited = self.config.sound_duration == "events"
        return pd.DataFrame(
            {
                "sound": rows[columns.sound],
                "onset_s": _numbers(file, rows, columns.onset),
                "offset_s": _numbers(file, rows, columns.offset) if columns.offset else 0.0,
                "played_s": _numbers(file, rows, columns.duration) if limited else np.inf,
            }
        )

    def _sounds(self, path: mne_bids.BIDSPath) -> pd.DataFrame:
        import soundfile

        rows = []
        for row in self._sound_rows(path).itertuples(index=False):
            file = self._sound_file(row.sound)
            try:
                left_s = soundfile.info(str(file)).duration - row.offset_s
            except (soundfile.LibsndfileError, OSError) as error:
                raise UserError(f"{file}: this sound file cannot be read ({error}); copy it again") from error
            if left_s <= 0:
                raise UserError(f"{path.fpath}: plays {file.name} from {row.offset_s:g} s on, which is past its end")
            rows.append((file.stem, row.onset_s, min(left_s, row.played_s), str(file), row.offset_s, np.nan))
        return pd.DataFrame(rows, columns=list(SOUND_COLUMNS))

    def _sound_file(self, name: str) -> Path:
        folder = self.config.root / self.config.stimuli
        candidates = (folder / name, self.config.root / name)
        return next((path for path in candidates if path.is_file()), candidates[0])

    def _textgrid(self, sound: Path) -> Path:
        name = self.config.textgrid.format(stem=sound.stem)
        beside = sound.parent / name
        return beside if beside.is_file() else self.config.root / self.config.stimuli / name

    def _words(self, path: mne_bids.BIDSPath) -> pd.DataFrame:
        """WORD_COLUMNS, in the order in which they were heard."""
        columns = self.config.events
        if self.config.textgrid:
            words = pd.concat([self._aligned(row) for row in self._sounds(path).itertuples(index=False)])
        elif columns.word is not None:
            file, rows = self._rows(path, columns.word, columns.word_kind)
            words = pd.DataFrame(
                {
                    "word": rows[columns.word],
                    "onset_s": _numbers(file, rows, columns.onset),
                    "duration_s": _numbers(file, rows, columns.duration),
                    "sentence": rows[columns.sentence] if columns.sentence else "",
                }
            )
        else:
            return pd.DataFrame(columns=list(WORD_COLUMNS))
        words = words.sort_values("onset_s", kind="stable", ignore_index=True)
        if columns.sentence and not self.config.textgrid:
            ends = words["sentence"].ne(words["sentence"].shift()).to_numpy()
        else:
            stops = (words["onset_s"] + words["duration_s"]).shift()
            ends = (words["onset_s"] - stops >= self.config.sentence_pause_s - 1e-9).to_numpy()
        words["sentence"] = np.cumsum(ends)
        return words[list(WORD_COLUMNS)]

    def _aligned(self, sound: tuple) -> pd.DataFrame:
        """The words of a TextGrid that were played."""
        onset_s, duration_s, file, offset_s = sound[1:5]
        words = read_words(self._textgrid(Path(file)))
        stops = words["onset_s"] + words["duration_s"]
        words = words[(words["onset_s"] >= offset_s - 1e-6) & (stops <= offset_s + duration_s + 1e-6)]
        return words.assign(onset_s=words["onset_s"] - offset_s + onset_s)


def _numbers(path: Path, rows: pd.DataFrame, column: str) -> np.ndarray:
    """(n,) float. Raises UserError naming file, row and column."""
    if column not in rows:
        raise UserError(f"{path}: has no column {column}; set study.events")
    values = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=float)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        given = rows[column].iloc[wrong[0]]
        raise UserError(f"{path}: column {column} has {given!r} where a sound or word needs a number; correct it")
    return values
