"""What a channel is by its name: triggers and sound must not be among the inputs, and eyes can be the only ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eeg2speech.data.base import EEGSource, Recording
from eeg2speech.errors import UserError
from eeg2speech.files import digest

TRIGGER_WORDS = {
    *("trig", "trigs", "trigger", "triggers", "ttl", "sti", "stim", "stimulus", "status", "din", "sync"),
    *("event", "events", "marker", "markers"),
}
SOUND_WORDS = {
    *("aud", "audio", "sound", "speech", "voice", "envelope", "mic", "microphone", "wav", "aux", "stimtrak"),
    *("photo", "photodiode"),
}
EYE_WORDS = {"eog", "veog", "heog", "reog", "leog", "eogv", "eogh", "eye", "eyes"}
FRONTAL_POLE = {"fp1", "fpz", "fp2", "af7", "af8", "f9", "f10"}
"""10-10 sites nearest to the eyes: what a cap without electrodes at the eyes sees of them."""


def _words(ch_name: str) -> set[str]:
    """The lower-case words of a channel name: letters without what separates or numbers them."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", ch_name)  # EEGTrigger, audioLeft
    return set(re.findall(r"[a-z]+", apart.lower()))


def kind_of(ch_name: str) -> str:
    """'trigger', 'sound', 'eye' or, for everything else, 'brain'."""
    words = _words(ch_name)
    for kind, known in (("trigger", TRIGGER_WORDS), ("sound", SOUND_WORDS), ("eye", EYE_WORDS)):
        if words & known:
            return kind
    return "brain"


def require_inputs(recording: str, ch_names: Sequence[str]) -> None:
    """Raises UserError naming the recording and its channels that carry a trigger or the sound itself.

    What was played can be read off them, and a score made with them says nothing about a brain.
    """
    for kind, what in (("trigger", "when and what was played"), ("sound", "the sound itself")):
        found = [name for name in ch_names if kind_of(name) == kind]
        if found:
            raise UserError(
                f"recording {recording}: channel {', '.join(found)} is by its name a {kind} channel, and is among the "
                f"inputs, where it tells {what}; give it the type stim or misc in the file or leave it out, or rename "
                "it if it is an electrode"
            )


def eye_channels(ch_names: Sequence[str], positions: np.ndarray) -> list[int]:
    """Places of the channels that see the eyes: those named so, else the sites nearest to them; empty for neither.

    `positions`: (C, 2). A channel whose position is unknown does not count, for an encoder may not hear it.
    """
    placed = [i for i in range(len(ch_names)) if np.isfinite(positions[i]).all()]
    named = [i for i in placed if kind_of(ch_names[i]) == "eye"]
    return named or [i for i in placed if ch_names[i].lower() in FRONTAL_POLE]


def eyes_only(recording: Recording) -> Recording:
    """The recording with no other channels. Raises UserError where it has none."""
    rows = eye_channels(recording.ch_names, recording.positions)
    if not rows:
        raise UserError(
            f"recording {recording.recording}: preprocessing.channels: eyes finds no channel named EOG, nor one of "
            f"{', '.join(sorted(FRONTAL_POLE))}, whose position is known; set it to null"
        )
    return replace(
        recording,
        ch_names=tuple(recording.ch_names[i] for i in rows),
        positions=recording.positions[rows],
        eeg=PickedSource(recording.eeg, np.array(rows)),
        fingerprint=digest([recording.fingerprint, rows]),
    )


@dataclass(frozen=True)
class PickedSource:
    """An EEGSource of some rows of another."""

    source: EEGSource
    rows: np.ndarray

    @property
    def n_samples(self) -> int:
        return self.source.n_samples

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.source.read(start, stop)[self.rows]
