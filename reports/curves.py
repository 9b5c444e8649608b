"""How a number depends on the size of the set it was taken from: retrieval on candidates, FAD on clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from eval.results import RunResult, SystemInfo
from reports.figures import MARKERS, Picture
from reports.formatting import clean, is_number, label
from reports.svg import PALETTE, figure, inline, style
from reports.tables import candidates, claim_of

DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 3)))
"""Systems of one role share its colour and differ in their dash."""


def _looks(systems: Sequence[SystemInfo]) -> dict[str, dict[str, Any]]:
    """Colour, dash and width of each system's line."""
    seen: dict[str, int] = {}
    looks = {}
    for system in systems:
        seen[system.role] = place = seen.get(system.role, -1) + 1
        looks[system.name] = {
            "color": PALETTE.get(system.role, PALETTE["ink"]),
            "ls": DASHES[place % len(DASHES)],
            "lw": 2 if system.role == "claim" else 1.3,
            "label": label(system.name),
        }
    return looks


def accuracy_among(rank: np.ndarray, n_candidates: int, size: int, k: int = 1) -> float:
    """Top-k rate if each true candidate stood among `size` candidates, the others drawn from those there were.

    Exact: of the rank - 1 better ones fewer than k are among the size - 1 drawn (hypergeometric).
    """
    from scipy.stats import hypergeom

    better = np.clip(np.ceil(rank - 1).astype(int), 0, n_candidates - 1)
    return float(hypergeom.cdf(k - 1, n_candidates - 1, better, size - 1).mean())


def candidate_curve(run: RunResult, examples: pd.DataFrame) -> Picture | None:
    """Top-1 against the number of candidates: what makes rates of different test sets comparable."""
    n = candidates(run)
    if n is None or n < 3 or "rank" not in examples:
        return None
    ranks = pd.to_numeric(examples["rank"], errors="coerce")
    known = {s.name: ranks[examples.system == s.name].dropna().to_numpy() for s in run.systems}
    shown = [s for s in run.systems if len(known[s.name])]
    if claim_of(run) not in [s.name for s in shown]:
        return None
    sizes = np.unique(np.geomspace(2, n, 24).round().astype(int))
    with style():
        fig = figure(520, 300)
        axes = fig.subplots()
        for name, look in _looks(shown).items():
            axes.plot(sizes, [100 * accuracy_among(known[name], n, int(size)) for size in sizes], **look)
        axes.plot(sizes, 100 / sizes, color=PALETTE["muted"], lw=1, ls=(0, (2, 2)), label="chance")
        axes.set_xscale("log")
        ticks = [int(t) for t in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if t < 0.8 * n] + [n]
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()
        axes.set(xlabel="candidates", ylabel="top-1 (%), higher is better", ylim=(0, None))
        fig.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        caption = (
            f"Top-1 expected among fewer candidates, drawn from the {n:,} of this test set (exact, hypergeometric). "
            "A rate means little without its number of candidates."
        )
        return Picture("Candidates", inline(fig, "candidates", caption), caption)


def set_size_curves(run: RunResult) -> list[Picture]:
    """A distance of sets against N, for each embedder under which it was taken at several sizes."""
    found = []
    keys = dict.fromkeys((r.metric, r.embedder) for r in run.results if len(r.curve) > 1)
    for index, (metric, embedder) in enumerate(keys):
        rows = [r for r in run.results if (r.metric, r.embedder, r.subject) == (metric, embedder, None)]
        curves = {r.system: [(n, v) for n, v in r.curve if is_number(v)] for r in rows}
        found.append(_set_size_curve(run, metric, embedder, curves, f"sizes{index}"))
    return found


def _set_size_curve(
    run: RunResult, metric: str, embedder: str | None, curves: dict[str, list[tuple[int, float]]], name: str
) -> Picture:
    info = next(m for m in run.metrics if m.name == metric)
    title = f"{clean(info.label, 40)} against N" + (f" ({clean(embedder, 40)})" if embedder else "")
    with style():
        fig = figure(520, 300)
        axes = fig.subplots()
        # The truth against itself is zero at every size, and no line.
        shown = [s for s in run.systems if len(curves.get(s.name, [])) > 1 and any(v for _, v in curves[s.name])]
        looks = _looks(shown)
        for system in shown:
            marker: dict[str, Any] = {"marker": MARKERS.get(system.role, "D"), "ms": 4.5, "mec": "none"}
            axes.plot(*zip(*curves[system.name], strict=True), **looks[system.name], **marker)
        axes.set(xlabel="clips of one listener", ylabel=label(info.label, 30), ylim=(0, None))
        fig.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        caption = (
            f"{title}: mean over sets of N clips drawn without replacement. It is biased upward, the more the fewer "
            "clips: only values at the same N may be compared, and a curve that still falls has not arrived."
        )
        return Picture(title, inline(fig, name, caption), caption)
