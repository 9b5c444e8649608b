"""What is measured on which device: `configs/bench_cpu.yaml` and `configs/bench_a100.yaml`, read into this."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
import torch
import yaml
from pydantic import Field, model_validator

from benchmarks import device
from eeg2speech import config as experiments
from eeg2speech.config import ModelConfig
from eeg2speech.device import has_bfloat16
from eeg2speech.schema import Config

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

ROOT = Path(__file__).parents[1]


class Sampler(Config):
    scheduler: str
    num_inference_steps: int
    guidance_scale: float = 1.0


class Shape(Config):
    """A model and the length of its clips. `experiment` takes the model of a config, and how it is trained."""

    experiment: Path | None = None
    model: ModelConfig = ModelConfig()
    contrastive_weight: float | None = Field(default=None, description="null: the encoders are frozen")
    clip_s: float
    batches: tuple[int, ...] = Field(description="of forward passes; levers are compared at the largest")
    training_batches: tuple[int, ...] = Field(description="of training steps; levers are compared at the largest")
    contrastive_batch: int = 32
    compile: tuple[Literal["forward", "training"], ...] = Field(
        default=(), description="where torch.compile is among the levers: its first call takes a minute"
    )
    samplers: tuple[Sampler, ...] = Field(description="at the largest of `batches`")
    slow: bool = Field(default=False, description="only for `nox -s bench`, not for `pytest --benchmark-only`")

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        return [pytest.mark.slow] if self.slow else []

    @property
    def trained(self) -> Lever:
        """How its diffusion is trained on this device: on a GPU compiled, where that is among its levers."""
        compiled = device.DEVICE.type == "cuda" and "training" in self.compile
        return FAST.with_(compile=True) if compiled else FAST

    @property
    def film_only(self) -> Shape:
        """With AudioLDM's own UNet, for other programs."""
        denoiser = self.model.denoiser.model_copy(update={"conditioning": ("film",), "prior": False})
        return self.model_copy(update={"model": self.model.model_copy(update={"denoiser": denoiser})})

    @model_validator(mode="before")
    @classmethod
    def _read_experiment(cls, values: dict) -> dict:
        if values.get("experiment"):
            experiment = experiments.load(ROOT / values["experiment"])
            diffusion = experiment.training.diffusion
            weight = diffusion.contrastive_weight if diffusion else None
            values = {"model": experiment.model, "contrastive_weight": weight} | values
        return values


class RecordingSize(Config):
    channels: int
    minutes: float
    sfreq: float


class StudySize(Config):
    """A whole study, as Brennan & Hale's files hold it."""

    subjects: int
    minutes: float
    channels: int
    cores: int = Field(description="that it may use")
    within_s: float = Field(description="what was promised of its preprocessing, reading included")
    within_gb: float
    windows_per_s: float = Field(description="what was promised of serving")


class RetrievalSize(Config):
    estimates: int = Field(description="and as many candidates")
    shape: tuple[int, int] = Field(description="(D, T') of an embedding")
    naive_estimates: int = Field(description="of them ranked one by one by the peer, whose cost is linear in them")


class StatisticsSize(Config):
    stimuli: int
    subjects: int
    systems: int
    metrics: int
    resamples: int


class ReportSize(Config):
    stimuli: int
    subjects: int


class Sizes(Config):
    shapes: dict[str, Shape]
    whole: str = Field(description="the shape in which EEG to waveform is compared with DDIM 200 in float32")
    recording: RecordingSize
    study: StudySize
    serving_batches: tuple[int, ...] = Field(description="windows a call of StudyData.batch")
    frechet: tuple[tuple[int, int], ...] = Field(description="(d, N)")
    retrieval: RetrievalSize
    evaluation_clips: tuple[int, ...] = Field(description="scored together; metrics one by one at the first of them")
    transcribed_clips: int
    statistics: StatisticsSize
    report: ReportSize


def load() -> Sizes:
    """The file that BENCHMARK_SIZES names, else the device's."""
    chosen = os.environ.get("BENCHMARK_SIZES")
    path = Path(chosen) if chosen else ROOT / f"configs/bench_{'a100' if device.DEVICE.type == 'cuda' else 'cpu'}.yaml"
    return Sizes.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


SIZES = load()


def of_whole(test: Callable) -> Callable:
    """Marks a test of the shape SIZES.whole."""
    for mark in SIZES.shapes[SIZES.whole].marks:
        test = mark(test)
    return test


def clip_numbers() -> list:
    """Of the comparison of a whole evaluation: those after the first take minutes."""
    first, *more = SIZES.evaluation_clips
    return [first, *(pytest.param(n, marks=pytest.mark.slow) for n in more)]


@dataclass(frozen=True)
class Lever:
    """A way to run the same network."""

    name: str
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compile: bool = False
    sdpa: bool = True
    """False: attention written out, its matrix in memory."""
    checkpointing: bool = False
    """Activations of the denoiser computed again in the backward pass."""

    @property
    def param(self) -> ParameterSet:
        """For `pytest.mark.parametrize`: skipped by name where the device would only imitate the precision, and slow
        where torch.compile takes minutes."""
        absent = self.dtype == torch.bfloat16 and not BFLOAT16
        marks = [pytest.mark.skip(reason="this processor has no bfloat16")] if absent else []
        if self.compile and device.DEVICE.type == "cpu":
            marks.append(pytest.mark.slow)
        return pytest.param(self, id=self.name, marks=marks)

    def with_(self, **changes: bool) -> Lever:
        """This one and another: `FAST.with_(compile=True)`."""
        names = (f"{'+' if value else '-'}{name}" for name, value in changes.items())
        return replace(self, name=self.name + "".join(names), **changes)


BFLOAT16 = has_bfloat16(device.DEVICE.type)
FLOAT32 = Lever("float32")
CHANNELS_LAST = Lever("channels_last", channels_last=True)
HALF = Lever("bfloat16", torch.bfloat16)
SAMPLED = HALF if BFLOAT16 else FLOAT32
"""How the configs sample."""
FAST = SAMPLED.with_(channels_last=True) if device.DEVICE.type == "cuda" else SAMPLED
"""How the configs train, but for torch.compile: on a CPU `channels_last` helps or harms by its kind."""
LEVERS = (
    FLOAT32,
    CHANNELS_LAST,
    HALF,
    HALF.with_(channels_last=True),
    FAST.with_(compile=True),
    FAST.with_(sdpa=False),
    FAST.with_(checkpointing=True),
)


def each_shape(largest_training_batch_above: int = 0) -> list:
    """(shape,)"""
    shapes = SIZES.shapes.items()
    return [
        pytest.param(s, id=name, marks=s.marks)
        for name, s in shapes
        if max(s.training_batches) > largest_training_batch_above
    ]


def each_lever(of: Literal["forward", "training"]) -> list:
    """(shape, lever)"""
    return [
        pytest.param(shape, lever, id=f"{name}-{lever.name}", marks=[*lever.param.marks, *shape.marks])
        for name, shape in SIZES.shapes.items()
        for lever in LEVERS
        if (of in shape.compile or not lever.compile)
        and (of == "training" or not lever.checkpointing)
        and (lever.sdpa or (of == "forward" and any(shape.model.denoiser.attention)))
    ]


def each_batch(of: Literal["forward", "training"], largest: bool = True) -> list:
    """(shape, batch)"""
    batches = {name: s.batches if of == "forward" else s.training_batches for name, s in SIZES.shapes.items()}
    return [
        pytest.param(shape, batch, id=f"{name}-batch{batch}", marks=shape.marks)
        for name, shape in SIZES.shapes.items()
        for batch in batches[name]
        if largest or batch < max(batches[name])
    ]


def each_sampler() -> list:
    """(shape, sampler)"""
    return [
        pytest.param(
            shape, x, id=f"{name}-{x.scheduler}-{x.num_inference_steps}-guidance{x.guidance_scale:g}", marks=shape.marks
        )
        for name, shape in SIZES.shapes.items()
        for x in shape.samplers
    ]
