"""The optimiser, its learning rate as a function of the step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def adamw(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), betas (.9, .999); only matrices and kernels decay.

    Biases and the gains of norms (one dimension) do not: shrinking them regularises nothing. The
    learning rate is set at each step. Fused: one pass over the memory, a quarter of the plain
    loop's time on a CPU; gradients must lie in memory as their parameters do, as autograd's do.
    """
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)


def learning_rate(step: int, peak: float, steps: int, warmup_steps: int, schedule: str) -> float:
    """The rate of step 0, 1, ..: a line up over `warmup_steps`, then `constant`, or `cosine` down to 0 at `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


class EMA:
    """Exponential moving average of parameters: ema <- d_t ema + (1 - d_t) theta.

    d_t = min(decay, (1 + t) / (10 + t)) after update t = 1, 2, ..: while training is young the
    average reaches back over about a ninth of it, so that short trainings do not remember their
    random start.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, t: int) -> None:
        weight = 1.0 - min(self.decay, (1 + t) / (10 + t))
        averages, values = list(self.average.values()), [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(averages, values, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters hold their average."""
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.load(self.parameters, self.average)
        try:
            yield
        finally:
            self.load(self.parameters, trained)

    @staticmethod
    @torch.no_grad()
    def load(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        for name, target in into.items():
            target.copy_(values[name])
