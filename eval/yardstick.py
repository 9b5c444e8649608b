"""What a submission is held against: the rows of an evaluated run, or, without one, a config's test set alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from eeg2speech.config import ExperimentConfig, StudyConfig
from eeg2speech.data.base import Recording, SpeechStudy
from eeg2speech.errors import UserError
from eeg2speech.evaluation import EvaluationConfig
from eeg2speech.files import digest
from eeg2speech.runs import RunFolder
from eeg2speech.studies import named
from eeg2speech.training.run import prepare_data
from eval.assembly import CLAIM, Scored
from eval.metrics import build_metrics
from eval.metrics.base import Metric, SystemOutput, TestSet
from eval.rescore import TRUTH, stored_test_set
from eval.results import RunResult, load_examples
from eval.runner import about as describe_config
from eval.runner import read_scored, scope_of, score_output
from eval.systems import Reference

SHARED = ("study", "simulated", "sampling_seed", "config", "data", "audit")
"""Fields of a run's results that stay true of what is scored beside it."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """A test set, how it is scored, and the rows that are scored already."""

    name: str
    study: str
    test: TestSet
    evaluation: EvaluationConfig
    sampling_seed: int
    window_s: float
    about: dict[str, Any]
    """Fields of RunResult that no metric decides."""
    depends: str
    """Hash of all that a score on it depends on, but for what is scored."""
    provenance: dict[str, Any]
    """Hashes of the data, and of the weights behind its rows."""
    recordings: Callable[[], Iterable[Recording]]
    """What was heard, opened when first asked for. Raises UserError where its files are not here."""
    run: Path | None = None
    """The run folder; None: there is none, and `reference` is the only row."""
    windows: pd.DataFrame | None = None
    """WINDOW_COLUMNS of every split, for whoever trains; None where the run's cache is not there."""
    stimuli: pd.DataFrame | None = None

    def metrics(self, cache: Path) -> list[Metric]:
        return build_metrics(self.evaluation.metrics, cache)

    def scored(self, metrics: Sequence[Metric], place: Path) -> list[Scored]:
        """The rows beside a submission, scored into `place` where no run has; a run's own claim is a rival there."""
        if self.run is None:
            score_output(reference_output(self.test), self.test, self.sampling_seed, list(metrics), place / TRUTH)
            return [read_scored(place / TRUTH, Reference.name, Reference.role, Reference.description)]
        rows = []
        for info in RunResult.load(self.run).systems:
            stored = self.run / "evaluation" / info.name
            if not stored.is_dir():
                raise UserError(f"{stored} is missing: evaluate the run again, or score against another --run")
            row = read_scored(stored, info.name, info.role, info.description)
            if info.name == CLAIM:
                row = replace(row, role="rival", description=f"the true EEG, through the model of run {self.name}")
            rows.append(row)
        return rows


def reference_output(test: TestSet) -> SystemOutput:
    """The true recordings as a system's output."""
    study = test.examples["study"].iloc[0]
    places = np.arange(len(test.stimuli))
    rows = test.stimuli.assign(study=study, subject="", recording="", stimulus=places)
    return SystemOutput(TRUTH, False, rows, test.waveform)


def of_run(folder: Path) -> Yardstick:
    """The test set and rows of an evaluated run, from its folder alone: its 16-bit recordings are the truth."""
    run, examples = RunResult.load(folder), load_examples(folder)
    if run.submission is not None:
        raise UserError(f"{folder} is a scored submission itself: name the run it stands beside")
    stored = stored_test_set(folder, examples)
    heard = examples[examples["system"] == CLAIM].reset_index(drop=True)
    place = {name: index for index, name in enumerate(stored.stimuli["stimulus_id"])}
    keys = heard[["study", "subject", "recording", "stimulus_id"]].assign(text=heard["reference"].fillna(""))
    keys = keys.assign(example=np.arange(len(keys)), stimulus=keys["stimulus_id"].map(place).astype(np.int64))
    cache = folder.parent / "cache" / f"{run.study}-{run.data.get('fingerprint')}"
    tables = [cache / f"{name}.parquet" for name in ("windows", "stimuli")]
    windows, stimuli = (pd.read_parquet(path) if path.exists() else None for path in tables)
    return Yardstick(
        name=run.name,
        study=run.study,
        test=replace(stored, examples=keys),
        evaluation=EvaluationConfig.model_validate(run.config.get("evaluation", {})),
        sampling_seed=run.sampling_seed,
        window_s=float(run.data["window_s"]),
        about={name: getattr(run, name) for name in SHARED},
        depends=digest([run.signature, [r.model_dump(mode="json") for r in run.results]]),
        provenance={k: v for k, v in run.provenance.items() if k != "default_config"},
        recordings=lambda: _recordings(run, folder.parent / "studies" / run.study),
        run=folder,
        windows=windows,
        stimuli=stimuli,
    )


def _recordings(run: RunResult, generated: Path) -> Iterable[Recording]:
    study: SpeechStudy = TypeAdapter(StudyConfig).validate_python(run.config["study"]).build()
    study.prepare(generated)
    return study.iter_recordings()


def of_config(config: ExperimentConfig, runs: Path) -> Yardstick:
    """The test set of a config, for which nothing need be trained; `reference` is its only row."""
    folder = RunFolder(runs / config.name)
    data = prepare_data(config, folder)
    scope = scope_of(config, data)
    if data.features.waveforms is None:
        raise UserError(f"study {data.name} has no audio: there is nothing that sounds could be scored against")
    waveform = np.array(data.features.waveforms[scope.stimuli])
    about = describe_config(config, folder, data)
    return Yardstick(
        name=config.name,
        study=data.name,
        test=TestSet(scope.examples, scope.described, waveform, waveform[:, None]),
        evaluation=config.evaluation,
        sampling_seed=config.sampling.seed,
        window_s=data.length_s,
        about={name: about[name] for name in SHARED},
        depends=digest([data.fingerprint, config.evaluation.model_dump(mode="json")]),
        provenance={"data_fingerprint": data.fingerprint},
        recordings=data.study.iter_recordings,
        windows=data.windows,
        stimuli=data.stimuli,
    )


def find_run(runs: Path, study: str) -> Path:
    """The one evaluated run of a study under `runs`. Raises UserError where there is none, or a choice to make."""
    found = []
    for path in sorted(runs.glob("*/results.json")):
        run = RunResult.load(path.parent)
        if run.study == study and run.submission is None:
            found.append(path.parent)
    if not found:
        named(study)
        raise UserError(
            f"{runs} holds no evaluated run of study {study}: evaluate one (nox -s evaluate), name one by --run, or "
            "name a config by --config to score against its test set alone"
        )
    if len(found) > 1:
        raise UserError(f"{', '.join(map(str, found))} are all runs of study {study}: choose one by --run")
    return found[0]
