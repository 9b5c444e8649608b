"""One loop for every training stage, on accelerate."""

from __future__ import annotations

import hashlib
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from eeg2speech.batch import Batch
from eeg2speech.energy import EnergyMeter
from eeg2speech.errors import UserError
from eeg2speech.runs import DONE, is_done, write_done
from eeg2speech.schema import Config
from eeg2speech.training import checkpoint
from eeg2speech.training.code import code_of
from eeg2speech.training.interrupts import deferred_signals
from eeg2speech.training.log import METRICS, MetricsLog, progress_bar, remove_metrics
from eeg2speech.training.optim import EMA, adamw, learning_rate
from eeg2speech.training.processes import DTYPES, any_process, average_gradients, broadcast, make_accelerator, share

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
    compile: bool = Field(default=False, description="torch.compile; the first step then takes a minute or so")
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
        self.progress = 0.0
        """The share of the steps that are done, which the loop sets before each."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars of one batch: `loss` is minimised, every other is logged only, where it is finite.

        Called in train mode, under the configured autocast, with torch's generators seeded by
        (seed, stage, micro-batch, process): all randomness must come from them.
        """

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Finite values over the validation split; here the mean of every term of `loss` over its windows.

        Called without gradients, in eval mode, with the averaged weights, on the first process
        alone (so it may not communicate), with the generators seeded alike each time.
        """
        return window_means((self.loss(batch), len(batch)) for batch in batches)


def window_means(terms: Iterable[tuple[Mapping[str, Tensor], int]]) -> dict[str, float]:
    """(terms of a batch, its windows) of every batch -> the mean of each term over all windows."""
    sums: dict[str, float] = {}
    count = 0
    for values, n in terms:
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * n
        count += n
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

    `batch_at(i)` is micro-batch i = 0, 1, .. of `config.batch_size` windows, a pure function of i;
    step s takes `gradient_accumulation` of them, from i = s * gradient_accumulation. In a
    multi-process launch each process trains on its share of the rows and gradients are averaged.
    `depends` is the hash of all that the result depends on. The result, the averaged weights after
    the last step, is `weights.safetensors`, beside `done.json` and `metrics.jsonl`, and is left in
    the stage's modules.

    At SIGINT or SIGTERM it ends its step, saves a checkpoint, and lets the signal through. Resumed,
    it gives bit for bit what it would have given (on a GPU: as far as the kernels are deterministic).

    Raises UserError for a loss that is not finite, a damaged file, a `resume_from` that is no
    checkpoint of this configuration, a full disk.
    """
    if is_done(folder, depends):
        return
    loop = _Loop(stage, config, folder, depends, seed)
    loop.restore(resume_from)
    interrupted = False
    with deferred_signals() as received, loop.log, loop.bar(progress) as bar:
        if config.steps == 0 and loop.is_main:  # weights that stay as they were given are validated all the same
            loop.log.write(0, loop.validate(validation))
        while loop.step < config.steps and not interrupted:
            loop.advance(batch_at)
            bar.update()
            if row := loop.report(validation):
                loop.log.write(loop.step, row)
                bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k.endswith("/loss")}, refresh=False)
            interrupted = any_process(bool(received), loop.accelerator)
            if interrupted or (loop.step < config.steps and loop.step % config.checkpoint_every == 0):
                loop.save()
    if not interrupted:
        loop.finish()
    if received:
        signal.raise_signal(received[0])
    if interrupted:  # another process was told to stop, or the signal's own handler returned
        raise KeyboardInterrupt


class _Loop:
    """The state of one training and the moves it is made of."""

    def __init__(self, stage: Stage, config: StageConfig, folder: Path, depends: str, seed: int) -> None:
        self.stage, self.config, self.folder, self.depends, self.seed = stage, config, folder, depends, seed
        self.accelerator = make_accelerator(config.mixed_precision, stage.name)
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        for modules in (stage.modules, stage.frozen):
            modules.to(self.device)
            if config.channels_last:
                modules.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            for network in _called(stage):
                network.compile()
        broadcast(stage.modules, self.accelerator)
        self.trained = {name: p for name, p in stage.modules.named_parameters() if p.requires_grad}
        self.optimizer = self.accelerator.prepare(adamw(self.trained, config.weight_decay))
        self.ema = EMA(self.trained, config.ema_decay) if config.ema_decay else None
        self.step = 0
        self.sums: dict[str, Tensor] = {}  # over the steps since the last row of the log
        self.summed = 0
        self.precisions = {DTYPES[self.accelerator.mixed_precision]}
        self.begun_s = time.monotonic()
        self.energy: EnergyMeter | None = EnergyMeter()
        self.log = MetricsLog(folder, enabled=self.is_main)

    def restore(self, resume_from: Path | None) -> None:
        """Takes up the checkpoint the user named, else the one in the folder, else starts over."""
        path = resume_from or self.folder / CHECKPOINT
        found = checkpoint.load(path, self.depends, named=resume_from is not None)
        self.accelerator.wait_for_everyone()
        if found is None:
            if self.is_main:
                _clear(self.folder)
            return
        checkpoint.restore(self.stage.modules, found.tensors["model"], path / "model.safetensors")
        checkpoint.restore_optimizer(self.optimizer, self.trained, found.tensors["optimizer"])
        if self.ema:
            self.ema.load(self.ema.average, found.tensors["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(found.scalars["scaler"])
        self.step, self.summed = found.step, found.scalars["summed"]
        self.sums = {name: torch.tensor(value, device=self.device) for name, value in found.scalars["sums"].items()}
        self.begun_s -= found.scalars["wall_s"]
        self.precisions |= set(found.scalars["precisions"])
        self.energy = None  # what was used before the interruption is not known
        self.log.keep_until(self.step)

    def save(self) -> None:
        self._check_finite()
        if self.is_main:
            scaler = self.accelerator.scaler
            scalars = {
                "wall_s": self.wall_s,
                "precisions": sorted(self.precisions),
                "summed": self.summed,
                "sums": {name: float(value) for name, value in self.sums.items()},
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            tensors = {
                "model": self.stage.modules.state_dict(),
                "optimizer": checkpoint.optimizer_tensors(self.optimizer, self.trained),
            }
            if self.ema:
                tensors["ema"] = self.ema.average
            checkpoint.save(self.folder / CHECKPOINT, checkpoint.Checkpoint(self.step, self.depends, scalars, tensors))
        self.accelerator.wait_for_everyone()

    def advance(self, batch_at: Callable[[int], Batch]) -> None:
        """One optimiser step."""
        config, rank, world = self.config, self.accelerator.process_index, self.accelerator.num_processes
        parts = config.gradient_accumulation
        self.stage.modules.train()
        self.stage.frozen.eval()
        self.stage.progress = self.step / config.steps
        for index in range(self.step * parts, (self.step + 1) * parts):
            batch = share(batch_at(index), rank, world).to(self.device)
            torch.manual_seed(derived_seed(self.seed, self.stage.name, index, rank))
            with self.accelerator.autocast():
                terms = self.stage.loss(batch)
            self.accelerator.backward(terms["loss"] / parts)
            for name, value in terms.items():
                self._add(name, value.detach().float() / parts)
        average_gradients(self.trained.values(), self.accelerator)
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), config.gradient_clip or math.inf)
        self._add("gradient_norm", norm.detach().float())
        rate = learning_rate(self.step, config.learning_rate, config.steps, config.warmup_steps, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.summed += 1
        if self.ema:
            self.ema.update(self.step)

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def report(self, validation: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        """What is due after this step: means since the last row, values on the validation split, both, or nothing."""
        row: dict[str, float] = {}
        ends = self.step == self.config.steps
        if ends or self.step % self.config.log_every == 0:
            row |= self.training_means()
        if ends or self.step % self.config.validate_every == 0:
            row |= self.validate(validation)
        return row

    def training_means(self) -> dict[str, float]:
        self._check_finite()
        if self.energy is not None:
            self.energy.read()
        means = self.accelerator.reduce(torch.stack(list(self.sums.values())), "mean") / self.summed
        values = {f"train/{name}": mean for name, mean in zip(self.sums, means.tolist(), strict=True)}
        values = {name: value for name, value in values.items() if math.isfinite(value)}  # JSON has no NaN
        self.sums, self.summed = {}, 0
        return values | {"learning_rate": self.optimizer.param_groups[0]["lr"], "wall_s": self.wall_s}

    def _check_finite(self) -> None:
        """A scaled half-precision gradient may overflow now and then: its step is left out, and that is no error."""
        watched = ["loss"] if self.accelerator.scaler is not None else ["loss", "gradient_norm"]
        steps = f"within steps {self.step - self.summed + 1} to {self.step}"
        for name in watched:
            if name in self.sums and not math.isfinite(float(self.sums[name])):
                raise self._diverged(name.replace("_", " "), steps)

    def _diverged(self, what: str, when: str) -> UserError:
        return UserError(
            f"stage {self.stage.name}: the {what} is not finite {when}; lower its learning_rate (now "
            f"{self.config.learning_rate:g}) or raise its warmup_steps (now {self.config.warmup_steps})"
        )

    def validate(self, validation: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        """The averaged weights on the validation split; the first process computes, the others wait."""
        values: dict[str, float] = {}
        if self.is_main:
            self.stage.modules.eval()
            self.stage.frozen.eval()
            torch.manual_seed(derived_seed(self.seed, self.stage.name, "validation"))
            batches = (batch.to(self.device) for batch in validation())
            averaged = self.ema.applied() if self.ema else nullcontext()
            with torch.no_grad(), self.accelerator.autocast(), averaged:
                values = {f"valid/{name}": float(value) for name, value in self.stage.validate(batches).items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise self._diverged(name, f"at step {self.step}")
        self.accelerator.wait_for_everyone()
        return values

    def finish(self) -> None:
        """Writes the result, and leaves it in the stage's modules."""
        if self.ema:
            self.ema.load(self.trained, self.ema.average)
        if self.is_main:
            checkpoint.save_tensors(self.folder / WEIGHTS, self.stage.modules.state_dict())
            parameters = sum(p.numel() for p in self.trained.values())
            facts = {"stage": self.stage.name, "steps": self.step, "wall_s": self.wall_s, "parameters": parameters}
            facts["code"] = code_of(self.stage)
            facts["precision"] = " and ".join(sorted(self.precisions))
            facts["energy_j"] = self.energy.read() if self.energy is not None else None
            write_done(self.folder, self.depends, [WEIGHTS, METRICS], facts)
            checkpoint.remove(self.folder / CHECKPOINT)
        if self.config.compile:  # what is sampled is the same whether it was trained in this process or loaded
            for network in _called(self.stage):
                network._compiled_call_impl = None  # there is no public way back
            torch.compiler.reset()
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    def bar(self, progress: bool) -> tqdm:
        return progress_bar(self.stage.name, self.config.steps, self.step, shown=progress and self.is_main)

    @property
    def wall_s(self) -> float:
        """Time spent on this stage so far, over all resumptions."""
        return time.monotonic() - self.begun_s


def derived_seed(*parts: int | str) -> int:
    """63 bits of the SHA-256 of the parts: a stream for each (seed, stage, step), and nothing to save on resume."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _called(stage: Stage) -> list[nn.Module]:
    """What torch.compile can compile: an autoencoder is not called itself, its encoder and decoder are."""
    networks = [*stage.modules.values(), *stage.frozen.values()]
    return [m for n in networks for m in ([n.encoder, n.decoder] if isinstance(n, AutoencoderKL) else [n])]


def _clear(folder: Path) -> None:
    """Removes what an earlier training of another configuration left."""
    checkpoint.remove(folder / CHECKPOINT)
    remove_metrics(folder)
    for name in (DONE, WEIGHTS):
        (folder / name).unlink(missing_ok=True)
