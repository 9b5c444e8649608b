"""Fréchet Audio Distance (Kilgour et al., Interspeech 2019) and what it takes to read it.

The distance of a small set is biased upward, the more the smaller the set. Systems that hear EEG
make a clip per listener and the others one per stimulus, so the distance is taken within each
listener, at equal N in every row, and averaged over listeners.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from eval.metrics import frechet_package
from eval.metrics.base import Measurement, SystemOutput, TestSet
from eval.metrics.embedded_sets import ListenerSet, SetMetric, flat
from eval.results import MetricInfo

logger = logging.getLogger(__name__)
KILGOUR = "Kilgour et al., Interspeech 2019"


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)) of means (d,) and covariances (d, d).

    With sigma1 = R R^T the product's non-zero eigenvalues are those of the symmetric R^T sigma2 R, hence real and
    non-negative; rounding below zero is clamped, in them and in the result. Raises ValueError where sigma1 or sigma2
    has a value that is not finite.
    """
    from scipy.linalg import eigvalsh
    from scipy.linalg.blas import dgemm

    root = _root(sigma1)
    sigma2 = np.asarray_chkfinite(sigma2, dtype=np.float64)
    product = eigvalsh(dgemm(1.0, root, dgemm(1.0, sigma2.T, root), trans_a=True), check_finite=False)
    trace = float(np.trace(sigma1) + np.trace(sigma2) - 2 * np.sqrt(product.clip(min=0)).sum())
    return max(0.0, float(((mu1 - mu2) ** 2).sum()) + trace)


def _root(sigma: np.ndarray) -> np.ndarray:
    """(d, d) positive semi-definite -> R (d, r) with sigma = R R^T.

    The Cholesky factor with pivots (LAPACK's pstrf), which stops at the rank r, where nothing is left but rounding: a
    fraction of the time of eigenvectors. All of it in SciPy, whose threads and NumPy's get into each other's way, and
    on transposes, which are symmetric matrices as Fortran stores them.
    """
    from scipy.linalg.lapack import dpstrf

    factor, order, rank, _ = dpstrf(np.asarray_chkfinite(sigma, dtype=np.float64).T, lower=1)
    root = np.empty((len(sigma), rank), order="F")
    root[order - 1] = np.tril(factor[:, :rank])
    return root


def frechet_distance_of_samples(x: np.ndarray, y: np.ndarray) -> float:
    """The same from samples (n, d) and (m, d), n, m >= 2: unbiased covariances, finite also where n < d.

    With fewer samples than dimensions tr((sigma1 sigma2)^(1/2)) is the sum of the singular values of
    A B^T / sqrt((n - 1)(m - 1)), A and B the centred samples: exact, and as small as the samples are few.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if max(len(x), len(y)) > x.shape[1]:
        return frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    trace = (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(((x.mean(0) - y.mean(0)) ** 2).sum() + trace))


def package_or_own(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> tuple[float, str]:
    """The distance, and whose arithmetic gave it: frechet-audio-distance's where it is installed and can.

    It is not asked beyond 384 dimensions (its complex square root takes seconds to minutes) and where its root is not
    real (nearly singular covariances); ours agrees with it to 1e-6 wherever both are well-conditioned.
    """
    if frechet_package.available() and len(mu1) <= 384:
        try:
            return max(0.0, frechet_package.frechet_distance(mu1, sigma1, mu2, sigma2)), frechet_package.version()
        except ValueError as error:
            logger.info("frechet-audio-distance gave no real number (%s): own arithmetic instead", error)
    return frechet_distance(mu1, sigma1, mu2, sigma2), "own"


class FrechetAudioDistance(TorchMetric):
    """The distance accumulated over batches and processes: counts, sums and outer products in float64."""

    full_state_update = False
    arithmetic: str = ""
    """After `compute`: whose arithmetic gave the value."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        for side in ("real", "generated"):
            self.add_state(f"{side}_n", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(dimension, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(
                f"{side}_outer", torch.zeros(dimension, dimension, dtype=torch.float64), dist_reduce_fx="sum"
            )

    def update(self, embeddings: Tensor, real: bool) -> None:
        """(n, d) embeddings of real or of generated clips."""
        side, x = ("real" if real else "generated"), embeddings.double()
        setattr(self, f"{side}_n", getattr(self, f"{side}_n") + len(x))
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + x.sum(0))
        setattr(self, f"{side}_outer", getattr(self, f"{side}_outer") + x.T @ x)

    def compute(self) -> Tensor:
        value, self.arithmetic = package_or_own(*self._moments("real"), *self._moments("generated"))
        return torch.tensor(value, dtype=torch.float64)

    def _moments(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        n, total, outer = (getattr(self, f"{side}_{part}") for part in ("n", "sum", "outer"))
        mean = total / n
        return mean.cpu().numpy(), ((outer - n * torch.outer(mean, mean)) / (n - 1)).cpu().numpy()


def joint_span(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, d), (m, d) -> the same points in coordinates of the space they span, at most n + m - 1 dimensions.

    A rotation and a shift leave the distance as it is, and small sets need small matrices.
    """
    if len(x) + len(y) > x.shape[1]:
        return x, y
    both = np.concatenate([x, y])
    both = both - both.mean(0)
    basis = np.linalg.svd(both, full_matrices=False)[2][: len(both) - 1]
    rotated = both @ basis.T
    return rotated[: len(x)], rotated[len(x) :]


def accumulated(x: np.ndarray, y: np.ndarray) -> tuple[float, str]:
    """The distance of true embeddings (n, d) and generated ones (m, d), and whose arithmetic gave it."""
    x, y = joint_span(x, y)
    metric = FrechetAudioDistance(x.shape[1])
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    return float(metric.compute()), metric.arithmetic


class FAD(SetMetric):
    """The distance between generated and true clips, averaged over listeners."""

    SHARES, DRAWS = (0.25, 0.5, 0.75), 4

    info = MetricInfo(
        name="fad",
        label="FAD",
        unit="",
        higher_is_better=False,
        per_example=False,
        definition="Fréchet audio distance: between Gaussians fitted to embeddings of generated and of true clips "
        f"({KILGOUR}), within each listener (so that N is the same in every row), averaged over listeners; biased "
        "upward at small N.",
    )

    def compute(self, test: TestSet, output: SystemOutput) -> Measurement:
        sets = self.sets(test, output)
        n = min(len(s.stimulus) for s in sets)
        if n < 2:
            return self.result(test, None, n, reason="fewer than two clips of one listener")
        values = [accumulated(flat(s.true), flat(s.generated)) for s in sets]
        by = values[0][1] if frechet_package.available() else f"own; to use the package: {frechet_package.HOW_TO_ADD}"
        ci = self.interval(sets, lambda s: frechet_distance_of_samples(flat(s.true), flat(s.generated)))
        value = float(np.mean([v for v, _ in values]))
        return self.result(test, value, n, ci, by=by, curve=(*self.curve(sets), (n, value)))

    def curve(self, sets: Sequence[ListenerSet]) -> list[tuple[int, float]]:
        """The distance at a quarter, a half and three quarters of N: mean over draws without replacement, each of the
        same clips from truth and system, and over listeners. Sizes below two clips are left out."""
        least = min(len(s.stimulus) for s in sets)
        rng = np.random.default_rng(self.seed)
        found = []
        for n in sorted({round(share * least) for share in self.SHARES} - {0, 1, least}):
            draws = [(s, rng.choice(len(s.stimulus), n, replace=False)) for s in sets for _ in range(self.DRAWS)]
            values = [frechet_distance_of_samples(flat(s.true[rows]), flat(s.generated[rows])) for s, rows in draws]
            found.append((n, float(np.mean(values))))
        return found


class SplitHalfFAD(SetMetric):
    """What the embedder and the corpus give for two samples of the same thing: the floor under every FAD."""

    SPLITS = 20

    info = MetricInfo(
        name="fad_split_half",
        label="FAD, true against true",
        unit="",
        higher_is_better=False,
        per_example=False,
        definition=f"Mean FAD between two random halves of the true clips over {SPLITS} splits: no system can be told "
        "from the truth below it. At half the N its bias is about twice that of the FAD row.",
    )

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        if output.system != "reference":
            return "a property of the true clips, measured once, in the row of the true recordings"
        return super().reason(test, output)

    def compute(self, test: TestSet, output: SystemOutput) -> Measurement:
        true = self.scorers.embeddings(self.embedder, test)
        half = len(true) // 2
        if half < 2:
            return self.result(test, None, half, reason="fewer than four true clips")
        rng = np.random.default_rng(self.seed)
        orders = [rng.permutation(len(true)) for _ in range(self.SPLITS)]
        values = [accumulated(flat(true[o[:half]]), flat(true[o[half : 2 * half]]))[0] for o in orders]
        return self.result(test, float(np.mean(values)), half)


class FADInfinity(SetMetric):
    """The distance extrapolated to infinite N (Chong & Forsyth, CVPR 2020), only where that is estimable."""

    SIZES, DRAWS = 8, 10

    info = MetricInfo(
        name="fad_infinity",
        label="FAD at infinite N",
        unit="",
        higher_is_better=False,
        per_example=False,
        definition="Intercept of FAD against 1 / n (Chong & Forsyth, CVPR 2020), n stimuli drawn without replacement "
        "from true and generated clips together, n from N / 2 to N; estimable only where N / 2 exceeds the dimension.",
    )

    def compute(self, test: TestSet, output: SystemOutput) -> Measurement:
        sets = self.sets(test, output)
        n = min(len(s.stimulus) for s in sets)
        dimension = sets[0].true.shape[-1]
        if n // 2 <= dimension:
            return self.result(
                test, None, n, reason=f"not estimable: N / 2 = {n // 2} is not above the dimension {dimension}"
            )
        rng = np.random.default_rng(self.seed)
        sizes = np.linspace(n / 2, n, self.SIZES).astype(int).repeat(self.DRAWS)
        values = []
        for size in sizes:
            rows = [rng.choice(len(s.stimulus), size, replace=False) for s in sets]
            pairs = [(flat(s.true[r]), flat(s.generated[r])) for s, r in zip(sets, rows, strict=True)]
            values.append(np.mean([frechet_distance_of_samples(x, y) for x, y in pairs]))
        slope, intercept = np.polyfit(1 / sizes, values, 1)
        return self.result(test, float(intercept), n)
