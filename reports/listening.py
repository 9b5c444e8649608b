"""The listening room: which examples are heard, their sounds, spectrograms and transcripts."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eeg2speech import audio
from eeg2speech.errors import UserError
from eval.results import RunResult
from reports.formatting import clean, is_number, quantity
from reports.tables import ROLES, Column, claim_of, columns

SIDE_BY_SIDE = ("reference", "reconstruction", "oracle", "eeg", "regression", "shuffled")
"""Rows heard beside each other, where the run has them; the claim is always among them."""

AUDIO_BUDGET_BYTES = 6_500_000
"""Sound that a page may embed, as FLAC and before base64 adds a third: keeps the page under 10 MB."""

DYNAMIC_RANGE = 7.0
"""Natural-log units below the loudest cell of an example at which a spectrogram is white: 61 dB."""


@dataclass(frozen=True)
class Diff:
    """A stretch of a word alignment: `kind` is equal, insert, delete or substitute."""

    kind: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Clip:
    """One system's rendering of an example."""

    system: str
    role: str
    score: str
    diff: tuple[Diff, ...]
    hypothesis: str | None
    duration_s: float = 0.0
    audio: str = ""
    """Where the sound is: a data URI, or an address relative to the page."""
    spectrogram: str = ""
    reason: str = ""
    """Why there is nothing to hear, where `audio` is empty."""


@dataclass(frozen=True)
class Example:
    rank: str
    """best, median, worst or random."""
    subject: str
    stimulus_id: str
    reference: str | None
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Room:
    rule: str
    examples: tuple[Example, ...]
    reason: str = ""
    """Why the room is empty."""
    files: tuple[tuple[str, bytes], ...] = ()
    """(name, content) of the sounds, where the page does not hold them itself."""


class Sounds:
    """Sounds on their way into the page as data URIs, or with an `address` into files of that folder."""

    def __init__(self, address: str | None = None) -> None:
        self.address, self.left = address, AUDIO_BUDGET_BYTES
        self.files: dict[str, bytes] = {}

    def add(self, waveform: np.ndarray) -> str:
        """(N,) at 16 kHz as 16-bit FLAC, which loses nothing: its address, empty where the page would grow too big."""
        import soundfile

        buffer = io.BytesIO()
        soundfile.write(buffer, np.clip(waveform, -1, 1), audio.SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        content = buffer.getvalue()
        if self.address is not None:
            name = f"{hashlib.sha256(content).hexdigest()[:16]}.flac"
            self.files[name] = content
            return self.address + name
        if len(content) > self.left:
            return ""
        self.left -= len(content)
        return "data:audio/flac;base64," + base64.b64encode(content).decode()


def build_room(folder: Path, run: RunResult, examples: pd.DataFrame, address: str | None = None) -> Room:
    """Picks the examples and reads their sounds from the run folder; `address` as in `Sounds`."""
    if examples.empty or "wav" not in examples or examples["wav"].isna().all():
        return Room("", (), f"not run: {_silence_reason(run)}")
    claim = claim_of(run)
    chosen, rule = choose(run, examples[examples.system == claim])
    sounds = Sounds(address)
    room = [_example(folder, run, examples, rank, row, sounds) for rank, row in chosen]
    reason = "" if room else f"not run: the run has no examples of {clean(claim, 40)}"
    return Room(rule, tuple(room), reason, tuple(sounds.files.items()))


def _silence_reason(run: RunResult) -> str:
    """The study's reason, as `eval.metrics` words it, or the plain fact that none was stored."""
    reason = "the study has no audio"
    return reason if any(r.reason == reason for r in run.results) else "the run stored no sounds"


def choose(run: RunResult, claim: pd.DataFrame) -> tuple[list[tuple[str, pd.Series]], str]:
    """Best, median and worst by the claim's score, and one more drawn by hash; and the rule in words.

    `claim` holds the claim's rows. The score is per-example WER, else the first per-example metric.
    """
    order = ["stimulus_id", "subject", "sampling_seed"]
    column, score = _score(run, claim)
    table = claim.assign(_score=score).dropna(subset="_score").sort_values(["_score", *order], kind="stable")
    if table.empty:
        table = claim.assign(_score=0.0).sort_values(order, kind="stable")
    elif column is not None and column.info.higher_is_better:
        table = table.sort_values(["_score", *order], ascending=[False, True, True, True], kind="stable")
    places = {"best": 0, "median": len(table) // 2, "worst": len(table) - 1}
    found: dict[int, str] = {}
    for rank, place in places.items():
        found.setdefault(place, rank)
    rest = [i for i in range(len(table)) if i not in found]
    if rest:
        found[min(rest, key=lambda i: _draw(run.sampling_seed, table.iloc[i]))] = "random"
    ranked = sorted(found.items(), key=lambda item: ("best", "median", "worst", "random").index(item[1]))
    by = column.info.label if column is not None else "stimulus order (no per-example score was run)"
    rule = (
        f"Best, median and worst of the {len(table):,} examples of “{clean(claim_of(run), 40)}” "
        f"by per-example {clean(by, 60)}, ties in stimulus order; random is the example with the smallest SHA-256 of "
        "sampling seed, listener and stimulus among the others. Nobody chose these by ear."
    )
    return [(rank, table.iloc[place]) for place, rank in ranked], rule


def _score(run: RunResult, frame: pd.DataFrame) -> tuple[Column | None, pd.Series]:
    known = [c for c in columns(run) if c.info.per_example and {c.key, f"{c.key}_n"} <= set(frame.columns)]
    known.sort(key=lambda c: c.info.name != "wer")
    for column in known:
        score = ratio(frame, column.key)
        if score.notna().any():
            return column, score
    return None, pd.Series(np.nan, index=frame.index)


def ratio(frame: pd.DataFrame, metric: str) -> pd.Series:
    """Per-example value of a metric: numerator over denominator, NaN where it was not run."""
    top = pd.to_numeric(frame[metric], errors="coerce")
    bottom = pd.to_numeric(frame[f"{metric}_n"], errors="coerce")
    return top / bottom.where(bottom != 0)


def _draw(seed: int, row: pd.Series) -> str:
    return hashlib.sha256(f"{seed}|{row.subject}|{row.stimulus_id}".encode("utf-8", "replace")).hexdigest()


def _example(
    folder: Path, run: RunResult, examples: pd.DataFrame, rank: str, row: pd.Series, sounds: Sounds
) -> Example:
    same = examples[(examples.study == row.study) & (examples.stimulus_id == row.stimulus_id)]
    same = same[same.subject.isin([row.subject, ""]) | same.subject.isna()]
    role = {system.name: system.role for system in run.systems}
    wanted = [*SIDE_BY_SIDE, claim_of(run)]
    names = sorted({n for n in wanted if n in set(same.system)}, key=wanted.index)
    picked = []
    for name in names:
        rows = same[same.system == name]
        seeded = rows[rows.sampling_seed == row.sampling_seed]
        picked.append((seeded if len(seeded) else rows).iloc[0])
    heard = [_sound(folder, r.get("wav")) for r in picked]
    loud = [mel for _, mel, _ in heard if mel is not None]
    top = max((float(mel.max()) for mel in loud), default=0.0)
    clips = []
    for name, r, (waveform, mel, reason) in zip(names, picked, heard, strict=True):
        reference, hypothesis = _text(r.get("reference")), _text(r.get("hypothesis"))
        diff = align(reference, hypothesis) if reference is not None and hypothesis is not None else ()
        clip = Clip(clean(name, 60), role.get(name, ""), _score_text(run, r), diff, hypothesis, reason=reason)
        if waveform is not None and mel is not None:
            sound, length_s = sounds.add(waveform), len(waveform) / audio.SAMPLE_RATE
            clip = replace(clip, duration_s=length_s, audio=sound, spectrogram=_png_uri(mel, top))
            if not sound:
                left_out = f"left out to keep the page small; the sound is {clean(r.wav, 120)} in the run folder"
                clip = replace(clip, reason=left_out)
        clips.append(clip)
    clips.sort(key=lambda c: list(ROLES).index(c.role) if c.role in ROLES else len(ROLES))
    return Example(rank, clean(row.subject, 60), clean(row.stimulus_id, 120), _text(row.get("reference")), tuple(clips))


def _text(value: Any) -> str | None:
    return clean(value, 600) if isinstance(value, str) else None


def _score_text(run: RunResult, row: pd.Series) -> str:
    column, score = _score(run, pd.DataFrame([row]))
    if column is None or not is_number(float(score.iloc[0])):
        return ""
    return f"{clean(column.info.label, 40)} {quantity(float(score.iloc[0]), column.info.unit)}"


def _sound(folder: Path, wav: Any) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """(waveform, log-mel (T, 64), reason); the first two are None where there is nothing to hear."""
    if not isinstance(wav, str) or not wav:
        return None, None, "no sound was stored"
    # By name only: a user may keep the sounds on another disk behind a link.
    path = Path(os.path.normpath(folder / wav))
    if not path.is_relative_to(os.path.normpath(folder)):
        return None, None, f"{clean(wav, 120)} lies outside the run folder and was not read"
    import torch

    try:
        waveform = audio.load(path)
    except UserError:
        return None, None, f"{clean(wav, 120)} is missing or cannot be read"
    if len(waveform) < audio.N_FFT:
        return None, None, f"{clean(wav, 120)} is shorter than {1000 * audio.N_FFT / audio.SAMPLE_RATE:.0f} ms"
    mel = audio.log_mel(torch.from_numpy(waveform)[None])[0, 0].numpy()
    return waveform, mel, ""


def _png_uri(mel: np.ndarray, top: float) -> str:
    """(T, 64) log-mel as a grey image, low bands at the bottom, black at `top`."""
    from PIL import Image

    dark = np.clip((mel - top) / DYNAMIC_RANGE + 1.0, 0.0, 1.0)
    pixels = (255 * (1.0 - dark**1.2)).round().astype(np.uint8).T[::-1]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _words(text: str) -> list[tuple[str, str]]:
    """(as written, as compared): lower case, no punctuation."""
    pairs = [(word, re.sub(r"[^\w']+", "", word.lower())) for word in text.split()]
    return [(word, key) for word, key in pairs if key]


def align(reference: str, hypothesis: str) -> tuple[Diff, ...]:
    """The Levenshtein alignment of two transcripts by jiwer, word by word, case and punctuation apart."""
    import jiwer

    said, heard = _words(reference), _words(hypothesis)
    if not said or not heard:
        kind = "insert" if heard else "delete"
        pieces = [Diff(kind, _join(said), _join(heard))]
        return tuple(piece for piece in pieces if piece.reference or piece.hypothesis)
    aligned = jiwer.process_words(" ".join(key for _, key in said), " ".join(key for _, key in heard)).alignments[0]
    return tuple(
        Diff(
            chunk.type,
            _join(said[chunk.ref_start_idx : chunk.ref_end_idx]),
            _join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in aligned
    )


def _join(words: Sequence[tuple[str, str]]) -> str:
    return " ".join(word for word, _ in words)
