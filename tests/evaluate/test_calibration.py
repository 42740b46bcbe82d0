"""Calibration and the figures by length, against numbers worked out by hand and against models of known bias."""

import numpy as np
import pytest

from jaxalign.evaluate.calibration import by_length, calibration, share
from jaxalign.evaluate.statistics import bootstrap_sums, wilson

RNG = np.random.default_rng(2)


def logit(p):
    return np.log(p / (1 - p))


def test_calibration_by_hand():
    # Sure by 0.55, 0.65 (wrong), 0.65, 0.95 (wrong), and a draw.
    differences = [logit(0.55), -logit(0.65), logit(0.65), -logit(0.95), 0.0]
    figures = calibration(differences, np.arange(5))
    bins = figures["calibration"]
    assert list(bins) == ["0.5 to 0.6", "0.6 to 0.7", "0.9 to 1"]
    assert bins["0.5 to 0.6"]["predicted"] == pytest.approx((0.55 + 0.5) / 2)
    assert bins["0.5 to 0.6"]["observed"] == {"value": 0.75, "n": 2, "ci95": wilson(1.5, 2)}  # a draw is half right
    assert bins["0.6 to 0.7"]["predicted"] == pytest.approx(0.65) and bins["0.6 to 0.7"]["observed"]["value"] == 0.5
    error = figures["calibration_error"]
    expected = (abs(1.5 - 1.05) + abs(1 - 1.3) + abs(0 - 0.95)) / 5
    assert error["value"] == pytest.approx(expected) and error["n"] == 5
    assert error["ci95"][0] <= expected <= error["ci95"][1]


@pytest.mark.parametrize("stretch, calibrated", [(1.0, True), (3.0, False), (0.3, False)])
def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_has_not(stretch, calibrated):
    true = RNG.normal(size=5_000) * 1.5
    wins = RNG.random(5_000) < 1 / (1 + np.exp(-true))
    scored = np.where(wins, 1, -1) * true * stretch
    error = calibration(scored, np.arange(5_000))["calibration_error"]
    assert (error["value"] < 0.03) == calibrated and (error["ci95"][1] < 0.05) == calibrated


def test_pairs_of_one_prompt_are_drawn_together():
    differences, prompts = np.repeat([1.0, -1.0, 1.0], 40), np.repeat([0, 1, 2], 40)
    alone = calibration(differences, np.arange(120))["calibration"]["0.7 to 0.8"]["observed"]
    together = calibration(differences, prompts)["calibration"]["0.7 to 0.8"]["observed"]
    assert alone["value"] == together["value"] == pytest.approx(2 / 3) and alone["n"] == together["n"] == 120
    assert together["ci95"] == (0.0, 1.0) and alone["ci95"][0] > 0.5


def test_accuracy_by_length_by_hand():
    lengths, others = [4, 8, 10, 15, 30, 7], [10, 10, 10, 10, 10, 10]
    figures = by_length([1, -1, 1, 1, -1, 1.0], lengths, others, np.arange(6))
    found = {name: (figure["value"], figure["n"]) for name, figure in figures["accuracy_by_length"].items()}
    assert found == {"under half": (1.0, 1), "shorter": (0.5, 2), "alike": (1.0, 1), "longer": (1.0, 1),
                     "over twice": (0.0, 1)}
    # Of 8:10, 7:10 the shorter won, of 15:10 the longer; of 10:10 neither; of 4:10 the shorter, of 30:10 the longer.
    longer = figures["longer_preferred"]
    assert {name: (row["observed"]["value"], row["observed"]["n"]) for name, row in longer.items()} == {
        "1.1 to 1.5": (1 / 3, 3), "over 2": (0.5, 2)}
    sigma = 1 / (1 + np.exp(-1.0))
    assert longer["1.1 to 1.5"]["predicted"] == pytest.approx((sigma + (1 - sigma) + sigma) / 3)


def test_a_model_that_scores_length_is_found_out():
    """People do not care for length; the model scores nothing else."""
    size = 4000
    lengths, others = RNG.integers(5, 60, size).astype(float), RNG.integers(5, 60, size).astype(float)
    figures = by_length(0.1 * (lengths - others), lengths, others, np.arange(size))
    accuracy = figures["accuracy_by_length"]
    assert accuracy["under half"]["value"] == 0.0 and accuracy["over twice"]["value"] == 1.0
    row = figures["longer_preferred"]["over 2"]
    assert row["observed"]["value"] == pytest.approx(0.5, abs=0.05) and row["predicted"] > 0.9


def test_a_share_has_wilsons_interval_only_where_no_prompt_comes_twice():
    hits = np.array([1.0, 0.0, 1.0, 1.0])
    assert share(hits, np.arange(4))["ci95"] == wilson(3, 4)
    assert share(hits, np.array([0, 0, 1, 1]))["ci95"] != wilson(3, 4)


def test_a_statistic_of_sums_leaves_out_what_is_not_finite():
    parts = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    value, low, high = bootstrap_sums(parts, lambda sums: sums[:, 0] / sums[:, 1])
    assert value == 0.5 and (low, high) == (0.0, 1.0)
