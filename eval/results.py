"""What an evaluation says: the only thing a report may read.

`RunResult` is `results.json`; beside it `examples.parquet` holds one row per example and system.
A metric that could not run is a `MetricResult` with `value=None` and a reason, never a number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, model_validator

from eeg2speech.errors import UserError
from eeg2speech.files import write_atomically
from eeg2speech.schema import Config

SCHEMA_VERSION = 1
NO_RUN = "its folder holds no evaluated run; name one, or evaluate its config first (nox -s evaluate -- --config YAML)"

EXAMPLE_KEYS = ("study", "subject", "recording", "stimulus_id", "system", "sampling_seed")
"""The key of a row of `examples.parquet`. `subject` and `recording` are empty for a system that hears
no EEG and so runs once per stimulus. The other columns: `reference`, `hypothesis` (text or null), `wav` (path
relative to the run folder, or null), and for every per-example metric m two columns `m` (numerator)
and `m_n` (denominator), whose sums over examples divide to the metric's value; NaN where m was not run."""


class SystemInfo(Config):
    """A row of the headline table: what the EEG input was, and why the row is there."""

    name: str
    role: str = Field(description="one of: ceiling, claim, floor, rival")
    description: str
    n_examples: int
    n_stimuli: int
    n_subjects: int = Field(description="0 where the system hears no EEG")


class MetricInfo(Config):
    """How to read a metric."""

    name: str
    label: str
    unit: str = Field(description="'%' or '' or a physical unit; values are stored as fractions where '%'")
    higher_is_better: bool
    per_example: bool = Field(description="True: `examples.parquet` holds its numerators and denominators")
    definition: str = Field(description="one sentence with its citation")
    chance: float | None = Field(default=None, description="the exact or computed value of guessing")
    chance_reason: str | None = Field(default=None, description="how chance was computed")


class MetricResult(Config):
    """One cell: a system's value in one metric, over all subjects or for one."""

    system: str
    metric: str
    embedder: str | None = None
    subject: str | None = Field(default=None, description="None: all subjects")
    value: float | None = None
    ci: tuple[float, float] | None = Field(
        default=None, description="95 %, bootstrap clustered on stimulus; exact over clusters where all of them agree"
    )
    n: int = 0
    reason: str | None = Field(default=None, description="why value is None")
    signature: str = Field(default="", description="metric|embedder|weights hash|sample rate|normaliser|N|seed|version")
    curve: list[tuple[int, float]] = Field(default=[], description="(N, value) of smaller sets, where N matters")


class Comparison(Config):
    """The claim against another system in one metric, paired by stimulus and subject."""

    metric: str
    system: str = Field(description="the system the claim ('eeg') is compared with")
    role: str = Field(description="floor or rival")
    gain: float | None = Field(description="positive: the claim is better")
    ci: tuple[float, float] | None = None
    p: float | None = Field(
        default=None,
        description="two-sided paired permutation test by stimulus; from 20 listeners by listener too, the larger p",
    )
    p_holm: float | None = Field(default=None, description="Holm-adjusted over the floors within the metric")
    n_clusters: int = 0
    minimum_detectable: float | None = Field(default=None, description="gain found with 80 % power at alpha .05")
    reason: str | None = None


class Endpoint(Config):
    """The primary endpoint, as the configuration names it."""

    metric: str
    best_floor: str | None = None
    gain: float | None = Field(default=None, description="best floor against eeg; positive is good")
    ci: tuple[float, float] | None = None
    p: float | None = Field(default=None, description="the largest Holm-adjusted p over all floors")
    span_share: float | None = Field(default=None, description="(floor - eeg) / (floor - ceiling)")
    ceiling: str | None = None
    reason: str | None = None


class AuditFinding(Config):
    check: str
    passed: bool = Field(description="True where it could not be made: nothing was found")
    detail: str
    tested: bool = Field(default=True, description="False: it could not be made, and `detail` says why")
    remark: str = Field(default="", description="what a reader of the claim must know although the check passed")

    @model_validator(mode="before")
    @classmethod
    def _of_older_results(cls, raw: Any) -> Any:
        """Results from before `tested` say it in words alone."""
        if isinstance(raw, dict) and "tested" not in raw:
            return raw | {"tested": not str(raw.get("detail", "")).startswith("not tested in ")}
        return raw

    @property
    def verdict(self) -> str:
        return "fail" if not self.passed else "pass" if self.tested else "not tested"


def audit_sentence(audit: Sequence[AuditFinding]) -> str:
    """How many checks passed, which failed, and which could not be made."""
    if not audit:
        return "No leakage audit was made."
    named = {v: ", ".join(f.check for f in audit if f.verdict == v) for v in ("fail", "not tested")}
    counts = [f.verdict for f in audit]
    said = [f"{counts.count('pass')} of {len(audit)} checks passed"]
    said += [f"{counts.count('fail')} FAILED ({named['fail']})"] * bool(named["fail"])
    said += [f"{counts.count('not tested')} could not be made ({named['not tested']})"] * bool(named["not tested"])
    return f"Leakage audit of the split: {', '.join(said)}."


class StageSummary(Config):
    """What a training stage cost and how it went."""

    name: str
    parameters: int
    steps: int
    wall_s: float
    energy_j: float | None = Field(default=None, description="of the machine meanwhile; None where it was not measured")
    precision: str | None = Field(default=None, description="of its products: what the device has of what was asked")
    curve: list[dict[str, float]] = Field(description="rows of the stage's metrics log: step and values")


class Submission(Config):
    """Where the claim's sounds are from, where no model of this package made them."""

    sounds: str = Field(description="the folder they were read from, by its own name")
    n_sounds: int = Field(description="different files")
    manifest_sha256: str
    sounds_sha256: str = Field(description="of the hashes of all sounds, in the order of the test set")
    beside: str = Field(description="the run whose rows stand beside it, or the config whose test set it was scored on")


class RunResult(Config):
    """Everything the report shows, except the per-example table and the sounds."""

    schema_version: int = SCHEMA_VERSION
    name: str
    study: str
    simulated: bool
    training_seeds: list[int]
    sampling_seed: int
    signature: str = Field(description="hash of the resolved configuration and the code version")
    config: dict[str, Any]
    data: dict[str, Any] = Field(description="facts of the study and split: counts, hours, licence, citation")
    audit: list[AuditFinding]
    systems: list[SystemInfo]
    metrics: list[MetricInfo]
    results: list[MetricResult]
    comparisons: list[Comparison]
    endpoint: Endpoint
    stages: list[StageSummary]
    environment: dict[str, Any] = Field(description="versions, hardware, git SHA and dirty flag, wall times")
    provenance: dict[str, Any] = Field(default_factory=dict, description="weights and data hashes, commands")
    submission: Submission | None = Field(default=None, description="None: the claim is a model trained here")

    def save(self, folder: Path) -> Path:
        """Writes `results.json` atomically and returns its path."""
        path = folder / "results.json"
        write_atomically(path, self.model_dump_json(indent=1))
        return path

    @classmethod
    def load(cls, folder: Path) -> RunResult:
        """Raises UserError naming the file where it is missing, not JSON, or of another schema."""
        path = folder / "results.json"
        if not path.exists():
            raise UserError(f"{path} does not exist: {NO_RUN}")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): delete it and evaluate again") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema_version is {version!r}, this version reads {SCHEMA_VERSION}: evaluate again"
            )
        return cls.model_validate(raw)

    def value(self, system: str, metric: str, subject: str | None = None) -> MetricResult | None:
        """The cell of a system and metric, or None where the run has no such row."""
        for row in self.results:
            if (row.system, row.metric, row.subject) == (system, metric, subject):
                return row
        return None


def load_examples(folder: Path) -> pd.DataFrame:
    """The per-example table of a run, columns as `EXAMPLE_KEYS` says."""
    path = folder / "examples.parquet"
    if not path.exists():
        raise UserError(f"{path} does not exist: {NO_RUN}")
    return pd.read_parquet(path)


class SweepPoint(Config):
    """A trained run at one setting of its sampler."""

    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    temperature: float = 1.0
    network_calls: int = Field(description="forward passes of the denoiser that one sample takes")
    results: list[MetricResult] = Field(description="of eeg and of shuffled, over all subjects")
    comparisons: list[Comparison] = Field(description="eeg against shuffled: what of the quality is the brain's")


class SweepResult(Config):
    """`sweep.json`: one training, sampled in other ways. The first point is the config's own setting.

    Beside it `sweep.parquet` holds the examples of every point: columns as `examples.parquet`, and the setting.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    study: str
    simulated: bool
    primary: str
    split: str = Field(default="test", description="whose stimuli were sampled: test, or valid to choose a setting on")
    n_stimuli: int
    weights_sha256: dict[str, str] = Field(description="stage -> hash, as in the provenance of `results.json`")
    metrics: list[MetricInfo]
    ceiling: str
    ceiling_results: list[MetricResult] = Field(description="of the system at the other end, which samples nothing")
    points: list[SweepPoint]

    def save(self, folder: Path) -> Path:
        """Writes `sweep.json` atomically and returns its path."""
        path = folder / "sweep.json"
        write_atomically(path, self.model_dump_json(indent=1))
        return path

    @classmethod
    def load(cls, folder: Path) -> SweepResult | None:
        """None where nothing was swept. Raises UserError naming the file where it is damaged or of another schema."""
        path = folder / "sweep.json"
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{path} cannot be read ({str(error).splitlines()[0]}): delete it and sweep again"
            ) from error


class Rung(Config):
    """The embedded study at one signal-to-noise ratio: the cells of one small run."""

    snr_db: float = Field(description="as `study.snr_db`; -inf: the EEG holds no response")
    systems: list[SystemInfo]
    results: list[MetricResult]
    comparisons: list[Comparison]
    signature: str = Field(description="of the run, see RunResult")


class ExperimentSeries(Config):
    """Many experiments with one known truth, and how often the claim came out."""

    name: str
    description: str = Field(description="what one experiment is, in a sentence or two")
    truth: str = Field(description="'null' (the EEG says nothing) or 'effect' (one of known size was planted)")
    metric: str
    expected: float = Field(description="alpha under the null; the computed power where an effect was planted")
    n: int
    significant: int = Field(description="experiments with p < alpha, in either direction")
    beats: int = Field(description="those in which eeg was also the better one: 'eeg beats shuffled'")
    rate: float = Field(description="significant / n")
    ci: tuple[float, float] = Field(description="95 %, Clopper & Pearson, of `rate`")
    beats_ci: tuple[float, float] = Field(description="95 %, Clopper & Pearson, of beats / n")
    p: list[float] = Field(description="of every experiment, in order")


class Calibration(Config):
    """`calibration.json`: what the instrument reads where the truth is known."""

    schema_version: int = SCHEMA_VERSION
    name: str
    study: str
    simulated: bool
    alpha: float
    metrics: list[MetricInfo]
    rungs: list[Rung] = Field(description="by rising SNR")
    series: list[ExperimentSeries]
    config: dict[str, Any] = Field(description="of a rung, before its SNR is set")
    environment: dict[str, Any] = Field(description="versions, hardware, git SHA and dirty flag")

    def save(self, folder: Path) -> Path:
        """Writes `calibration.json` atomically and returns its path."""
        path = folder / "calibration.json"
        write_atomically(path, self.model_dump_json(indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises UserError naming the file where it is missing or damaged."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): run `nox -s calibrate` first") from error
        except ValueError as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is no calibration of this version ({said}): calibrate again") from error
