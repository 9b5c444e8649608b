"""MEG-MASC (Gwilliams et al., Sci. Data 2023): MEG of 27 people who heard four stories, in up to two sessions.

A BIDS folder whose events keep a dict, written as Python writes one, in the column `trial_type`. It
is read by `ast.literal_eval`, which runs nothing; other readers of this study `eval` it.
"""

from __future__ import annotations

import ast
import re
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from eeg2speech.data.bids import BidsStudy, BidsStudyConfig, EventColumns
from eeg2speech.errors import UserError
from eeg2speech.schema import Config

AUDIO = "stimuli/audio"
COLUMNS = EventColumns(sound="sound", offset="start", word="word", sentence="sequence", kind="kind")


class Gwilliams2022StudyConfig(Config):
    """The folder in which the three parts of the release were unpacked over each other."""

    name: Literal["gwilliams2022"] = "gwilliams2022"
    root: Path
    subjects: tuple[str, ...] | None = Field(default=None, description="such as sub-01; null: all")
    sessions: tuple[str, ...] | None = Field(default=None, description="0 and 1, which play the same stories")
    tasks: tuple[str, ...] | None = Field(default=None, description="the stories, 0 to 3")

    def build(self) -> Gwilliams2022Study:
        return Gwilliams2022Study(self)


class Gwilliams2022Study(BidsStudy):
    """One recording per subject, session and story; 208 sensors at 1000 Hz."""

    modality: ClassVar[str] = "MEG"
    licence: ClassVar[str] = "CC0 1.0"
    citation: ClassVar[str] = (
        "Gwilliams, Flick, Marantz, Pylkkänen, Poeppel & King, Introducing MEG-MASC: a high-quality "
        "magneto-encephalography dataset for evaluating natural speech processing (Sci. Data 10, 862, 2023); "
        "data: osf.io/ag3kj, osf.io/h2tzn, osf.io/u5327"
    )
    consent: ClassVar[str] = "told in the paper (doi 10.1038/s41597-023-02752-5)"
    source: ClassVar[str] = "https://osf.io/ag3kj"
    place: ClassVar[str] = "osf:ag3kj+h2tzn+u5327"
    steps: ClassVar[str] = (
        "OSF answers a stranger 100 times an hour, and this is more folders than that: the download waits, or goes on\n"
        "at once with a personal token (https://osf.io/settings/tokens) in the variable OSF_TOKEN.\n"
        "In the end {to} must hold dataset_description.json, stimuli/audio/*.wav and sub-*/ses-*/meg/."
    )
    recordings_at: ClassVar[tuple[str, ...]] = ("sub-*/ses-*/meg/*_meg.con", "sub-*/ses-*/meg/*_meg.fif")
    expected: ClassVar[dict[str, float]] = {"subjects": 27, "channels": 208, "hours": 56.2}

    def __init__(self, config: Gwilliams2022StudyConfig) -> None:
        super().__init__(
            BidsStudyConfig(
                root=config.root,
                datatype="meg",
                subjects=config.subjects,
                sessions=config.sessions,
                tasks=config.tasks,
                stimuli=AUDIO,
                events=COLUMNS,
                licence=self.licence,
                citation=self.citation,
                consent=self.consent,
            )
        )

    def unfold(self, path: Path, table: pd.DataFrame) -> pd.DataFrame:
        """The dicts of `trial_type` as columns, `sequence` one of them. Raises UserError naming file and line."""
        if "trial_type" not in table:
            raise UserError(f"{path}: has no column trial_type; is it an events.tsv of MEG-MASC?")
        told = pd.DataFrame([_told(path, number, text) for number, text in enumerate(table["trial_type"], start=2)])
        for key in ("kind", "sound", "start", "word", "sound_id", "sequence_id"):
            if key not in told:
                raise UserError(f"{path}: no trial_type says {key!r}; is it an events.tsv of MEG-MASC?")
        told["sequence"] = told["sound_id"].astype(str) + "/" + told["sequence_id"].astype(str)
        chosen = told[["kind", "sound", "start", "word", "sequence"]].fillna("")
        return pd.concat([table.drop(columns=["trial_type", *(c for c in chosen if c in table)]), chosen], axis=1)

    def _sound_file(self, name: str) -> Path:
        """Events call `stimuli/audio/LW1_0.0.wav` what is `lw1_0.wav` on disk."""
        plain = re.sub(r"\.0(?=\.\w+$)", "", Path(name).name)
        return self._stored.get(plain.lower(), self.config.root / AUDIO / plain.lower())

    @cached_property
    def _stored(self) -> dict[str, Path]:
        return {path.name.lower(): path for path in sorted((self.config.root / AUDIO).glob("*.wav"))}


def _told(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        told = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}: line {number}: trial_type is no dict ({text[:60]!r}); get the file again") from error
    if not isinstance(told, dict):
        raise UserError(f"{path}: line {number}: trial_type is no dict ({text[:60]!r}); get the file again")
    return told
