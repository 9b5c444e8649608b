"""From the systems' measurements to results: intervals, comparisons, and the primary endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eeg2speech.evaluation import EvaluationConfig
from eval import statistics
from eval.results import Comparison, Endpoint, MetricInfo, MetricResult, RunResult, SystemInfo

CLAIM = "eeg"


@dataclass(frozen=True)
class Scored:
    """One system after scoring, as read back from the run folder."""

    name: str
    role: str
    description: str
    examples: pd.DataFrame
    measurements: list[dict[str, Any]]

    @property
    def info(self) -> SystemInfo:
        subjects = set(self.examples["subject"]) - {""}
        return SystemInfo(
            name=self.name,
            role=self.role,
            description=self.description,
            n_examples=len(self.examples),
            n_stimuli=self.examples["stimulus_id"].nunique(),
            n_subjects=len(subjects),
        )


def assemble(
    scored: list[Scored], examples: pd.DataFrame, about: dict[str, Any], config: EvaluationConfig, claim: str = CLAIM
) -> RunResult:
    """`about`: the fields of RunResult that no metric decides; `claim`: the row that the others are compared with."""
    infos: dict[str, MetricInfo] = {}
    for measurement in (m for s in scored for m in s.measurements):
        info = MetricInfo(**measurement["metric"])
        # A metric that was not run may not know its chance level; prefer the description that does.
        if info.name not in infos or infos[info.name].chance is None:
            infos[info.name] = info
    per_example = [info for info in infos.values() if info.per_example]
    comparisons = [c for info in per_example for c in compare(info, scored, examples, config, claim)]
    return RunResult(
        systems=[s.info for s in scored],
        metrics=list(infos.values()),
        results=[row for s in scored for row in rows(s, config)],
        comparisons=comparisons,
        endpoint=endpoint(comparisons, infos, scored, examples, config),
        **about,
    )


def rows(scored: Scored, config: EvaluationConfig) -> Iterator[MetricResult]:
    """The cells of a system: over all subjects, then for each."""
    for m in scored.measurements:
        info = MetricInfo(**m["metric"])
        name = info.name
        shared = {"system": scored.name, "metric": name, "embedder": m["embedder"], "signature": m["signature"]}
        ci = m["ci"]
        if m["per_example"] and ci is None and m["value"] is not None:
            ci = _interval(scored.examples, info, config)
        yield MetricResult(**shared, value=m["value"], ci=ci, n=m["n"], reason=m["reason"], curve=m.get("curve", []))
        if not m["per_example"]:
            continue
        for subject, rows in scored.examples.groupby("subject", sort=True):
            kept = rows.dropna(subset=[name, f"{name}_n"])
            total = kept[f"{name}_n"].sum()
            if subject and total:
                value = float(kept[name].sum() / total)
                yield MetricResult(
                    **shared, subject=subject, value=value, ci=_interval(rows, info, config), n=len(kept)
                )


def _interval(rows: pd.DataFrame, info: MetricInfo, config: EvaluationConfig) -> tuple[float, float] | None:
    columns = (info.name, f"{info.name}_n", "stimulus_id", "subject")
    num, den, stimulus, subject = (rows[c].to_numpy() for c in columns)
    has_unit = info.unit not in ("", "%")
    return statistics.ratio_bootstrap(num, den, stimulus, subject, config.n_resamples, config.seed, has_unit)


def compare(
    info: MetricInfo, scored: list[Scored], examples: pd.DataFrame, config: EvaluationConfig, claim: str = CLAIM
) -> list[Comparison]:
    """The claim against every floor and rival in one metric; Holm over the floors."""
    rows = [_comparison(info, s, examples, config, claim) for s in scored if s.role in ("floor", "rival")]
    floors = [i for i, row in enumerate(rows) if row.role == "floor"]
    adjusted = statistics.holm([rows[i].p for i in floors])
    for i, p in zip(floors, adjusted, strict=True):
        rows[i] = rows[i].model_copy(update={"p_holm": p})
    return rows


def _comparison(
    info: MetricInfo, other: Scored, examples: pd.DataFrame, config: EvaluationConfig, claim: str
) -> Comparison:
    blank = Comparison(metric=info.name, system=other.name, role=other.role, gain=None)
    for system in (claim, other.name):
        run = examples.loc[examples["system"] == system]
        if info.name not in run or run[info.name].isna().all():
            return blank.model_copy(update={"reason": f"{info.name} was not run for {system}"})
    pairs = statistics.pair(examples, info.name, other.name, claim)
    gain = statistics.paired_gain(pairs, info.higher_is_better, config.n_resamples, config.seed)
    if gain is None:
        return blank.model_copy(update={"reason": "fewer than two stimuli are paired"})
    return Comparison(
        metric=info.name,
        system=other.name,
        role=other.role,
        gain=gain.value,
        ci=gain.ci,
        p=statistics.paired_permutation(pairs, config.n_resamples, config.seed),
        n_clusters=gain.n_clusters,
        minimum_detectable=statistics.minimum_detectable_effect(gain.standard_error, gain.n_clusters),
    )


def endpoint(
    comparisons: list[Comparison],
    infos: dict[str, MetricInfo],
    scored: list[Scored],
    examples: pd.DataFrame,
    config: EvaluationConfig,
) -> Endpoint:
    """The gain over the best floor, which is the floor over which the gain is smallest."""
    floors = [c for c in comparisons if c.metric == config.primary and c.role == "floor"]
    run = [c for c in floors if c.gain is not None]
    if not run:
        reason = next((c.reason for c in floors if c.reason), f"no floor was scored in {config.primary}")
        return Endpoint(metric=config.primary, reason=reason)
    best = min(run, key=lambda c: c.gain if c.gain is not None else float("inf"))
    ps = [c.p_holm for c in run if c.p_holm is not None]
    share = _span_share(best, infos[config.primary], scored, config)
    return Endpoint(
        metric=config.primary,
        best_floor=best.system,
        gain=best.gain,
        ci=best.ci,
        p=max(ps) if ps else None,
        span_share=share,
        ceiling=config.ceiling if share is not None else None,
    )


def _span_share(best: Comparison, info: MetricInfo, scored: list[Scored], config: EvaluationConfig) -> float | None:
    """(floor - eeg) / (floor - ceiling), where a ceiling was scored and lies beyond the floor."""
    values = {
        s.name: next((m["value"] for m in s.measurements if m["metric"]["name"] == info.name), None) for s in scored
    }
    floor, ceiling = values.get(best.system), values.get(config.ceiling)
    if floor is None or ceiling is None or best.gain is None:
        return None
    span = (ceiling - floor) if info.higher_is_better else (floor - ceiling)
    return best.gain / span if span > 0 else None
