"""Ranks of estimates among candidates that lie in memory-mapped files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.measure import Comparison, Measure
from benchmarks.sizes import SIZES
from eval.metrics.retrieval import ranks, scores

SIZE = SIZES.retrieval
NAME = f"retrieval of {SIZE.estimates} among {SIZE.estimates} x {SIZE.shape}"
PROMISED = 5
BLOCK = 100


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and candidates, (n, D, T') float32 each; an estimate is its candidate in noise of its level."""
    folder, rng = tmp_path_factory.mktemp("retrieval"), np.random.default_rng(0)
    block = rng.standard_normal((BLOCK, *SIZE.shape), dtype=np.float32)
    shape = (SIZE.estimates, *SIZE.shape)
    estimates, candidates = (
        np.lib.format.open_memmap(folder / f"{side}.npy", "w+", np.float32, shape) for side in ("estimate", "candidate")
    )
    for number, start in enumerate(range(0, SIZE.estimates, BLOCK)):
        rows = slice(start, min(start + BLOCK, SIZE.estimates))
        # Shifted noise is new noise, and much faster had; a shift over both axes comes round late.
        speech, noise = (np.roll(block, 7919 * (2 * number + k)) for k in (1, 2))
        candidates[rows] = speech[: rows.stop - rows.start]
        estimates[rows] = candidates[rows] + noise[: rows.stop - rows.start]
    return tuple(np.load(folder / f"{side}.npy", mmap_mode="r") for side in ("estimate", "candidate"))  # type: ignore[return-value]


def timed(measure: Measure, function: Callable[[], np.ndarray], items: int, role: str, inputs: tuple) -> np.ndarray:
    size_mib = sum(array.nbytes for array in inputs) / 2**20
    return measure(
        function,
        items=items,
        unit="estimate",
        compare=Comparison(NAME, role, PROMISED if role == "ours" else None),
        rounds=1,
        warm_up=False,
        memory_mapped_mib=round(size_mib),  # part of host_beyond_mib
        shape=SIZE.shape,
    )


def test_blocked(measure: Measure, embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    estimates, candidates = embeddings
    target = np.arange(len(estimates))
    timed(measure, lambda: ranks(scores(estimates, candidates), target), len(estimates), "ours", embeddings)


def test_one_by_one(measure: Measure, embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    """The plain way: for each estimate, the inner product with every normalised candidate."""
    estimates, candidates = embeddings
    norms = np.array([np.linalg.norm(candidate) for candidate in candidates])

    def run() -> np.ndarray:
        found = []
        for i, estimate in enumerate(estimates[: SIZE.naive_estimates]):
            score = np.array([np.vdot(estimate, candidate) for candidate in candidates]) / norms
            found.append(1 + (score > score[i]).sum())
        return np.array(found)

    rank = timed(measure, run, SIZE.naive_estimates, "peer", embeddings)
    some = np.arange(SIZE.naive_estimates)
    np.testing.assert_array_equal(rank, ranks(scores(estimates[some], candidates), some))
