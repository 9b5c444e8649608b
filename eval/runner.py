"""Runs every system once, feeds every metric, and writes what came out."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from eeg2speech import __version__, audio, environment
from eeg2speech.config import ExperimentConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.device import device, has_bfloat16
from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest, write_atomically
from eeg2speech.runs import RunFolder, is_done, read_done, step
from eeg2speech.training.log import read_metrics
from eeg2speech.training.run import Trained, train
from eval.assembly import Scored, assemble
from eval.controls import CONTROLS
from eval.history import evaluations, log_evaluation
from eval.metrics import METRICS, build_metrics
from eval.metrics.base import Measurement, Metric, SystemOutput, TestSet
from eval.results import AuditFinding, StageSummary
from eval.systems import SYSTEMS, Bench, System

EXAMPLES = "examples.parquet"
MEASUREMENTS = "measurements.json"
STAGES = ("autoencoder", "contrastive", "regression", "diffusion")


def run(config: ExperimentConfig, folder: RunFolder, command: str) -> Path:
    """Trains what is missing, then generates, scores and writes; returns the path of `results.json`.

    `command` is what the user typed, for the report.
    A system that is done for this configuration is not run again, so an interrupted evaluation
    continues and a finished one costs seconds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "an evaluation is one process: train in several by `torchrun --nproc-per-node N -m eeg2speech train`, then "
            "start `python -m eval run` alone"
        )
    systems, metrics = chosen_systems(config), chosen_metrics(config, folder)
    require_precision(config)
    trained = train(config, folder)
    with folder.lock():
        depends = digest(
            [__version__, trained.depends, config.sampling.model_dump(), config.evaluation.model_dump(mode="json")]
        )
        path = folder.path / "results.json"
        hashes = {system.name: digest([depends, system.name]) for system in systems}
        # All are looked at: a damaged sound is an error also where there is nothing left to do.
        scored_before = [is_done(folder.evaluation / name, wanted) for name, wanted in hashes.items()]
        if path.exists() and is_done(folder.evaluation, depends) and all(scored_before):
            print(f"nothing to do: results are in {path}")
            return path
        begun = time.monotonic()
        bench = make_bench(config, trained)
        scored = []
        for system in tqdm(systems, desc="systems", unit="system", leave=False):
            place = folder.evaluation / system.name
            if not is_done(place, hashes[system.name]):
                with step(place, hashes[system.name]):
                    score(system, bench, metrics, place)
            scored.append(read_scored(place, system.name, system.role, system.description))
        with step(folder.evaluation, depends) as record:
            examples = pd.concat([s.examples for s in scored], ignore_index=True)
            with atomic_path(folder.path / EXAMPLES) as partial:
                examples.to_parquet(partial)
            facts = about(config, folder, trained.data)
            facts["provenance"] |= {"command": command, "evaluation_wall_s": wall_s(folder, list(hashes))}
            facts["provenance"]["evaluated_before"] = evaluations(folder)
            result = assemble(scored, examples, facts, config.evaluation)
            path = result.save(folder.path)
            log_evaluation(folder, result)
            record.files = ["../results.json", f"../{EXAMPLES}"]
            record.facts["results"] = {"wall_s": time.monotonic() - begun}
    print(f"results are in {path}")
    return path


def chosen_systems(config: ExperimentConfig) -> list[System]:
    """The rows of this run, in order. Raises UserError where a name is unknown or the claim is missing."""
    names = config.evaluation.systems or tuple(SYSTEMS)
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise UserError(f"evaluation.systems: {', '.join(unknown)} is unknown; choose among {', '.join(SYSTEMS)}")
    if "eeg" not in names:
        raise UserError("evaluation.systems must contain eeg, the claim that the other rows are compared with")
    further = config.evaluation.controls
    unknown = [name for name in further if name not in CONTROLS]
    if unknown:
        raise UserError(f"evaluation.controls: {', '.join(unknown)} is unknown; choose among {', '.join(CONTROLS)}")
    if config.evaluation.ceiling not in SYSTEMS:
        raise UserError(
            f"evaluation.ceiling: {config.evaluation.ceiling} is unknown; choose among {', '.join(SYSTEMS)}"
        )
    return [SYSTEMS[name] for name in names] + [CONTROLS[name] for name in further]


def chosen_metrics(config: ExperimentConfig, folder: RunFolder) -> list[Metric]:
    """The metrics of this run, their weights not yet loaded. Raises UserError where a name is unknown."""
    metrics = build_metrics(config.evaluation.metrics, folder.path.parent / "cache" / "weights")
    primary, known = config.evaluation.primary, list(dict.fromkeys([*METRICS, *(m.info.name for m in metrics)]))
    if primary not in known:
        raise UserError(f"evaluation.primary: {primary!r} is unknown; choose among {', '.join(known)}")
    return metrics


def require_precision(config: ExperimentConfig) -> None:
    """Raises UserError where speech would be sampled in a precision that this device can only imitate."""
    if config.sampling.mixed_precision == "bf16" and not has_bfloat16(device().type):
        raise UserError(
            "sampling.mixed_precision: bf16 would only be imitated by this processor, at many times the cost; set it "
            "to no, or evaluate where there is bfloat16"
        )


def make_bench(config: ExperimentConfig, trained: Trained, split: str = "test") -> Bench:
    """The test set, or with `split="valid"` what choices are made on, and the modules that every system runs on."""
    chosen = scope_of(config, trained.data, split)
    seed = config.evaluation.seed
    test = _test_set(trained, chosen.examples, chosen.described, chosen.stimuli)
    if trained.pipeline is not None:
        trained.pipeline.use(config.sampling.mixed_precision)
    return Bench(trained, test, chosen.windows, chosen.stimuli, config.sampling, seed)


@dataclass(frozen=True, eq=False)
class Scope:
    """Which speech is scored, and who heard it."""

    examples: pd.DataFrame
    described: pd.DataFrame
    """A row per stimulus: stimulus_id, text, story."""
    windows: np.ndarray
    """Rows of `data.windows`, aligned with `examples`."""
    stimuli: np.ndarray
    """Rows of `data.stimuli`, aligned with `described`."""


def scope_of(config: ExperimentConfig, data: StudyData, split: str = "test") -> Scope:
    """Unique stimuli of the split, at most `max_stimuli` drawn by the seed, with all who heard them."""
    evaluation = config.evaluation
    table = data.windows.iloc[data.indices(split)]
    stimuli = np.unique(table["stimulus"].to_numpy())
    if evaluation.max_stimuli is not None and len(stimuli) > evaluation.max_stimuli:
        stimuli = np.sort(
            np.random.default_rng([evaluation.seed, 0]).choice(stimuli, evaluation.max_stimuli, replace=False)
        )
    windows = data.indices(split)[table["stimulus"].isin(stimuli).to_numpy()]
    heard = data.windows.iloc[windows]
    described = data.stimuli.iloc[stimuli][["stimulus_id", "text", "sound"]].reset_index(drop=True)
    described = described.rename(columns={"sound": "story"})
    columns = ["study", "subject", "recording", "stimulus_id", "text"]
    examples = (
        heard[columns]
        .reset_index(drop=True)
        .assign(example=np.arange(len(heard)), stimulus=np.searchsorted(stimuli, heard["stimulus"].to_numpy()))
    )
    return Scope(examples, described, windows, stimuli)


def _test_set(trained: Trained, examples: pd.DataFrame, described: pd.DataFrame, stimuli: np.ndarray) -> TestSet:
    data = trained.data

    def embed(features: torch.Tensor) -> np.ndarray:
        return trained.embed_speech(features.split(64)).numpy()

    def embed_audio(waveform: np.ndarray) -> np.ndarray:
        if trained.speech_model is not None:
            parts = [trained.speech_model(np.array(waveform[i : i + 16])) for i in range(0, len(waveform), 16)]
            return embed(torch.cat(parts))
        mel = torch.cat(
            [audio.log_mel(torch.from_numpy(np.array(waveform[i : i + 64]))) for i in range(0, len(waveform), 64)]
        )
        return embed(mel[:, 0].transpose(1, 2))

    return TestSet(
        examples=examples,
        stimuli=described,
        waveform=None if data.features.waveforms is None else np.array(data.features.waveforms[stimuli]),
        candidates=embed(torch.from_numpy(np.array(data.features.heard[stimuli]))),
        embed_audio=embed_audio if data.has_audio else None,
    )


def score(system: System, bench: Bench, metrics: list[Metric], place: Path) -> None:
    """One system: its sounds as wavs, its examples as parquet, its measurements as JSON."""
    score_output(system.run(bench), bench.test, bench.sampling.seed, metrics, place)


def score_output(output: SystemOutput, test: TestSet, sampling_seed: int, metrics: list[Metric], place: Path) -> None:
    """The same of what a system made, whatever it was made by."""
    wavs = _write_wavs(output, place)
    if output.waveform is not None:
        # What is scored is what can be listened to: 16-bit samples, and so the stored sounds give the same numbers.
        heard = [audio.load(place.parents[1] / wav) for wav in wavs if wav is not None]
        output = replace(output, waveform=np.stack(heard))
    measured = [metric.measure(test, output) for metric in metrics]
    with atomic_path(place / EXAMPLES) as partial:
        _examples(output, sampling_seed, measured, wavs).to_parquet(partial)
    write_atomically(place / MEASUREMENTS, json.dumps([_plain(m) for m in measured], indent=1))


def _write_wavs(output: SystemOutput, place: Path) -> list[str | None]:
    """Paths relative to the run folder, None where the system makes no sound."""
    if output.waveform is None:
        return [None] * len(output.rows)
    shutil.rmtree(place / "wavs", ignore_errors=True)  # of another configuration
    (place / "wavs").mkdir(parents=True)
    names: list[str | None] = []
    for row, waveform in zip(output.rows.itertuples(), output.waveform, strict=True):
        name = "_".join(part for part in (row.stimulus_id, row.recording) if part)
        name = f"{digest(name)}.wav"
        audio.save(place / "wavs" / name, waveform)
        names.append(f"{place.parent.name}/{place.name}/wavs/{name}")
    return names


def _examples(
    output: SystemOutput, sampling_seed: int, measured: list[Measurement], wavs: list[str | None]
) -> pd.DataFrame:
    table = output.rows[["study", "subject", "recording", "stimulus_id"]].reset_index(drop=True)
    table = table.assign(
        system=output.system,
        sampling_seed=sampling_seed,
        reference=output.rows["text"].to_numpy(object) if "text" in output.rows else None,
        hypothesis=None,
        wav=pd.array(wavs, dtype="string"),
    )
    for m in measured:
        for name, values in m.columns.items():
            table[name] = values
        if m.numerator is not None:
            table[m.metric.name], table[f"{m.metric.name}_n"] = m.numerator, m.denominator
    return table


def _plain(m: Measurement) -> dict[str, Any]:
    return {
        "metric": m.metric.model_dump(mode="json"),
        "embedder": m.embedder,
        "value": m.value,
        "ci": m.ci,
        "n": m.n,
        "per_example": m.numerator is not None,
        "skipped": m.skipped,
        "reason": m.reason,
        "signature": m.signature,
        "curve": m.curve,
    }


def read_scored(place: Path, name: str, role: str, description: str) -> Scored:
    """What `score_output` has written."""
    measurements = json.loads((place / MEASUREMENTS).read_text(encoding="utf-8"))
    return Scored(name, role, description, pd.read_parquet(place / EXAMPLES), measurements)


def about(config: ExperimentConfig, folder: RunFolder, data: StudyData) -> dict[str, Any]:
    """The fields of RunResult that no metric decides."""
    stages = [_stage(folder.stage(name)) for name in STAGES]
    return {
        "name": config.name,
        "study": data.name,
        "simulated": data.simulated,
        "training_seeds": [config.seed],
        "sampling_seed": config.sampling.seed,
        "signature": digest([__version__, config.model_dump(mode="json")]),
        "config": config.model_dump(mode="json"),
        "data": data.facts(),
        "audit": [AuditFinding(**asdict(f)) for f in data.audit],
        "stages": [s for s in stages if s is not None],
        "environment": environment.describe(),
        "provenance": _provenance(config, folder, data),
    }


def _stage(folder: Path) -> StageSummary | None:
    done = read_done(folder) if folder.exists() else None
    if done is None:
        return None
    values = {key: done[key] for key in ("parameters", "steps", "wall_s")}
    values |= {key: done.get(key) for key in ("energy_j", "precision")}
    return StageSummary(name=folder.name, curve=read_metrics(folder), **values)


def _provenance(config: ExperimentConfig, folder: RunFolder, data: StudyData) -> dict[str, Any]:
    return {
        "data_fingerprint": data.fingerprint,
        "weights_sha256": weights_sha256(folder),
        "default_config": ExperimentConfig.model_validate(
            {"study": config.study.model_dump(), "training": config.training.model_dump()}
        ).model_dump(mode="json"),
    }


def wall_s(folder: RunFolder, systems: list[str]) -> dict[str, float]:
    """Seconds that each system took to generate and score, and their sum."""
    records = {name: read_done(folder.evaluation / name) for name in systems}
    spent = {name: round(float(record["wall_s"]), 1) for name, record in records.items() if record}
    return spent | {"all": round(sum(spent.values()), 1)}


def weights_sha256(folder: RunFolder) -> dict[str, str]:
    """Stage -> hash of its weights, of the stages that are done."""
    done = {name: read_done(folder.stage(name)) for name in STAGES if folder.stage(name).exists()}
    return {name: record["files"]["weights.safetensors"] for name, record in done.items() if record}
