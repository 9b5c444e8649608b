"""Metrics that are one sum over examples divided by another."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from eval.metrics.base import Measurement, Metric, SystemOutput, TestSet


class SummedRatio(TorchMetric):
    """Sum of numerators over sum of denominators, in float64, summed over batches and processes."""

    full_state_update = False
    numerator: Tensor
    denominator: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("numerator", "denominator"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, numerator: Tensor, denominator: Tensor) -> None:
        """(n,) each; examples with NaN were not run and are left out."""
        run = torch.isfinite(numerator) & torch.isfinite(denominator)
        self.numerator += numerator[run].sum()
        self.denominator += denominator[run].sum()

    def compute(self) -> Tensor:
        return self.numerator / self.denominator


@dataclass(frozen=True)
class Ratios:
    """Per example, each (n,) float64; NaN in both where the example was not run, and why."""

    numerator: np.ndarray
    denominator: np.ndarray
    why_not: str = ""
    columns: dict[str, np.ndarray] = field(default_factory=dict)


def mean_of(values: np.ndarray, why_not: str = "") -> Ratios:
    """The plain mean over examples as a ratio: the denominator is 1."""
    values = np.asarray(values, dtype=np.float64)
    return Ratios(values, np.where(np.isfinite(values), 1.0, np.nan), why_not)


class RatioMetric(Metric):
    """A metric given by a numerator and a denominator per example."""

    @abstractmethod
    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        """Called only where `reason` is None."""

    def provenance(self) -> dict[str, str | int | None]:
        """What the signature names besides metric and N."""
        return {}

    def compute(self, test: TestSet, output: SystemOutput) -> Measurement:
        ratios = self.examples(test, output)
        total = SummedRatio()
        total.update(torch.from_numpy(ratios.numerator), torch.from_numpy(ratios.denominator))
        missing = int(np.isnan(ratios.numerator).sum())
        n = len(ratios.numerator) - missing
        return Measurement(
            self.describe(test),
            float(total.compute()) if n else None,
            self.embedder,
            n=n,
            numerator=ratios.numerator,
            denominator=ratios.denominator,
            columns=ratios.columns,
            skipped={ratios.why_not: missing} if missing else {},
            reason=None if n else ratios.why_not,
            signature=self.signature(n, **self.provenance()),  # type: ignore[arg-type]
        )
