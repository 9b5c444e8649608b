"""The sentence on the first screen, written from the numbers and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from eval.results import Comparison, MetricInfo, RunResult
from reports.formatting import clean, count, difference, interval, is_number, p_value, plain, quantity
from reports.tables import claim_of

ALPHA = 0.05
TWO_WAY = 20
"""Listeners and stimuli from which on the intervals cover both, see `eval.statistics`."""
LONG = {
    "wer": "word error rate",
    "cer": "character error rate",
    "fad": "Fréchet audio distance",
    "kad": "kernel audio distance",
    "mrr": "mean reciprocal rank",
    "mcd": "mel-cepstral distortion",
    "estoi": "extended short-time objective intelligibility",
}
"""By metric, what its label abbreviates."""
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


def full_name(info: MetricInfo) -> str:
    """With what it abbreviates: word error rate (WER)."""
    label = clean(info.label, 60)
    return f"{LONG[info.name]} ({label})" if info.name in LONG else label


def _numbers(run: RunResult, unit: str, verdict: str) -> str:
    """The two values, the interval of their difference, and p: to be better is to beat every floor."""
    end, own = run.endpoint, _own_p(run)
    parts = [f"{CI} of the gain {interval(end.ci, unit)}"] if end.ci and all(map(is_number, end.ci)) else []
    floors = [c for c in run.comparisons if c.metric == end.metric and c.role == "floor" and c.p_holm is not None]
    if verdict == "worse" and own is not None:
        parts.append(f"{p_value(own)}, Holm-adjusted" if len(floors) > 1 else p_value(own))
    elif end.p is not None and is_number(end.p):
        over = f", the largest over {count(len(floors), 'floor')}, Holm-adjusted" if len(floors) > 1 else ""
        parts.append(p_value(end.p) + over)
    return _values(run, unit) + (f" ({'; '.join(parts)})" if parts else "")


def _values(run: RunResult, unit: str) -> str:
    name, _, embedder = run.endpoint.metric.partition("|")
    claim = claim_of(run)
    found = {
        r.system: r.value for r in run.results if (r.metric, r.embedder or "", r.subject) == (name, embedder, None)
    }
    ours, floor = found.get(claim), found.get(run.endpoint.best_floor or "")
    if ours is None or floor is None or not is_number(ours) or not is_number(floor):
        return ""
    return f", {quantity(ours, unit)} against {quantity(floor, unit)}"


def _own_p(run: RunResult) -> float | None:
    """Of the best floor alone; the endpoint's is the largest of all floors."""
    end = run.endpoint
    mine = (c for c in run.comparisons if (c.metric, c.system) == (end.metric, end.best_floor))
    found = next((c.p_holm if c.p_holm is not None else c.p for c in mine), None)
    p = found if found is not None else end.p
    return p if is_number(p) else None


def audit_failure(run: RunResult) -> str:
    """Why nothing here may be believed; empty where the audit found no leak."""
    failed = [clean(finding.check, 60) for finding in run.audit if not finding.passed]
    if failed:
        return f"the leakage audit failed ({'; '.join(failed)})"
    return "" if run.audit else "no leakage audit was made"


def _best_floor(run: RunResult) -> str:
    return f"the best control, {clean(run.endpoint.best_floor, 40)}," if run.endpoint.best_floor else "the best control"


def find_out(run: RunResult) -> Finding:
    """What the primary endpoint says; an audit that failed or was not made voids it."""
    end = run.endpoint
    info = find_metric(run, end.metric)
    name = full_name(info) if info else clean(end.metric, 60)
    unit = info.unit if info else ""
    if not is_number(end.gain) or end.gain is None:
        reason = clean(end.reason or "no reason was given", 300)
        return Finding("missing", f"No finding: the primary endpoint, {name}, was not computed: {reason}.", ())
    size = difference(abs(end.gain), unit)
    verdict = _verdict(run)
    numbers = _numbers(run, unit, verdict)
    who = "the submission" if run.submission else "EEG"
    if why := audit_failure(run):
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
    short = clean(info.label if info else end.metric, 60)
    return Finding(verdict, sentence, _details(run, unit, short, verdict))


def _verdict(run: RunResult) -> str:
    """Only where test and interval agree: better than every floor, or worse than the best one."""
    end, own = run.endpoint, _own_p(run)
    if end.gain is None or end.ci is None:
        return "none"
    if end.gain > 0 and end.ci[0] > 0 and end.p is not None and is_number(end.p) and end.p < ALPHA:
        return "better"
    return "worse" if end.gain < 0 and end.ci[1] < 0 and own is not None and own < ALPHA else "none"


def _span(run: RunResult) -> str:
    end = run.endpoint
    if not is_number(end.span_share) or end.span_share is None or not end.ceiling:
        return ""
    return f", covering {100 * end.span_share:.0f} % of the way to the ceiling ({clean(end.ceiling, 40)})"


def _details(run: RunResult, unit: str, name: str, verdict: str) -> tuple[str, ...]:
    mine = [c for c in run.comparisons if c.metric == run.endpoint.metric]
    rivals = [c for c in mine if c.role == "rival" and is_number(c.gain)]
    lines = [" ".join(filter(None, (_rival(c, unit, name), _elsewhere(run, c)))) for c in rivals]
    floor = next((c for c in mine if c.system == run.endpoint.best_floor), None)
    if verdict == "none" and floor is not None and is_number(floor.minimum_detectable):
        least = difference(floor.minimum_detectable or 0.0, unit)
        lines.append(f"This design finds a gain of {least} with 80 % power; a smaller one may be there unseen.")
    return (*lines, *_by_listener(run), *_hallucination(run), *_overlap(run), *_audited(run), *_looks(run))


def _elsewhere(run: RunResult, rival: Comparison) -> str:
    """What else the claim wins and loses against a rival: significant after Holm's step-down over the metrics."""
    tests = [c for c in run.comparisons if c.system == rival.system and c.metric != rival.metric and is_number(c.p)]
    ranked = sorted(tests, key=lambda c: c.p or 0.0)
    clear = [
        c for k, c in takewhile(lambda item: (item[1].p or 0.0) * (len(tests) - item[0]) < ALPHA, enumerate(ranked))
    ]
    if not tests:
        return ""
    wins = (("ahead of", 1), ("behind", -1))
    said = [f"{how} {clean(rival.system, 40)} in {names}" for how, sign in wins if (names := _labels(run, clear, sign))]
    found = f"it is {', and '.join(said)}" if said else f"none tells it from {clean(rival.system, 40)}"
    return f"Of {count(len(tests), 'other metric')} {found} (p < {ALPHA:g}, Holm-adjusted)."


def _labels(run: RunResult, tests: list[Comparison], sign: int) -> str:
    """The metrics in which the gain has this sign."""
    names = [c.metric for c in tests if (c.gain or 0.0) * sign > 0]
    return "; ".join(clean(info.label if (info := find_metric(run, name)) else name, 60) for name in names)


def _by_listener(run: RunResult) -> tuple[str, ...]:
    """For how many listeners the claim is ahead: a mean over few can be one listener's."""
    name, _, embedder = run.endpoint.metric.partition("|")
    info = find_metric(run, run.endpoint.metric)
    found = {(r.system, r.subject): r.value for r in run.results if (r.metric, r.embedder or "") == (name, embedder)}
    claim = claim_of(run)
    listeners = [subject for system, subject in found if system == claim and subject is not None]
    floor = run.endpoint.best_floor or ""
    pairs = [(found[claim, who], found.get((floor, who), found.get((floor, None)))) for who in listeners]
    told = [(ours, theirs) for ours, theirs in pairs if is_number(ours) and is_number(theirs)]
    if info is None or len(told) < 2:
        return ()
    ahead = sum((ours > theirs) == info.higher_is_better and ours != theirs for ours, theirs in told)  # type: ignore[operator]
    return (f"It is ahead of {clean(floor, 40)} for {ahead} of {len(told)} listeners.",)


def _audited(run: RunResult) -> tuple[str, ...]:
    """What the audit could not look at, and what it saw without failing."""
    unmade = [f"{clean(f.check, 60)} ({clean(f.detail, 200)})" for f in run.audit if f.verdict == "not tested"]
    said = (f"The audit could not check {'; '.join(unmade)}.",) if unmade else ()
    return (*said, *(clean(f.remark, 300) for f in run.audit if f.remark))


def _looks(run: RunResult) -> tuple[str, ...]:
    """How often this test set was scored before, with other settings: p knows nothing of it."""
    before = [e for e in run.provenance.get("evaluated_before") or [] if e.get("signature") != run.signature]
    if not before:
        return ()
    metrics = ", ".join(dict.fromkeys(clean(e.get("primary"), 60) for e in before))
    return (f"The run was evaluated {count(len(before), 'time')} before with other settings (by {metrics}).",)


def _hallucination(run: RunResult) -> tuple[str, ...]:
    """Where the listener hears words in most sounds that hold none, a transcript alone proves nothing."""
    rates = {r.metric: r.value or 0.0 for r in run.results if r.subject is None and is_number(r.value)}
    found = {kind: rates.get(f"hallucination_{kind}", 0.0) for kind in ("noise", "silence")}
    said = " and ".join(f"{quantity(rate, '%')} of clips of {kind}" for kind, rate in found.items() if rate > 0.5)
    return (f"The recogniser behind WER hears words in {said}: words alone are no sign of speech.",) if said else ()


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
    """Of what kind the EEG is: what comes first, and from how many it is where it is from people."""
    if not run.simulated:
        return f"Recorded EEG: {count(_listeners(run), 'listener')}."
    return (
        "Simulated EEG: computed from the speech by a forward model, not recorded from people; it tests the "
        "instrument. Simulated EEG says nothing about real brains."
    )


def _listeners(run: RunResult) -> int:
    return max((system.n_subjects for system in run.systems if system.role == "claim"), default=0)


def seeds_note(run: RunResult) -> str:
    """How many trainings and listeners stand behind the claim, in plain words."""
    n = _listeners(run)
    n_stimuli = max((system.n_stimuli for system in run.systems if system.role == "claim"), default=0)
    who = f" {n} listeners: the intervals do not cover others." if n > 1 and min(n, n_stimuli) < TWO_WAY else ""
    return _trainings(run) + (" One listener: says nothing about others." if n == 1 else who)


def _trainings(run: RunResult) -> str:
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
