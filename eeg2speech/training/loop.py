"""One loop for every training stage, on accelerate."""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from eeg2speech.batch import Batch
from eeg2speech.errors import UserError
from eeg2speech.runs import DONE, is_done, write_done
from eeg2speech.schema import Config
from eeg2speech.training import checkpoint
from eeg2speech.training.log import METRICS, MetricsLog, remove_metrics
from eeg2speech.training.optim import EMA, adamw, learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint"


class StageConfig(Config):
    """How a stage is trained. Its length is counted in steps alone: a limit in minutes could not be reproduced."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(ge=1, description="windows per micro-batch, over all processes")
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the learning rate rises in a line")
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW; biases and norms are exempt")
    gradient_clip: float | None = Field(default=1.0, gt=0, description="largest norm of the whole gradient")
    gradient_accumulation: int = Field(default=1, ge=1, description="micro-batches per optimiser step")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="0: no average is kept")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = Field(default=False, description="torch.compile; bf16 on a GPU gains most")
    channels_last: bool = Field(default=False, description="memory format of image kernels")
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=500, ge=1, description="the last step is validated anyway")
    checkpoint_every: int = Field(default=500, ge=1, description="steps that a power cut may cost")


class Stage(ABC):
    """What is trained together, and towards what. The loop knows nothing else about a model.

    `modules` are trained and saved (a parameter without `requires_grad` is saved only); `frozen`
    are needed to compute the loss, stay in eval mode, and are not saved.
    """

    def __init__(self, name: str, modules: dict[str, nn.Module], frozen: dict[str, nn.Module] | None = None) -> None:
        self.name = name
        self.modules = nn.ModuleDict(modules)
        self.frozen = nn.ModuleDict(frozen or {}).requires_grad_(False)

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars of one batch: `loss` is minimised, every other is logged only.

        Called in train mode, under the configured autocast, with torch's generators seeded by
        (seed, stage, step): all randomness must come from them.
        """

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Finite values over the validation split, here the mean of `loss` over its windows.

        Called without gradients, in eval mode, with the averaged weights, on the first process
        alone (so it may not communicate), with the generators seeded alike each time.
        """
        sums: dict[str, float] = {}
        count = 0
        for batch in batches:
            for name, value in self.loss(batch).items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
            count += len(batch)
        return {name: value / count for name, value in sums.items()}


def train(
    stage: Stage,
    batch_at: Callable[[int], Batch],
    validation: Callable[[], Iterable[Batch]],
    config: StageConfig,
    folder: Path,
    depends: str,
    seed: int,
    progress: bool = True,
    resume_from: Path | None = None,
) -> None:
    """Trains a stage to its end in `folder`, from its checkpoint where there is one; does nothing if it is done.

    `batch_at(i)` is micro-batch i = 0, 1, .. (step x gradient_accumulation + part) of
    `config.batch_size` windows and a pure function of i; in a multi-process launch each process
    trains on its share of the rows and gradients are averaged. `depends` is the hash of all that
    the result depends on. The result, the averaged weights after the last step, is
    `weights.safetensors` beside `done.json` and `metrics.jsonl`. Interrupted by SIGINT or SIGTERM
    it finishes its step, saves a checkpoint, and lets the signal through; a resumed training gives
    bit for bit what an uninterrupted one gives (on a GPU: as far as its kernels are deterministic).

    Raises UserError for a loss that is not finite, a damaged file, a `resume_from` that is no
    checkpoint of this configuration, a full disk.
    """
    if is_done(folder, depends):
        return
    loop = _Loop(stage, config, folder, depends, seed)
    loop.restore(resume_from)
    with _deferred_signals() as received, loop.logging(), loop.bar(progress) as bar:
        while loop.step < config.steps:
            loop.advance(batch_at)
            bar.update()
            ends = loop.step == config.steps
            if ends or loop.step % config.log_every == 0:
                bar.set_postfix(loss=f"{loop.log_training():.4g}")
            if ends or loop.step % config.validate_every == 0:
                loop.validate(validation)
            interrupted = loop.any_process(bool(received))
            if interrupted or (not ends and loop.step % config.checkpoint_every == 0):
                loop.save()
            if interrupted:
                break
    if interrupted_by := (received[0] if received else None):
        signal.raise_signal(interrupted_by)
    if loop.step < config.steps:
        raise KeyboardInterrupt  # another process was told to stop, or the signal's own handler returned
    loop.finish()


class _Loop:
    """The state of one training and the moves it is made of."""

    def __init__(self, stage: Stage, config: StageConfig, folder: Path, depends: str, seed: int) -> None:
        self.stage, self.config, self.folder, self.depends, self.seed = stage, config, folder, depends, seed
        self.accelerator = _accelerator(config, stage.name)
        for modules in (stage.modules, stage.frozen):
            modules.to(self.accelerator.device)
        if config.channels_last:
            stage.modules.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            for module in [*stage.modules.values(), *stage.frozen.values()]:
                module.compile()
        self.trained = {name: p for name, p in stage.modules.named_parameters() if p.requires_grad}
        self.optimizer = adamw(self.trained, config.weight_decay)
        self.prepared = self.accelerator.prepare(self.optimizer)
        self.ema = EMA(self.trained, config.ema_decay) if config.ema_decay else None
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        """Of the steps since the last row of the log."""
        self.summed = 0
        self.begun_s = time.monotonic()
        self.log: MetricsLog | None = None

    def restore(self, resume_from: Path | None) -> None:
        """Takes up the checkpoint the user named, else the one in the folder, else starts over."""
        path = resume_from or self.folder / CHECKPOINT
        found = checkpoint.load(path, self.depends, named=resume_from is not None)
        if found is None:
            if self.accelerator.is_main_process:
                _clear(self.folder)
            return
        checkpoint.restore(self.stage.modules, found.tensors["model"], path / "model.safetensors")
        checkpoint.restore_optimizer(self.optimizer, self.trained, found.tensors["optimizer"])
        if self.ema:
            self.ema.load(self.ema.average, found.tensors["ema"])
        scalars = dict(found.scalars)
        self.step = found.step
        self.begun_s -= scalars.pop("wall_s")
        self.summed = int(scalars.pop("summed"))
        scaler = {k.removeprefix("scaler/"): scalars.pop(k) for k in list(scalars) if k.startswith("scaler/")}
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        self.sums = {k: torch.tensor(v, device=self.accelerator.device) for k, v in scalars.items()}

    def advance(self, batch_at: Callable[[int], Batch]) -> None:
        """One optimiser step."""
        parts, rank, world = self.config.gradient_accumulation, self.accelerator.process_index, self.accelerator.num_processes
        self.stage.modules.train()
        self.stage.frozen.eval()
        for index in range(self.step * parts, (self.step + 1) * parts):
            batch = share(batch_at(index), rank, world).to(self.accelerator.device)
            torch.manual_seed(derived_seed(self.seed, self.stage.name, index, rank))
            with self.accelerator.autocast():
                terms = self.stage.loss(batch)
            self.accelerator.backward(terms["loss"] / parts)
            for name, value in terms.items():
                self._add(name, value.detach().float() / parts)
        self._average_gradients()
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.config.gradient_clip or math.inf)
        self._add("gradient_norm", norm.detach().float())
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.prepared.step()
        self.prepared.zero_grad()
        self.step += 1
        self.summed += 1
        if self.ema:
            self.ema.update(self.step)

    def _learning_rate(self) -> float:
        c = self.config
        return learning_rate(self.step, c.learning_rate, c.steps, c.warmup_steps, c.schedule)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _average_gradients(self) -> None:
        """Over processes, in one message; a stage may so call its modules as it likes, which DDP's wrapper forbids."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def log_training(self) -> float:
        """Writes the means since the last row; returns the mean loss."""
        self._check_finite()
        names = list(self.sums)
        means = self.accelerator.reduce(torch.stack([self.sums[n] for n in names]), "mean") / self.summed
        values = dict(zip([f"train/{n}" for n in names], means.tolist(), strict=True))
        if self.log:
            self.log.write(self.step, values | {"learning_rate": self.optimizer.param_groups[0]["lr"], "wall_s": self.wall_s})
        self.sums, self.summed = {}, 0
        return values["train/loss"]

    def _check_finite(self) -> None:
        """A scaled half-precision gradient may overflow now and then: its step is left out, and that is no error."""
        watched = ["loss"] if self.accelerator.scaler is not None else ["loss", "gradient_norm"]
        for name in watched:
            if name in self.sums and not math.isfinite(value := float(self.sums[name])):
                first = self.step - self.summed + 1
                raise UserError(
                    f"stage {self.stage.name}: the {name.replace('_', ' ')} is {value} within steps {first} to {self.step}; "
                    f"lower its learning_rate (now {self.config.learning_rate:g}) or raise warmup_steps "
                    f"(now {self.config.warmup_steps})"
                )

    def validate(self, validation: Callable[[], Iterable[Batch]]) -> None:
        """Runs the averaged weights over the validation split; the first process does, the others wait."""
        if self.log:
            self.stage.modules.eval()
            self.stage.frozen.eval()
            torch.manual_seed(derived_seed(self.seed, self.stage.name, "validation"))
            batches = (batch.to(self.accelerator.device) for batch in validation())
            with torch.no_grad(), self.accelerator.autocast(), self.ema.applied() if self.ema else nullcontext():
                values = self.stage.validate(batches)
            for name, value in values.items():
                if not math.isfinite(value):
                    raise UserError(
                        f"stage {self.stage.name}: validation {name} is {value} at step {self.step}; "
                        f"lower its learning_rate (now {self.config.learning_rate:g})"
                    )
            self.log.write(self.step, {f"valid/{name}": float(value) for name, value in values.items()})
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        self._check_finite()
        if self.accelerator.is_main_process:
            scalars = {name: float(value) for name, value in self.sums.items()}
            scalars |= {"wall_s": self.wall_s, "summed": float(self.summed)}
            if self.accelerator.scaler is not None:
                scalars |= {f"scaler/{k}": v for k, v in self.accelerator.scaler.state_dict().items()}
            tensors = {
                "model": self.stage.modules.state_dict(),
                "optimizer": checkpoint.optimizer_tensors(self.optimizer, self.trained),
            }
            if self.ema:
                tensors["ema"] = self.ema.average
            checkpoint.save(self.folder / CHECKPOINT, checkpoint.Checkpoint(self.step, self.depends, scalars, tensors))
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Writes the result and leaves the averaged weights in the stage's modules."""
        if self.ema:
            self.ema.load(self.trained, self.ema.average)
        if self.accelerator.is_main_process:
            checkpoint.save_tensors(self.folder / WEIGHTS, self.stage.modules.state_dict())
            parameters = sum(p.numel() for p in self.trained.values())
            facts = {"stage": self.stage.name, "steps": self.step, "wall_s": self.wall_s, "parameters": parameters}
            write_done(self.folder, self.depends, [WEIGHTS, METRICS], facts)
            checkpoint.remove(self.folder / CHECKPOINT)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    @property
    def wall_s(self) -> float:
        """Time spent on this stage so far, over all resumptions."""
        return time.monotonic() - self.begun_s

    def any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes > 1:
            if flag:
                self.accelerator.set_trigger()
            return bool(self.accelerator.check_trigger())
        return flag

    @contextmanager
    def logging(self) -> Iterator[None]:
        self.log = MetricsLog(self.folder, self.step) if self.accelerator.is_main_process else None
        try:
            yield
        finally:
            if self.log:
                self.log.close()

    def bar(self, progress: bool) -> tqdm:
        """A line that redraws itself on a terminal, a line now and then in a log file."""
        shown = progress and self.accelerator.is_main_process
        every_s = 0.2 if sys.stderr.isatty() else 30.0
        return tqdm(
            total=self.config.steps, initial=self.step, desc=self.stage.name, unit="step", mininterval=every_s, disable=not shown
        )


def derived_seed(*parts: int | str) -> int:
    """63 bits of the SHA-256 of the parts: independent streams for (seed, stage, step), nothing to save on resume."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def share(batch: Batch, rank: int, world: int) -> Batch:
    """The rows of one process. Raises UserError where they cannot be shared evenly (means would be weighted wrongly)."""
    if world == 1:
        return batch
    if len(batch) % world:
        raise UserError(f"batch_size: {len(batch)} windows cannot be shared by {world} processes; choose a multiple")
    rows = slice(rank * len(batch) // world, (rank + 1) * len(batch) // world)
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return Batch(**{name: value[rows] for name, value in values.items()})


def _accelerator(config: StageConfig, stage: str) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    AcceleratorState._reset_state()  # else the precision of this process's first stage would bind all others
    plugin = GradientAccumulationPlugin(num_steps=1)  # `advance` divides by the parts itself
    accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_plugin=plugin)
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(f"stage {stage}: mixed_precision fp16 needs a GPU; use bf16 or no")
    return accelerator


def _clear(folder: Path) -> None:
    """Removes what an earlier training of another configuration left."""
    checkpoint.remove(folder / CHECKPOINT)
    remove_metrics(folder)
    for name in (DONE, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of obeying it; a second one acts as it always did."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        put_back()

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        put_back()
