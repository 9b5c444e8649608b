"""Which speech is for training, and the audit that proves it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from eeg2speech.errors import UserError
from eeg2speech.schema import Config, is_unset

SPLITS = ("train", "valid", "test")
MIN_SHARED_WORDS = 5
"""In continuous speech, windows of fewer words may repeat by chance ("and then she")."""
TOO_LITTLE = (
    "there is too little speech for three splits, or too few recordings or subjects where these are divided; "
    "make splits.block_s smaller, splits.valid or splits.test larger, or take another splits.seed"
)


class SplitConfig(Config):
    """How speech is divided. Train, valid and test are three different things, always."""

    by: Literal["stimulus", "time", "recording", "subject", "both", "study"] = Field(
        default="stimulus",
        description="stimulus: blocks of speech by hash; time: stretches of each sound; recording or subject: passes "
        "the audit only where these heard different speech; both: unseen subjects hear unseen blocks, the rest is "
        "left; study: the study's own lists",
    )
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = 0
    strict: bool = Field(default=True, description="any failed check of the audit stops the run before training")
    block_s: float = Field(
        default=6.0, gt=0, description="by stimulus, continuous speech: sentences merge until longer than this"
    )
    guard: bool | None = Field(
        default=None,
        description="drop training windows too near to other splits, else the audit finds them; null: true, but false "
        "under protocol: brainmagick",
        exclude_if=is_unset,
    )
    gap_s: float | None = Field(
        default=None,
        ge=0,
        description="speech left unused between splits of a sound; default: window length + filter edges",
    )
    n_folds: int | None = Field(default=None, ge=3, description="by time: this many equal stretches of each sound")
    fold: int = Field(default=0, ge=0, description="the stretch that is test; the next one is valid")

    @model_validator(mode="after")
    def _is_possible(self) -> SplitConfig:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must leave something to train on")
        if self.n_folds is not None and (self.by != "time" or self.fold >= self.n_folds):
            raise ValueError("n_folds needs by: time and a fold below n_folds")
        return self


def split_of(uid: str, config: SplitConfig) -> str:
    """The split of a block from its text (or identity), the same whoever listened.

    brainmagick's rule: the SHA-256 seeds a uniform draw, cut at test, test + valid, 1. Its own
    split is `seed: 12`.
    """
    score = random.Random(int(hashlib.sha256(uid.encode()).hexdigest(), 16) + config.seed).random()
    return "test" if score < config.test else "valid" if score < config.test + config.valid else "train"


def split_names(names: Sequence[str], config: SplitConfig) -> dict[str, str]:
    """Recordings or subjects in hash order, so that with three or more no split is empty."""
    ranked = sorted(set(names), key=lambda n: hashlib.sha256(f"{config.seed}:{n}".encode()).hexdigest())
    n_test, n_valid = (max(1, round(share * len(ranked))) for share in (config.test, config.valid))
    labels = ["test"] * n_test + ["valid"] * n_valid + ["train"] * len(ranked)
    return dict(zip(ranked, labels, strict=False))


def stretches(duration_s: float, gap_s: float, config: SplitConfig) -> list[tuple[float, float, str]]:
    """(start, stop, split) of the parts of a sound, by time.

    Without folds: train, gap, valid, gap, test. With folds: equal parts, of which part `fold` is
    test and the next valid; windows of train and valid too near to them are dropped later.
    """
    if config.n_folds is not None:
        edges = np.linspace(0.0, duration_s, config.n_folds + 1)
        special = {config.fold: "test", (config.fold + 1) % config.n_folds: "valid"}
        return [
            (float(a), float(b), special.get(k, "train"))
            for k, (a, b) in enumerate(zip(edges, edges[1:], strict=False))
        ]
    test = duration_s * (1 - config.test)
    valid = test - gap_s - duration_s * config.valid
    parts = [(0.0, valid - gap_s, "train"), (valid, test - gap_s, "valid"), (test, duration_s, "test")]
    return [part for part in parts if part[0] >= 0 and part[1] > part[0]]


def too_near(start_s: np.ndarray, split: np.ndarray, distance_s: float) -> np.ndarray:
    """(n,) bool: train windows nearer than `distance_s` (onset to onset) to valid or test, valid to test."""
    near = np.zeros(len(start_s), dtype=bool)
    for lower, higher in (("valid", ("test",)), ("train", ("valid", "test"))):
        guarded = np.sort(start_s[np.isin(split, higher)])
        rows = np.flatnonzero(split == lower)
        if not len(guarded) or not len(rows):
            continue
        after = np.searchsorted(guarded, start_s[rows])
        right = guarded[np.minimum(after, len(guarded) - 1)]
        left = guarded[np.maximum(after - 1, 0)]
        nearest = np.minimum(np.abs(right - start_s[rows]), np.abs(left - start_s[rows]))
        near[rows] = nearest < distance_s - 1e-6
    return near


@dataclass(frozen=True)
class Finding:
    """One check of the audit."""

    check: str
    passed: bool
    """True where it could not be made: nothing was found."""
    detail: str
    tested: bool = True
    """False: it could not be made, and `detail` says why."""
    remark: str = ""
    """What a reader of the claim must know although the check passed."""


def audit(
    stimuli: pd.DataFrame,
    windows: pd.DataFrame,
    *,
    isolated: bool,
    length_s: float,
    shift_s: float,
    edge_s: float,
    fitted: Mapping[str, Sequence[tuple[float, float]]],
    used: Mapping[str, np.ndarray],
) -> list[Finding]:
    """Every way the same speech or brain activity could stand on both sides of a split.

    `stimuli` and `windows` are the tables of `windows.cut`, `stimuli` with a `content` column (hash
    of the samples). `edge_s`: reach of the filters; `fitted`: the intervals each recording's scaler
    saw; `used`: rows of `windows` that "encoder train" and "diffusion test" really take.
    """
    heard = windows.merge(
        stimuli[["audio", "offset_s", "duration_s", "content", "sound"]],
        how="left",
        left_on="stimulus",
        right_index=True,
        validate="m:1",
    )
    margin_s = edge_s if isolated else length_s + 2 * edge_s
    return [
        _stimulus_identity(heard, 0.0 if isolated else margin_s),
        _duplicated_audio(heard),
        _shared_text(heard, isolated),
        _time_overlap(heard, length_s, edge_s),
        _scaler(heard, length_s, shift_s, fitted),
        _three_splits(heard),
        _window_length(heard, length_s),
        _stages(heard, used),
    ]


def require_clean(findings: Sequence[Finding]) -> None:
    """Raises UserError naming the first failed checks."""
    failed = [f"{f.check} ({f.detail})" for f in findings if not f.passed]
    empty = [f.detail for f in findings if not f.passed and f.detail.endswith(TOO_LITTLE)]
    if empty and len(empty) == len(failed):
        raise UserError(empty[0])
    if failed:
        raise UserError(
            f"the split leaks: {'; '.join(failed)}; change splits, or set splits.strict: false for a demonstration"
        )


def _clash(
    groups: pd.DataFrame, key: str, stop: np.ndarray | pd.Series, start: str, margin_s: float
) -> tuple[int, str]:
    """Pairs of neighbours in time, in different splits, nearer than `margin_s`; and an example."""
    table = groups.assign(stop=stop).drop_duplicates([key, start, "stop", "split"])
    table = table.sort_values([key, start], kind="stable")
    count, example = 0, ""
    for name, rows in table.groupby(key, sort=False):
        starts, stops, splits = rows[start].to_numpy(), rows["stop"].to_numpy(), rows["split"].to_numpy()
        reach: dict[str, float] = {}
        for a, b, split in zip(starts, stops, splits, strict=True):
            for other, end in reach.items():
                if other != split and a - end < margin_s - 1e-6:
                    count += 1
                    example = example or f"{split} at {a:.2f} s of {name} against {other} ending at {end:.2f} s"
            reach[split] = max(b, reach.get(split, -np.inf))
    return count, example


def _finding(check: str, count: int, example: str, clean: str) -> Finding:
    return Finding(check, count == 0, clean if count == 0 else f"{count} cases, such as {example}")


def _stimulus_identity(heard: pd.DataFrame, margin_s: float) -> Finding:
    stop = heard["offset_s"] + heard["duration_s"]
    named = heard.assign(audio="audio " + heard["audio"].str[:16])
    count, example = _clash(named, "audio", stop, "offset_s", margin_s)
    apart = f"; splits of one sound are at least {margin_s:.2f} s apart" if margin_s else ""
    clean = f"no stretch of audio is in two splits{apart}"
    return _finding("shared stimulus identity", count, example, clean)


def _duplicated_audio(heard: pd.DataFrame) -> Finding:
    splits = (
        heard[heard["content"] != ""]
        .groupby("content")
        .agg(n=("split", "nunique"), sounds=("sound", lambda s: " and ".join(sorted(set(s))[:2])))
    )
    shared = splits[splits["n"] > 1]
    example = "" if shared.empty else f"the samples of {shared['sounds'].iloc[0]}"
    return _finding("duplicated audio", len(shared), example, "no two splits hold the same samples, under any name")


def _shared_text(heard: pd.DataFrame, isolated: bool) -> Finding:
    text = heard["text"].str.lower().str.replace(r"[^\w\s]|_", "", regex=True).str.split()
    enough = text.str.len() >= (1 if isolated else MIN_SHARED_WORDS)
    counts = heard[enough].groupby(text[enough].str.join(" "))["split"].nunique()
    shared = counts[counts > 1]
    what = "sentence" if isolated else f"window of {MIN_SHARED_WORDS} words or more"
    return _finding(
        "shared text", len(shared), "" if shared.empty else f"'{shared.index[0]}'", f"no {what} is in two splits"
    )


def _time_overlap(heard: pd.DataFrame, length_s: float, edge_s: float) -> Finding:
    """The EEG slices, without their baselines: of these only the mean is taken."""
    count, example = _clash(heard, "recording", heard["onset_s"] + length_s, "onset_s", 2 * edge_s)
    clean = (
        f"EEG of different splits, with {edge_s:.3f} s of filter edge to either side, is disjoint in every recording"
    )
    return _finding("time overlap", count, example, clean)


def _scaler(
    heard: pd.DataFrame, length_s: float, shift_s: float, fitted: Mapping[str, Sequence[tuple[float, float]]]
) -> Finding:
    count, example = 0, ""
    others = heard[heard["split"] != "train"]
    for recording, onsets in others.groupby("recording")["onset_s"]:
        starts = onsets.to_numpy() + shift_s
        for a, b in fitted.get(str(recording), ()):
            inside = int(np.count_nonzero((starts < b - 1e-6) & (starts + length_s > a + 1e-6)))
            if inside:
                count += inside
                example = example or f"{a:.2f}-{b:.2f} s of {recording}"
    return _finding("scaler fitted on train only", count, example, "no scaler saw a valid or test window")


def _three_splits(heard: pd.DataFrame) -> Finding:
    sets = {split: set(heard.loc[heard["split"] == split, "stimulus_id"]) for split in SPLITS}
    empty = [split for split, ids in sets.items() if not ids]
    if empty:
        return Finding("three different splits", False, f"{' and '.join(empty)} without a window: {TOO_LITTLE}")
    bad = [f"{a} == {b}" for a, b in combinations(SPLITS, 2) if sets[a] == sets[b]]
    sizes = ", ".join(f"{split} {len(ids)} stimuli" for split, ids in sets.items())
    return _finding("three different splits", len(bad), ", ".join(bad), sizes)


def _window_length(heard: pd.DataFrame, length_s: float) -> Finding:
    lengths = heard["length_s"].unique()
    odd = [f"{x:.3f} s" for x in lengths if abs(x - length_s) > 1e-9]
    return _finding("one window length", len(odd), ", ".join(odd[:3]), f"every window lasts {length_s:g} s")


def _stages(heard: pd.DataFrame, used: Mapping[str, np.ndarray]) -> Finding:
    train, test = (heard.iloc[used.get(stage, ())] for stage in ("encoder train", "diffusion test"))
    shared = sorted(set(train["stimulus_id"]) & set(test["stimulus_id"]))
    clean = f"none of the {len(test)} windows scored is among the {len(train)} the encoder is trained on"
    return _finding("encoder-train against diffusion-test", len(shared), shared[0] if shared else "", clean)
