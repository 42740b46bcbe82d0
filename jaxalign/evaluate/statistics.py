"""Intervals and agreement: what a figure of an evaluation is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927, JASA 22, p. 209).

        (p̂ + z²/2n ± z·√(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n)

    Args:
      successes: how many of n, 0 to n.
      n: trials; with 0 of them nothing is known and the interval is (0, 1).
      confidence: in (0, 1).

    Returns:
      (low, high), both in [0, 1].

    Raises:
      ValueError: if successes are not within 0 and n, or confidence not within 0 and 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes}: expected 0 to n={n}")
    z = NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and at n the bound is exactly 0 and 1; rounding must not leave a hair's breadth.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return max(0.0, low), min(1.0, high)


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence | None = None,
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean and percentile bootstrap interval, drawing whole groups (Efron 1979; cluster bootstrap).

    Args:
      values: one number an item.
      groups: the item's entity; items of one entity are drawn together. None: each item on its own.
      confidence: in (0, 1).
      draws: resamples.
      seed: of the resamples.

    Returns:
      (mean, low, high).

    Raises:
      ValueError: for no values, or lengths that differ.
    """
    sums, counts = _by_group(values, groups)
    weights = _resamples(len(sums), draws, seed)
    means = (weights @ sums) / (weights @ counts)
    low, high = _percentiles(means, confidence)
    return float(sums.sum() / counts.sum()), low, high


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Σ numerators / Σ denominators and its percentile bootstrap interval, drawing both parts of an item together.

    Args:
      numerators, denominators: one of each an item, e.g. the nats and the tokens of a text; denominators ≥ 0.
      confidence, draws, seed: as in `bootstrap_mean`.

    Returns:
      (ratio, low, high).

    Raises:
      ValueError: for no items, lengths that differ, or denominators that are all 0.
    """
    above, below = _paired(numerators, denominators)
    if not len(above) or not below.sum() > 0 or below.min() < 0:
        raise ValueError(f"{len(below)} denominators: expected at least one, none below 0, not all of them 0")
    return bootstrap_sums(np.stack([above, below], axis=1), lambda sums: sums[:, 0] / sums[:, 1], confidence=confidence,
                          draws=draws, seed=seed)


def bootstrap_sums(
    parts: np.ndarray,
    statistic,
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A statistic of sums over items and its percentile bootstrap interval, drawing all parts of an item together.

    Args:
      parts: [items, K], what each item adds to each of K sums.
      statistic: [draws, K] sums → [draws] values; resamples in which it is not finite say nothing and are left out.
      confidence, draws, seed: as in `bootstrap_mean`.

    Returns:
      (statistic of the items as they are, low, high).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(_resamples(len(parts), draws, seed) @ parts)
    low, high = _percentiles(values[np.isfinite(values)], confidence)
    return float(statistic(parts.sum(0)[None])[0]), low, high


def bootstrap_difference(
    before: Sequence[float],
    after: Sequence[float],
    groups_before: Sequence | None = None,
    groups_after: Sequence | None = None,
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """mean(after) − mean(before) with a bootstrap interval, drawing whole entities and the same ones on both sides.

    An entity measured before and after is drawn with both its measurements, so what makes it hard or easy cancels.
    With both groups None the items are taken to be the same, in the same order.

    Args:
      before, after: one number an item; the numbers of items may differ if groups are given.
      groups_before, groups_after: the items' entities; if only the first is given, it holds for both.
      confidence, draws, seed: as in `bootstrap_mean`.

    Returns:
      (difference, low, high).

    Raises:
      ValueError: for no values, lengths that differ, or unpaired items without groups.
    """
    if groups_before is None and groups_after is None:
        if len(before) != len(after):
            raise ValueError(f"{len(before)} items before, {len(after)} after: give groups, or the same items")
        groups_before = range(len(before))
    groups_after = groups_before if groups_after is None else groups_after
    groups_before = groups_after if groups_before is None else groups_before
    order = {key: i for i, key in enumerate(dict.fromkeys([*groups_before, *groups_after]))}
    sums_before, counts_before = _by_group(before, groups_before, order)
    sums_after, counts_after = _by_group(after, groups_after, order)
    weights = _resamples(len(order), draws, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = (weights @ sums_after) / (weights @ counts_after) - (weights @ sums_before) / (
            weights @ counts_before
        )
    # A resample may hold no item of one side where the entities differ; it says nothing.
    low, high = _percentiles(differences[np.isfinite(differences)], confidence)
    point = sums_after.sum() / counts_after.sum() - sums_before.sum() / counts_before.sum()
    return float(point), low, high


def kendall_tau_b(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's τ-b, which allows for ties (Kendall 1945, Biometrika 33, p. 239).

        τ_b = (C − D) / √((N − T_x)(N − T_y)),  N = n(n−1)/2 pairs, T tied within one list

    Args:
      x, y: two scores for each of the same n items; higher means the same in both.

    Returns:
      −1 to 1; NaN where one list is all ties (or n < 2): then there is no order to agree with.

    Raises:
      ValueError: if the lengths differ.
    """
    x, y = _paired(x, y)
    above = np.triu_indices(len(x), 1)
    sign_x = np.sign(x[:, None] - x[None, :])[above]
    sign_y = np.sign(y[:, None] - y[None, :])[above]
    scale = math.sqrt(float(np.sum(sign_x != 0)) * float(np.sum(sign_y != 0)))
    return float(np.sum(sign_x * sign_y)) / scale if scale else math.nan


def pair_agreement(gold: Sequence[float], predicted: Sequence[float], resolution: float = 0.0) -> tuple[float, int]:
    """How many of a ranking's pairs are ordered alike.

    Pairs whose gold scores differ by `resolution` or less are ties and not counted; a predicted tie counts one half.

    Args:
      gold, predicted: two scores for each of the same items; higher is better.
      resolution: ≥ 0, in units of the gold score.

    Returns:
      (agreeing pairs, counted pairs), so that figures of many rankings can be summed before they are divided.

    Raises:
      ValueError: if the lengths differ.
    """
    gold, predicted = _paired(gold, predicted)
    above = np.triu_indices(len(gold), 1)
    gap = (gold[:, None] - gold[None, :])[above]
    guess = np.sign(predicted[:, None] - predicted[None, :])[above]
    counted = np.abs(gap) > resolution
    agree = np.where(guess == 0, 0.5, guess == np.sign(gap))
    return float(agree[counted].sum()), int(counted.sum())


def probability_above(
    upper: Sequence[float], lower: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """P(u > l) + ½ · P(u = l) for one number of each list: the area under the ROC curve (Bamber 1975).

    The interval is Wilson's for as many trials as the shorter list has items: the variance of this estimate is never
    above p(1 − p) / min(m, n) (van Dantzig 1951), so it is too wide, if anything.

    Args:
      upper, lower: m and n numbers, at least one each.
      confidence: in (0, 1).

    Returns:
      (probability, low, high).

    Raises:
      ValueError: for an empty list.
    """
    upper, lower = np.asarray(upper, np.float64), np.sort(np.asarray(lower, np.float64))
    trials = min(len(upper), len(lower))
    if not trials:
        raise ValueError(f"{len(upper)} and {len(lower)} numbers: expected at least one of each")
    below, not_above = (np.searchsorted(lower, upper, side) for side in ("left", "right"))
    value = float((below + not_above).mean() / 2 / len(lower))
    return value, *wilson(value * trials, trials, confidence)


def _paired(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"shapes {x.shape} and {y.shape}: expected two lists of one length")
    return x, y


def _by_group(values, groups, order: dict | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each group."""
    values = np.asarray(values, np.float64)
    groups = range(len(values)) if groups is None else groups
    if not len(values) or len(values) != len(groups):
        raise ValueError(f"{len(values)} values in {len(groups)} groups: expected one group a value, and at least one")
    order = order or {key: i for i, key in enumerate(dict.fromkeys(groups))}
    index = np.asarray([order[key] for key in groups])
    return np.bincount(index, values, len(order)), np.bincount(index, minlength=len(order)).astype(np.float64)


def _resamples(count: int, draws: int, seed: int) -> np.ndarray:
    """[draws, count]: how often each group is drawn."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - _checked(confidence))
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a share between 0 and 1, as 0.95")
    return confidence
