"""Kernel Audio Distance (Chung et al., 2025): an unbiased distance between small sets of clips."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities import dim_zero_cat

from eval.metrics.base import Measurement, SystemOutput, TestSet
from eval.metrics.embedded_sets import ListenerSet, SetMetric
from eval.results import MetricInfo

SCALE = 100.0
"""Chung et al. print a hundred times the squared maximum mean discrepancy."""


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, d), (m, d) -> (n, m)"""
    return ((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T).clip(min=0)


def kernel_distance(true: np.ndarray, generated: np.ndarray, bandwidth: float | None = None) -> float:
    """100 times the unbiased squared MMD of paired samples (n, d), row i of both from the same stimulus.

    Gaussian kernel exp(-|x - y|^2 / (2 s^2)), s the median distance between true clips as in Chung
    et al. The cross term leaves out i = j (Gretton et al., JMLR 2012, eq. 4): a clip and its own
    reconstruction are not independent. Zero on average where the two sets come from one
    distribution, exactly zero where they are the same, and so sometimes negative.
    """
    n = len(true)
    scale = (median_distance(true) if bandwidth is None else bandwidth) ** 2
    pairs = ((true, true, 1), (generated, generated, 1), (true, generated, -2))
    total = 0.0
    for x, y, sign in pairs:
        kernel = np.exp(-squared_distances(x, y) / (2 * scale))
        total += sign * (kernel.sum() - np.trace(kernel))
    return SCALE * float(total) / (n * (n - 1))


def median_distance(x: np.ndarray) -> float:
    """Median distance between different rows of (n, d)."""
    return float(np.median(np.sqrt(squared_distances(x, x)[np.triu_indices(len(x), 1)])))


class KernelAudioDistance(TorchMetric):
    """`kernel_distance` over batches and processes; embeddings are gathered, since it needs all pairs."""

    full_state_update = False
    true: list[Tensor]
    generated: list[Tensor]

    def __init__(self, bandwidth: float | None = None) -> None:
        super().__init__()
        self.bandwidth = bandwidth
        self.add_state("true", [], dist_reduce_fx="cat")
        self.add_state("generated", [], dist_reduce_fx="cat")

    def update(self, true: Tensor, generated: Tensor) -> None:
        """(n, d) each, row by row of the same stimulus."""
        self.true.append(true.double())
        self.generated.append(generated.double())

    def compute(self) -> Tensor:
        true, generated = (dim_zero_cat(side).cpu().numpy() for side in (self.true, self.generated))
        return torch.tensor(kernel_distance(true, generated, self.bandwidth), dtype=torch.float64)


class KAD(SetMetric):
    """The distance between generated and true clips, averaged over listeners."""

    info = MetricInfo(
        name="kad",
        label="KAD",
        unit="",
        higher_is_better=False,
        per_example=False,
        definition="Kernel audio distance: 100 times the "
        "unbiased squared maximum mean discrepancy between embeddings of generated and true "
        "clips (Chung et al. 2025), Gaussian kernel with the median distance of the true clips, within each listener; "
        "unbiased at small N, zero for the same distribution, and so sometimes negative.",
    )

    def compute(self, test: TestSet, output: SystemOutput) -> Measurement:
        sets = self.sets(test, output)
        n = min(len(s.stimulus) for s in sets)
        true = np.concatenate([s.true.mean(axis=1) for s in sets])
        if n < 3 or np.ptp(true, axis=0).max() == 0:
            return self.result(test, None, n, reason="fewer than three different clips of one listener")
        bandwidth = median_distance(np.unique(true, axis=0))

        def value(s: ListenerSet) -> float:
            return kernel_distance(s.true.mean(axis=1), s.generated.mean(axis=1), bandwidth)

        whole = []
        for s in sets:
            metric = KernelAudioDistance(bandwidth)
            metric.update(torch.from_numpy(s.true.mean(axis=1)), torch.from_numpy(s.generated.mean(axis=1)))
            whole.append(float(metric.compute()))
        return self.result(test, float(np.mean(whole)), n, self.interval(sets, value, max_groups=50))
