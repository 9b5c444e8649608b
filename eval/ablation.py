"""Named changes of one config, each run with several seeds, in one table that never averages what differs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import Field, ValidationError, field_validator

from eeg2speech import config as configs
from eeg2speech.cli import as_typed
from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.files import digest, write_atomically
from eeg2speech.runs import RunFolder, read_done
from eeg2speech.schema import Config
from eval import runner
from eval.results import RunResult

SHARED_STAGES = ("autoencoder", "latents", "contrastive", "regression")
BEST_FLOOR = "best floor"
KEYS = ("system", "against", "metric", "embedder")
"""What tells a set's rows apart. Where `against` names a system, the value is the gain over it."""


class AblationConfig(Config):
    """An ablation study, as its YAML says it."""

    base: Path = Field(description="the config that the sets change; relative to the YAML")
    common: dict[str, Any] = Field(default={}, description="key.key -> value, of every set")
    seeds: tuple[int, ...] = Field(min_length=1, description="training seeds; with at least two there are intervals")
    sets: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name -> key.key -> value; the first is what the others are compared with"
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed that stands twice would be counted twice")
        return seeds

    @field_validator("common")
    @classmethod
    def _no_common_seed(cls, common: dict[str, Any]) -> dict[str, Any]:
        if "seed" in common:
            raise ValueError("seed is averaged over: name it in seeds")
        return common

    @field_validator("sets")
    @classmethod
    def _leave_the_seed(cls, sets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, values in sets.items():
            if "seed" in values:
                raise ValueError(f"{name} sets seed, over which is averaged: name it in seeds")
        return sets


def read(path: Path) -> AblationConfig:
    """Raises UserError naming the file and the field."""
    try:
        return AblationConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name an ablation, as configs/ablation.yaml"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, f['loc']))}: {f['msg'].removeprefix('Value error, ')}" for f in error.errors())
        raise UserError(f"{path}: {'; '.join(faults)}") from error


def experiments(path: Path, ablation: AblationConfig) -> dict[tuple[str, int], ExperimentConfig]:
    """(set, seed) -> its configuration. Raises UserError where a value is wrong, or two sets are the same."""
    found: dict[tuple[str, int], ExperimentConfig] = {}
    known: dict[str, str] = {}
    for name, values in ablation.sets.items():
        overrides = [f"{key}={json.dumps(value)}" for key, value in (ablation.common | values).items()]
        for seed in ablation.seeds:
            run = f"{path.stem}-{name}-seed{seed}"
            found[name, seed] = configs.load(path.parent / ablation.base, [*overrides, f"seed={seed}"], run)
        same = known.setdefault(digest(_without_seed(found[name, ablation.seeds[0]].model_dump(mode="json"))), name)
        if same != name:
            raise UserError(f"{path}: sets.{name} is the same configuration as sets.{same}; remove one")
    return found


def ablate(path: Path, runs: Path) -> Path:
    """Runs every set with every seed where that is not done; returns `runs/<stem>.csv`, beside which is its JSON.

    What a set shares with an earlier one (autoencoder, encoders, regressor of the same seed) is not trained again.
    """
    ablation = read(path)
    planned = experiments(path, ablation)
    for (name, seed), experiment in planned.items():
        folder = RunFolder(runs / experiment.name)
        earlier = [RunFolder(runs / planned[n, seed].name) for n in ablation.sets if n != name]
        take_over(folder, earlier)
        runner.run(experiment, folder, as_typed("nox -s ablate --", path, (), None))
    results = {
        name: [RunResult.load(runs / planned[name, seed].name) for seed in ablation.seeds] for name in ablation.sets
    }
    table = tabulate(results)
    record = {
        "ablation": ablation.model_dump(mode="json"),
        "runs": {run.name: run.signature for group in results.values() for run in group},
        "rows": [
            row | {"values": json.loads(row["values"])}
            for row in json.loads(table.to_json(orient="records", double_precision=15))
        ],
    }
    write_atomically(runs / f"{path.stem}.json", json.dumps(record, indent=1))
    write_atomically(runs / f"{path.stem}.csv", table.to_csv(index=False))
    print(f"the table is in {runs / path.stem}.csv")
    return runs / f"{path.stem}.csv"


def take_over(folder: RunFolder, others: Sequence[RunFolder]) -> None:
    """Copies stages that another run has finished; one that depended on something else is trained again anyway."""
    for name in SHARED_STAGES:
        source = next((o.stage(name) for o in others if o.stage(name).exists() and read_done(o.stage(name))), None)
        if source is None or folder.stage(name).exists():
            continue
        partial = folder.stage(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        partial.rename(folder.stage(name))


def tabulate(results: Mapping[str, Sequence[RunResult]]) -> pd.DataFrame:
    """One row per set and value: its mean over seeds with a 95 % interval, and the difference to the first set.

    Intervals are Student's t over seeds, differences paired by seed; None with one seed. A value that
    a seed did not give has no mean, and the reason. Raises UserError where the runs of a set differ
    in more than their seed.
    """
    for name, group in results.items():
        require_alike(name, group)
    seeds = [[run.training_seeds for run in group] for group in results.values()]
    if any(each != seeds[0] for each in seeds):
        raise UserError("the sets were not run with the same seeds, so they cannot be compared seed by seed")
    values = {name: [dict(_values(run)) for run in group] for name, group in results.items()}
    first = next(iter(results))
    rows = []
    for name, runs in values.items():
        for key in dict.fromkeys(key for run in runs for key in run):
            given = [run.get(key, (None, "this run has no such row")) for run in runs]
            reference = [run.get(key, (None, None))[0] for run in values[first]]
            rows.append({"set": name, **dict(zip(KEYS, key, strict=True)), **_summary(given, reference)})
    return pd.DataFrame(rows)


def _summary(given: Sequence[tuple[float | None, str | None]], reference: Sequence[float | None]) -> dict[str, Any]:
    numbers = [value for value, _ in given]
    mean, interval = over_seeds(numbers)
    differences = [None if a is None or b is None else a - b for a, b in zip(numbers, reference, strict=True)]
    difference, difference_interval = over_seeds(differences)
    return {
        "n_seeds": len(numbers),
        "mean": mean,
        "ci_low": interval[0],
        "ci_high": interval[1],
        "difference": difference,
        "difference_ci_low": difference_interval[0],
        "difference_ci_high": difference_interval[1],
        "values": json.dumps(numbers),
        "reason": next((reason for value, reason in given if value is None), None),
    }


def over_seeds(values: Sequence[float | None]) -> tuple[float | None, tuple[float | None, float | None]]:
    """Mean and 95 % interval of Student's t; no mean where a value is missing, no interval of one value."""
    from scipy import stats

    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None, (None, None)
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return mean, (None, None)
    half = float(stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers))
    return mean, (mean - half, mean + half)


def _values(run: RunResult) -> Iterator[tuple[tuple[str, str, str, str], tuple[float | None, str | None]]]:
    """Key as KEYS -> value and reason: every system's own, the claim's gains, and the primary endpoint."""
    for row in run.results:
        if row.subject is None:
            yield (row.system, "", row.metric, row.embedder or ""), (row.value, row.reason)
    for comparison in run.comparisons:
        yield ("eeg", comparison.system, comparison.metric, ""), (comparison.gain, comparison.reason)
    yield ("eeg", BEST_FLOOR, run.endpoint.metric, ""), (run.endpoint.gain, run.endpoint.reason)


def require_alike(name: str, runs: Sequence[RunResult]) -> None:
    """Raises UserError naming what the runs of a set differ beside their seed, or a seed that is twice."""
    seeds = [run.training_seeds for run in runs]
    if len({tuple(s) for s in seeds}) < len(seeds):
        raise UserError(f"{name}: a seed is there twice; a mean over it would count one run as two")
    first, *others = (_flat(_without_seed(run.config)) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        differ = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if differ:
            raise UserError(
                f"{name}: {runs[0].name} and {run.name} differ in {', '.join(differ)}, and are not averaged; "
                "make them sets of their own"
            )
        if run.study != runs[0].study:
            raise UserError(f"{name}: {runs[0].name} and {run.name} are of two studies, and are not averaged")
        if _precision(run) != _precision(runs[0]):
            raise UserError(
                f"{name}: {runs[0].name} and {run.name} were trained in different precision, as their machines have "
                "it, and are not averaged; train them on machines alike, or with mixed_precision: no"
            )


def _precision(run: RunResult) -> dict[str, str | None]:
    return {stage.name: stage.precision for stage in run.stages}


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("name", "seed")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
