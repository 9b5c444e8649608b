"""What a sweep of the sampler showed: quality, and how much of it is the brain's, against one setting at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eeg2speech.errors import UserError
from eval.results import MetricInfo, MetricResult, RunResult, SweepPoint, SweepResult
from reports.figures import Picture
from reports.formatting import clean, count, is_number, label
from reports.svg import PALETTE, figure, inline, style

LOOKS: tuple[dict[str, Any], ...] = (
    {"color": PALETTE["claim"], "ls": "-", "marker": "o"},
    {"color": PALETTE["rival"], "ls": (0, (4, 2)), "marker": "s"},
    {"color": PALETTE["ceiling"], "ls": (0, (1, 1.5)), "marker": "^"},
    {"color": PALETTE["second"], "ls": (0, (6, 2, 1, 2)), "marker": "D"},
)
"""Of the lines of a figure, which differ in colour, dash and marker."""
FLOOR = {"color": PALETTE["floor"], "ls": (0, (2, 2)), "marker": "v"}


def pictures(folder: Path, run: RunResult) -> list[Picture]:
    """The figures of the run's `sweep.json`; none where nothing was swept.

    Raises UserError where the sweep is of other weights than the results, which must not stand on one page.
    """
    sweep = SweepResult.load(folder)
    if sweep is None:
        return []
    if sweep.weights_sha256 != run.provenance.get("weights_sha256", sweep.weights_sha256):
        raise UserError(f"{folder / 'sweep.json'} is of other weights than results.json: sweep again or delete it")
    drawn = [against_steps(sweep, info) for info in shown_metrics(sweep)]
    drawn += [against_temperature(sweep, info) for info in shown_metrics(sweep)]
    drawn += [against_guidance(sweep, info) for info in shown_metrics(sweep) if info.per_example]
    return [picture for picture in drawn if picture is not None]


def shown_metrics(sweep: SweepResult, limit: int = 2) -> list[MetricInfo]:
    """The primary metric first, then others that sampling changes at all."""
    ordered = sorted(sweep.metrics, key=lambda info: info.name != sweep.primary)
    return [info for info in ordered if len({_value(p, "eeg", info) for p in sweep.points} - {None}) > 1][:limit]


def _cell(results: Sequence[MetricResult], system: str, info: MetricInfo) -> MetricResult | None:
    return next((r for r in results if (r.system, r.metric) == (system, info.name) and is_number(r.value)), None)


def _value(point: SweepPoint, system: str, info: MetricInfo) -> float | None:
    cell = _cell(point.results, system, info)
    return None if cell is None else cell.value


def against_steps(sweep: SweepResult, info: MetricInfo) -> Picture | None:
    """The claim and its floor over network calls, a line for each scheduler, all else as in the config."""
    points = _alike(sweep, "guidance_scale", "guidance_rescale", "temperature")
    lines = _lines(points, lambda p: p.scheduler, lambda p: p.network_calls)
    return _quality(sweep, info, "steps", "forward passes of the denoiser for one sample", lines, _calls, log=True)


def against_temperature(sweep: SweepResult, info: MetricInfo) -> Picture | None:
    """The claim and its floor over the size of the first noise, all else as in the config."""
    points = _alike(sweep, "scheduler", "num_inference_steps", "guidance_scale", "guidance_rescale")
    lines = _lines(points, lambda p: p.scheduler, lambda p: p.temperature)
    return _quality(sweep, info, "temperature", "size of the noise that sampling starts from", lines, _temperature)


def _calls(point: SweepPoint) -> float:
    return point.network_calls


def _temperature(point: SweepPoint) -> float:
    return point.temperature


def _alike(sweep: SweepResult, *names: str) -> list[SweepPoint]:
    """The points that have these as the config has them."""
    return [p for p in sweep.points if all(getattr(p, name) == getattr(sweep.points[0], name) for name in names)]


def _sample(sweep: SweepResult) -> str:
    """Whose stimuli, and how much training, a figure rests on."""
    kind = {"valid": "validation"}.get(sweep.split, sweep.split)
    return f"{count(sweep.n_stimuli, f'{kind} stimulus', f'{kind} stimuli')}, one training."


def _quality(
    sweep: SweepResult,
    info: MetricInfo,
    against: str,
    xlabel: str,
    lines: dict[str, list[SweepPoint]],
    x: Callable[[SweepPoint], float],
    *,
    log: bool = False,
) -> Picture | None:
    if not lines:
        return None
    k = 100.0 if info.unit == "%" else 1.0
    with style():
        fig = figure(520, 300)
        axes = fig.subplots()
        for (name, group), look in zip(lines.items(), LOOKS, strict=False):
            _draw(axes, group, x, lambda p: _cell(p.results, "eeg", info), k, name, look)
            floor = FLOOR if look is LOOKS[0] else {**FLOOR, "marker": look["marker"]}
            text = "shuffled EEG" if look is LOOKS[0] else None
            _draw(axes, group, x, lambda p: _cell(p.results, "shuffled", info), k, text, floor)
        caption = f"{label(info.label)} of eeg and of shuffled EEG against {against}, with 95 % intervals."
        ceiling = _cell(sweep.ceiling_results, sweep.ceiling, info)
        if ceiling is not None and ceiling.value is not None:
            axes.axhline(k * ceiling.value, color=PALETTE["muted"], lw=1, ls=(0, (1, 1)), zorder=0)
            caption += f" Dotted: {clean(sweep.ceiling, 40)}, which no way of sampling can pass."
        if log:
            axes.set_xscale("log")
        ticks = sorted({x(p) for group in lines.values() for p in group})
        axes.set_xticks(ticks, [f"{n:g}" for n in ticks])
        axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=_axis(info))
        axes.legend()
        caption += f" {_sample(sweep)}"
        title = f"{clean(info.label, 60)} against {against}"
        return Picture(title, inline(fig, f"sweep-{against}-{info.name}", caption), caption)


def against_guidance(sweep: SweepResult, info: MetricInfo) -> Picture | None:
    """The gain of eeg over shuffled EEG at each guidance, a line for each rescale, at the config's steps."""
    points = _alike(sweep, "scheduler", "num_inference_steps", "temperature")
    lines = _lines(points, lambda p: f"rescale {p.guidance_rescale:g}", lambda p: p.guidance_scale)
    if not lines:
        return None
    k = 100.0 if info.unit == "%" else 1.0
    with style():
        fig = figure(520, 280)
        axes = fig.subplots()
        axes.axhline(0, color=PALETTE["muted"], lw=1)
        for (name, group), look in zip(lines.items(), LOOKS, strict=False):
            _draw(axes, group, lambda p: p.guidance_scale, lambda p: _gain(p, info), k, name, look)
        scales = sorted({p.guidance_scale for group in lines.values() for p in group})
        axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
        unit = " (points)" if info.unit == "%" else ""
        axes.set(xlabel="guidance scale (1: none)", ylabel=f"gain over shuffled EEG{unit}")
        if len(lines) > 1:
            axes.legend()
        caption = (
            f"How much of {label(info.label)} is the brain's: gain of eeg over shuffled EEG, paired, with 95 % "
            f"intervals, at each guidance. Above zero the EEG is used. {_sample(sweep)}"
        )
        title = f"Guidance and dependence on the EEG, {clean(info.label, 60)}"
        return Picture(title, inline(fig, f"sweep-guidance-{info.name}", caption), caption)


def _gain(point: SweepPoint, info: MetricInfo) -> MetricResult | None:
    for c in point.comparisons:
        if (c.metric, c.system) == (info.name, "shuffled") and is_number(c.gain):
            return MetricResult(system="eeg", metric=info.name, value=c.gain, ci=c.ci)
    return None


def _lines(
    points: Sequence[SweepPoint], name: Callable[[SweepPoint], str], x: Callable[[SweepPoint], float]
) -> dict[str, list[SweepPoint]]:
    """Name -> points in order, of the lines that have at least two."""
    groups: dict[str, list[SweepPoint]] = {}
    for point in sorted(points, key=x):
        groups.setdefault(name(point), []).append(point)
    return {key: group for key, group in groups.items() if len({x(p) for p in group}) > 1}


def _draw(
    axes: Any,
    points: Sequence[SweepPoint],
    x: Callable[[SweepPoint], float],
    cell: Callable[[SweepPoint], MetricResult | None],
    k: float,
    name: str | None,
    look: dict[str, Any],
) -> None:
    known = [(x(p), found) for p in points if (found := cell(p)) is not None and found.value is not None]
    if not known:
        return
    axes.plot(
        [at for at, _ in known], [k * (c.value or 0.0) for _, c in known], lw=1.6, ms=6, mec="none", label=name, **look
    )
    for at, c in known:
        if c.ci is not None and all(map(is_number, c.ci)):
            axes.plot([at, at], [k * bound for bound in c.ci], color=look["color"], lw=1.2)


def _axis(info: MetricInfo) -> str:
    unit = f" ({info.unit})" if info.unit else ""
    return f"{label(info.label, 30)}{unit}, {'higher' if info.higher_is_better else 'lower'} is better"
