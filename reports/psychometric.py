"""A calibration as a page: every metric against the SNR of the EEG, and how often a claim is false."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results import Calibration, ExperimentSeries, MetricInfo, MetricResult, Rung
from reports.figures import Picture
from reports.formatting import clean, flatten, is_number, label, plain, quantity
from reports.page import render
from reports.svg import PALETTE, figure, inline, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "calibration.json"
LINES: dict[str, tuple[str, Any]] = {"claim": ("o", "-"), "rival": ("s", (0, (4, 2)))}
"""Marker and dash of the rows that hear EEG."""
BANDS = ("floor", "ceiling")


@dataclass(frozen=True)
class Point:
    """A row's value at a place on the axis, and its interval."""

    x: float
    value: float
    ci: tuple[float, float] | None


@dataclass(frozen=True)
class Axis:
    """Where the rungs stand: no response at all is one step to the left of the lowest SNR, past a break."""

    levels: tuple[float, ...]

    @property
    def finite(self) -> list[float]:
        return [level for level in self.levels if math.isfinite(level)]

    def place(self, snr_db: float) -> float:
        if math.isfinite(snr_db):
            return snr_db
        low, high = (min(self.finite), max(self.finite)) if self.finite else (0.0, 0.0)
        return low - max((high - low) / 5, 5.0)

    def draw(self, axes: Axes) -> None:
        names = [f"{level:g}" if math.isfinite(level) else "none" for level in self.levels]
        axes.set_xticks([self.place(level) for level in self.levels], [n.replace("-", "\N{MINUS SIGN}") for n in names])
        axes.set_xlabel("SNR of the EEG (dB)")
        if self.finite and len(self.finite) < len(self.levels):
            axes.axvline((self.place(-math.inf) + min(self.finite)) / 2, color=PALETTE["rule"], lw=0.8, ls=(0, (1, 2)))


def curves(calibration: Calibration) -> list[Picture]:
    """One picture per metric and embedder that any rung has a value in; none below two rungs."""
    if len(calibration.rungs) < 2:
        return []
    found: dict[tuple[str, str | None], None] = {}
    for rung in calibration.rungs:
        found |= dict.fromkeys((r.metric, r.embedder) for r in rung.results if is_number(r.value))
    infos = {info.name: info for info in calibration.metrics}
    return [
        _curve(calibration, infos[metric], embedder, f"psychometric{index}")
        for index, (metric, embedder) in enumerate(found)
        if metric in infos
    ]


def points(rungs: list[Rung], axis: Axis, system: str, metric: str, embedder: str | None) -> list[Point]:
    """By rising SNR; rungs where the system was not scored are left out."""
    found = []
    for rung in sorted(rungs, key=lambda r: r.snr_db):
        cell = _cell(rung, system, metric, embedder)
        if cell is not None and cell.value is not None and is_number(cell.value):
            found.append(Point(axis.place(rung.snr_db), cell.value, cell.ci))
    return found


def _cell(rung: Rung, system: str, metric: str, embedder: str | None) -> MetricResult | None:
    wanted = (system, metric, embedder)
    return next((r for r in rung.results if (r.system, r.metric, r.embedder) == wanted), None)


def _curve(calibration: Calibration, info: MetricInfo, embedder: str | None, name: str) -> Picture:
    k = 100.0 if info.unit == "%" else 1.0
    rungs, axis = calibration.rungs, Axis(tuple(sorted({rung.snr_db for rung in calibration.rungs})))
    roles = {s.name: s.role for rung in rungs for s in rung.systems}
    lines = {s: points(rungs, axis, s, info.name, embedder) for s in roles}
    title = info.label + (f", {embedder}" if embedder else "")
    said, shown = [], []
    with style():
        fig = figure(520, 300)
        axes = fig.subplots()
        for role in BANDS:
            said += _band(axes, role, {s: p for s, p in lines.items() if roles[s] == role and p}, k)
        for system, line in lines.items():
            if roles[system] in LINES and line:
                _line(axes, system, roles[system], line, k)
                shown.append(f"{system} " + ", ".join(plain(p.value, info.unit) for p in line))
        if info.chance is not None and is_number(info.chance):
            axes.axhline(k * info.chance, color=PALETTE["muted"], lw=1, ls=(0, (2, 2)), zorder=0)
            said.append(f"dotted: chance, {quantity(info.chance, info.unit)}")
        axis.draw(axes)
        unit = f" ({info.unit})" if info.unit else ""
        axes.set_ylabel(f"{label(title, 36)}{unit}, {'higher' if info.higher_is_better else 'lower'} is better")
        axes.legend(loc="best")
        caption = f"{title} against the SNR of the simulated EEG, with 95 % intervals; {'; '.join(said)}."
        return Picture(title, inline(fig, name, f"{caption} {'; '.join(shown)}"), caption)


def _line(axes: Axes, system: str, role: str, line: list[Point], k: float) -> None:
    marker, dash = LINES[role]
    x = [p.x for p in line]
    axes.plot(x, [k * p.value for p in line], marker=marker, ls=dash, color=PALETTE[role], label=label(system), ms=6)
    for point in line:
        if point.ci is not None and all(map(is_number, point.ci)):
            axes.plot([point.x] * 2, [k * bound for bound in point.ci], color=PALETTE[role], lw=1.4)


def _band(axes: Axes, role: str, lines: dict[str, list[Point]], k: float) -> list[str]:
    """Shades, rung by rung, from the lowest to the highest row of a role; returns what the caption says of it."""
    if not lines:
        return []
    places = sorted({p.x for line in lines.values() for p in line})
    at = [[k * p.value for line in lines.values() for p in line if p.x == x] for x in places]
    low, high = [min(values) for values in at], [max(values) for values in at]
    axes.fill_between(places, low, high, color=PALETTE[role], alpha=0.22, lw=0, zorder=0, label=f"{role}s")
    # Where the rows of a role agree the band has no height: its edges keep it visible.
    for edge in (low, high):
        axes.plot(places, edge, color=PALETTE[role], lw=0.8, zorder=1)
    return [f"band of {role}s: {', '.join(clean(name, 40) for name in sorted(lines))}"]


def rates(calibration: Calibration) -> Picture | None:
    """How often each series of experiments was significant, with its exact interval, and what was expected."""
    series = calibration.series
    if not series:
        return None
    with style():
        fig = figure(520, 70 + 34 * len(series))
        axes = fig.subplots()
        for y, one in enumerate(series):
            role = "claim" if one.truth == "effect" else "floor"
            axes.plot([100 * bound for bound in one.ci], [y, y], color=PALETTE[role], lw=2)
            axes.plot([100 * one.rate], [y], "o", color=PALETTE[role], ms=7, mec="none")
            axes.plot([100 * one.expected] * 2, [y - 0.35, y + 0.35], color=PALETTE["ink"], lw=1.2)
        axes.set_yticks(range(len(series)), [label(one.name, 32) for one in series])
        axes.set_ylim(len(series) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("experiments in which eeg and shuffled differ (%)")
        caption = (
            f"Share of experiments with p < {calibration.alpha:g} and its 95 % interval (Clopper & Pearson); upright "
            "line: what it should be, the level of the test where there is no signal, the computed power where an "
            "effect was planted."
        )
        return Picture("False and true positives", inline(fig, "rates", caption), caption)


def verdict(one: ExperimentSeries) -> str:
    """What a series says about the instrument, in one sentence."""
    low, high = (f"{100 * bound:.1f}" for bound in one.ci)
    share = (
        f"{one.significant} of {one.n:,} experiments are significant ({100 * one.rate:.1f} %, 95 % CI {low} to {high})"
    )
    expected = f"{100 * one.expected:.1f} %"
    if one.ci[0] <= one.expected <= one.ci[1]:
        return f"{share}; the interval contains the expected {expected}."
    below = one.ci[1] < one.expected
    if one.truth == "null":
        return f"{share}; the interval lies {'below' if below else 'ABOVE'} the level of the test, {expected}" + (
            ": the test is conservative here." if below else ": the test claims too much here."
        )
    return f"{share}; the interval lies {'below' if below else 'above'} the computed power, {expected}."


def load(folder: Path | None) -> Calibration | None:
    """The calibration in a folder, or None where it holds none. Raises UserError where the file is damaged."""
    path = None if folder is None else Path(folder) / FILE
    return Calibration.load(path) if path is not None and path.exists() else None


def page(calibration: Calibration) -> str:
    """calibration.html"""
    return render(
        "calibration.html.j2",
        calibration=calibration,
        rates=rates(calibration),
        curves=curves(calibration),
        verdict=verdict,
        config=flatten(calibration.config),
        environment=flatten(calibration.environment),
    )
