"""The headline table: one object, written as HTML by the page and as LaTeX, Markdown, CSV and JSON here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import median_low

import pandas as pd
from pydantic import ValidationError

from eeg2speech.errors import UserError
from eval.results import EXAMPLE_KEYS, Comparison, MetricInfo, MetricResult, RunResult, load_examples
from reports.formatting import clean, count, interval, is_number, places, plain, stars

ROLES = {"ceiling": "Ceilings", "claim": "The claim", "rival": "Rivals", "floor": "Floors"}
"""Order and headings of the groups of rows."""

HEADLINE = ("wer", "top1", "top10", "fad", "kad", "mel_correlation", "estoi")
"""Metrics that go into the headline table after the primary endpoint, where a run has them."""

HEADLINE_COLUMNS = 6
DOES_NOT_APPLY = ("this system ", "a property of ")
"""How a reason begins, where the metric could not be run on that row by anybody."""
NO_RESULT = "no result was stored for this system and metric"


@dataclass(frozen=True)
class Column:
    """A metric under one embedder."""

    info: MetricInfo
    embedder: str | None
    places: int = 1
    """Decimals, the same for all its cells."""

    @property
    def key(self) -> str:
        return self.info.name if self.embedder is None else f"{self.info.name}|{self.embedder}"

    @property
    def arrow(self) -> str:
        return "↑" if self.info.higher_is_better else "↓"

    @property
    def direction(self) -> str:
        return "higher is better" if self.info.higher_is_better else "lower is better"

    @property
    def title(self) -> str:
        name = clean(self.info.label, 60)
        return name if self.embedder is None else f"{name} ({clean(self.embedder, 40)})"


@dataclass(frozen=True)
class Cell:
    """`text` is the value in the column's unit, or "not run" or "n/a" with the letter of its reason in `note`."""

    id: str
    column: Column
    result: MetricResult | None
    text: str
    interval: str = ""
    mark: str = ""
    best: bool = False
    note: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    role: str
    description: str
    size: str
    cells: tuple[Cell, ...]
    n_stimuli: int = 0


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...] = field(default=())
    """(letter, "not run: " or "n/a: " and the reason) for every cell that has no value."""
    legend: tuple[str, ...] = field(default=())

    def groups(self) -> list[tuple[str, list[Row]]]:
        return [(key, list(rows)) for key, rows in groupby(self.rows, key=lambda row: row.role)]

    def only(self, chosen: Sequence[Column]) -> Table:
        """The same table with some of its columns, and the notes and the legend that they need."""
        places = [self.columns.index(column) for column in chosen]
        return _noted(chosen, [replace(row, cells=tuple(row.cells[i] for i in places)) for row in self.rows])


def load_run(folder: Path) -> tuple[RunResult, pd.DataFrame]:
    """Results and per-example table. Raises UserError naming the file that is missing or does not fit."""
    folder = Path(folder)
    try:
        run = RunResult.load(folder)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder / 'results.json'}: {clean(place, 200)}: {first['msg']}; evaluate again") from error
    path = folder / "examples.parquet"
    try:
        table = load_examples(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as parquet ({clean(error, 200)}): evaluate again") from error
    missing = [key for key in EXAMPLE_KEYS if key not in table]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: evaluate again")
    return run, table.assign(subject=table["subject"].fillna(""))


def columns(run: RunResult) -> list[Column]:
    """Every metric and embedder, the primary endpoint first.

    Raises UserError where a result names a metric that the run does not define.
    """
    known = {info.name: info for info in run.metrics}
    found: dict[str, list[str | None]] = {name: [] for name in known}
    for row in run.results:
        if row.metric not in known:
            raise UserError(
                f"results.json of run {clean(run.name, 80)!r}: metric {clean(row.metric, 80)!r} has results but no "
                "entry in `metrics`: evaluate again"
            )
        if row.embedder not in found[row.metric]:
            found[row.metric].append(row.embedder)
    pairs = [(info, embedder) for info in run.metrics for embedder in found[info.name] or [None]]
    result = [Column(info, embedder, _places(run, info, embedder)) for info, embedder in pairs]
    return sorted(result, key=lambda column: run.endpoint.metric not in (column.info.name, column.key))


def headline_columns(run: RunResult) -> list[Column]:
    """The endpoint, then `HEADLINE` under the first embedder that ran, then the run's own order."""
    found = columns(run)
    claim = claim_of(run)
    chosen = found[:1]
    for name in (*HEADLINE, *(column.info.name for column in found)):
        same = [column for column in found if column.info.name == name]
        if same and name not in [column.info.name for column in chosen]:
            chosen.append(next((c for c in same if value_of(find(run, claim, c)) is not None), same[0]))
    return chosen[:HEADLINE_COLUMNS]


def _places(run: RunResult, info: MetricInfo, embedder: str | None) -> int:
    values = [r.value for r in run.results if (r.metric, r.embedder) == (info.name, embedder) and is_number(r.value)]
    return places(median_low([abs(v) for v in values if v is not None] or [1.0]), info.unit)


def find(run: RunResult, system: str, column: Column, subject: str | None = None) -> MetricResult | None:
    """The cell of a system and column; `RunResult.value` does not tell embedders apart."""
    wanted = (system, column.info.name, column.embedder, subject)
    for row in run.results:
        if (row.system, row.metric, row.embedder, row.subject) == wanted:
            return row
    return None


def value_of(result: MetricResult | None) -> float | None:
    """The number, or None where there is none that can be printed."""
    return result.value if result is not None and is_number(result.value) else None


def comparison(run: RunResult, system: str, column: Column) -> Comparison | None:
    """The claim against a system; a bare metric name fits only where it cannot mean two embedders."""
    embedders = {row.embedder for row in run.results if row.metric == column.info.name}
    names = (column.key, column.info.name) if len(embedders) < 2 else (column.key,)
    return next((row for row in run.comparisons if row.system == system and row.metric in names), None)


def candidates(run: RunResult) -> int | None:
    """Size of the candidate set, from the exact chance of a top-k rate, k over candidates."""
    for info in run.metrics:
        k = info.name.removeprefix("top")
        if info.name.startswith("top") and k.isdecimal() and info.chance is not None and is_number(info.chance):
            return round(int(k) / info.chance) if 0 < info.chance < 1 else None
    return None


def claim_of(run: RunResult) -> str:
    return next((system.name for system in run.systems if system.role == "claim"), "eeg")


def _mark(run: RunResult, system: str, column: Column) -> str:
    """Stars: the claim beats this row. A dagger: the claim is worse than this row."""
    found = comparison(run, system, column)
    if found is None or not is_number(found.gain):
        return ""
    p = found.p_holm if found.p_holm is not None else found.p
    if p is None or not is_number(p) or p >= 0.05:
        return ""
    return stars(p) if found.gain and found.gain > 0 else "†"


def _reason(result: MetricResult | None) -> str:
    if result is None:
        return NO_RESULT
    if result.value is not None:
        return f"the stored value is {result.value}, which is not a number"
    # Older results name the system, and every row had a note of its own.
    return clean(result.reason or "no reason was given", 300).replace(f"the system {result.system} ", "this system ")


def _best(run: RunResult, column: Column) -> str | None:
    """The best row that is not a ceiling, where its interval overlaps no other such row's."""
    found = [(s.name, find(run, s.name, column)) for s in run.systems if s.role != "ceiling"]
    bounds = {name: r.ci for name, r in found if r is not None and value_of(r) is not None and r.ci is not None}
    if len(bounds) < 2:
        return None
    sign = 1 if column.info.higher_is_better else -1
    best = max(bounds, key=lambda name: sum(bounds[name]) * sign)
    low, high = bounds.pop(best)
    clear = all(low > other[1] if sign > 0 else high < other[0] for other in bounds.values())
    return best if clear else None


def build_table(run: RunResult) -> Table:
    """Systems x metrics in the order ceiling, claim, rival, floor, chance."""
    cols = columns(run)
    best = {column.key: _best(run, column) for column in cols}
    rows = []
    seeds = len(set(run.training_seeds))
    order = list(ROLES)
    systems = sorted(run.systems, key=lambda s: order.index(s.role) if s.role in order else len(order))
    for i, system in enumerate(systems):
        cells = []
        for j, column in enumerate(cols):
            result = find(run, system.name, column)
            value = value_of(result)
            if result is None or value is None:
                reason = _reason(result)
                text = "n/a" if reason.startswith(DOES_NOT_APPLY) else "not run"
                cells.append(Cell(f"n{i}-{j}", column, result, text, reason=reason))
                continue
            has_ci = result.ci is not None and all(map(is_number, result.ci))
            unit = column.info.unit
            cells.append(
                Cell(
                    f"n{i}-{j}",
                    column,
                    result,
                    plain(value, unit, column.places),
                    interval=interval(result.ci, unit, column.places) if has_ci and result.ci else "",
                    mark=_mark(run, system.name, column),
                    best=best[column.key] == system.name,
                )
            )
        size = f"{system.n_examples:,} / {system.n_stimuli:,} / {system.n_subjects or '–'} / {seeds or '–'}"
        rows.append(Row(system.name, system.role, system.description, size, tuple(cells), system.n_stimuli))
    return _noted(cols, rows)


def _noted(cols: Sequence[Column], rows: Sequence[Row]) -> Table:
    """Letters for the reasons, in the order of their cells, and the legend of what is shown."""
    missing = dict.fromkeys(f"{cell.text}: {cell.reason}" for row in rows for cell in row.cells if cell.reason)
    letters = {said: _letter(number) for number, said in enumerate(missing)}
    lettered = [
        replace(row, cells=tuple(replace(c, note=letters.get(f"{c.text}: {c.reason}", "")) for c in row.cells))
        for row in rows
    ]
    return Table(tuple(cols), tuple(lettered), tuple((a, said) for said, a in letters.items()), _legend(cols, rows))


def _letter(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[index % 26]


def _legend(cols: Sequence[Column], rows: Sequence[Row]) -> tuple[str, ...]:
    marks = {cell.mark for row in rows for cell in row.cells}
    text = [
        "Mean over all examples, 95 % confidence interval (bootstrap clustered on stimulus). "
        "Arrows give the better direction. N: clips / stimuli / listeners / training seeds; "
        "a row that hears no EEG is run once per stimulus."
    ]
    if marks & {"*", "**", "***"}:
        text.append(
            "* p < 0.05, ** p < 0.01, *** p < 0.001: the claim beats this row (two-sided paired permutation test; "
            "floors are Holm-adjusted within the metric, rivals are unadjusted)."
        )
    if "†" in marks:
        text.append("† The claim is worse than this row, p < 0.05 in the same test.")
    if any(column.info.per_example for column in cols):
        text.append("No mark on a rival or a floor: p ≥ 0.05, or nothing to compare.")
    if sets := ", ".join(dict.fromkeys(clean(c.info.label, 60) for c in cols if not c.info.per_example)):
        text.append(f"{sets}: of a whole set of clips, not tested and without marks; compare the intervals.")
    if any(cell.best for row in rows for cell in row.cells):
        text.append("Bold: best row that is not a ceiling, where its interval overlaps no other such row's.")
    return (*text, *_no_width(rows))


def _no_width(rows: Sequence[Row]) -> tuple[str, ...]:
    """What an interval from 100 to 100 does not say: the bound of Clopper & Pearson where n of n are alike."""
    alike = [
        row.n_stimuli
        for row in rows
        for cell in row.cells
        if cell.interval and cell.result and cell.result.ci and cell.result.ci[0] == cell.result.ci[1]
    ]
    if not alike:
        return ()
    text, n = "An interval without width: every resample gave the same value", min(alike)
    if n:
        far = 100 * (1 - 0.025 ** (1 / n))
        text += f"; a share of 0 or 100 % over {n} stimuli may truly lie {far:.1f} points off (95 %, Clopper & Pearson)"
    return (f"{text}.",)


def chance(table: Table) -> list[tuple[Column, str]]:
    """The chance row: the value of guessing, or an empty string where it is not defined."""
    known = [(c, c.info.chance) for c in table.columns]
    return [(c, plain(v, c.info.unit, c.places) if v is not None and is_number(v) else "") for c, v in known]


def size_sentence(run: RunResult) -> str:
    """How much the claim rests on."""
    claim = next((s for s in run.systems if s.name == claim_of(run)), None)
    if claim is None:
        return "The run has no row for the claim."
    clips, stimuli = count(claim.n_examples, "clip"), count(claim.n_stimuli, "stimulus", "stimuli")
    splits = run.data.get("splits")
    test = splits.get("test") if isinstance(splits, dict) else None
    whole = test.get("stimuli") if isinstance(test, dict) else None
    if isinstance(whole, int) and whole > claim.n_stimuli:
        stimuli = f"{claim.n_stimuli:,} of {whole:,} test stimuli"
    return f"{clips} of {stimuli} heard by {count(claim.n_subjects, 'listener')}"
