"""Training in several processes: who computes what, and what they tell each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eeg2speech.batch import Batch
from eeg2speech.device import device, has_bfloat16
from eeg2speech.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


logger = logging.getLogger(__name__)
DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Of an Accelerator's `mixed_precision`."""


def make_accelerator(mixed_precision: str, stage: str) -> Accelerator:
    """An Accelerator of this precision; of float32, with a warning, where bf16 would only be imitated.

    Raises UserError for fp16 on a CPU.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    device()  # by which float32 is float32
    AcceleratorState._reset_state()  # else the precision of this process's first stage would bind all others
    plugin = GradientAccumulationPlugin(num_steps=1)  # the loop divides by the number of micro-batches itself
    accelerator = Accelerator(mixed_precision=mixed_precision, gradient_accumulation_plugin=plugin)
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(f"stage {stage}: mixed_precision fp16 needs a GPU; use bf16 or no")
    if mixed_precision == "bf16" and not has_bfloat16(accelerator.device.type):
        logger.warning("stage %s: trained in float32, for this processor can only imitate bf16", stage)
        return make_accelerator("no", stage)
    return accelerator


def share(batch: Batch, rank: int, world: int) -> Batch:
    """The rows of one process. Raises UserError where rows cannot be shared evenly: means would be weighted wrongly."""
    if world == 1:
        return batch
    if len(batch) % world:
        raise UserError(f"batch_size: {len(batch)} windows cannot be shared by {world} processes; choose a multiple")
    rows = slice(rank * len(batch) // world, (rank + 1) * len(batch) // world)
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    mine: dict[str, Any] = {name: value if value is None else value[rows] for name, value in values.items()}
    return Batch(**mine)


def broadcast(modules: nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the first one's parameters and buffers."""
    if accelerator.num_processes > 1:
        for tensor in modules.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Over processes, in one message: a stage may then call its modules as it likes, which DDP's wrapper forbids."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gathered(mine: Tensor) -> Tensor:
    """(B, ...) of each process -> (processes * B, ...) of all, in their order, gradients included.

    For losses that are no means over rows: their gradients, averaged over processes, are then those of one process
    with the whole batch.
    """
    return _Gather.apply(mine) if _several() else mine


def process_index() -> int:
    return torch.distributed.get_rank() if _several() else 0


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous()
        torch.distributed.all_reduce(summed)
        return summed.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether `flag` is true in any process: the same answer in all of them."""
    if accelerator.num_processes == 1:
        return flag
    if flag:
        accelerator.set_trigger()
    return bool(accelerator.check_trigger())
