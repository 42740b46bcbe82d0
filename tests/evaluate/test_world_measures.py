"""What the answers to the world's items come to: lengths as one ratio of sums, intervals about the same figure."""

import types

import numpy as np
import pytest

from jaxalign.evaluate.world import Measure, Ratio, Sheet


def sheet(lengths, fitting, entities, group="fact"):
    judged = [types.SimpleNamespace(length_words=got, gold_length_words=want) for got, want in zip(lengths, fitting)]
    return Sheet([{"set": group, "entity": entity} for entity in entities], [""] * len(judged), judged)


def test_lengths_are_a_mean_of_errors_and_a_ratio_of_sums():
    # A short answer twice too long, a long one right: the mean of the ratios is 1.5, the ratio of the sums near 1.
    error, ratio = sheet([4, 98], [2, 98], ["a", "b"]).lengths("fact")
    assert error.mean == 0.5 and ratio.mean == pytest.approx(1.02) and ratio.n == 2


def test_the_interval_is_about_the_ratio_itself():
    rng = np.random.default_rng(0)
    fitting = rng.integers(1, 60, 400)
    lengths = fitting + (fitting < 5) * 4  # only short ones are too long: the mean of the ratios lies far above
    _, ratio = sheet(lengths, fitting, [f"land {i % 100}" for i in range(400)]).lengths("fact")
    low, high = ratio.interval()
    assert low < ratio.mean < high < (lengths / fitting).mean() and high - low < 0.02


def test_items_of_one_entity_are_drawn_together():
    lengths, entities = np.repeat([1.0, 3.0] * 10, 20), np.repeat(np.arange(20), 20)
    together, alone = (Ratio(lengths, np.full(400, 2.0), list(e)).interval() for e in (entities, range(400)))
    # Twenty entities, not four hundred items: √20 times as wide.
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(20**0.5, rel=0.25)


def test_shares_have_wilsons_interval_and_other_numbers_a_bootstrapped_one():
    assert Measure(np.array([1.0] * 10), list(range(10))).interval()[1] == 1.0
    low, high = Measure(np.array([0.5, 1.5] * 50), list(range(100))).interval()
    assert 0.85 < low < 1.0 < high < 1.15


def test_phrasings_of_training_and_others_are_told_apart():
    judged = [types.SimpleNamespace(refused=refused) for refused in (True, True, False, True)]
    rows = [{"set": "unsafe", "phrasing": phrasing} for phrasing in ("seen", "seen", "unseen", "unseen")]
    both = Sheet([*rows, {"set": "fact", "phrasing": "seen"}], [""] * 5, [*judged, types.SimpleNamespace(refused=False)])
    assert both.by_phrasing("unsafe", "refused") == "asked as in training 1.000 (n 2), in other words 0.500 (n 2)"
    assert both.by_phrasing("fact", "refused") == "asked as in training 0.000 (n 1)"
