"""Published retrieval figures, and whether a run may be held against them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.results import RunResult
from reports.finding import audit_failure
from reports.formatting import clean, interval, is_number, plain
from reports.tables import candidates, claim_of

_BRAINMAGICK = "Défossez et al., Nat. Mach. Intell. 2023, Table 2"
_SPLIT = "by stimulus, seed 12, valid 0.1, test 0.2"
"""brainmagick's, as this project's split is configured to reproduce it."""


@dataclass(frozen=True)
class Conditions:
    """What must be the same for two retrieval rates to be comparable; None: the source does not say."""

    study: str
    candidates: int | None
    split: str | None
    embedder: str | None

    def against(self, other: Conditions) -> list[str]:
        """What differs or is not known, in words; empty where the two are comparable."""
        found = [] if _key(self.study) == _key(other.study) else ["study"]
        for name in ("candidates", "split", "embedder"):
            a, b = getattr(self, name), getattr(other, name)
            if a is None or b is None or a != b:
                known = a is not None and b is not None and name == "candidates"
                found.append(f"{name} ({a:,} against {b:,})" if known else name)
        return found


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard; values in per cent."""

    metric: str
    system: str
    value: float
    text: str
    source: str
    conditions: Conditions
    chance: str = ""
    published: bool = True
    link: str = ""
    verdict: str = ""
    """Of a published figure: comparable with which run, or with none and why. Of a run: why it may not be believed."""


def _key(study: str) -> str:
    return re.sub(r"[^a-z0-9]", "", study.lower())


def _table_2(study: str, n: int | None, chance: str, regression: str, best: str) -> tuple[Entry, ...]:
    rows = (("best", best, "wav2vec2"), ("mel regression", regression, "mel"))
    return tuple(
        Entry("top10", name, _number(text), text, _BRAINMAGICK, Conditions(study, n, _SPLIT, embedder), chance)
        for name, text, embedder in rows
    )


def _number(text: str) -> float:
    return float(text.split()[0])


ANCHORS = (
    *_table_2("Brennan 2019", 190, "5.3", "6.0", "25.7 ± 2.9"),
    *_table_2("Broderick 2019", None, "0.5", "1.0", "17.7 ± 0.6"),
    *_table_2("Gwilliams 2022", None, "0.7", "12.4", "70.7 ± 0.1"),
    *_table_2("Schoffelen 2019", None, "0.8", "20.6", "67.5 ± 0.4"),
    Entry(
        "top5", "best", 5.49, "5.49 ± 0.38", "NeuralBench", Conditions("Brennan 2019", None, None, None), chance="2.39"
    ),
)


def conditions_of(run: RunResult) -> Conditions:
    split = run.config.get("splits")
    words = _split_words(split) if isinstance(split, Mapping) else None
    model = run.config.get("model")
    encoder = model.get("audio_encoder") if isinstance(model, Mapping) else None
    name = encoder.get("name") if isinstance(encoder, Mapping) else None
    study = f"{run.study}, simulated" if run.simulated else run.study
    return Conditions(clean(study, 80), candidates(run), words, clean(name, 60) if name else None)


def _split_words(split: Mapping[str, Any]) -> str:
    parts = [f"by {split.get('by', '?')}"] + [f"{k} {split[k]}" for k in ("seed", "valid", "test") if k in split]
    return clean(", ".join(parts), 120)


def leaderboard(runs: Sequence[RunResult], links: Sequence[str]) -> list[Entry]:
    """The claim of every run and the published figures, by metric and study, the highest first.

    A published figure is marked as not comparable, and why, unless some run has its study, number
    of candidates, split and embedder, and an audit that found no leak.
    """
    entries = [entry for run, link in zip(runs, links, strict=True) for entry in _entries(run, link)]
    for anchor in ANCHORS:
        gaps = {
            clean(run.name, 60): anchor.conditions.against(conditions_of(run)) + ["audit"] * bool(audit_failure(run))
            for run in runs
        }
        same = [source for source, gap in gaps.items() if not gap]
        verdict = f"not comparable: {', '.join(sorted(gaps.values(), key=len)[0])}"
        if same:
            verdict = f"comparable with {', '.join(same)}"
        entries.append(Entry(**{**vars(anchor), "verdict": verdict}))
    return sorted(entries, key=lambda e: (e.published, e.metric, e.conditions.study, -e.value))


def _entries(run: RunResult, link: str) -> list[Entry]:
    found = []
    chance = {info.name: info.chance for info in run.metrics}
    for name in ("top1", "top5", "top10"):
        result = run.value(claim_of(run), name)
        if result is None or result.value is None or not is_number(result.value):
            continue
        spread = f" [{interval(result.ci, '%')}]" if result.ci and all(map(is_number, result.ci)) else ""
        guess = chance.get(name)
        found.append(
            Entry(
                name,
                claim_of(run),
                100 * result.value,
                plain(result.value, "%") + spread,
                clean(run.name, 60),
                conditions_of(run),
                plain(guess, "%") if guess is not None and is_number(guess) else "",
                published=False,
                link=link,
                verdict=f"with nothing: {void}" if (void := audit_failure(run)) else "",
            )
        )
    return found
