"""The page over several runs. Trainings of one configuration may share a cell; configurations never do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from eval.results import RunResult
from reports import anchors, figures
from reports.finding import find_metric, find_out
from reports.formatting import clean, count, is_number, places, plain
from reports.page import render
from reports.provenance import differences
from reports.tables import ROLES, Column, columns, find, headline_columns, value_of

BY_SEED = ("name", "seed")
"""Keys of a configuration in which two trainings of one experiment differ."""


@dataclass
class Configuration:
    """Runs that differ in their training seed and in nothing else."""

    letter: str
    runs: list[RunResult] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for run in self.runs for seed in run.training_seeds})

    @property
    def title(self) -> str:
        return ", ".join(clean(run.name, 40) for run in self.runs)


@dataclass(frozen=True)
class Cell:
    """A metric of a system over the trainings of one configuration."""

    text: str
    spread: str
    reason: str = ""


def identity(run: RunResult) -> str:
    """What two runs must share to be trainings of one experiment: configuration, data and code."""
    config = {key: value for key, value in run.config.items() if key not in BY_SEED}
    git = run.environment.get("git")
    code = git.get("sha") if isinstance(git, dict) else None
    about = [config, run.study, run.data.get("fingerprint"), run.provenance.get("data_fingerprint"), code]
    return json.dumps(about, sort_keys=True, default=str)


def configurations(runs: Sequence[RunResult]) -> list[Configuration]:
    """In the order given. A training seed that a configuration holds already opens another: it is no new sample."""
    found: list[tuple[str, Configuration]] = []
    for run in runs:
        key = identity(run)
        open_ = [c for k, c in found if k == key and run.training_seeds and not set(c.seeds) & set(run.training_seeds)]
        if open_:
            open_[0].runs.append(run)
        else:
            found.append((key, Configuration(_letter(len(found)), [run])))
    return [configuration for _, configuration in found]


def _letter(index: int) -> str:
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def cell(configuration: Configuration, system: str, column: Column) -> Cell:
    """The mean over trainings, with its standard deviation where there are two or more.

    Refuses to average where the trainings were scored on different numbers of examples or one of them was not scored.
    """
    rows = [find(run, system, column) for run in configuration.runs]
    values = [value for row in rows if (value := value_of(row)) is not None]
    if not values:
        reasons = [row.reason for row in rows if row is not None and row.reason]
        return Cell("–", "", clean(reasons[0], 200) if reasons else "not in this run")
    sizes = {row.n for row in rows if row is not None and row.value is not None}
    if len(values) < len(rows):
        return Cell("–", "", f"scored in {len(values)} of {count(len(rows), 'training')}: not averaged")
    if len(sizes) > 1:
        return Cell(
            "–", "", f"N differs between trainings ({', '.join(f'{n:,}' for n in sorted(sizes))}): not averaged"
        )
    unit, decimals = column.info.unit, places(values[0], column.info.unit)
    spread = f"± {plain(stdev(values), unit, decimals)}" if len(values) > 1 else ""
    return Cell(plain(mean(values), unit, decimals), spread)


def grids(groups: Sequence[Configuration], limit: int = 4) -> list[dict[str, Any]]:
    """Systems by configurations, one table a metric: those that the first configuration shows first."""
    shown = headline_columns(groups[0].runs[0])[:limit]
    result = []
    for column in shown:
        held = [next((c for c in columns(group.runs[0]) if c.key == column.key), None) for group in groups]
        systems: dict[str, str] = {s.name: s.role for group in groups for s in group.runs[0].systems}
        order = sorted(systems, key=lambda name: _place(systems[name]))
        rows = [
            (
                name,
                systems[name],
                [
                    cell(group, name, mine) if mine is not None else Cell("–", "", "not a metric of this run")
                    for group, mine in zip(groups, held, strict=True)
                ],
            )
            for name in order
        ]
        if any(c.text != "–" for _, _, cells in rows for c in cells):
            result.append({"column": column, "rows": rows})
    return result


def _place(role: str) -> int:
    return list(ROLES).index(role) if role in ROLES else len(ROLES)


def seeds_sentence(group: Configuration) -> str:
    """The endpoint's gain over the trainings of a configuration."""
    info = find_metric(group.runs[0], group.runs[0].endpoint.metric)
    unit = info.unit if info else ""
    gains = [run.endpoint.gain for run in group.runs]
    known = [gain for gain in gains if gain is not None and is_number(gain)]
    if len(group.runs) < 2 or len(known) < len(gains):
        return ""
    points = " points" if unit == "%" else ""
    few = "" if len(group.seeds) >= 3 else " Fewer than three: read them as provisional."
    return (
        f"Over {count(len(group.seeds), 'training seed')} the gain is {plain(mean(known), unit)}{points} on average, "
        f"from {plain(min(known), unit)} to {plain(max(known), unit)}.{few}"
    )


def page(runs: Sequence[RunResult], slugs: Sequence[str], speed: str = "", calibrated: str = "") -> str:
    links = [f"runs/{name}/index.html" for name in slugs]
    groups = configurations(runs)
    first = groups[0].runs[0]
    rows = []
    for run, link in zip(runs, links, strict=True):
        info = find_metric(run, run.endpoint.metric)
        letter = next(group.letter for group in groups if any(r is run for r in group.runs))
        rows.append(
            {"run": run, "link": link, "finding": find_out(run), "unit": info.unit if info else "", "letter": letter}
        )
    return render(
        "compare.html.j2",
        rows=rows,
        groups=[(group, seeds_sentence(group)) for group in groups],
        grids=grids(groups),
        forests=figures.forests(runs),
        changes=[(group, differences(_without(first), _without(group.runs[0]))) for group in groups[1:]],
        first=groups[0],
        simulated=[run for run in runs if run.simulated],
        board=anchors.leaderboard(runs, links),
        speed=speed,
        calibrated=calibrated,
    )


def _without(run: RunResult) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in BY_SEED}
