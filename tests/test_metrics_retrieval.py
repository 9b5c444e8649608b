"""Retrieval against brute force and counting."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from eeg2speech.errors import UserError
from eval.metrics.audio_retrieval import AudioRetrieval
from eval.metrics.retrieval import (
    MeanReciprocalRank,
    MedianRank,
    RetrievalRanks,
    TopK,
    accuracy_with_fewer,
    ranks,
    scores,
)
from eval.metrics.scorers import Scorers
from tests.metrics_fixture import make_test, per_listener, per_stimulus, permuted


def random_case(seed: int = 0, n: int = 30, size: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    candidates = rng.normal(size=(size, 3, 5)).astype(np.float32) * rng.uniform(0.1, 9, (size, 1, 1)).astype(np.float32)
    target = rng.integers(size, size=n)
    estimate = candidates[target] + rng.normal(size=(n, 3, 5)).astype(np.float32)
    return estimate, candidates, target


def test_scores_are_those_of_the_loss() -> None:
    estimate, candidates, _ = random_case()
    expected = np.array([[(e * c).sum() / np.sqrt((c * c).sum()) for c in candidates] for e in estimate])
    assert np.allclose(scores(estimate, candidates), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 64))
def test_block_size_changes_nothing(seed: int, block: int) -> None:
    estimate, candidates, _ = random_case(seed)
    assert np.allclose(scores(estimate, candidates, block), scores(estimate, candidates), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_ranks_are_average_ranks_by_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(5, size=(20, 9)).astype(np.float32)  # many ties
    target = rng.integers(9, size=20)
    expected = [rankdata(-row, method="average")[t] for row, t in zip(score, target, strict=True)]
    assert np.array_equal(ranks(score, target), expected)


def test_nan_scores_are_an_error() -> None:
    score = np.zeros((3, 4), dtype=np.float32)
    score[1, 2] = np.nan
    with pytest.raises(UserError, match="row 1"):
        ranks(score, np.zeros(3, dtype=int))


def test_metrics_count_by_hand(tmp_path: Path) -> None:
    """Six candidates that are unit vectors: the score of a candidate is the estimate's entry."""
    candidates = np.eye(6, dtype=np.float32)[:, :, None]
    test = make_test(["a"] * 6, candidates=candidates, n_subjects=1)
    wanted = np.array([1, 2, 3, 6, 6, 1])
    estimate = np.zeros((6, 6, 1), dtype=np.float32)
    for row, rank in enumerate(wanted):
        others = [i for i in range(6) if i != row]
        estimate[row, [*others[: rank - 1], row, *others[rank - 1 :]], 0] = np.arange(6, 0, -1)
    output = per_listener(test, estimate=estimate)
    scorers = Scorers(tmp_path)
    assert TopK(scorers, 1).measure(test, output).value == pytest.approx(2 / 6)
    assert TopK(scorers, 5).measure(test, output).value == pytest.approx(4 / 6)
    assert MeanReciprocalRank(scorers).measure(test, output).value == pytest.approx((1 + 1 / 2 + 1 / 3 + 2 / 6 + 1) / 6)
    assert MedianRank(scorers).measure(test, output).value == 2.5
    top10 = TopK(scorers, 10).measure(test, output)
    assert top10.value is None
    assert top10.reason == "needs more than 10 candidates, the test set has 6"


def test_chance_is_what_random_embeddings_reach(tmp_path: Path) -> None:
    """Also with duplicates: a stimulus that appears twice counts as one candidate."""
    rng = np.random.default_rng(1)
    candidates = rng.normal(size=(25, 2, 3)).astype(np.float32)
    candidates[20:] = candidates[:5]
    test = make_test(["a"] * 25, candidates=candidates, n_subjects=200)
    output = per_listener(test, estimate=rng.normal(size=(5_000, 2, 3)).astype(np.float32))
    scorers = Scorers(tmp_path)
    for metric, expected in (
        (TopK(scorers, 1), 1 / 20),
        (TopK(scorers, 5), 5 / 20),
        (MeanReciprocalRank(scorers), sum(1 / r for r in range(1, 21)) / 20),
        (MedianRank(scorers, 200), 10.5),
    ):
        found = metric.measure(test, output)
        assert found.metric.chance == pytest.approx(expected)
        assert found.value == pytest.approx(expected, rel=0.1)


def test_an_estimate_that_says_nothing_ranks_in_the_middle(tmp_path: Path) -> None:
    test = make_test(["a"] * 12)
    output = per_listener(test, estimate=np.zeros((24, 4, 6), dtype=np.float32))
    assert TopK(Scorers(tmp_path), 5).measure(test, output).value == 0.0
    assert MedianRank(Scorers(tmp_path)).measure(test, output).value == 6.5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_examples_changes_nothing(seed: int) -> None:
    estimate, candidates, _ = random_case(seed, n=24)
    test = make_test(["a"] * 12, candidates=candidates)
    output = per_listener(test, estimate=estimate)
    order = np.random.default_rng(seed).permutation(24)
    for make in (lambda s: TopK(s, 5), MeanReciprocalRank, lambda s: MedianRank(s, 300)):
        one = make(Scorers(Path())).measure(test, output)
        two = make(Scorers(Path())).measure(test, permuted(output, order))
        assert one.value == pytest.approx(two.value)
        if one.numerator is not None and two.numerator is not None:
            assert np.array_equal(one.numerator[order], two.numerator)


def test_fewer_candidates_by_enumeration() -> None:
    """Rank 3 of 6: top-1 of 3 where none of the two better ones is among the two drawn from five."""
    assert accuracy_with_fewer(np.array([3.0]), 6, 3) == pytest.approx(comb(3, 2) / comb(5, 2))
    assert accuracy_with_fewer(np.array([3.0, 1.0]), 6, 6, k=3) == 1.0
    assert accuracy_with_fewer(np.arange(1.0, 7.0), 6, 4) == pytest.approx(1 / 4), "chance is k / size"


def test_a_system_without_estimates_says_so(tmp_path: Path) -> None:
    test = make_test(["a"] * 12)
    assert "no embedding" in (TopK(Scorers(tmp_path), 1).measure(test, per_listener(test)).reason or "")


def test_ranks_gather_over_batches() -> None:
    metric = RetrievalRanks()
    metric.update(torch.tensor([1.0, 7.0]))
    metric.update(torch.tensor([3.0]))
    assert metric.compute() == 3.0


def as_embedding(waveform: np.ndarray) -> np.ndarray:
    """(n, N) -> (n, 8, N / 8): a linear stand-in for an audio encoder in which a clip is its own embedding."""
    return waveform.reshape(len(waveform), 8, -1)


def test_audio_retrieval_both_ways_by_hand() -> None:
    rng = np.random.default_rng(3)
    waveform = rng.normal(size=(9, 64)).astype(np.float32)
    test = make_test(["a"] * 9, waveform, as_embedding(waveform), embed_audio=as_embedding)
    generated = waveform[test.examples["stimulus"]] + rng.normal(size=(18, 64)).astype(np.float32) * 1.5
    output = per_listener(test, generated)
    pool = as_embedding(waveform).mean(-1)
    heard = as_embedding(generated).mean(-1)
    cosine = (heard @ pool.T) / np.linalg.norm(heard, axis=1)[:, None] / np.linalg.norm(pool, axis=1)
    stimulus, subject = test.examples["stimulus"].to_numpy(), test.examples["subject"].to_numpy()
    forward = AudioRetrieval(Scorers(Path()), "audio_to_speech").measure(test, output)
    assert forward.value == pytest.approx((cosine.argmax(1) == stimulus).mean())
    backward = AudioRetrieval(Scorers(Path()), "speech_to_audio").measure(test, output)
    hits = []
    for i in range(18):
        rows = np.flatnonzero(subject == subject[i])
        hits.append(rows[cosine[rows, stimulus[i]].argmax()] == i)
    assert backward.value == pytest.approx(np.mean(hits))
    perfect = AudioRetrieval(Scorers(Path()), "speech_to_audio").measure(test, per_stimulus(test, waveform))
    assert perfect.value == 1.0
    assert perfect.metric.chance == pytest.approx(1 / 9)
