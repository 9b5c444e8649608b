"""The same table for a paper, a notebook and a spreadsheet."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import pandas as pd

from eval.results import RunResult, audit_sentence
from reports.finding import simulation_note
from reports.formatting import clean, is_number
from reports.tables import Table, chance, value_of


def results_frame(run: RunResult) -> pd.DataFrame:
    """Every stored number of a run, one per row."""
    role = {system.name: system.role for system in run.systems}
    rows = [
        {
            "run": run.name,
            "study": run.study,
            "simulated": run.simulated,
            "audit": _audit(run),
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
    return pd.DataFrame(rows)


def _audit(run: RunResult) -> str:
    """none, fail or pass: in a column, where no sentence is read."""
    return "none" if not run.audit else "pass" if all(finding.passed for finding in run.audit) else "fail"


def caveats(run: RunResult) -> list[str]:
    """What no table may lose on its way into a paper."""
    return [simulation_note(run), clean(audit_sentence(run.audit), 600)]


def frame_to_csv(frame: pd.DataFrame) -> str:
    texts = frame.select_dtypes(exclude="number").columns
    cleaned = {name: frame[name].map(lambda v: clean(v) if isinstance(v, str) else v) for name in texts}
    return frame.assign(**cleaned).to_csv(index=False, lineterminator="\n")


def _grid(table: Table) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Header and (role, cells) rows as plain text, shared by every export."""
    units = [f", {c.info.unit}" if c.info.unit else "" for c in table.columns]
    header = ["System", *(f"{c.title}{u} {c.arrow}" for c, u in zip(table.columns, units, strict=True))]
    header.append("N: clips / stimuli / listeners / seeds")
    rows = []
    for row in table.rows:
        texts = [c.text + c.mark + (f" [{c.interval}]" if c.interval else "") for c in row.cells]
        texts = [t if not c.note else f"{c.text} ({c.note})" for t, c in zip(texts, row.cells, strict=True)]
        rows.append((row.role, [clean(row.name, 80), *texts, row.size]))
    rows.append(("chance", ["chance", *(text or "–" for _, text in chance(table)), ""]))
    return [clean(h, 80) for h in header], rows


def _notes(table: Table) -> list[str]:
    return [*(f"{letter}: {reason}" for letter, reason in table.notes), *table.legend]


def to_markdown(table: Table, run: RunResult) -> str:
    header, rows = _grid(table)
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *(cells for _, cells in rows)]
    text = ["| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines]
    return "\n\n".join([*map(_markdown, caveats(run)), "\n".join(text), *map(_markdown, _notes(table))]) + "\n"


def _markdown(text: str) -> str:
    for character in "\\`*_[]<>|#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split()) if text.strip("-:") else text


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--",
    "\N{MINUS SIGN}": "$-$", "\N{NARROW NO-BREAK SPACE}": r"\,", "†": r"\dag{}",
    "≥": r"$\geq$", "<": r"$<$", ">": r"$>$", "…": r"\dots{}",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def to_latex(table: Table, run: RunResult) -> str:
    """A booktabs `tabular`; \\usepackage{booktabs} is all it needs. What limits the numbers stands under the rule."""
    header, rows = _grid(table)
    lines = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule"]
    lines.append(" & ".join(map(_latex, header)) + r" \\")
    for _, group in groupby(rows, key=lambda row: row[0]):
        lines.append(r"\midrule")
        lines += [" & ".join(map(_latex, cells)) + r" \\" for _, cells in group]
    lines.append(r"\bottomrule")
    row = rf"\multicolumn{{{len(header)}}}{{p{{\linewidth}}}}{{\footnotesize "
    lines += [row + _latex(text) + r"} \\" for text in (*caveats(run), *_notes(table))]
    lines.append(r"\end{tabular}")
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
    data: dict[str, Any] = {"run": clean(run.name), "study": clean(run.study), "simulated": run.simulated}
    data |= {"audit": _audit(run), "caveats": caveats(run), "notes": _notes(table), "rows": rows, "chance": known}
    return json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def to_csv(table: Table, run: RunResult) -> str:
    """Every row says what it is of, and the notes that it needs: a row may be copied alone."""
    header, rows = _grid(table)
    about = ["simulated" if run.simulated else "recorded", _audit(run)]
    missing = [dict.fromkeys(f"{c.note}: {c.text}: {c.reason}" for c in row.cells if c.note) for row in table.rows]
    notes = [*map("; ".join, missing), ""]  # the row of chance has none
    lines = [[*about, role, *cells, note] for (role, cells), note in zip(rows, notes, strict=True)]
    return pd.DataFrame([["EEG", "audit", "role", *header, "notes"], *lines]).to_csv(
        index=False, header=False, lineterminator="\n"
    )
