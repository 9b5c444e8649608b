"""Statistics against closed forms, scipy and brute force."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eeg2speech.errors import UserError
from eeg2speech.evaluation import EvaluationConfig
from eval.assembly import Scored, rows
from eval.statistics import (
    Pairs,
    holm,
    jackknife_interval,
    median_bootstrap,
    minimum_detectable_effect,
    pair,
    paired_gain,
    paired_permutation,
    percentile_interval,
    ratio_bootstrap,
    two_way,
)


def crossed(n_stimuli: int, n_subjects: int) -> tuple[np.ndarray, np.ndarray]:
    stimulus, subject = np.divmod(np.arange(n_stimuli * n_subjects), n_subjects)
    return stimulus, subject


def pairs_of(num: np.ndarray, other: np.ndarray, den: np.ndarray | None = None) -> Pairs:
    den = np.ones_like(num) if den is None else den
    return Pairs(num, den, other, den, np.arange(len(num)), np.zeros(len(num)))


def test_interval_of_a_mean_is_the_t_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, 40)
    low, high = ratio_bootstrap(values, np.ones(40), np.arange(40), np.zeros(40), 20_000) or (0, 0)
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert np.allclose((low, high), expected, atol=0.06)


def test_listeners_of_a_stimulus_stay_together() -> None:
    """Four identical listeners carry no more information than one."""
    rng = np.random.default_rng(1)
    per_stimulus = rng.normal(size=30)
    stimulus, subject = crossed(30, 4)
    four = ratio_bootstrap(per_stimulus[stimulus], np.ones(120), stimulus, subject)
    one = ratio_bootstrap(per_stimulus, np.ones(30), np.arange(30), np.zeros(30))
    assert four == pytest.approx(one)


def test_subjects_are_drawn_only_from_twenty_each_way() -> None:
    assert two_way(20, 20)
    assert not two_way(400, 19)
    stimulus, subject = crossed(25, 25)
    by_subject = np.random.default_rng(2).normal(size=25)[subject]
    low, high = ratio_bootstrap(by_subject, np.ones(625), stimulus, subject) or (0, 0)
    assert high - low == pytest.approx(2 * 2.06 * by_subject.std() / np.sqrt(24), rel=0.2)
    fixed = ratio_bootstrap(by_subject[subject < 19], np.ones(475), stimulus[subject < 19], subject[subject < 19])
    assert fixed is not None
    assert fixed[1] - fixed[0] < 1e-9, "all stimuli agree, and these listeners are a fixed factor"


@pytest.mark.parametrize(
    ("n_stimuli", "n_subjects", "simulations"),
    [(24, 1, 150), pytest.param(22, 22, 500, marks=pytest.mark.slow), pytest.param(60, 4, 500, marks=pytest.mark.slow)],
)
def test_coverage_of_a_known_ratio(n_stimuli: int, n_subjects: int, simulations: int) -> None:
    """Words of random number, each wrong with a probability that depends on stimulus and listener."""
    rng = np.random.default_rng(3)
    stimulus, subject = crossed(n_stimuli, n_subjects)
    random_subjects = two_way(n_stimuli, n_subjects)
    hits = 0
    for i in range(simulations):
        words = rng.integers(3, 8, n_stimuli)[stimulus].astype(float)
        by_stimulus, by_subject = rng.normal(size=n_stimuli), rng.normal(size=n_subjects) * random_subjects
        rate = (0.4 + 0.06 * by_stimulus[stimulus] + 0.06 * by_subject[subject]).clip(0, 1)
        errors = rng.binomial(words.astype(int), rate).astype(float)
        low, high = ratio_bootstrap(errors, words, stimulus, subject, 1_000, seed=i) or (0, 0)
        hits += low <= 0.4 <= high
    slack = 0 if simulations >= 500 else 0.03
    assert 0.92 - slack <= hits / simulations <= 0.97 + slack


def hits(n: int, of: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (np.arange(of) < n).astype(float), np.ones(of), np.arange(of), np.zeros(of)


@pytest.mark.parametrize(("n", "rate"), [(10, 0.9), (24, 0.97), (48, 0.02), (16, 0.5)])
def test_coverage_of_rates_near_the_edge(n: int, rate: float) -> None:
    """Over 2,000 experiments; the bootstrap alone, which has no width where all hit or all miss, covered 54 to 64 %."""
    intervals = [ratio_bootstrap(*hits(k, n), 2_000) or (0, 0) for k in range(n + 1)]
    drawn = np.random.default_rng(12).binomial(n, rate, 2_000)
    assert np.mean([intervals[k][0] <= rate <= intervals[k][1] for k in drawn]) >= 0.93


def test_where_all_hit_or_all_miss_the_interval_is_clopper_and_pearsons() -> None:
    for k in (0, 12):
        expected = stats.binomtest(k, 12).proportion_ci(0.95, method="exact")
        assert ratio_bootstrap(*hits(k, 12)) == pytest.approx(tuple(expected))


def test_intervals_with_a_width_are_the_bootstraps() -> None:
    for k in (1, 8, 15):
        counts = np.random.default_rng([0, 16]).integers(16, size=(1_000, 16))
        assert ratio_bootstrap(*hits(k, 16), 1_000) == percentile_interval((counts < k).mean(axis=1), 16)


def test_stimuli_that_agree_on_one_half_leave_the_unlike_ones_that_may_exist() -> None:
    """One of two listeners always hits, the other never; an unlike stimulus has both or none."""
    stimulus, subject = crossed(20, 2)
    low, high = ratio_bootstrap(subject == 0, np.ones(40), stimulus, subject) or (0, 0)
    unlike = stats.binomtest(0, 20).proportion_ci(0.95, method="exact").high
    assert (low, high) == pytest.approx((0.5 - unlike / 2, 0.5 + unlike / 2))


def test_values_with_a_unit_or_beyond_one_keep_their_interval() -> None:
    zeros, ones, stimulus, subject = hits(0, 12)
    assert ratio_bootstrap(zeros, ones, stimulus, subject, has_unit=True) == (0, 0)
    assert ratio_bootstrap(1.5 * ones, ones, stimulus, subject) == (1.5, 1.5)


@pytest.mark.parametrize(("unit", "high"), [("%", 0.2646), ("", 0.2646), ("dB", 0.0)])
def test_only_a_metric_without_a_unit_is_a_proportion(unit: str, high: float) -> None:
    info = {"name": "m", "label": "M", "unit": unit, "higher_is_better": False, "per_example": True, "definition": ""}
    shared = {"value": 0.0, "ci": None, "n": 12, "reason": None, "embedder": None, "signature": ""}
    examples = pd.DataFrame({"subject": "A", "stimulus_id": np.arange(12), "m": 0.0, "m_n": 1.0})
    scored = Scored("eeg", "claim", "", examples, [{"metric": info, "per_example": True, **shared}])
    found = list(rows(scored, EvaluationConfig(n_resamples=100)))
    assert [row.ci for row in found] == [pytest.approx((0, high), abs=1e-4)] * 2


def test_no_interval_from_one_stimulus_and_none_from_nan() -> None:
    assert ratio_bootstrap(np.array([1.0]), np.array([2.0]), np.array([0]), np.array([0])) is None
    values = np.array([1.0, np.nan, np.nan])
    assert ratio_bootstrap(values, np.ones(3), np.arange(3), np.zeros(3)) is None
    assert percentile_interval(np.full(10, np.nan), 5) is None


def test_median_interval_agrees_with_resampling_by_hand() -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(1, 50, 40).astype(float)
    medians = np.median(values[rng.integers(40, size=(20_000, 40))], axis=1)
    assert median_bootstrap(values, np.arange(40), np.zeros(40)) == pytest.approx(
        percentile_interval(medians, 40), abs=1
    )


def test_jackknife_of_a_mean_is_the_t_interval() -> None:
    values = np.random.default_rng(5).normal(size=30)
    found = jackknife_interval(lambda kept: float(values[kept].mean()), np.arange(30))
    assert found == pytest.approx(stats.t.interval(0.95, 29, values.mean(), stats.sem(values)))


def test_exact_permutation_is_the_enumeration() -> None:
    rng = np.random.default_rng(6)
    a, b, den = rng.normal(size=9), rng.normal(size=9) + 0.7, rng.integers(2, 6, 9).astype(float)
    observed = abs((b - a).sum() / den.sum())
    flips = np.array(list(itertools.product([-1, 1], repeat=9)))
    expected = (np.abs(flips @ (b - a)) / den.sum() >= observed - 1e-12).mean()
    assert paired_permutation(pairs_of(a, b, den)) == pytest.approx(expected)


def test_permutation_agrees_with_scipy() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=60), rng.normal(size=60) + 0.25
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert paired_permutation(pairs_of(a, b), 20_000) == pytest.approx(expected.pvalue, abs=0.015)


@pytest.mark.parametrize("n_stimuli", [1, 3, 5, 16])
def test_no_p_below_what_the_design_can_give(n_stimuli: int) -> None:
    p = paired_permutation(pairs_of(np.zeros(n_stimuli), np.ones(n_stimuli)), n_permutations=1_000)
    assert p is not None
    assert p >= max(2 / 2**n_stimuli, 0 if 2**n_stimuli <= 1_000 else 1 / 1_001)
    assert p == pytest.approx(2 / 2**n_stimuli) or n_stimuli == 16


def test_equal_systems_have_p_one() -> None:
    values = np.random.default_rng(8).normal(size=40)
    assert paired_permutation(pairs_of(values, values)) == 1.0


def test_p_is_uniform_where_nothing_differs_although_listeners_agree() -> None:
    """Four listeners share the stimulus' luck; flipping them one by one would reject far too often."""
    rng = np.random.default_rng(9)
    stimulus, subject = crossed(24, 4)
    ps = []
    for i in range(300):
        luck = rng.normal(size=24)[stimulus]
        a = luck + rng.normal(size=96) * 0.3
        ps.append(paired_permutation(Pairs(a, np.ones(96), np.zeros(96), np.ones(96), stimulus, subject), 400, seed=i))
    assert stats.kstest(np.array(ps, dtype=float), "uniform").pvalue > 0.01
    assert stats.binomtest(int((np.array(ps) < 0.05).sum()), 300, 0.05).pvalue > 0.01


@pytest.mark.parametrize("of", ["listeners", "stimuli"])
def test_effects_of_twenty_listeners_or_stimuli_are_no_gain(of: str) -> None:
    """Effects with mean 0 that the other way of flipping takes for a gain in most experiments."""
    stimulus, subject = crossed(20, 20)
    effect = subject if of == "listeners" else stimulus
    ones, zeros = np.ones(400), np.zeros(400)
    found = []
    for i in range(300):
        rng = np.random.default_rng([13, i])
        values = rng.normal(size=20)[effect] + rng.normal(size=400)
        found.append(paired_permutation(Pairs(values, ones, zeros, ones, stimulus, subject), 400, seed=i))
    rejected = int((np.array(found, dtype=float) < 0.05).sum())
    assert stats.binomtest(rejected, 300, 0.05, alternative="greater").pvalue > 0.01


def test_nineteen_listeners_are_flipped_by_stimulus_alone() -> None:
    stimulus, subject = crossed(30, 19)
    values = 0.1 + np.random.default_rng(14).normal(size=19)[subject] + np.random.default_rng(15).normal(size=570)
    ones, zeros = np.ones(570), np.zeros(570)
    means = values.reshape(30, 19).mean(axis=1)
    assert paired_permutation(Pairs(values, ones, zeros, ones, stimulus, subject)) == pytest.approx(
        paired_permutation(pairs_of(means, np.zeros(30)))
    )


def test_gain_is_positive_when_the_claim_is_better() -> None:
    rng = np.random.default_rng(10)
    wer = pairs_of(rng.normal(0.3, 0.05, 40), rng.normal(0.9, 0.05, 40))
    gain = paired_gain(wer, higher_is_better=False)
    assert gain is not None
    assert gain.ci is not None
    assert gain.value == pytest.approx((wer.other_num - wer.num).mean())
    assert gain.ci[0] < gain.value < gain.ci[1]
    assert gain.standard_error == pytest.approx(stats.sem(wer.other_num - wer.num), rel=0.1)
    turned = paired_gain(wer, higher_is_better=True)
    assert turned is not None
    assert turned.value == -gain.value


@pytest.mark.parametrize(("ours", "other", "low", "high"), [(1, 0, -2, 0), (0, 1, 0, 2), (0, 0, -1, 1)])
def test_gain_that_all_stimuli_agree_on(ours: int, other: int, low: int, high: int) -> None:
    """An unlike stimulus gains between -1 and 1: by as many times its share as that lies from the gain found."""
    gain = paired_gain(pairs_of(np.full(30, float(ours)), np.full(30, float(other))), higher_is_better=True)
    assert gain is not None
    unlike = stats.binomtest(0, 30).proportion_ci(0.95, method="exact").high
    assert gain.ci == pytest.approx((gain.value + low * unlike, gain.value + high * unlike))


def test_holm_by_hand() -> None:
    """Holm 1979: sorted p times (m, m - 1, ...), made monotone."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.5, 0.6]) == [None, 1.0, 1.0]
    assert holm([]) == []


def test_minimum_detectable_effect_has_the_power_it_says() -> None:
    """Against the power of the t test by its noncentral distribution."""
    effect = minimum_detectable_effect(1.0, 30)
    assert effect is not None
    critical = stats.t.ppf(0.975, 29)
    assert 1 - stats.nct.cdf(critical, 29, effect) == pytest.approx(0.8, abs=0.01)
    assert minimum_detectable_effect(1.0, 1) is None


def table(rows: list[tuple[str, str, str, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["system", "subject", "stimulus_id", "wer"])
    return frame.assign(study="s", sampling_seed=0, wer_n=5.0)


def test_a_system_that_hears_no_eeg_is_joined_to_every_listener() -> None:
    rows = [("eeg", u, s, float(i)) for i, (u, s) in enumerate(itertools.product("AB", "xyz"))]
    floor = [("mean", "", s, 10.0 + i) for i, s in enumerate("xyz")]
    found = pair(table(rows + floor), "wer", "mean")
    assert list(found.other_num) == [10, 11, 12, 10, 11, 12]
    assert list(found.num) == [0, 1, 2, 3, 4, 5]
    noise = [("noise", u, s, 20.0 + i) for i, (u, s) in enumerate(itertools.product("BA", "xyz"))]
    assert list(pair(table(rows + noise), "wer", "noise").other_num) == [23, 24, 25, 20, 21, 22]


def test_rows_not_run_are_left_out_and_doubled_rows_refused() -> None:
    rows = [("eeg", "A", "x", 1.0), ("eeg", "A", "y", np.nan), ("mean", "", "x", 2.0), ("mean", "", "y", 2.0)]
    assert list(pair(table(rows), "wer", "mean").stimulus) == ["s/x"]
    with pytest.raises(UserError, match="mean"):
        pair(table([*rows, ("mean", "", "x", 3.0)]), "wer", "mean")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_examples_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stimulus, subject = crossed(12, 3)
    num, other, den = rng.normal(size=36), rng.normal(size=36), rng.integers(1, 5, 36).astype(float)
    order = rng.permutation(36)
    whole = Pairs(num, den, other, den, stimulus, subject)
    moved = Pairs(num[order], den[order], other[order], den[order], stimulus[order], subject[order])
    assert paired_permutation(whole, 500) == paired_permutation(moved, 500)
    one, two = (
        ratio_bootstrap(num, den, stimulus, subject, 300),
        ratio_bootstrap(num[order], den[order], stimulus[order], subject[order], 300),
    )
    assert one == pytest.approx(two, rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_a_large_table_within_a_minute_and_half_a_gigabyte() -> None:
    """5,000 examples x 10 systems x 10 metrics, 10,000 resamples: intervals, gains and tests of every cell.

    What is allocated, beside the half gigabyte that the libraries take, makes one gigabyte at most.
    """
    rng = np.random.default_rng(11)
    stimulus, subject = crossed(250, 20)
    den = np.ones(5_000)
    tracemalloc.start()
    started = time.perf_counter()
    for _ in range(10):
        ours = rng.normal(size=5_000)
        ratio_bootstrap(ours, den, stimulus, subject)
        for _ in range(9):
            pairs = Pairs(ours, den, rng.normal(size=5_000), den, stimulus, subject)
            ratio_bootstrap(pairs.other_num, den, stimulus, subject)
            paired_gain(pairs, True)
            paired_permutation(pairs)
    assert time.perf_counter() - started < 60
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5e9
