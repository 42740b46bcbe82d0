"""What is logged of a rollout, and what goes over from one to the next, against the sums written out in float64."""

import jax
import numpy as np
import pytest

from jaxalign.experience.adaptive import adapted_coefficient, merged_moments, scaled
from jaxalign.experience.figures import drift_figures, value_figures

RNG = np.random.default_rng(8)
MASK = np.array([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]], np.float32)
BATCH = {name: RNG.normal(size=MASK.shape).astype(np.float32) for name in ("old_logp_BT", "ref_logp_BT", "returns_BT",
                                                                           "old_value_BT")} | {"mask_BT": MASK}


def test_drift_is_summed_over_a_response_and_averaged_over_those_that_count():
    kl, entropy, rows = 0.0, 0.0, 0
    for b in range(len(MASK)):
        counted = [t for t in range(MASK.shape[1]) if MASK[b, t]]
        kl += sum(float(BATCH["old_logp_BT"][b, t]) - float(BATCH["ref_logp_BT"][b, t]) for t in counted)
        entropy += sum(-float(BATCH["old_logp_BT"][b, t]) for t in counted)
        rows += bool(counted)
    got = drift_figures(BATCH)
    assert got["objective/kl"] == pytest.approx(kl / rows, rel=1e-9)
    assert got["objective/entropy"] == pytest.approx(entropy / rows, rel=1e-9)


def test_explained_variance_and_returns_are_over_all_tokens_that_count():
    returns, value = (BATCH[name][MASK > 0].astype(np.float64) for name in ("returns_BT", "old_value_BT"))
    got = value_figures(BATCH)
    assert got["returns_mean"] == pytest.approx(returns.mean(), rel=1e-9)
    assert got["returns_std"] == pytest.approx(returns.std(), rel=1e-9)
    assert got["explained_variance"] == pytest.approx(1 - np.var(returns - value) / np.var(returns), rel=1e-9)
    right = value_figures(BATCH | {"old_value_BT": BATCH["returns_BT"] + 3.0})  # off by a constant: all is explained
    assert right["explained_variance"] == pytest.approx(1.0, abs=1e-6)


def test_what_stands_where_nothing_counts_is_in_no_figure():
    dirty = {name: np.where(MASK > 0, x, np.nan) for name, x in BATCH.items() if name != "mask_BT"} | {"mask_BT": MASK}
    assert drift_figures(dirty) == drift_figures(BATCH) and value_figures(dirty) == value_figures(BATCH)
    nothing = BATCH | {"mask_BT": np.zeros_like(MASK)}
    assert set(drift_figures(nothing).values()) == set(value_figures(nothing).values()) == {0.0}
    constant = value_figures(BATCH | {"returns_BT": np.full_like(MASK, 2.0)})
    assert constant == {"returns_mean": 2.0, "returns_std": 0.0, "explained_variance": 0.0}


@pytest.mark.parametrize(("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-1.0, -0.2)])
def test_the_coefficient_follows_the_controller_of_ziegler(kl, error):
    """arXiv:1909.08593, section 2.2: β′ = β · (1 + K_β · clip((KL − target) / target, −0.2, 0.2))."""
    assert adapted_coefficient(0.05, kl, target=6.0, gain=0.1) == pytest.approx(0.05 * (1 + 0.1 * error), rel=1e-12)


def test_the_coefficient_settles_where_the_target_is():
    """Of a policy whose KL is 1/β, so that the target 4 needs β = 0.25."""
    coefficient = 1.0
    for _ in range(200):
        coefficient = adapted_coefficient(coefficient, 1.0 / coefficient, target=4.0, gain=0.5)
    assert coefficient == pytest.approx(0.25, rel=1e-3)


def test_moments_over_rollouts_are_those_of_all_scores_at_once():
    scores = [(3.0 + RNG.normal(size=n) * 2.0).astype(np.float32) for n in (4, 1, 7)]
    masks = [np.array([1, 0, 1, 1], np.float32), np.zeros(1, np.float32), np.array([0, 1, 1, 1, 0, 1, 1], np.float32)]
    moments = (0.0, 0.0, 0.0)
    for x, mask in zip(scores, masks):
        moments = jax.jit(merged_moments)(moments, x, mask)
    counted = np.concatenate([x[mask > 0] for x, mask in zip(scores, masks)]).astype(np.float64)
    expected = len(counted), counted.mean(), ((counted - counted.mean()) ** 2).sum()
    np.testing.assert_allclose(moments, expected, rtol=1e-5)
    new = np.array([1.0, 4.0], np.float32)
    np.testing.assert_allclose(scaled(new, moments, scaling="std"), new / counted.std(), rtol=1e-5)
    np.testing.assert_allclose(scaled(new, moments, scaling="normalise"), (new - counted.mean()) / counted.std(),
                               rtol=1e-5)
    assert scaled(new, moments, scaling="none") is new


def test_scores_that_never_varied_are_left_at_their_size():
    for moments in ((0.0, 0.0, 0.0), jax.jit(merged_moments)((0.0, 0.0, 0.0), np.full(5, 0.1, np.float32), np.ones(5))):
        got = scaled(np.array([0.1, 2.0], np.float32), moments, scaling="std")
        np.testing.assert_allclose(got, [0.1, 2.0], rtol=1e-6)
