"""IPO, KTO, ORPO, SimPO: each equation as printed in float64, its gradient, and what it must not train through."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxalign.batches import bind, signature
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.kto import kto_reference_point
from jaxalign.objectives.reduce import reduce

RNG = np.random.default_rng(31)
N = 12
LENGTHS = [RNG.integers(1, 30, N).astype(np.float32) for _ in range(2)]
ARRAYS = {
    "chosen_logp_B": -LENGTHS[0] * (0.2 + RNG.random(N)),
    "rejected_logp_B": -LENGTHS[1] * (0.2 + RNG.random(N)),
    "chosen_length_B": LENGTHS[0],
    "rejected_length_B": LENGTHS[1],
    "desirable_B": RNG.integers(0, 2, N),
    "weight_B": np.arange(N) < 10,
}
ARRAYS |= {name: ARRAYS["chosen_logp_B"] + 2 * RNG.normal(size=N) for name in ("chosen_ref_B", "ref_logp_B")}
ARRAYS |= {"logp_B": ARRAYS["chosen_logp_B"], "rejected_ref_B": ARRAYS["rejected_logp_B"] + 2 * RNG.normal(size=N),
           "reference_point_B": np.full(N, 0.7)}
ARRAYS = {name: np.asarray(x, np.float32) for name, x in ARRAYS.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ipo_17(d, beta):
    h = (d["chosen_logp_B"] - d["chosen_ref_B"]) - (d["rejected_logp_B"] - d["rejected_ref_B"])
    return (h - 1 / (2 * beta)) ** 2


def simpo_6(d, beta, target_margin):
    chosen = beta / d["chosen_length_B"] * d["chosen_logp_B"]
    rejected = beta / d["rejected_length_B"] * d["rejected_logp_B"]
    return -np.log(sigmoid(chosen - rejected - target_margin))


def orpo_6(d, odds_coefficient):
    p = {side: np.exp(d[f"{side}_logp_B"] / d[f"{side}_length_B"]) for side in ("chosen", "rejected")}
    odds = {side: p[side] / (1 - p[side]) for side in p}
    return -np.log(p["chosen"]) - odds_coefficient * np.log(sigmoid(np.log(odds["chosen"] / odds["rejected"])))


def kto_8(d, beta, desirable_weight, undesirable_weight):
    r = d["logp_B"] - d["ref_logp_B"]
    liked = desirable_weight * (1 - sigmoid(beta * (r - d["reference_point_B"])))
    disliked = undesirable_weight * (1 - sigmoid(beta * (d["reference_point_B"] - r)))
    return np.where(d["desirable_B"] > 0, liked, disliked)


CASES = {
    "ipo": (ipo_17, {"beta": 0.2}),
    "simpo": (simpo_6, {"beta": 2.5, "target_margin": 0.5}),
    "orpo": (orpo_6, {"odds_coefficient": 0.3}),
    "kto": (kto_8, {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}),
}
# The derivative of the loss has this sign by a good answer's log-probability, the other by a bad one's.
TRAINED = ("chosen_logp_B", "rejected_logp_B", "logp_B")


def loss_of(name, arrays):
    loss = bind(OBJECTIVES[name], arrays, CASES[name][1])
    return reduce(loss.terms)[0], reduce(loss.metrics)[1]


def printed(name, arrays):
    equation, options = CASES[name]
    values = equation({k: np.asarray(v, np.float64) for k, v in arrays.items()}, **options)
    return np.mean(values[arrays["weight_B"] > 0])


class Equations(chex.TestCase):
    """With jit and without it."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*CASES)
    def test_value_and_gradient_are_the_printed_ones(self, name):
        needed = {k: ARRAYS[k] for k in signature(OBJECTIVES[name])[0]}
        gradient = self.variant(jax.value_and_grad(lambda x: loss_of(name, x), has_aux=True))
        (value, _), gradient = gradient(needed)
        np.testing.assert_allclose(value, printed(name, ARRAYS), rtol=1e-5)
        for argument in needed:
            if argument not in TRAINED:
                assert np.all(gradient[argument] == 0), argument
                continue
            for n in range(N):
                moved = [{**ARRAYS, argument: ARRAYS[argument] + side * 1e-5 * (np.arange(N, dtype=np.float64) == n)}
                         for side in (1, -1)]
                slope = (printed(name, moved[0]) - printed(name, moved[1])) / 2e-5
                np.testing.assert_allclose(gradient[argument][n], slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_the_better_answer_becomes_likelier_and_the_worse_one_less_so(name):
    needed = {k: ARRAYS[k] for k in signature(OBJECTIVES[name])[0]}
    gradient = jax.jit(jax.grad(lambda x: loss_of(name, x)[0]))(needed)
    counts = ARRAYS["weight_B"] > 0
    assert np.all(gradient["chosen_logp_B"][counts] < 0) and np.all(gradient["rejected_logp_B"][counts] > 0)
    assert np.all(gradient["chosen_logp_B"][~counts] == 0) and np.all(gradient["rejected_logp_B"][~counts] == 0)


def test_ipo_stops_at_its_margin():
    """Up to 1 / (2β) the margin grows, beyond it shrinks: what DPO's does not."""
    margin = jnp.asarray([0.0, 2.0, 2.5, 3.0])

    def loss(margin):
        return jnp.sum(OBJECTIVES["ipo"](margin, *[jnp.zeros(4)] * 3, beta=0.2).terms["preference"].value)

    np.testing.assert_array_equal(np.sign(jax.grad(loss)(margin)), [-1, -1, 0, 1])


def test_kto_raises_what_was_liked_and_lowers_what_was_not():
    needed = {k: ARRAYS[k] for k in signature(OBJECTIVES["kto"])[0]}
    gradient = jax.jit(jax.grad(lambda x: loss_of("kto", x)[0]))(needed)["logp_B"]
    signs = np.where(ARRAYS["desirable_B"] > 0, -1, 1) * (ARRAYS["weight_B"] > 0)
    np.testing.assert_array_equal(np.sign(gradient), signs)


def test_kto_metrics_keep_the_two_kinds_apart():
    _, means = loss_of("kto", {k: ARRAYS[k] for k in signature(OBJECTIVES["kto"])[0]})
    reward = 0.3 * (ARRAYS["logp_B"] - ARRAYS["ref_logp_B"]).astype(np.float64)
    liked, counts = ARRAYS["desirable_B"] > 0, ARRAYS["weight_B"] > 0
    np.testing.assert_allclose(means["desirable_reward"], reward[liked & counts].mean(), rtol=1e-5)
    np.testing.assert_allclose(means["undesirable_reward"], reward[~liked & counts].mean(), rtol=1e-5)
    right = np.where(liked, reward > 0.3 * 0.7, reward < 0.3 * 0.7)
    np.testing.assert_allclose(means["accuracy"], right[counts].mean(), rtol=1e-6)
    np.testing.assert_allclose(means["reference_point"], 0.7, rtol=1e-6)


def test_the_reference_point_is_a_mean_over_the_rows_that_count_and_never_negative():
    ratio = np.array([1.0, 2.5, np.nan, -0.5], np.float32)
    weight = np.array([1, 1, 0, 1], np.float32)
    got = jax.jit(kto_reference_point)(ratio - 3.0, np.full(4, -3.0, np.float32), weight)
    np.testing.assert_allclose(got, np.full(4, 1.0), rtol=1e-6)
    np.testing.assert_array_equal(kto_reference_point(-ratio, np.zeros(4, np.float32), weight), np.zeros(4))
    np.testing.assert_array_equal(kto_reference_point(ratio, ratio, 0 * weight), np.zeros(4))
    gradient = jax.grad(lambda x: kto_reference_point(x, jnp.zeros(4), jnp.ones(4)).sum())(jnp.arange(4.0))
    assert np.all(gradient == 0)


def test_answers_that_are_nearly_certain_or_hopeless_stay_finite():
    logp = jnp.asarray([0.0, -1e-9, -1e-3, -1e4, -40.0], jnp.float32)
    far = jnp.flip(logp)
    one = jnp.ones(5)
    for name, extra in (("orpo", (one, one)), ("simpo", (one, one)), ("ipo", (0 * one, 0 * one))):
        loss = lambda x, y: reduce(OBJECTIVES[name](x, y, *extra, **CASES[name][1]).terms)[0]  # noqa: E731,B023
        value, gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))(logp, far)
        assert np.isfinite(value) and np.all(np.isfinite(gradient)), name
    loss = lambda x: reduce(OBJECTIVES["kto"](x, far, one, 0 * one, beta=1.0).terms)[0]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(logp)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_log_odds_keep_their_digits():
    from jaxalign.objectives.orpo import _log_odds

    logp = -np.logspace(-6, 1.5, 40).astype(np.float32)
    p = np.exp(logp.astype(np.float64))
    np.testing.assert_allclose(_log_odds(jnp.asarray(logp)), np.log(p) - np.log(-np.expm1(logp.astype(np.float64))),
                               rtol=1e-5, atol=1e-6)
