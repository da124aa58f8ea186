"""The statistics: against scipy and statsmodels, and against what they promise, by simulation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from scipy import stats as reference
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from results.table import stats

SEEDS = [3, 5, 10]
SD = 0.37  # of seeds, published: ResNet-56 on CIFAR-100


def accuracies(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(72, SD, n).round(2)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (5, 5), (10, 10), (2, 7), (3, 10), (10, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_differences_are_scipys(n: int, m: int, seed: int) -> None:
    ours, theirs = accuracies(n, seed), 2 * accuracies(m, seed + 100)
    compared: list[Any] = [(stats.welch_difference(ours, theirs), reference.ttest_ind(ours, theirs, equal_var=False))]
    if n == m:
        compared.append((stats.paired_difference(ours, theirs), reference.ttest_rel(ours, theirs)))
    for mine, wanted in compared:
        interval = wanted.confidence_interval(0.95)
        assert mine.p == pytest.approx(wanted.pvalue, rel=1e-10, abs=1e-10)
        assert (mine.lo, mine.hi) == pytest.approx((interval.low, interval.high), rel=1e-10, abs=1e-10)
        assert mine.diff == pytest.approx(ours.mean() - theirs.mean(), rel=1e-12)
        assert mine.n == min(n, m)
    assert [mine.paired for mine, _ in compared] == [False, True][: len(compared)]


def test_too_little_to_say_is_nothing_said() -> None:
    one, none, same, five = accuracies(1), accuracies(0), np.full(3, 70.0), accuracies(5)
    paired = [stats.paired_difference(*sides) for sides in ((none, none), (one, one - 1), (same, same - 1))]
    unpaired = [stats.welch_difference(*sides) for sides in ((one, five), (none, five), (same, same))]
    assert all(math.isnan(found.lo) and math.isnan(found.p) for found in paired + unpaired)
    assert [found.n for found in paired] == [0, 1, 3]
    assert [found.diff for found in paired[1:]] == pytest.approx([1, 1])
    unsaid = (stats.summary(one)["std"], stats.summary(none)["mean"], stats.mean_interval(one)[0])
    assert all(map(math.isnan, (*unsaid, stats.detectable(0.5, 1), stats.sign_flip(none))))


@settings(max_examples=30)
@given(hypothesis_numpy.arrays(np.float64, st.integers(0, 30), elements=st.floats(0, 1) | st.just(math.nan)))
def test_holm_is_statsmodels_over_what_was_tested(p: np.ndarray) -> None:
    tested, found = ~np.isnan(p), stats.holm(p)
    assert np.isnan(found[~tested]).all()
    if tested.any():
        wanted: Any = multipletests(p[tested], method="holm")[1]
        np.testing.assert_allclose(found[tested], wanted, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_sign_flip_is_scipys(k: int) -> None:
    gaps = accuracies(k) - 71.9
    exact = reference.permutation_test((gaps,), np.mean, permutation_type="samples", vectorized=True, n_resamples=2**k)
    assert stats.sign_flip(gaps) == pytest.approx(exact.pvalue, rel=1e-10, abs=1e-10)
    assert stats.sign_flip(np.full(k, 0.3)) == pytest.approx(2 / 2**k)


def test_sign_flip_of_many_draws_signs() -> None:
    gaps = np.random.default_rng(0).normal(0.3, 1, 40)
    wanted: Any = reference.ttest_1samp(gaps, 0)
    assert stats.sign_flip(gaps) == pytest.approx(wanted.pvalue, abs=0.02)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("effect", [0.2, 1.0, 1.5])
def test_power_is_statsmodels(n: int, effect: float) -> None:
    wanted = TTestPower().power(effect, nobs=n, alpha=0.05, alternative="two-sided")
    assert stats.power(effect * SD, SD, n) == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("n", [2, *SEEDS])
@pytest.mark.parametrize("family", [1, 12, 100])  # of two seeds in the last, a thousand times the spread
def test_what_is_detectable_has_the_power(n: int, family: int) -> None:
    alpha = 0.05 / family
    assert stats.power(stats.detectable(SD, n, alpha=alpha), SD, n, alpha) == pytest.approx(0.8, abs=1e-9)


def test_seeds_needed() -> None:
    gaps = SD * math.sqrt(2)  # of two pools whose seeds have SD each and nothing in common
    assert stats.seeds_needed(0.5, gaps) == 11
    assert stats.seeds_needed(0.3, gaps) == 26
    for difference in (0.2, 0.5, 1.0):
        n = stats.seeds_needed(difference, gaps)
        assert n is not None
        assert stats.power(difference, gaps, n) >= 0.8 > stats.power(difference, gaps, n - 1)
    assert stats.seeds_needed(1e-6, gaps) is None
    assert stats.seeds_needed(0.0, gaps) is None


def test_outliers() -> None:
    """The published column of MobileNetV2 on Fashion-MNIST, and the two that have none."""
    fmnist = [[94.32, 94.52, 94.36], [94.61, 94.81, 94.12], [61.22, 94.27, 94.29]]
    cifar = [[71.60, 71.06, 71.84], [72.00, 72.39, 72.49], [70.49, 69.96, 67.84]]
    vgg = [[73.96, 72.55, 72.52], [72.48, 74.02, 73.83], [73.93, 74.43, 73.04]]
    found = [np.array(stats.outliers([np.array(cell) for cell in column])) for column in (fmnist, cifar, vgg)]
    assert [np.argwhere(flags).tolist() for flags in found] == [[[2, 0]], [], []]
    assert not stats.outliers([np.array([1.0, 99.0])])[0].any(), "which of two is the odd one?"


def test_outliers_are_rare_where_there_is_only_noise() -> None:
    for n in SEEDS:
        draws = np.random.default_rng(0).normal(72, SD, (2000, 8, n))
        wrong = [any(flags.any() for flags in stats.outliers(list(column))) for column in draws]
        assert np.mean(wrong) < 0.015


def test_ranks() -> None:
    low, middle, high = (np.array([x, x + 0.1, x + 0.2]) for x in (70.0, 71.0, 72.0))
    wide = np.array([68.0, 71.0, 74.0])
    assert stats.ranks([low, middle, high]) == [3, 2, 1]
    assert stats.ranks([low, wide, high]) == [2, 1, 1]
    assert stats.ranks([low, np.array([99.0])]) == [1, None]


# What they promise


@pytest.mark.parametrize("n", SEEDS)
def test_the_family_errs_in_one_leaderboard_of_twenty_at_most(n: int) -> None:
    """10,000 leaderboards of 6 candidates, 4 baselines and 3 pairs in which nothing is better than anything."""
    boards, candidates, baselines, pairs = 10_000, 6, 4, 3
    draws = np.random.default_rng(n).normal(72, SD, (boards, candidates + baselines, pairs, n)).astype(np.float64)
    ps = [
        stats.paired_test(draws[:, candidate] - draws[:, candidates + baseline])[2]
        for candidate, baseline in itertools.product(range(candidates), range(baselines))
    ]
    family = np.concatenate(ps, axis=1)  # [boards, 72]
    wrong = np.array([(stats.holm(p) < 0.05).any() for p in family])
    assert wrong.mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / boards)


@pytest.mark.parametrize("n", SEEDS)
def test_intervals_cover(n: int) -> None:
    gaps = np.random.default_rng(n).normal(0.5, SD, (20_000, n))
    mean, half, _, _ = stats.paired_test(gaps)
    assert 0.94 <= np.mean(np.abs(mean - 0.5) <= half) <= 0.96


@pytest.mark.parametrize("n", SEEDS)
def test_a_true_gain_is_found_as_often_as_promised(n: int) -> None:
    draws = np.random.default_rng(n).normal(72, SD, (20_000, 2, n))
    _, _, p, _ = stats.paired_test(draws[:, 0] + 0.5 - draws[:, 1])
    assert np.mean(p < 0.05) == pytest.approx(stats.power(0.5, SD * math.sqrt(2), n), abs=0.015)
