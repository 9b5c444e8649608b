"""Re-computes stored values from the per-example table: the sum of numerators over the sum of denominators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eeg2speech.errors import UserError
from eval.results import MetricResult, RunResult
from reports.formatting import clean
from reports.tables import load_run

RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Check:
    """One cell: stored against re-computed; `outcome` is match, mismatch or unchecked."""

    result: MetricResult
    outcome: str
    recomputed: float | None = None
    detail: str = ""

    @property
    def cell(self) -> str:
        r = self.result
        metric = r.metric if r.embedder is None else f"{r.metric}|{r.embedder}"
        return clean(f"{r.system}/{metric}" + (f" [{r.subject}]" if r.subject is not None else ""), 120)


def metric_column(name: str, embedder: str | None, table: pd.DataFrame) -> str | None:
    """The numerator column of a metric under an embedder, or None where the table lacks it."""
    names = [name] if embedder is None else [f"{name}|{embedder}", name]
    return next((n for n in names if {n, f"{n}_n"} <= set(table.columns)), None)


def recompute(table: pd.DataFrame, column: str) -> float | None:
    """Sum over sum of the rows where both are finite; None where nothing is left to divide by."""
    pairs = table[[column, f"{column}_n"]].apply(pd.to_numeric, errors="coerce").astype(float)
    pairs = pairs[pairs.map(math.isfinite).all(axis=1)]
    bottom = math.fsum(pairs[f"{column}_n"])
    return math.fsum(pairs[column]) / bottom if bottom else None


def check(run: RunResult, table: pd.DataFrame) -> list[Check]:
    """Every stored result, in order. A value that ought to be in the table and is not is a mismatch."""
    per_example = {info.name: info.per_example for info in run.metrics}
    groups: dict[tuple[str, str | None], pd.DataFrame] = {}
    for system, rows in table.groupby("system", sort=False):
        groups[str(system), None] = rows
        for subject, mine in rows.groupby("subject", sort=False):
            groups[str(system), str(subject)] = mine
    empty = table.iloc[:0]
    return [_one(r, per_example.get(r.metric, False), groups.get((r.system, r.subject), empty)) for r in run.results]


def _one(result: MetricResult, per_example: bool, rows: pd.DataFrame) -> Check:
    if result.value is None:
        return Check(result, "unchecked", detail=f"not run: {clean(result.reason or 'no reason was given', 200)}")
    if not per_example:
        return Check(result, "unchecked", detail="a metric of the whole set, not of single examples")
    column = metric_column(result.metric, result.embedder, rows)
    if column is None:
        return Check(result, "mismatch", detail="examples.parquet has no columns for it")
    value = recompute(rows, column)
    if value is None:
        return Check(result, "mismatch", detail="examples.parquet has no examples for it")
    same = math.isclose(value, result.value, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12)
    return Check(result, "match" if same else "mismatch", value)


def verify(folder: Path, cells: Sequence[str] = ()) -> list[Check]:
    """The checks of a run folder, or those of the named cells (`system/metric` or `system/metric|embedder`).

    Raises UserError where a named cell does not exist.
    """
    run, table = load_run(folder)
    checks = check(run, table)
    if not cells:
        return checks
    chosen = []
    for cell in cells:
        system, _, metric = cell.partition("/")
        mine = [c for c in checks if c.result.system == system]
        wanted = [c for c in mine if metric in (c.result.metric, f"{c.result.metric}|{c.result.embedder}")]
        if not wanted:
            path = folder / "results.json"
            raise UserError(f"--cell {cell}: {path} has no such cell; write system/metric, as in eeg/wer")
        chosen += wanted
    return chosen
