"""Re-computes stored values: from the per-example table the sum of numerators over the sum of denominators, and
what belongs to a whole set of sounds by scoring the stored sounds once more (`python -m eval rescore`)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eeg2speech.errors import UserError
from eval.results import MetricResult, RunResult
from reports.formatting import clean
from reports.tables import load_run

RELATIVE_TOLERANCE = 1e-9

SOUND_TOLERANCE = 0.01
"""Relative, of what is scored again: the truth of a stored run is its 16-bit recording, and other hardware rounds
another way. Distances near zero may differ by `SOUND_STEP` instead."""
SOUND_STEP = 1e-3
MEDIAN_RANK = "median_rank"


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
    if result.metric == MEDIAN_RANK and "rank" in rows:
        ranks = pd.to_numeric(rows["rank"], errors="coerce").dropna()
        return _compared(result, float(ranks.median()) if len(ranks) else None)
    if not per_example:
        return Check(result, "unchecked", detail="a metric of the whole set, not of single examples")
    column = metric_column(result.metric, result.embedder, rows)
    if column is None:
        return Check(result, "mismatch", detail="examples.parquet has no columns for it")
    return _compared(result, recompute(rows, column))


def _compared(result: MetricResult, value: float | None) -> Check:
    if value is None or result.value is None:
        return Check(result, "mismatch", detail="examples.parquet has no examples for it")
    same = math.isclose(value, result.value, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12)
    return Check(result, "match" if same else "mismatch", value)


def score_again(folder: Path, checks: Sequence[Check], cells: Sequence[str]) -> list[Check]:
    """The checks with what `python -m eval rescore` makes of the stored sounds where the table decides nothing.

    Raises UserError with its reason where that command fails.
    """
    named = [argument for cell in cells for argument in ("--cell", cell)]
    command = [sys.executable, "-m", "eval", "rescore", str(folder), *named]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no reason was given"]
        raise UserError(f"the sounds of {folder} cannot be scored again: {clean(said[-1], 400)}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    again = {(row["system"], row["metric"], row["embedder"]): row["value"] for row in rows}
    return [_rescored(c, again.get((c.result.system, c.result.metric, c.result.embedder))) for c in checks]


def _rescored(old: Check, value: float | None) -> Check:
    stored = old.result.value
    if old.outcome != "unchecked" or stored is None or old.result.subject is not None or value is None:
        return old
    same = math.isclose(value, stored, rel_tol=SOUND_TOLERANCE, abs_tol=SOUND_STEP)
    return Check(old.result, "match" if same else "mismatch", value, "from the stored sounds")


def verify(folder: Path, cells: Sequence[str] = (), sounds: bool = False) -> list[Check]:
    """The checks of a run folder, or those of the named cells (`system/metric` or `system/metric|embedder`).

    With `sounds`, cells that single examples do not give are scored again from the stored sounds (minutes).
    Raises UserError where a named cell does not exist.
    """
    run, table = load_run(folder)
    checks = check(run, table)
    if sounds:
        checks = score_again(folder, checks, cells)
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
