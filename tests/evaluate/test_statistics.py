"""Intervals against published values and against scipy; agreement by counting."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxalign.evaluate.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    kendall_tau_b,
    pair_agreement,
    probability_above,
    wilson,
)
from jaxalign.evaluate.world import Ratio, difference


@pytest.mark.parametrize("successes, n", [(0, 10), (10, 10), (1, 29), (81, 263), (450, 500), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, confidence):
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose(wilson(successes, n, confidence), theirs, atol=1e-9)


def test_wilson_of_newcombe_1998():
    """Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)]:
        np.testing.assert_allclose(wilson(successes, n), (low, high), atol=5e-5)


def test_wilson_bounds_are_exact_at_the_ends_and_bad_input_is_named():
    assert wilson(0, 7)[0] == 0.0 and wilson(7, 7)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes=8"):
        wilson(8, 7)
    with pytest.raises(ValueError, match="confidence=95"):
        wilson(1, 7, 95)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [2, 4, 100])
def test_kendall_tau_b_is_scipys(seed, levels):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(levels, size=(2, 12)).astype(float)
    np.testing.assert_allclose(kendall_tau_b(x, y), scipy.stats.kendalltau(x, y, variant="b").statistic, atol=1e-12)


def test_kendall_tau_b_by_hand():
    assert kendall_tau_b([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert kendall_tau_b([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    # 6 pairs, one tied in x; 5 concordant: 5/√(5·6)
    assert math.isclose(kendall_tau_b([1, 1, 2, 3], [1, 2, 3, 4]), 5 / math.sqrt(30))
    assert math.isnan(kendall_tau_b([1, 1, 1], [1, 2, 3])) and math.isnan(kendall_tau_b([1], [1]))
    with pytest.raises(ValueError, match="one length"):
        kendall_tau_b([1, 2], [1, 2, 3])


def test_pair_agreement_counts_pairs():
    assert pair_agreement([3, 2, 1], [9, 5, 1]) == (3.0, 3)
    assert pair_agreement([3, 2, 1], [1, 5, 9]) == (0.0, 3)
    assert pair_agreement([3, 2, 2], [1, 1, 0]) == (1.5, 2)  # gold tie not counted, predicted tie a half
    assert pair_agreement([1.0, 0.95, 0.0], [1, 2, 0], resolution=0.1) == (2.0, 2)


def test_bootstrap_mean_is_near_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    mean, low, high = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - half, abs=0.05) and high == pytest.approx(mean + half, abs=0.05)


def test_items_of_one_entity_are_no_independent_evidence():
    """Ten copies of 50 values must not look like 500 values."""
    values = np.random.default_rng(1).normal(size=50)
    copies, groups = np.tile(values, 10), np.tile(np.arange(50), 10)
    _, low, high = bootstrap_mean(values)
    _, low_grouped, high_grouped = bootstrap_mean(copies, groups)
    _, low_naive, high_naive = bootstrap_mean(copies)
    assert (low_grouped, high_grouped) == pytest.approx((low, high), abs=1e-9)
    assert high_naive - low_naive < 0.5 * (high - low)


def test_the_difference_of_two_ratios_is_paired_by_entity():
    rng = np.random.default_rng(3)
    length, gold = rng.uniform(2.0, 40.0, 300), rng.uniform(5.0, 20.0, 300)
    entities = [f"land {n % 100}" for n in range(300)]
    order = rng.permutation(300)
    before = Ratio(length, gold, entities)
    after = Ratio((length + 0.1 * gold)[order], gold[order], [entities[n] for n in order])
    value, (low, high) = difference(before, after)
    assert value == pytest.approx(0.1) == after.mean - before.mean
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1)
    assert np.subtract(*before.interval()[::-1]) > 0.1  # each for itself is known far less well
    more = Ratio(after.numerators + rng.normal(0.0, 5.0, 300), after.denominators, after.entities)
    value, (low, high) = difference(before, more)
    assert low < value < high and 0.05 < high - low < 0.25


def test_difference_is_paired_by_entity():
    """Entities differ widely, each improves by about 0.1: only the paired interval sees it."""
    rng = np.random.default_rng(2)
    before = rng.normal(0, 5, 200)
    after = before + 0.1 + rng.normal(0, 0.1, 200)
    value, low, high = bootstrap_difference(before, after)
    assert value == pytest.approx((after - before).mean()) and 0.05 < low < high < 0.15
    order = rng.permutation(200)
    shuffled = bootstrap_difference(before, after[order], list(range(200)), list(order))
    assert shuffled[0] == pytest.approx(value) and shuffled[1] > 0.05


def test_difference_of_other_entities_and_bad_lengths():
    value, low, high = bootstrap_difference([0, 0, 1], [1, 1, 0, 1], ["a", "b", "c"], ["d", "e", "f", "g"])
    assert value == pytest.approx(0.75 - 1 / 3) and low <= value <= high
    with pytest.raises(ValueError, match="give groups"):
        bootstrap_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([])


def test_bootstrap_repeats_by_seed():
    values = list(range(30))
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_probability_of_standing_above_is_mann_whitneys(levels):
    rng = np.random.default_rng(levels)
    upper, lower = rng.integers(0, levels, 37) + levels // 3, rng.integers(0, levels, 90)
    value, low, high = probability_above(upper, lower)
    statistic = scipy.stats.mannwhitneyu(upper, lower).statistic
    np.testing.assert_allclose(value, statistic / (37 * 90), rtol=1e-12)
    np.testing.assert_allclose((low, high), wilson(value * 37, 37))
    assert probability_above([2.0], [1.0])[0] == 1.0 and probability_above([1.0], [1.0])[0] == 0.5
    with pytest.raises(ValueError, match="0 and 1 numbers"):
        probability_above([], [1.0])


def test_a_ratio_is_drawn_by_item():
    value, low, high = bootstrap_ratio([1, 2, 3, 4], [2, 2, 2, 2])
    assert value == 1.25 and 0.5 <= low < value < high <= 2
    assert bootstrap_ratio([2, 4], [1, 2])[1:] == (2.0, 2.0)
    with pytest.raises(ValueError, match="denominators"):
        bootstrap_ratio([1, 2], [0, 0])
