"""From recordings to two tables: the speech there is to decode, and who heard it when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from eeg2speech.data.base import Recording
from eeg2speech.data.features import ContentHashes
from eeg2speech.data.preprocessing import PreprocessingConfig, resampled_length
from eeg2speech.data.protocol import Stories, window_starts
from eeg2speech.data.splits import SPLITS, SplitConfig, split_names, split_of, stretches, too_near
from eeg2speech.errors import UserError
from eeg2speech.schema import Config, is_unset

STIMULUS_COLUMNS = ("stimulus_id", "audio", "sound", "path", "offset_s", "duration_s", "sfreq_hz", "text", "split")
WINDOW_COLUMNS = ("study", "subject", "recording", "stimulus", "stimulus_id", "onset_s", "length_s", "text", "split")

OUTSIDE = 1 / 3
"""More of a recording's speech outside of its EEG is a mistake: at twice its sampling rate it is about half."""
_HEARD_COLUMNS = ["subject", "recording", "audio", "offset_s", "onset_s", "duration_s", "text"]
_HEARD_COLUMNS += ["split", "sound", "path", "sfreq_hz"]


class WindowConfig(Config):
    """Windows of one length: with variable lengths, noise alone retrieves the right one."""

    length_s: float = Field(default=3.0, gt=0)
    stride_s: float = Field(default=0.5, gt=0, description="continuous speech, train and valid: onset to onset")
    test_stride_s: float | None = Field(default=None, gt=0, description="continuous speech, test; default: length_s")
    placement: Literal["brainmagick"] | None = Field(
        default=None,
        description="continuous speech; null: every stride inside blocks of each sound; brainmagick: as its protocol",
        exclude_if=is_unset,
    )
    max_reading_s: float = Field(default=2.6, gt=0, description="isolated sentences: a longer reading is refused")

    def stride(self, split: str) -> float:
        return (self.test_stride_s or self.length_s) if split == "test" else self.stride_s


@dataclass(frozen=True)
class Cut:
    """What `cut` returns."""

    stimuli: pd.DataFrame
    """STIMULUS_COLUMNS, a row per stretch of audio (identity: audio hash and interval): `offset_s` is
    where it starts inside `path`, `duration_s` how much of it there is (a reading may be shorter than
    the window: the rest is silence); `split` joins the splits by '+' where a leaky rule gave it several."""
    windows: pd.DataFrame
    """WINDOW_COLUMNS, a row per time it was heard: `stimulus` is the row of `stimuli`, `onset_s` the
    recording time of the audio onset."""
    dropped: dict[str, int]
    """How many windows were left out, by reason."""


@dataclass(frozen=True)
class _Candidate:
    """A window inside a sound: times relative to the start of the sound."""

    start_s: float
    duration_s: float
    text: str
    split: str


@dataclass(frozen=True)
class _Words:
    """The words of one sound, times relative to its start."""

    word: list[str]
    start_s: np.ndarray
    stop_s: np.ndarray
    sentence: np.ndarray

    @classmethod
    def within(cls, words: pd.DataFrame, onset_s: float, duration_s: float) -> _Words:
        inside = (words["onset_s"] >= onset_s - 1e-6) & (words["onset_s"] < onset_s + duration_s - 1e-6)
        rows = words[inside].sort_values("onset_s", kind="stable")
        start = rows["onset_s"].to_numpy(dtype=float) - onset_s
        stop = start + rows["duration_s"].to_numpy(dtype=float)
        return cls([str(w) for w in rows["word"]], start, stop, rows["sentence"].to_numpy())

    def text(self, start_s: float, stop_s: float) -> str:
        """The words wholly inside."""
        inside = (self.start_s >= start_s - 1e-6) & (self.stop_s <= stop_s + 1e-6)
        return " ".join(self.word[i] for i in np.flatnonzero(inside))


def cut(
    study: str,
    recordings: Sequence[Recording],
    isolated: bool,
    config: WindowConfig,
    splits: SplitConfig,
    preprocessing: PreprocessingConfig,
) -> Cut:
    """Isolated sentences: a window per sound, from its onset. Continuous speech: windows every stride
    inside each block. What every listener heard of the same sound is cut at the same places.

    Raises UserError where a reading is longer than `max_reading_s`, nothing could be cut, or much of what was heard in
    a recording lies outside of its EEG.
    """
    if isolated and splits.by == "time":
        raise UserError("splits.by: time divides continuous speech; this study has isolated sentences, use stimulus")
    for name, n in Counter(r.recording for r in recordings).items():
        if n > 1:
            raise UserError(f"study {study}: {n} recordings are named {name}; every recording needs a name of its own")
    edge_s = max((preprocessing.edge_s(r.sfreq) for r in recordings), default=0.0)
    cutter = _Cutter(isolated, config, splits, _gap_s(splits, config, edge_s), _assigned(recordings, splits))
    if config.placement == "brainmagick" and not isolated:
        # who heard most tells the story: nobody's blocks may depend on what that listener missed
        for recording in sorted(recordings, key=lambda r: -len(r.sounds)):
            cutter.learn_story(recording)
    rows: list[tuple] = []
    dropped: Counter[str] = Counter()
    for recording in recordings:
        last = resampled_length(recording.eeg.n_samples, recording.sfreq, preprocessing.sfreq)
        last -= preprocessing.n_samples(config.length_s)
        for key, sound, candidate in cutter.sounds(recording):
            onset_s = sound.onset_s + candidate.start_s
            if not 0 <= preprocessing.slice_start(onset_s) <= last:
                dropped["EEG outside the recording"] += 1
                continue
            offset_s = round(sound.offset_s + candidate.start_s, 3)
            rows.append(
                (recording.subject, recording.recording, key, offset_s, onset_s, candidate.duration_s, candidate.text)
                + (candidate.split, sound.sound, sound.path, sound.sfreq_hz)
            )
    if not rows:
        raise UserError(
            f"study {study}: not one window of {config.length_s:g} s could be cut; check its sounds and onsets"
        )
    _require_inside(recordings, config.length_s)
    heard = pd.DataFrame(rows, columns=_HEARD_COLUMNS).assign(study=study, length_s=config.length_s)
    guard = config.placement is None if splits.guard is None else splits.guard
    if not isolated and guard and splits.by in ("stimulus", "time", "both"):
        near = _near_another_split(heard, cutter.gap_s, config.length_s, edge_s)
        dropped["too near to another split"] = int(near.sum())
        heard = heard[~near].reset_index(drop=True)
    dropped.update(cutter.dropped)
    return Cut(*_tables(heard), {reason: n for reason, n in dropped.items() if n})


def _require_inside(recordings: Sequence[Recording], length_s: float) -> None:
    """Raises UserError where more than a third of what was heard in a recording lies outside of its EEG, some of it by
    more than a window: EEG that ends soon after its sounds, or that was stopped a little early, is no mistake."""
    for recording in recordings:
        lasts_s = recording.eeg.n_samples / recording.sfreq
        begin, heard_s = (recording.sounds[column].to_numpy(float) for column in ("onset_s", "duration_s"))
        end = begin + heard_s
        inside_s = np.clip(np.minimum(end, lasts_s) - np.maximum(begin, 0), 0, None).sum()
        far = ((end > lasts_s + length_s) | (begin < -length_s)).any()
        if far and inside_s < (1 - OUTSIDE) * heard_s.sum():
            raise UserError(
                f"recording {recording.recording}: {heard_s.sum() - inside_s:.0f} of the {heard_s.sum():.0f} s of its "
                f"sounds lie outside of its EEG, which lasts {lasts_s:.0f} s at {recording.sfreq:g} Hz; correct its "
                "sampling rate or its sounds' onsets and durations, or leave it out"
            )


def _gap_s(splits: SplitConfig, config: WindowConfig, edge_s: float) -> float:
    return config.length_s + 2 * edge_s if splits.gap_s is None else splits.gap_s


def _assigned(recordings: Sequence[Recording], splits: SplitConfig) -> dict[str, str]:
    """Split of each recording, where recordings or subjects are divided."""
    if splits.by in ("subject", "both"):
        by_subject = split_names([r.subject for r in recordings], splits)
        return {r.recording: by_subject[r.subject] for r in recordings}
    if splits.by == "study":
        own = {r.recording: r.split for r in recordings}
        lacking = [name for name, split in own.items() if split not in SPLITS]
        if lacking:
            raise UserError(
                f"splits.by: study needs a study with lists of its own; {lacking[0]} is in none, use stimulus"
            )
        return own
    return split_names([r.recording for r in recordings], splits) if splits.by == "recording" else {}


class _Cutter:
    """Cuts each sound once, so that all who heard it share stimuli and splits."""

    def __init__(
        self, isolated: bool, config: WindowConfig, splits: SplitConfig, gap_s: float, assigned: dict[str, str]
    ) -> None:
        self.isolated, self.config, self.splits, self.gap_s, self.assigned = isolated, config, splits, gap_s, assigned
        self.dropped: Counter[str] = Counter()
        self._hashes = ContentHashes()
        self._known: dict[tuple[str, float, float, str], list[_Candidate]] = {}
        self._stories = Stories()

    def learn_story(self, recording: Recording) -> None:
        """Makes one story of the sounds of a recording, in the order in which they were heard."""
        heard = list(recording.sounds.sort_values("onset_s", kind="stable").itertuples(index=False))
        words = [_Words.within(recording.words, sound.onset_s, sound.duration_s) for sound in heard]
        if not any(part.word for part in words):
            raise UserError(
                f"recording {recording.recording}: windows.placement: brainmagick goes by words, of which it has none"
            )
        keys, durations_s = [self._key(sound) for sound in heard], [float(sound.duration_s) for sound in heard]
        self._stories.learn(keys, durations_s, words, self.splits.block_s)

    def _key(self, sound: Any) -> tuple[str, float, float]:
        return self._hashes(sound.path, sound.sfreq_hz), round(sound.offset_s, 3), round(sound.duration_s, 3)

    def sounds(self, recording: Recording) -> Iterator[tuple[str, Any, _Candidate]]:
        """(audio hash, row of `recording.sounds`, window) of everything heard in a recording."""
        assigned = self.assigned.get(recording.recording, "")
        for sound in recording.sounds.itertuples(index=False):
            key = (*self._key(sound), assigned)
            if key not in self._known:
                words = _Words.within(recording.words, sound.onset_s, sound.duration_s)
                make = self._sentence if self.isolated else self._continuous
                self._known[key] = make(recording, sound, f"{key[0]}@{key[1]:.3f}", words, assigned)
            for candidate in self._known[key]:
                yield key[0], sound, candidate

    def _split(self, uid: str, assigned: str) -> str:
        """The split of a block or sentence for the listener at hand; empty where it has none."""
        if self.splits.by != "both":
            return assigned or split_of(uid, self.splits)
        split = split_of(uid, self.splits)
        return split if split == assigned else ""

    def _sentence(
        self, recording: Recording, sound: Any, identity: str, words: _Words, assigned: str
    ) -> list[_Candidate]:
        limit = min(self.config.max_reading_s, self.config.length_s)
        if sound.duration_s > limit + 1e-6:
            raise UserError(
                f"recording {recording.recording}: the reading {sound.sound} lasts {sound.duration_s:.2f} s, more than "
                f"{limit:g} s; leave it out, or raise windows.max_reading_s and length_s"
            )
        split = self._split(" ".join(words.word).lower() or identity, assigned)
        if not split:
            self.dropped["speech of another split than its listener"] += 1
            return []
        return [_Candidate(0.0, float(sound.duration_s), words.text(0.0, self.config.length_s), split)]

    def _continuous(
        self, recording: Recording, sound: Any, identity: str, words: _Words, assigned: str
    ) -> list[_Candidate]:
        story = self.config.placement == "brainmagick"
        origin, own = self._stories.of[self._key(sound)] if story else (0.0, [])
        if self.splits.by == "time":
            parts = stretches(sound.duration_s, self.gap_s, self.splits)
        else:
            found = own if story else blocks(words, sound.duration_s, self.splits.block_s, identity)
            parts = [(start, stop, self._split(uid, assigned)) for start, stop, uid in found]
        candidates = []
        for start, stop, split in parts:
            if not split:
                self.dropped["blocks of another split than their listener"] += 1
                continue
            starts = (
                self._around_events(start, stop, split, words, origin, sound.duration_s)
                if story
                else self._every_stride(start, stop, split)
            )
            candidates += [self._candidate(float(s), words, sound.duration_s, split) for s in starts]
        return candidates

    def _candidate(self, start_s: float, words: _Words, sound_s: float, split: str) -> _Candidate:
        length = self.config.length_s
        whole = start_s + length <= sound_s + 1e-3  # else there is silence past the end of the sound
        return _Candidate(start_s, length if whole else sound_s - start_s, words.text(start_s, start_s + length), split)

    def _every_stride(self, start: float, stop: float, split: str) -> np.ndarray:
        first = np.ceil(start * 1000 - 1e-6) / 1000
        starts = np.round(np.arange(first, stop - self.config.length_s + 1e-6, self.config.stride(split)), 3)
        self.dropped["blocks shorter than a window"] += len(starts) == 0
        return starts

    def _around_events(
        self, start: float, stop: float, split: str, words: _Words, origin: float, sound_s: float
    ) -> np.ndarray:
        """Test: the words of the sound; else every stride of the story."""
        stride = self.config.stride_s
        grid = np.arange(np.ceil(origin / stride) * stride, origin + sound_s, stride) - origin
        return np.round(window_starts((start, stop), words.start_s if split == "test" else grid), 3)


def blocks(words: _Words, duration_s: float, block_s: float, identity: str) -> list[tuple[float, float, str]]:
    """(start, stop, uid) of the blocks of a continuous sound, times relative to its start.

    Sentences merge until longer than `block_s`, and the uid is their texts joined by commas
    (brainmagick's rule). Without words: equal stretches of at least `block_s`, named by `identity`.
    """
    if not words.word:
        n = max(1, int((duration_s + 1e-6) // block_s))
        edges = np.linspace(0.0, duration_s, n + 1)
        return [(float(a), float(b), f"{identity}+{a:.3f}") for a, b in zip(edges, edges[1:], strict=False)]
    first_of = np.flatnonzero(np.diff(words.sentence, prepend=words.sentence[0] - 1))
    starts: list[float] = []
    texts: list[list[str]] = []
    for a, b in zip(first_of, [*first_of[1:], len(words.word)], strict=True):
        if not starts or words.stop_s[:a].max(initial=0.0) - starts[-1] > block_s:
            starts.append(float(words.start_s[a]))
            texts.append([])
        texts[-1].append(" ".join(words.word[a:b]))
    stops = [*starts[1:], duration_s]
    return [(a, b, ",".join(t)) for a, b, t in zip(starts, stops, texts, strict=True)]


def _near_another_split(heard: pd.DataFrame, gap_s: float, length_s: float, edge_s: float) -> np.ndarray:
    """(n,) bool: windows to drop so that splits keep their distance, in each sound and each recording."""
    near = np.zeros(len(heard), dtype=bool)
    for key, time, distance_s in (
        ("audio", "offset_s", length_s + gap_s),
        ("recording", "onset_s", length_s + 2 * edge_s),
    ):
        for rows in heard.groupby(key).indices.values():
            near[rows] |= too_near(heard[time].to_numpy()[rows], heard["split"].to_numpy()[rows], distance_s)
    return near


def _tables(heard: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    heard["stimulus_id"] = heard["audio"].str[:12] + [f"@{x:.3f}" for x in heard["offset_s"]]
    several = heard.groupby("stimulus_id")["split"].agg(lambda s: "+".join(sorted(set(s))))
    stimuli = heard.drop_duplicates("stimulus_id").sort_values(["audio", "offset_s"]).reset_index(drop=True)
    stimuli["split"] = stimuli["stimulus_id"].map(several)
    stimuli = stimuli[list(STIMULUS_COLUMNS)]
    number = pd.Series(stimuli.index, index=stimuli["stimulus_id"])
    windows = heard.assign(stimulus=heard["stimulus_id"].map(number).astype(np.int64))
    windows["text"] = stimuli["text"].to_numpy()[windows["stimulus"]]
    return stimuli, windows[list(WINDOW_COLUMNS)]
