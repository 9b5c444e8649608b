"""Published protocols by name, so that a number can be set beside the published one.

brainmagick (Défossez et al., Nat. Mach. Intell. 2023) cuts the EEG from 0.5 s before to 2.5 s after an
event, 361 samples at 120 Hz. An event is a word onset in test and falls every 0.5 s in train and valid.
EEG and audio are then shifted against each other by 150 ms, which leaves 343 samples of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

LEAD_S = 0.5
"""From the start of a window to its event."""
SPAN_S = 3.0
"""What must fit into a block; the 150 ms at its end are then cut off."""
HALF_SAMPLE_S = 0.5 / 120

PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "brainmagick": {
        "preprocessing": {
            "sfreq": 120.0,
            "shift_s": 0.15,
            "baseline_s": 61 / 120,  # from the start of the window to its event, both included
            "baseline_from_s": -0.15,  # where the audio starts, not the EEG slice
            "clamp": 20.0,
        },
        "windows": {"length_s": 343 / 120, "stride_s": 0.5, "placement": "brainmagick"},
        "splits": {"valid": 0.1, "test": 0.2, "seed": 12, "block_s": 6.0, "strict": False},
    }
}
FREE = {("splits", "strict")}
"""What a config may set otherwise: its blocks adjoin, which our audit does not pass without `splits.guard`."""


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config with those of its `protocol` filled in.

    Raises ValueError naming a value that contradicts the protocol.
    """
    out = dict(values)
    name = out.get("protocol")
    for part, fields in PROTOCOLS.get(str(name), {}).items():
        given = dict(out.get(part) or {})
        for key, value in fields.items():
            if (part, key) not in FREE and given.get(key, value) != value:
                raise ValueError(f"{part}.{key}: protocol {name} has {value:g}, not {given[key]}; leave it out")
        out[part] = {**fields, **given}
    return out


class SpokenWords(Protocol):
    """The words of one sound, times in s from its start."""

    @property
    def word(self) -> list[str]: ...
    @property
    def start_s(self) -> np.ndarray: ...
    @property
    def stop_s(self) -> np.ndarray: ...
    @property
    def sentence(self) -> np.ndarray: ...


class Stories:
    """brainmagick's blocks: they run on from sound to sound, as sentences do.

    Its timeline is the recording's, so that the silence between sounds, which differs from listener
    to listener, gives them other blocks. Here the sounds lie end to end, for all listeners alike.
    """

    def __init__(self) -> None:
        self.of: dict[Any, tuple[float, list[tuple[float, float, str]]]] = {}
        """By sound: where it starts in its story, and (start, stop, uid) of the blocks in its own time."""

    def learn(
        self, keys: Sequence[Any], durations_s: Sequence[float], words: Sequence[SpokenWords], block_s: float
    ) -> None:
        """A story is its sounds in order; a sound that belongs to a story already stays in it."""
        if all(key in self.of for key in keys):
            return
        origins = np.cumsum([0.0, *durations_s[:-1]])
        shifted = list(zip(words, origins, strict=True))
        found = story_blocks(
            [word for part in words for word in part.word],
            np.concatenate([part.start_s + origin for part, origin in shifted]),
            np.concatenate([part.stop_s + origin for part, origin in shifted]),
            np.concatenate([part.sentence for part in words]),
            block_s,
        )
        for key, origin in zip(keys, origins.tolist(), strict=True):
            own = [(start - origin, stop - origin, uid) for start, stop, uid in found]
            self.of.setdefault(key, (origin, own))


def story_blocks(
    word: list[str], start_s: np.ndarray, stop_s: np.ndarray, sentence: np.ndarray, block_s: float
) -> list[tuple[float, float, str]]:
    """(start, stop, uid) of brainmagick's blocks of a story whose words lie on one timeline.

    A block takes in sentences until the next one starts more than `block_s` after it, the first counting
    from 0; the first begins with the recording (-inf) and the last never ends. The uid is the texts of its sentences,
    joined by commas, where a sentence has only the words that end before the next one starts (the word
    table of Brennan & Hale lets 12 of 84 sentences reach into the next by some milliseconds).
    """
    first = np.flatnonzero(np.diff(sentence, prepend=sentence[0] - 1))
    begins = start_s[first]
    ends = np.append(begins[1:], stop_s.max() + 1e-7)
    found: list[tuple[float, float, str]] = []
    block_start, texts = 0.0, []
    for begin, end in zip(begins, ends, strict=True):
        inside = (start_s >= begin) & (stop_s < end)
        texts.append(" ".join(word[int(i)] for i in np.flatnonzero(inside)))
        if end > block_start + block_s and begin != begins[-1]:
            found.append((block_start, float(end), ",".join(texts)))
            block_start, texts = float(end), []
    found.append((block_start, np.inf, ",".join(texts)))
    return [(-np.inf, *found[0][1:]), *found[1:]]


def window_starts(block: tuple[float, float], events_s: np.ndarray, length_s: float = SPAN_S) -> np.ndarray:
    """Starts of the windows around those events that lie inside a block, ends included to half a sample."""
    starts = events_s - LEAD_S
    return starts[(starts >= block[0] - 1e-9) & (starts + length_s - HALF_SAMPLE_S < block[1])]
