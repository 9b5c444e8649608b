"""One trained run, sampled in other ways: quality against steps, and guidance against dependence on the brain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import yaml
from pydantic import ValidationError
from tqdm import tqdm

from eeg2speech import __version__
from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.evaluation import SamplingConfig
from eeg2speech.files import atomic_path, digest
from eeg2speech.models.schedule import checked, network_calls, sampler_of
from eeg2speech.runs import RunFolder, is_done, read_done, step
from eeg2speech.training.run import Trained, train
from eval import assembly, runner
from eval.assembly import Scored
from eval.metrics.base import Metric
from eval.results import MetricInfo, SweepPoint, SweepResult
from eval.systems import SYSTEMS, Bench

FOLDER = "sweep"
CEILING = "reconstruction"
SAMPLED = ("eeg", "shuffled")
SETTING = ("scheduler", "num_inference_steps", "guidance_scale", "guidance_rescale", "temperature")
"""The values that tell points apart; in `sweep.parquet` they stand beside EXAMPLE_KEYS."""


@dataclass(frozen=True)
class Plan:
    """What to try beside the config's own setting: every scheduler with every number of steps at its guidance,
    every guidance with every rescale at its scheduler and steps, and every temperature with all of its own."""

    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    rescale: tuple[float, ...] = ()
    temperatures: tuple[float, ...] = ()

    def settings(self, config: ExperimentConfig) -> list[SamplingConfig]:
        """The config's own first, each once. Raises UserError where one is impossible, or there is nothing to try."""
        own = config.sampling
        pairs = [
            {"scheduler": scheduler, "num_inference_steps": n}
            for scheduler in self.schedulers or (own.scheduler,)
            for n in self.steps or (own.num_inference_steps,)
        ]
        pairs += [
            {"guidance_scale": scale, "guidance_rescale": phi}
            for scale in self.guidance or (own.guidance_scale,)
            for phi in self.rescale or (own.guidance_rescale,)
        ]
        pairs += [{"temperature": temperature} for temperature in self.temperatures]
        try:
            settings = [own, *(SamplingConfig.model_validate(own.model_dump() | pair) for pair in pairs)]
            for setting in settings:
                checked(config.model.schedule, setting)
        except ValidationError as error:
            fault = error.errors()[0]
            raise UserError(f"sweep: {fault['loc'][0]} {fault['input']!r}: {fault['msg']}") from error
        except ValueError as error:
            raise UserError(f"sweep: {error}") from error
        settings = list(dict.fromkeys(settings))
        if len(settings) == 1:
            raise UserError(
                "sweep: nothing differs from the config's own sampling; give --steps, --guidance or --temperatures"
            )
        return settings


def sweep(config: ExperimentConfig, folder: RunFolder, plan: Plan, split: str = "test") -> Path:
    """Generates and scores `eeg` and `shuffled` at every setting; returns the path of `sweep.json`.

    A setting is chosen on `split="valid"`; on the test split a sweep only shows how much the choice matters.
    Trains nothing. A point that is done for these weights is not run again. Raises UserError where
    the run is not trained, or was with another configuration.
    """
    settings, metrics = plan.settings(config), runner.chosen_metrics(config, folder)
    require_trained(config, folder)
    # What is scored may differ from what the run's own evaluation scores, which stays as it is.
    runner.require_precision(config)
    trained = train(_as_trained(config, folder), folder)
    if trained.pipeline is None:
        raise UserError(f"{folder.path} has no diffusion model, so there is no sampling to try")
    with folder.lock():
        bench = runner.make_bench(config, trained, split)
        parent = folder.path / FOLDER / split
        ceiling = _scored(CEILING, bench, metrics, parent, trained, config)
        points, tables, infos = [], [], {m["metric"]["name"]: m["metric"] for m in ceiling.measurements}
        for setting in tqdm(settings, desc="settings", unit="setting", leave=False):
            trained.pipeline.scheduler = sampler_of(config.model.schedule, setting)
            at = replace(bench, sampling=setting)
            place = parent / slug(setting)
            scored = [_scored(name, at, metrics, place, trained, config) for name in SAMPLED]
            infos |= {m["metric"]["name"]: m["metric"] for s in scored for m in s.measurements}
            examples = pd.concat([s.examples for s in scored], ignore_index=True)
            points.append(_point(setting, scored, examples, config))
            tables.append(examples.assign(wav=f"{FOLDER}/{split}/" + examples["wav"], **_values(setting)))
        with atomic_path(folder.path / "sweep.parquet") as partial:
            pd.concat(tables, ignore_index=True).to_parquet(partial)
        path = SweepResult(
            name=config.name,
            study=trained.data.name,
            simulated=trained.data.simulated,
            primary=config.evaluation.primary,
            split=split,
            n_stimuli=len(bench.stimuli),
            weights_sha256=runner.weights_sha256(folder),
            metrics=[MetricInfo(**info) for info in infos.values()],
            ceiling=CEILING,
            ceiling_results=[r for r in assembly.rows(ceiling, config.evaluation) if r.subject is None],
            points=points,
        ).save(folder.path)
    print(f"the sweep is in {path}")
    return path


def subset(config: ExperimentConfig, stimuli: int | None, metrics: tuple[str, ...] | None) -> ExperimentConfig:
    """The config that scores these only, where given. Raises UserError where there are too few stimuli to pair."""
    evaluation = config.evaluation
    if stimuli is not None:
        if stimuli < 2:
            raise UserError(f"--stimuli {stimuli}: give at least two, or there is nothing to shuffle")
        evaluation = evaluation.model_copy(update={"max_stimuli": stimuli})
    if metrics is not None:
        evaluation = evaluation.model_copy(update={"metrics": evaluation.metrics.model_copy(update={"names": metrics})})
    return config.model_copy(update={"evaluation": evaluation})


def require_trained(config: ExperimentConfig, folder: RunFolder) -> None:
    """Raises UserError where training this configuration would have anything to do."""
    stages = [name for name in runner.STAGES if getattr(config.training, name) is not None]
    missing = [name for name in stages if not folder.config.exists() or read_done(folder.stage(name)) is None]
    if missing:
        raise UserError(
            f"{folder.path} is not trained ({', '.join(missing)}): run `nox -s train` for this config first"
        )
    then, now = _stored(folder), config.model_dump(mode="json")
    changed = [key for key in now if key not in ("name", "sampling", "evaluation") and now[key] != then.get(key)]
    if changed:
        raise UserError(
            f"{folder.config}: the run was trained with another {' and '.join(changed)} than this config says; "
            "name the config it was trained with, or train again"
        )


def _stored(folder: RunFolder) -> dict[str, object]:
    values = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def _as_trained(config: ExperimentConfig, folder: RunFolder) -> ExperimentConfig:
    """The configuration as the run folder holds it: what a sweep changes in it is not written there."""
    return ExperimentConfig.model_validate(_stored(folder)).model_copy(update={"name": config.name})


def slug(setting: SamplingConfig) -> str:
    rescaled = f"-rescale{setting.guidance_rescale:g}" if setting.guidance_rescale else ""
    colder = f"-temperature{setting.temperature:g}" if setting.temperature != 1.0 else ""
    return f"{setting.scheduler}-{setting.num_inference_steps}-guidance{setting.guidance_scale:g}{rescaled}{colder}"


def _values(setting: SamplingConfig) -> dict[str, object]:
    return {name: getattr(setting, name) for name in SETTING}


def _scored(
    name: str, bench: Bench, metrics: list[Metric], parent: Path, trained: Trained, config: ExperimentConfig
) -> Scored:
    system, place = SYSTEMS[name], parent / name
    sampling = None if name == CEILING else bench.sampling.model_dump()
    depends = digest([__version__, trained.depends, sampling, config.evaluation.model_dump(mode="json"), name])
    if not is_done(place, depends):
        with step(place, depends):
            runner.score(system, bench, metrics, place)
    return runner.read_scored(place, system.name, system.role, system.description)


def _point(
    setting: SamplingConfig, scored: list[Scored], examples: pd.DataFrame, config: ExperimentConfig
) -> SweepPoint:
    per_example = [MetricInfo(**m["metric"]) for m in scored[0].measurements if m["metric"]["per_example"]]
    compared = [assembly.compare(info, scored, examples, config.evaluation) for info in per_example]
    return SweepPoint(
        **_values(setting),  # type: ignore[arg-type]
        network_calls=network_calls(setting),
        results=[r for s in scored for r in assembly.rows(s, config.evaluation) if r.subject is None],
        comparisons=[c for rows in compared for c in rows],
    )
