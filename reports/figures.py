"""The figures of a run, each an inline SVG with the caption that a reader needs to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from eval.results import RunResult, StageSummary
from reports.formatting import clean, count, duration, is_number, label, plain
from reports.svg import PALETTE, figure, inline, style
from reports.tables import ROLES, Column, claim_of, columns, find, headline_columns, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {"ceiling": "^", "claim": "o", "rival": "s", "floor": "v"}
"""Roles differ in shape as well as in colour."""

LOSS_STYLES: tuple[tuple[str, Any], ...] = (
    ("claim", "-"),
    ("rival", (0, (4, 2))),
    ("ceiling", (0, (1, 1.5))),
    ("floor", (0, (6, 2, 1, 2))),
)
"""Colour and dash of a stage's losses, in the order they were logged."""


@dataclass(frozen=True)
class Picture:
    title: str
    svg: Markup
    caption: str


def _scale(column: Column) -> float:
    return 100.0 if column.info.unit == "%" else 1.0


def _axis(column: Column) -> str:
    unit = f" ({column.info.unit})" if column.info.unit else ""
    return f"{label(column.title, 36)}{unit}, {column.direction}"


def _ordered(run: RunResult) -> list[tuple[str, str]]:
    """(system, role), ceilings first."""
    order = list(ROLES)
    found = sorted(run.systems, key=lambda s: order.index(s.role) if s.role in order else len(order))
    return [(system.name, system.role) for system in found]


def floor_to_ceiling(run: RunResult, limit: int = 4) -> list[Picture]:
    """One panel per metric: every row with its interval, the span between best floor and ceiling shaded."""
    pictures: list[Picture] = []
    for index, column in enumerate(headline_columns(run)):
        rows = [(name, role, find(run, name, column)) for name, role in _ordered(run)]
        known = [(name, role, r) for name, role, r in rows if r is not None and value_of(r) is not None]
        if len(known) >= 2 and len(pictures) < limit:
            pictures.append(_span_panel(run, column, known, f"span{index}"))
    return pictures


def _span_panel(run: RunResult, column: Column, rows: Sequence[tuple[str, str, Any]], name: str) -> Picture:
    k = _scale(column)
    with style():
        fig = figure(520, 64 + 25 * len(rows))
        axes = fig.subplots()
        caption = f"{column.title}: value and 95 % interval of each row."
        caption += _shade(run, axes, column, rows)
        for y, (_, role, result) in enumerate(rows):
            colour = PALETTE.get(role, PALETTE["ink"])
            if result.ci is not None and all(map(is_number, result.ci)):
                axes.plot([k * bound for bound in result.ci], [y, y], color=colour, lw=2.2 if role == "claim" else 1.4)
            size = 8 if role == "claim" else 6.5
            axes.plot([k * result.value], [y], MARKERS.get(role, "D"), color=colour, ms=size, mec="none")
        if column.info.chance is not None and is_number(column.info.chance):
            axes.axvline(k * column.info.chance, color=PALETTE["muted"], lw=1, ls=(0, (2, 2)), zorder=0)
            caption += f" Dotted: chance, {plain(column.info.chance, column.info.unit)}."
        axes.set_yticks(range(len(rows)), [label(row[0]) for row in rows])
        for tick, (_, role, _) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(PALETTE.get(role, PALETTE["ink"]))
            tick.set_fontweight("bold" if role == "claim" else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(_axis(column))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.04)
        values = "; ".join(f"{row[0]} {plain(row[2].value, column.info.unit)}" for row in rows)
        return Picture(column.title, inline(fig, name, f"{caption} {values}"), caption)


def _shade(run: RunResult, axes: Axes, column: Column, rows: Sequence[tuple[str, str, Any]]) -> str:
    """Shades best floor to ceiling; the endpoint's own choice where this is its metric."""
    floors = [(r.value, name) for name, role, r in rows if role == "floor"]
    if not floors:
        return ""
    best = (max if column.info.higher_is_better else min)(floors)
    values = {name: r.value for name, _, r in rows}
    ceiling = run.endpoint.ceiling or "reconstruction"
    if run.endpoint.metric in (column.info.name, column.key) and run.endpoint.best_floor in values:
        best = (values[run.endpoint.best_floor], run.endpoint.best_floor)
    if ceiling not in values:
        return ""
    k = _scale(column)
    axes.axvspan(k * best[0], k * values[ceiling], color=PALETTE["rule"], alpha=0.35, lw=0, zorder=0)
    text = f" Shaded: from the best floor ({clean(best[1], 40)}) to the ceiling ({clean(ceiling, 40)})"
    return text + "."


def per_subject(run: RunResult) -> Picture | None:
    """Paired dots: one line per listener across the rows that hear EEG, in the first metric that has them."""
    for column in columns(run):
        cells = [r for r in run.results if (r.metric, r.embedder) == (column.info.name, column.embedder)]
        rows = [(r.subject, r.system, r.value) for r in cells if r.subject is not None and value_of(r) is not None]
        frame = pd.DataFrame(rows, columns=["subject", "system", "value"])
        if frame.groupby("system").subject.nunique().gt(1).sum() >= 2:
            return _paired(run, column, frame)
    return None


def _paired(run: RunResult, column: Column, frame: pd.DataFrame) -> Picture:
    import seaborn

    present = [(name, role) for name, role in reversed(_ordered(run)) if name in set(frame.system)]
    names = [name for name, _ in present]
    place = {name: x for x, name in enumerate(names)}
    frame = frame.assign(x=frame.system.map(place), y=frame.value * _scale(column)).dropna(subset="x")
    with style():
        fig = figure(520, 300)
        axes = fig.subplots()
        seaborn.lineplot(
            frame, x="x", y="y", units="subject", estimator=None, color=PALETTE["muted"], alpha=0.45, lw=0.9, ax=axes
        )
        for name, role in present:
            part = frame[frame.system == name]
            colour = PALETTE.get(role, PALETTE["ink"])
            axes.plot(part.x, part.y, MARKERS.get(role, "D"), color=colour, ms=6.5, mec="none")
        axes.set_xticks(range(len(names)), [label(n, 14) for n in names])
        axes.set(xlabel="", ylabel=_axis(column), xlim=(-0.4, len(names) - 0.6))
        n = frame.subject.nunique()
        caption = f"{column.title} of each of {count(n, 'listener')}; a line joins one listener's values."
        return Picture("Listeners", inline(fig, "listeners", caption), caption)


def rank_histogram(run: RunResult, examples: pd.DataFrame, n_candidates: int | None) -> Picture | None:
    """How far down the list the true speech stands, for the claim and the best-known floor."""
    import seaborn

    if "rank" not in examples or not pd.to_numeric(examples["rank"], errors="coerce").notna().any():
        return None
    claim = claim_of(run)
    floors = [name for name, role in _ordered(run) if role == "floor"]
    frame = examples.assign(rank=pd.to_numeric(examples["rank"], errors="coerce")).dropna(subset="rank")
    floor = next((name for name in floors if name in set(frame.system)), None)
    shown = [name for name in (claim, floor) if name is not None and name in set(frame.system)]
    if not shown:
        return None
    worst = math.ceil(frame["rank"].max())
    top = max(worst, n_candidates or 0)
    width = -(-top // 24)
    bins = -(-top // width)
    with style():
        fig = figure(520, 300)
        axes = fig.subplots()
        common: dict[str, Any] = {"x": "rank", "stat": "percent", "ax": axes}
        common |= {"bins": bins, "binrange": (0.5, bins * width + 0.5)}
        for name in shown:
            part = frame[frame.system == name]
            role = {"element": "bars", "alpha": 0.75} if name == claim else {"element": "step", "fill": False}
            colour = PALETTE["claim"] if name == claim else PALETTE["floor"]
            seaborn.histplot(part, color=colour, lw=1.4 if name != claim else 0, label=label(name), **role, **common)
        if n_candidates:
            chance = 100 * width / n_candidates
            axes.axhline(chance, color=PALETTE["muted"], lw=1, ls=(0, (2, 2)), label="chance")
        axes.set(xlabel="rank of the true speech (1 is best)", ylabel="examples (%)")
        axes.legend()
        n = int((frame.system == shown[0]).sum())
        caption = (
            f"Rank of the true speech, {count(n, 'example')} of {clean(shown[0], 40)}"
            + (f", among {n_candidates:,} candidates" if n_candidates else "")
            + f"; the worst rank seen is {worst}."
        )
        if n_candidates:
            caption += " A row that carries nothing about the speech is flat at the dotted line."
        return Picture("Ranks", inline(fig, "ranks", caption), caption)


def error_shares(run: RunResult, examples: pd.DataFrame) -> Picture | None:
    """Substitutions, deletions and insertions per 100 reference words."""
    kinds = ["substitutions", "deletions", "insertions"]
    if "wer_n" not in examples or not set(kinds) <= set(examples.columns):
        return None
    numbers = examples[[*kinds, "wer_n"]].apply(pd.to_numeric, errors="coerce")
    sums = numbers.dropna().groupby(examples.system).sum()
    shares = 100 * sums[kinds].div(sums.wer_n.where(sums.wer_n > 0), axis=0).dropna()
    names = [name for name, _ in _ordered(run) if name in shares.index]
    if not names:
        return None
    looks = zip(kinds, ("claim", "rival", "second"), strict=True)
    with style():
        fig = figure(520, 80 + 25 * len(names))
        axes = fig.subplots()
        left = pd.Series(0.0, index=names)
        for kind, colour in looks:
            part = shares.loc[names, kind]
            axes.barh(range(len(names)), part, left=left, color=PALETTE[colour], height=0.62, lw=0, label=kind)
            left = left + part
        axes.set_yticks(range(len(names)), [label(n) for n in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("errors per 100 reference words")
        axes.tick_params(axis="y", length=0)
        fig.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
        caption = "Word errors by kind, summed over all examples of a row. Together they are the word error rate."
        return Picture("Kinds of word error", inline(fig, "errors", caption), caption)


def training_curve(stage: StageSummary, index: int) -> Picture | None:
    """Losses of a stage over its steps; other logged values stay in its metrics log."""
    import seaborn

    frame = pd.DataFrame(stage.curve)
    if "step" not in frame or frame.empty:
        return None
    values = [c for c in frame.columns if "loss" in c and frame[c].notna().any()][: len(LOSS_STYLES)]
    values = values or [c for c in frame.columns if c not in ("step", "epoch")][:1]
    if not values:
        return None
    with style():
        fig = figure(360, 220)
        axes = fig.subplots()
        for value, (colour, dash) in zip(values, LOSS_STYLES, strict=False):
            part = frame[["step", value]].dropna()
            look = {"color": PALETTE[colour], "ls": dash, "lw": 1.6, "label": label(value)}
            look["marker"] = "o" if len(part) == 1 else None  # a single value makes no line
            seaborn.lineplot(part, x="step", y=value, errorbar=None, ax=axes, **look)
        low, high = frame[values].min().min(), frame[values].max().max()
        if low > 0 and high / low > 20:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the default's powers are markup, and the page shows text as it is
            axes.yaxis.set_minor_formatter("")
        axes.set(xlabel="step", ylabel="", title=label(stage.name, 30))
        axes.legend()
        caption = f"{count(stage.parameters, 'parameter')}, {count(stage.steps, 'step')} in {duration(stage.wall_s)}."
        svg = inline(fig, f"stage{index}", f"Training of {stage.name}. {caption}")
        return Picture(clean(stage.name, 60), svg, caption)


def forests(runs: Sequence[RunResult]) -> list[Picture]:
    """The primary endpoint of the runs that share it: one line each, never an average."""
    metrics = dict.fromkeys(run.endpoint.metric for run in runs)
    groups = [[r for r in runs if r.endpoint.metric == name and is_number(r.endpoint.gain)] for name in metrics]
    return [_forest(group, index) for index, group in enumerate(groups) if len(group) > 1]


def _forest(runs: Sequence[RunResult], index: int) -> Picture:
    name = runs[0].endpoint.metric
    info = next((m for m in runs[0].metrics if m.name == name.split("|")[0]), None)
    unit, title = (info.unit, label(info.label)) if info else ("", label(name))
    k = 100.0 if unit == "%" else 1.0
    with style():
        fig = figure(520, 70 + 28 * len(runs))
        axes = fig.subplots()
        axes.axvline(0, color=PALETTE["muted"], lw=1)
        for y, run in enumerate(runs):
            gain, ci = run.endpoint.gain or 0.0, run.endpoint.ci
            if ci is not None and all(map(is_number, ci)):
                axes.plot([k * bound for bound in ci], [y, y], color=PALETTE["claim"], lw=1.6)
            axes.plot([k * gain], [y], "o", color=PALETTE["claim"], ms=7, mec="none")
        axes.set_yticks(range(len(runs)), [label(run.name, 28) for run in runs])
        axes.set_ylim(len(runs) - 0.4, -0.6)
        axes.set_xlabel(f"{title} gain over the best floor" + (" (points)" if unit == "%" else ""))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        caption = "Gain of EEG over the best floor with its 95 % interval, one line per run; right of zero is better."
        return Picture(f"{title}, run by run", inline(fig, f"forest{index}", caption), caption)
