"""The experiment: one frozen tree of values, read from YAML, from which everything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from eeg2speech import audio
from eeg2speech.data.audioeeg import AudioEEGStudy, AudioEEGStudyConfig
from eeg2speech.data.base import SpeechStudy
from eeg2speech.data.bids import BidsStudy, BidsStudyConfig
from eeg2speech.data.brennan2019 import Brennan2019Study, Brennan2019StudyConfig
from eeg2speech.data.broderick2019 import Broderick2019Study, Broderick2019StudyConfig
from eeg2speech.data.folder import FolderStudy, FolderStudyConfig
from eeg2speech.data.gwilliams2022 import Gwilliams2022Study, Gwilliams2022StudyConfig
from eeg2speech.data.matrix import MatrixStudy, MatrixStudyConfig
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.protocol import expanded
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError
from eeg2speech.evaluation import EvaluationConfig, SamplingConfig
from eeg2speech.models.audio_encoder import DeepMelConfig
from eeg2speech.models.autoencoder import AutoencoderConfig
from eeg2speech.models.denoiser import DenoiserConfig
from eeg2speech.models.eeg_encoder import AlignedConvConfig, ClipConvConfig, LinearEncoderConfig
from eeg2speech.models.schedule import NoiseScheduleConfig, ScheduleConfig, checked
from eeg2speech.models.speech_model import ClapEncoderConfig, Wav2Vec2EncoderConfig
from eeg2speech.models.vocoder import GriffinLimConfig, HifiGanConfig
from eeg2speech.runs import run_name
from eeg2speech.schema import Config, is_off
from eeg2speech.training.loop import StageConfig

# A new part is one file, one line here, and one value in a YAML.
STUDIES: dict[str, type[SpeechStudy]] = {
    "matrix": MatrixStudy,
    "folder": FolderStudy,
    "brennan2019": Brennan2019Study,
    "broderick2019": Broderick2019Study,
    "gwilliams2022": Gwilliams2022Study,
    "audioeeg": AudioEEGStudy,
    "bids": BidsStudy,
}
StudyConfig = Annotated[
    MatrixStudyConfig
    | FolderStudyConfig
    | Brennan2019StudyConfig
    | Broderick2019StudyConfig
    | Gwilliams2022StudyConfig
    | AudioEEGStudyConfig
    | BidsStudyConfig,
    Field(discriminator="name"),
]
EEGEncoderConfig = Annotated[ClipConvConfig | AlignedConvConfig | LinearEncoderConfig, Field(discriminator="name")]
AudioEncoderConfig = Annotated[
    DeepMelConfig | Wav2Vec2EncoderConfig | ClapEncoderConfig,
    Field(discriminator="name"),
    BeforeValidator(lambda value: {"name": "deep_mel", **value} if isinstance(value, Mapping) else value),
]
VocoderConfig = Annotated[GriffinLimConfig | HifiGanConfig, Field(discriminator="name")]


class EmbeddingConfig(Config):
    """The space in which EEG and audio meet, and which conditions the diffusion model."""

    dim: int = Field(default=512, gt=0, description="D")
    rate_hz: float = Field(default=50.0, gt=0, description="frames per second of window: T' = length_s * rate_hz")


class ModelConfig(Config):
    """The architecture of every module."""

    embedding: EmbeddingConfig = EmbeddingConfig()
    eeg_encoder: EEGEncoderConfig = ClipConvConfig()
    audio_encoder: AudioEncoderConfig = DeepMelConfig()
    regressor: EEGEncoderConfig | None = Field(default=None, description="the rival; null: as eeg_encoder")
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    schedule: ScheduleConfig = NoiseScheduleConfig()
    vocoder: VocoderConfig = GriffinLimConfig()


CHECKPOINTING = "activations are computed again in the backward pass: a third more time, a fraction of the memory"


class AutoencoderTraining(StageConfig):
    steps: int = Field(ge=0, description="optimiser steps; 0: the weights of `init` as they are")
    init: Path | None = Field(
        default=None,
        description="folder of published weights to start from (python -m eeg2speech import audioldm)",
        exclude_if=is_off,
    )
    kl_weight: float = Field(default=1e-4, ge=0)
    crop_frames: int = Field(default=96, gt=0, description="length of the random crops; a multiple of the downsampling")
    gradient_checkpointing: bool = Field(default=False, description=CHECKPOINTING, exclude_if=is_off)

    @model_validator(mode="after")
    def _has_weights(self) -> AutoencoderTraining:
        if self.steps == 0 and self.init is None:
            raise ValueError("steps 0 needs init, whose weights then stay as they are")
        return self


class ContrastiveTraining(StageConfig):
    init: Path | None = Field(
        default=None,
        description="a brainmagick checkpoint, whose weights model.eeg_encoder, a clip_conv, starts from",
        exclude_if=is_off,
    )


class DiffusionTraining(StageConfig):
    init: Path | None = Field(
        default=None, description="as training.autoencoder.init, which must then be given too", exclude_if=is_off
    )
    audio_share: float = Field(default=0.25, ge=0, le=1, description="examples conditioned on the audio embedding")
    null_share: float = Field(default=0.1, ge=0, le=1, description="examples conditioned on the learned null")
    min_snr_gamma: float | None = Field(default=5.0, gt=0, description="null: every timestep weighs one")
    contrastive_weight: float | None = Field(
        default=None, ge=0, description="null: encoders frozen; else trained jointly"
    )
    audio_first: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps, from the start, conditioned on audio embeddings alone; 1: AudioLDM's way, "
        "EEG takes their place only when speech is generated",
        exclude_if=is_off,
    )
    crop_frames: int | None = Field(
        default=None,
        gt=0,
        description="length in latent frames of the random stretch that the denoiser sees at a step; null: all",
        exclude_if=is_off,
    )
    cache_latents: bool = Field(
        default=True, description="false: encoded at every step, where they fit no memory", exclude_if=bool
    )
    gradient_checkpointing: bool = Field(default=False, description=CHECKPOINTING, exclude_if=is_off)


class TrainingConfig(Config):
    """The stages, in the order in which they run. A study without audio has only the contrastive one."""

    autoencoder: AutoencoderTraining | None = None
    contrastive: ContrastiveTraining
    regression: StageConfig | None = None
    diffusion: DiffusionTraining | None = None
    prior_weight: float = Field(
        default=1.0,
        ge=0,
        description="of the loss of model.denoiser.prior, where there is one, beside the contrastive loss",
        exclude_if=lambda value: value == 1.0,
    )


class ExperimentConfig(Config):
    """Everything a run depends on."""

    name: str = Field(default="", description="set by `load`: names the run folder")
    seed: int = Field(default=0, description="the training seed: initial weights, batches, noise")
    protocol: Literal["brainmagick"] | None = Field(
        default=None,
        description="fills in what a published protocol fixes of preprocessing, windows and splits",
        exclude_if=is_off,
    )
    study: StudyConfig
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    windows: WindowConfig = WindowConfig()
    splits: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def embedding_frames(self) -> int:
        """T' of the embedding."""
        return round(self.windows.length_s * self.model.embedding.rate_hz)

    @property
    def latent_frames(self) -> int:
        """T of a latent."""
        return round(self.windows.length_s * audio.FRAME_RATE_HZ) // self.model.autoencoder.downsampling

    @model_validator(mode="before")
    @classmethod
    def _follow_protocol(cls, values: Any) -> Any:
        return expanded(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _aligned_where_needed(self) -> ExperimentConfig:
        training, model = self.training.diffusion, self.model
        if training is None:
            return self
        if training.crop_frames is None:
            return self
        if model.denoiser.conditioning != ("time_aligned",) or self.embedding_frames % self.latent_frames:
            raise ValueError(
                "training.diffusion.crop_frames cuts the condition with the latent: it needs conditioning "
                f"[time_aligned], and embedding frames (now {self.embedding_frames}) that are a multiple of the "
                f"{self.latent_frames} latent frames"
            )
        return self

    @model_validator(mode="after")
    def _starts_from_what_fits(self) -> ExperimentConfig:
        training, schedule = self.training, self.model.schedule
        if training.contrastive.init is not None and not isinstance(self.model.eeg_encoder, ClipConvConfig):
            raise ValueError(
                f"training.contrastive.init holds a clip_conv, and model.eeg_encoder is {self.model.eeg_encoder.name}; "
                "set it to {name: clip_conv}"
            )
        if training.diffusion is None or training.diffusion.init is None:
            return self
        if training.autoencoder is None or training.autoencoder.init is None:
            raise ValueError("training.diffusion.init needs training.autoencoder.init, in whose latents it works")
        if not isinstance(schedule, NoiseScheduleConfig) or schedule.prediction_type != "epsilon":
            raise ValueError(
                "training.diffusion.init: AudioLDM's UNet predicts the noise; set model.schedule to "
                "{prediction_type: epsilon, zero_terminal_snr: false}"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> ExperimentConfig:
        training, factor, schedule = self.training, self.model.autoencoder.downsampling, self.model.schedule
        checked(schedule, self.sampling)
        if isinstance(schedule, NoiseScheduleConfig):
            if schedule.prediction_type == "epsilon" and schedule.zero_terminal_snr:
                raise ValueError(
                    "model.schedule: pure noise says nothing about x0 to a network that predicts epsilon; "
                    "set zero_terminal_snr to false, or predict v_prediction or sample"
                )
        elif training.diffusion is not None and training.diffusion.min_snr_gamma is not None:
            raise ValueError(
                "training.diffusion.min_snr_gamma weighs the timesteps of diffusion; with flow_matching set it to null"
            )
        if training.diffusion is not None and training.autoencoder is None:
            raise ValueError("training.diffusion needs training.autoencoder, in whose latents it works")
        if training.autoencoder is not None:
            frames = round(self.windows.length_s * audio.FRAME_RATE_HZ)
            lengths = {
                "windows.length_s": frames,
                "training.autoencoder.crop_frames": training.autoencoder.crop_frames,
                "the mel bands": audio.N_MELS,
            }
            for name, length in lengths.items():
                if length % factor:
                    raise ValueError(f"{name}: {length} is no multiple of the autoencoder's downsampling, {factor}")
        return self


def load(path: Path, overrides: Sequence[str] = (), name: str | None = None) -> ExperimentConfig:
    """Reads a YAML, applies `key.key=value` overrides (values are YAML too), validates, and names the run.

    Raises UserError naming the file and every field that is unknown, missing or of the wrong kind.
    """
    values = _read(path)
    for override in overrides:
        _override(values, override)
    try:
        config = ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error)}") from error
    resolved = config.model_dump(mode="json", exclude={"name"})
    return config.model_copy(update={"name": run_name(Path(path), overrides, name, resolved)})


def load_study(name: str, path: Path | None, overrides: Sequence[str] = (), root: Path | None = None) -> Any:
    """The config of a study alone: `study` of a YAML, or the study's defaults; `root` takes the place of its own.

    Raises UserError as `load` does, and where the YAML is about another study.
    """
    values = _read(path) if path is not None else {}
    study = values.get("study") or {"name": name}
    if not isinstance(study, dict) or study.get("name") != name:
        raise UserError(f"{path}: its study is not {name}; name the study that it is about")
    values = {"study": study | ({} if root is None else {"root": root})}
    for override in overrides:
        if not override.startswith("study."):
            raise UserError(f"--set {override}: only settings of the study count here; write study.KEY=VALUE")
        _override(values, override)
    try:
        return TypeAdapter(StudyConfig).validate_python(values["study"])
    except ValidationError as error:
        raise UserError(f"{path or name}: {_sentence(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    """Raises UserError where the file is no YAML of keys and values."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file of configs/") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values, such as `study: {{name: matrix}}`")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key.key=value, such as study.snr_db=0")
    *parents, last = key.split(".")
    for parent in parents:
        below = values.get(parent, {})
        if not isinstance(below, dict):
            raise UserError(f"--set {override}: {parent} is a value and has no keys below it")
        values[parent] = dict(below)  # a copy: a YAML anchor may stand for several parts
        values = values[parent]
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: {text!r} is not a YAML value") from error


def _sentence(error: ValidationError) -> str:
    """Every fault, by its key as the YAML spells it."""
    faults = []
    for fault in error.errors():
        # pydantic puts the discriminator's value into the path; a YAML has no such level.
        place = ".".join(str(part) for part in fault["loc"] if part not in STUDIES and part not in _PART_NAMES)
        said = "is not a known key; check its spelling" if fault["type"] == "extra_forbidden" else fault["msg"]
        # A rule over several fields has the whole part as its input, and says itself what was given.
        told = fault["type"] in ("extra_forbidden", "missing") or isinstance(fault["input"], dict)
        given = "" if told else f" (given: {fault['input']!r})"
        faults.append(": ".join(filter(None, (place, said.removeprefix("Value error, ")))) + given)
    return "; ".join(faults)


_PART_NAMES = {"noise_schedule", "flow_schedule"} | {
    part.model_fields["name"].default
    for parts in (EEGEncoderConfig, AudioEncoderConfig, VocoderConfig)
    for part in get_args(get_args(parts)[0])
}
