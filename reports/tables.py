"""The headline table: one object, written as HTML by the page and as LaTeX, Markdown, CSV and JSON here."""

from __future__ import annotations

import json
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

HEADLINE_COLUMNS = 6
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
        return self.info.label if self.embedder is None else f"{self.info.label} ({self.embedder})"


@dataclass(frozen=True)
class Cell:
    """`text` is the value in the column's unit, or "not run" with the letter of its reason in `note`."""

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


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...] = field(default=())
    """(letter, reason) for every cell that has no value."""
    legend: tuple[str, ...] = field(default=())

    def groups(self) -> list[tuple[str, list[Row]]]:
        return [(key, list(rows)) for key, rows in groupby(self.rows, key=lambda row: row.role)]

    def first(self, number: int) -> Table:
        """The same table with the first columns only, and only the notes that they need."""
        rows = tuple(replace(row, cells=row.cells[:number]) for row in self.rows)
        used = {cell.note for row in rows for cell in row.cells}
        return replace(self, columns=self.columns[:number], rows=rows, notes=tuple(n for n in self.notes if n[0] in used))


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
    return clean(result.reason or "no reason was given", 300)


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
    letters: dict[str, str] = {}
    rows = []
    order = list(ROLES)
    systems = sorted(run.systems, key=lambda s: order.index(s.role) if s.role in order else len(order))
    for i, system in enumerate(systems):
        cells = []
        for j, column in enumerate(cols):
            result = find(run, system.name, column)
            value = value_of(result)
            if result is None or value is None:
                reason = _reason(result)
                note = letters.setdefault(reason, _letter(len(letters)))
                cells.append(Cell(f"n{i}-{j}", column, result, "not run", note=note, reason=reason))
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
        size = f"{system.n_examples:,} / {system.n_stimuli:,} / {system.n_subjects or '–'}"
        rows.append(Row(system.name, system.role, system.description, size, tuple(cells)))
    notes = tuple((letter, reason) for reason, letter in letters.items())
    return Table(tuple(cols), tuple(rows), notes, _legend(rows))


def _letter(index: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[index % 26]


def _legend(rows: Sequence[Row]) -> tuple[str, ...]:
    marks = {cell.mark for row in rows for cell in row.cells}
    text = [
        "Mean over all examples, 95 % confidence interval beneath (bootstrap clustered on stimulus). "
        "Arrows give the better direction. Clips / stimuli / listeners in the last column; "
        "a row that hears no EEG is run once per stimulus."
    ]
    if marks & {"*", "**", "***"}:
        text.append(
            "* p < 0.05, ** p < 0.01, *** p < 0.001: the claim beats this row (two-sided paired permutation test; "
            "floors are Holm-adjusted within the metric, rivals are unadjusted)."
        )
    if "†" in marks:
        text.append("† The claim is worse than this row, p < 0.05 in the same test.")
    if any(cell.best for row in rows for cell in row.cells):
        text.append("Bold: best row that is not a ceiling, where its interval overlaps no other such row's.")
    return tuple(text)


def chance(table: Table) -> list[tuple[Column, str]]:
    """The chance row: the value of guessing, or an empty string where it is not defined."""
    known = [(c, c.info.chance) for c in table.columns]
    return [(c, plain(v, c.info.unit, c.places) if v is not None and is_number(v) else "") for c, v in known]


def results_frame(run: RunResult) -> pd.DataFrame:
    """Every stored number of a run, one per row."""
    role = {system.name: system.role for system in run.systems}
    rows = [
        {
            "run": run.name,
            "study": run.study,
            "simulated": run.simulated,
            "system": r.system,
            "role": role.get(r.system, ""),
            "metric": r.metric,
            "embedder": r.embedder,
            "subject": r.subject,
            "value": r.value,
            "ci_low": r.ci[0] if r.ci else None,
            "ci_high": r.ci[1] if r.ci else None,
            "n": r.n,
            "reason": r.reason,
            "signature": r.signature,
        }
        for r in run.results
    ]
    frame = pd.DataFrame(rows)
    texts = frame.select_dtypes(exclude="number").columns
    frame[texts] = frame[texts].map(lambda v: clean(v) if isinstance(v, str) else v)
    return frame


def _grid(table: Table) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Header and (role, cells) rows as plain text, shared by every export."""
    units = [f", {c.info.unit}" if c.info.unit else "" for c in table.columns]
    header = ["System", *(f"{c.title}{u} {c.arrow}" for c, u in zip(table.columns, units, strict=True))]
    header.append("Clips / stimuli / listeners")
    rows = []
    for row in table.rows:
        texts = [c.text + c.mark + (f" [{c.interval}]" if c.interval else "") for c in row.cells]
        texts = [t if not c.note else f"not run ({c.note})" for t, c in zip(texts, row.cells, strict=True)]
        rows.append((row.role, [clean(row.name, 80), *texts, row.size]))
    rows.append(("chance", ["chance", *(text or "–" for _, text in chance(table)), ""]))
    return [clean(h, 80) for h in header], rows


def to_markdown(table: Table) -> str:
    header, rows = _grid(table)
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *(cells for _, cells in rows)]
    text = ["| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines]
    notes = [f"{letter}: not run: {_markdown(reason)}" for letter, reason in table.notes]
    return "\n\n".join(["\n".join(text), *notes, *map(_markdown, table.legend)]) + "\n"


def _markdown(text: str) -> str:
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split()) if text.strip("-:") else text


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--",
    "\N{MINUS SIGN}": "$-$", "\N{NARROW NO-BREAK SPACE}": r"\,", "†": r"\dag{}", "…": r"\dots{}",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """A booktabs `tabular`; \\usepackage{booktabs} is all it needs."""
    header, rows = _grid(table)
    lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule"]
    lines.append(" & ".join(map(_latex, header)) + r" \\")
    for _, group in groupby(rows, key=lambda row: row[0]):
        lines.append(r"\midrule")
        lines += [" & ".join(map(_latex, cells)) + r" \\" for _, cells in group]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += ["% " + _latex(f"{letter}: not run: {reason}") for letter, reason in table.notes]
    lines += ["% " + _latex(text) for text in table.legend]
    return "\n".join(lines) + "\n"


def to_json(table: Table, run: RunResult) -> str:
    """The headline as data: values in their stored unit (fractions where '%')."""
    rows = [
        {
            "system": clean(row.name),
            "role": row.role,
            "cells": {
                cell.column.key: {
                    "value": value_of(cell.result),
                    "ci": cell.result.ci if cell.result and cell.interval else None,
                    "n": cell.result.n if cell.result else 0,
                    "mark": cell.mark,
                    "reason": cell.reason or None,
                }
                for cell in row.cells
            },
        }
        for row in table.rows
    ]
    known = {c.key: c.info.chance if is_number(c.info.chance) else None for c in table.columns}
    data = {"run": clean(run.name), "study": clean(run.study), "simulated": run.simulated, "rows": rows, "chance": known}
    return json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def to_csv(table: Table) -> str:
    header, rows = _grid(table)
    return pd.DataFrame([["role", *header], *([role, *cells] for role, cells in rows)]).to_csv(
        index=False, header=False, lineterminator="\n"
    )


def size_sentence(run: RunResult) -> str:
    """How much the claim rests on."""
    claim = next((s for s in run.systems if s.name == claim_of(run)), None)
    if claim is None:
        return "The run has no row for the claim."
    parts = [count(claim.n_examples, "clip"), count(claim.n_stimuli, "stimulus").replace("stimuluss", "stimuli")]
    return f"{parts[0]} of {parts[1]} heard by {count(claim.n_subjects, 'listener')}"

