"""What `holds` says of a figure, on both sides of its target and at it."""

import numpy as np
import pytest

from jaxalign.evaluate.world import Measure
from jaxalign.stages.claims import _by_kind, _Claims

ENTITIES = [f"land {n % 25}" for n in range(100)]


def share(ones):
    return Measure(np.array([1.0] * ones + [0.0] * (100 - ones)), ENTITIES)


def last(claims):
    return claims.rows[-1]


@pytest.mark.parametrize("ones, target, holds", [
    (90, "≥ 0.90", True), (91, "≥ 0.90", True), (89, "≥ 0.90", False),
    (5, "≤ 0.05", True), (4, "≤ 0.05", True), (6, "≤ 0.05", False)])
def test_a_share_holds_from_its_target_on(ones, target, holds):
    claims = _Claims()
    claims.share("a", share(ones), target, share(50), "a note")
    assert last(claims)["holds"] is holds and last(claims)["value"] == ones / 100 and last(claims)["n"] == 100
    assert last(claims)["baseline"] == 0.5 and last(claims)["note"] == "a note" and last(claims)["target"] == target
    low, high = last(claims)["ci95"]
    assert low < ones / 100 < high


@pytest.mark.parametrize("before, after, target, bound, sign, holds", [
    (90, 87, "≥ -0.05", -0.05, 1, True), (90, 84, "≥ -0.05", -0.05, 1, False), (50, 99, "≥ -0.05", -0.05, 1, True),
    (10, 13, "≤ 0.05", 0.05, -1, True), (10, 16, "≤ 0.05", 0.05, -1, False), (50, 1, "≤ 0.05", 0.05, -1, True),
    (50, 51, "> 0", 0.0, 1, True), (50, 50, "> 0", 0.0, 1, False), (50, 49, "> 0", 0.0, 1, False),
    (50, 49, "< 0", 0.0, -1, True), (50, 50, "< 0", 0.0, -1, False), (50, 51, "< 0", 0.0, -1, False),
    (50, 50, "≥ 0", 0.0, 1, True)])
def test_a_change_holds_where_it_is_on_the_right_side(before, after, target, bound, sign, holds):
    claims = _Claims()
    claims.change("a", share(before), share(after), target, bound, sign)
    assert last(claims)["holds"] is holds and last(claims)["difference"]
    assert last(claims)["value"] == pytest.approx((after - before) / 100) and last(claims)["baseline"] == before / 100


def test_kinds_are_told_apart_and_those_of_which_nothing_is_known_left_out():
    items = [{"kind": "fact", "right": 1.0, "pairs": 2}, {"kind": "fact", "right": 2.0, "pairs": 2},
             {"kind": "a", "right": 0.5, "pairs": 1}, {"kind": "none", "right": 0.0, "pairs": 0}]
    assert _by_kind(items, "right", "pairs") == "a 0.50 (n 1), fact 0.75 (n 4)"
