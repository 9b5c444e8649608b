"""The Fréchet distance: ours, and frechet-audio-distance's arithmetic on the same numbers."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from benchmarks.measure import Comparison, Measure
from benchmarks.sizes import SIZES
from eval.metrics import frechet_package
from eval.metrics.frechet import frechet_distance, frechet_distance_of_samples

PROMISED = {512: 12, 2048: 60}
PROMISED_OF_FEWER_SAMPLES = {2048: 300}
SIZE = pytest.mark.parametrize(("d", "n"), SIZES.frechet)
FEWER_SAMPLES = pytest.mark.parametrize(("d", "n"), [(d, n) for d, n in SIZES.frechet if n < d])


@lru_cache(maxsize=1)
def samples(d: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets (n, d) float64 whose covariances differ."""
    rng = np.random.default_rng(d)
    scale = np.geomspace(1.0, 0.1, d)
    return rng.standard_normal((n, d)) * scale, rng.standard_normal((n, d)) * scale[::-1] + 0.1


@lru_cache(maxsize=1)
def moments(d: int, n: int) -> tuple[np.ndarray, ...]:
    x, y = samples(d, n)
    return x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)


def name(d: int, n: int) -> str:
    return f"FAD arithmetic, d = {d}, N = {n}"


@SIZE
def test_own(measure: Measure, d: int, n: int) -> None:
    compare = Comparison(name(d, n), "ours", PROMISED.get(d))
    measure(lambda: frechet_distance(*moments(d, n)), unit="distance", compare=compare, d=d, n=n)


@FEWER_SAMPLES
def test_own_of_fewer_samples_than_dimensions(measure: Measure, d: int, n: int) -> None:
    """From the embeddings themselves, moments included."""
    compare = Comparison(name(d, n), "ours", PROMISED_OF_FEWER_SAMPLES.get(d))
    measure(lambda: frechet_distance_of_samples(*samples(d, n)), unit="distance", compare=compare, d=d, n=n)


LARGE = 1000
"""Dimensions above which the package's arithmetic takes minutes."""


@pytest.mark.parametrize(
    ("d", "n"), [pytest.param(d, n, marks=[pytest.mark.slow] if d > LARGE else []) for d, n in SIZES.frechet]
)
def test_package(measure: Measure, d: int, n: int) -> None:
    """Its value must be ours. With moments of full rank both are exact, else its root of a singular product errs."""
    if not frechet_package.available():
        pytest.skip("frechet-audio-distance is not installed")
    once = {"rounds": 1, "warm_up": False} if d > LARGE else {}
    compare = Comparison(name(d, n), "peer")
    theirs = measure(
        lambda: frechet_package.frechet_distance(*moments(d, n)),
        unit="distance",
        compare=compare,
        d=d,
        n=n,
        by=frechet_package.version(),
        **once,
    )
    assert theirs == pytest.approx(frechet_distance(*moments(d, n)), rel=1e-6)
    assert theirs == pytest.approx(frechet_distance_of_samples(*samples(d, n)), rel=1e-6)
