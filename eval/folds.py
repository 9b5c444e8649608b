"""A study with little speech, split by time: every stretch of it is test in one fold, and the folds are pooled.

Each fold is a run of its own, trained on what the others leave. What is pooled are examples, not values: hits over
trials of all folds together, with intervals and comparisons as of any run. Neighbouring test windows may overlap, and
folds share training windows, so beside the interval over stimuli stands the one over folds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eeg2speech import config as configs
from eeg2speech.cli import as_typed
from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest, write_atomically
from eeg2speech.runs import RunFolder
from eval import runner
from eval.ablation import over_seeds
from eval.assembly import Scored, assemble
from eval.results import AuditFinding, MetricInfo, MetricResult, RunResult

FILE = "folds.csv"


def folds(path: Path, overrides: Sequence[str], name: str | None, runs: Path) -> Path:
    """Runs every fold where that is not done, pools them into `runs/<name>/`, and returns its `results.json`.

    Raises UserError where the config has no `splits.n_folds`, or names one fold.
    """
    whole = configs.load(path, overrides, name)
    n_folds = whole.splits.n_folds
    if n_folds is None:
        raise UserError(f"{path}: has no splits.n_folds: give splits: {{by: time, n_folds: 5}}")
    if any(override.startswith("splits.fold=") for override in overrides):
        raise UserError(
            "--set splits.fold: all folds are run here; leave it out, or run the one by `python -m eval run`"
        )
    RunFolder(runs / whole.name).require_own()
    done, typed = [], as_typed("python -m eval folds", path, overrides, name)
    for fold in range(n_folds):
        experiment = configs.load(path, [*overrides, f"splits.fold={fold}"], f"{whole.name}-fold{fold}")
        folder = RunFolder(runs / experiment.name)
        runner.run(experiment, folder, typed)
        done.append((RunResult.load(folder.path), pd.read_parquet(folder.path / runner.EXAMPLES)))
    result, examples = pool(whole, [run for run, _ in done], [table for _, table in done])
    place = runs / whole.name
    place.mkdir(parents=True, exist_ok=True)
    with atomic_path(place / runner.EXAMPLES) as partial:
        examples.to_parquet(partial)
    table = tabulate(result, [run for run, _ in done])
    write_atomically(place / FILE, table.to_csv(index=False))
    print(table.drop(columns=["per_fold"]).round(4).to_string(index=False, na_rep="-"))
    saved = result.save(place)
    print(f"results are in {saved}")
    return saved


def pool(
    whole: ExperimentConfig, runs: Sequence[RunResult], examples: Sequence[pd.DataFrame]
) -> tuple[RunResult, pd.DataFrame]:
    """The result of all folds together, and its examples. Raises UserError where runs differ in more than the fold."""
    _require_one_experiment(runs)
    together = pd.concat(examples, ignore_index=True)
    scored = [
        Scored(
            name=system.name,
            role=system.role,
            description=system.description,
            examples=together[together["system"] == system.name].reset_index(drop=True),
            measurements=[m for row in runs[0].results if (row.system, row.subject) == (system.name, None)
                          if (m := _measurement(row, runs)) is not None],
        )
        for system in runs[0].systems
    ]  # fmt: skip
    return assemble(scored, together, _about(whole, runs), whole.evaluation), together


def tabulate(result: RunResult, runs: Sequence[RunResult]) -> pd.DataFrame:
    """A row per system and pooled metric: its value, the claim's gain over it, and the interval over folds.

    `ci`: 95 %, bootstrap over stimuli; `folds_ci`: Student's t over the folds' own values.
    """
    gains = {(c.metric, c.system): c for c in result.comparisons}
    rows = []
    for row in result.results:
        if row.subject is not None or row.value is None:
            continue
        per_fold = [own.value if (own := _cell(run, row)) is not None else None for run in runs]
        mean, interval = over_seeds(per_fold)
        gain = gains.get((row.metric, row.system))
        rows.append(
            {
                "system": row.system,
                "metric": row.metric,
                "value": row.value,
                "ci_low": row.ci[0] if row.ci else None,
                "ci_high": row.ci[1] if row.ci else None,
                "folds_mean": mean,
                "folds_ci_low": interval[0],
                "folds_ci_high": interval[1],
                "n": row.n,
                "eeg_gain": gain.gain if gain else None,
                "p_holm": gain.p_holm if gain else None,
                "per_fold": json.dumps(per_fold),
            }
        )
    return pd.DataFrame(rows)


def _require_one_experiment(runs: Sequence[RunResult]) -> None:
    def without_fold(run: RunResult) -> dict[str, Any]:
        return {key: value for key, value in run.config.items() if key != "name"} | {
            "splits": {key: value for key, value in run.config["splits"].items() if key != "fold"}
        }

    odd = [run.name for run in runs if without_fold(run) != without_fold(runs[0])]
    if odd:
        raise UserError(f"{odd[0]}: was run with another config than {runs[0].name}; remove its folder, run again")
    tested = [run.config["splits"]["fold"] for run in runs]
    if len(set(tested)) < len(tested):
        raise UserError(f"folds {tested}: one is there twice, and its examples would count twice")


def _cell(run: RunResult, like: MetricResult) -> MetricResult | None:
    key = (like.system, like.metric, like.embedder, like.subject)
    return next((row for row in run.results if (row.system, row.metric, row.embedder, row.subject) == key), None)


def _measurement(row: MetricResult, runs: Sequence[RunResult]) -> dict[str, Any] | None:
    """What `eval.assembly` takes of a metric: hits over trials of all folds, or the reason why there is no number."""
    infos = [next(info for info in run.metrics if info.name == row.metric) for run in runs]
    cells = [_cell(run, row) for run in runs]
    blank: dict[str, Any] = {
        "metric": _described(infos, cells).model_dump(mode="json"), "embedder": row.embedder, "value": None,
        "ci": None, "n": 0, "per_example": False, "reason": None, "signature": row.signature, "curve": [],
    }  # fmt: skip
    for fold, cell in enumerate(cells):
        if cell is None or cell.value is None:
            reason = "it is not there" if cell is None else cell.reason
            return blank | {"reason": reason if fold == 0 else f"fold {fold}: {reason}"}
    if not infos[0].per_example:
        return blank | {"reason": "is no ratio of sums over examples, which folds could be pooled by"}
    n = [cell.n for cell in cells if cell is not None]
    values = [cell.value or 0.0 for cell in cells if cell is not None]
    pooled = math.fsum(v * k for v, k in zip(values, n, strict=True)) / sum(n)
    return blank | {"value": pooled, "n": sum(n), "per_example": True}


def _described(infos: Sequence[MetricInfo], cells: Sequence[MetricResult | None]) -> MetricInfo:
    """With the chance of all folds, each weighted by its trials."""
    chances, n = [info.chance for info in infos], [cell.n if cell else 0 for cell in cells]
    if any(chance is None for chance in chances) or not sum(n):
        return infos[0]
    mean = math.fsum((chance or 0.0) * k for chance, k in zip(chances, n, strict=True)) / sum(n)
    reason = infos[0].chance_reason if len(set(chances)) == 1 else "mean over folds, whose candidates differ in number"
    return infos[0].model_copy(update={"chance": mean, "chance_reason": reason})


def _about(whole: ExperimentConfig, runs: Sequence[RunResult]) -> dict[str, Any]:
    """The fields of RunResult that no metric decides."""
    first = runs[0]
    splits = {f"fold {k}, {s}": part for k, run in enumerate(runs) for s, part in run.data.get("splits", {}).items()}
    audit = []
    for number, finding in enumerate(first.audit):
        failed = [f"fold {k}: {r.audit[number].detail}" for k, r in enumerate(runs) if not r.audit[number].passed]
        detail = failed[0] if failed else f"{finding.detail} (fold 0; the others alike)"
        tested = all(run.audit[number].tested for run in runs)
        audit.append(AuditFinding(check=finding.check, passed=not failed, detail=detail, tested=tested))
    return {
        "name": whole.name,
        "study": first.study,
        "simulated": first.simulated,
        "training_seeds": first.training_seeds,
        "sampling_seed": first.sampling_seed,
        "signature": digest([run.signature for run in runs]),
        "config": whole.model_dump(mode="json"),
        "data": first.data | {"splits": splits},
        "audit": audit,
        "stages": [
            stage.model_copy(update={"name": f"{stage.name}, fold {k}"})
            for k, run in enumerate(runs)
            for stage in run.stages
        ],
        "environment": first.environment,
        "provenance": {
            "command": first.provenance["command"],
            "folds": {run.name: run.signature for run in runs},
        },
    }
