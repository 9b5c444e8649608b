"""The sentence on the first screen, written from the numbers and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results import Comparison, MetricInfo, RunResult
from reports.formatting import clean, count, difference, interval, is_number, p_value, plain

ALPHA = 0.05
CI = "95\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}CI"


@dataclass(frozen=True)
class Finding:
    """`verdict`: better, worse, none (no evidence), void (cannot be believed) or missing."""

    verdict: str
    sentence: str
    details: tuple[str, ...]


def find_metric(run: RunResult, name: str) -> MetricInfo | None:
    """The definition of a metric named plainly or as metric|embedder."""
    names = (name, name.split("|")[0])
    return next((info for wanted in names for info in run.metrics if info.name == wanted), None)


def _numbers(run: RunResult, unit: str) -> str:
    end = run.endpoint
    parts = [f"{CI} {interval(end.ci, unit)}"] if end.ci and all(map(is_number, end.ci)) else []
    if is_number(end.p):
        floors = [c for c in run.comparisons if c.metric == end.metric and c.role == "floor" and c.p_holm is not None]
        over = f", Holm-adjusted over {count(len(floors), 'floor')}" if len(floors) > 1 else ""
        parts.append(p_value(end.p or 0.0) + over)
    return f" ({'; '.join(parts)})" if parts else ""


def _best_floor(run: RunResult) -> str:
    return f"the best control, {clean(run.endpoint.best_floor, 40)}," if run.endpoint.best_floor else "the best control"


def find_out(run: RunResult) -> Finding:
    """What the primary endpoint says; an audit that failed or was not made voids it."""
    end = run.endpoint
    info = find_metric(run, end.metric)
    name = clean(info.label if info else end.metric, 60)
    unit = info.unit if info else ""
    failed = [clean(finding.check, 60) for finding in run.audit if not finding.passed]
    if not is_number(end.gain) or end.gain is None:
        reason = clean(end.reason or "no reason was given", 300)
        return Finding("missing", f"No finding: the primary endpoint, {name}, was not computed: {reason}.", ())
    size = difference(abs(end.gain), unit)
    numbers = _numbers(run, unit)
    verdict = _verdict(run)
    who = "the submission" if run.submission else "EEG"
    if failed or not run.audit:
        why = f"the leakage audit failed ({'; '.join(failed)})" if failed else "no leakage audit was made"
        face = f"Taken at face value, {who} and {_best_floor(run)} differ in {name} by {size}{numbers}."
        return Finding("void", f"No finding can be drawn: {why}.", (face,))
    if verdict == "better":
        sentence = f"{who[0].upper()}{who[1:]} beats {_best_floor(run)} by {size} in {name}{numbers}{_span(run)}."
    elif verdict == "worse":
        sentence = f"{who[0].upper()}{who[1:]} is worse than {_best_floor(run)} by {size} in {name}{numbers}."
    else:
        sign = "ahead of" if end.gain > 0 else "behind"
        floor = _best_floor(run).rstrip(",")
        sentence = f"No evidence that the EEG was used: in {name} it is {size} {sign} {floor}{numbers}."
    return Finding(verdict, sentence, _details(run, unit, name, verdict))


def _verdict(run: RunResult) -> str:
    """Better or worse only where test and interval agree."""
    end = run.endpoint
    if end.gain is None or end.p is None or end.ci is None or not is_number(end.p) or end.p >= ALPHA:
        return "none"
    if end.gain > 0 and end.ci[0] > 0:
        return "better"
    return "worse" if end.gain < 0 and end.ci[1] < 0 else "none"


def _span(run: RunResult) -> str:
    end = run.endpoint
    if not is_number(end.span_share) or end.span_share is None or not end.ceiling:
        return ""
    return f", covering {100 * end.span_share:.0f} % of the way to the ceiling ({clean(end.ceiling, 40)})"


def _details(run: RunResult, unit: str, name: str, verdict: str) -> tuple[str, ...]:
    mine = [c for c in run.comparisons if c.metric == run.endpoint.metric]
    lines = [_rival(c, unit, name) for c in mine if c.role == "rival" and is_number(c.gain)]
    floor = next((c for c in mine if c.system == run.endpoint.best_floor), None)
    if verdict == "none" and floor is not None and is_number(floor.minimum_detectable):
        least = difference(floor.minimum_detectable or 0.0, unit)
        lines.append(f"This design finds a gain of {least} with 80 % power; a smaller one may be there unseen.")
    return (*lines, *_overlap(run))


def _overlap(run: RunResult) -> tuple[str, ...]:
    """What clustering on stimulus does not know: that windows of continuous speech may share their sound."""
    windows = run.config.get("windows") or {}
    length, stride = windows.get("length_s") or 0.0, windows.get("test_stride_s")
    every = f", one every {stride:g} s" if stride and stride < length else ""
    if not every and windows.get("placement") != "brainmagick":
        return ()
    return (
        f"Test windows overlap (each lasts {length:g} s{every}) and are not independent: intervals and p over stimuli "
        "are too sure.",
    )


def _rival(c: Comparison, unit: str, name: str) -> str:
    rival, gain = clean(c.system, 40), c.gain or 0.0
    numbers = f"{plain(gain, unit)}{' points' if unit == '%' else ''}"
    numbers += f", {CI} {interval(c.ci, unit)}" if c.ci else ""
    numbers += f", {p_value(c.p)}" if c.p is not None and is_number(c.p) else ""
    if c.p is None or c.p >= ALPHA:
        return f"Against the rival row {rival} it is not separable in {name} (gain {numbers})."
    return f"{'It beats' if gain > 0 else 'It loses to'} the rival row {rival} in {name} (gain {numbers})."


def simulation_note(run: RunResult) -> str:
    if not run.simulated:
        return ""
    return (
        "It was computed from the speech by a forward model, not recorded from people, and tests the instrument. "
        "Simulated EEG says nothing about real brains."
    )


def seeds_note(run: RunResult) -> str:
    """How many trainings stand behind the claim, in plain words."""
    if run.submission:
        return "What the submission was trained on, and how often, is not known here: the audit is of the split."
    seeds = run.training_seeds
    named = ", ".join(map(str, seeds[:10]))
    if not seeds:
        return "No training seed is recorded."
    if len(seeds) == 1:
        return f"One training seed ({named}): the intervals cover the choice of stimuli, not a second training."
    few = "" if len(seeds) >= 3 else " Fewer than three: read the numbers as provisional."
    return f"{len(seeds)} training seeds ({named}).{few}"
