import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.objectives import ppo as objective
from jaxalign.objectives.ppo import policy_loss, value_loss
from jaxalign.objectives.reduce import reduce

RNG = np.random.default_rng(6)
B, T = 3, 8
OLD = -np.abs(RNG.normal(size=(B, T))).astype(np.float32)
LOGP = (OLD + 0.4 * RNG.normal(size=(B, T))).astype(np.float32)
ADVANTAGE, VALUE, RETURNS = (RNG.normal(size=(B, T)).astype(np.float32) for _ in range(3))
OLD_VALUE = (VALUE + 0.3 * RNG.normal(size=(B, T))).astype(np.float32)
ENTROPY = RNG.random((B, T)).astype(np.float32)
MASK = (RNG.random((B, T)) < 0.7).astype(np.float32)
ARGS = (LOGP, OLD, ADVANTAGE, VALUE, OLD_VALUE, RETURNS, ENTROPY, MASK)
OPTIONS = {"clip": 0.2, "value_clip": 0.25, "value_coefficient": 0.5, "entropy_coefficient": 0.01}


@pytest.fixture(scope="module")
def loss_and_means():
    def run(*args):
        loss = objective(*args, **OPTIONS)
        return reduce(loss.terms), reduce(loss.metrics)[1]

    return jax.jit(run)(*ARGS)


def test_float64_reference(loss_and_means):
    logp, old, advantage, value, old_value, returns, entropy, mask = (x.astype(np.float64) for x in ARGS)

    def mean(x):
        return np.sum(x * mask) / mask.sum()

    ratio = np.exp(logp - old)
    policy = -mean(np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage))
    near = old_value + np.clip(value - old_value, -0.25, 0.25)
    squared = 0.5 * mean(np.maximum((value - returns) ** 2, (near - returns) ** 2))
    (loss, terms), means = loss_and_means
    np.testing.assert_allclose(terms["policy"], policy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terms["value"], squared, rtol=1e-5)
    np.testing.assert_allclose(loss, policy + 0.5 * squared - 0.01 * mean(entropy), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(means["ratio"], mean(ratio), rtol=1e-5)
    np.testing.assert_allclose(means["clip_fraction"], mean((ratio < 0.8) | (ratio > 1.2)), rtol=1e-5)
    np.testing.assert_allclose(means["approx_kl"], mean(ratio - 1 - np.log(ratio)), rtol=1e-4)
    np.testing.assert_allclose(means["entropy"], mean(entropy), rtol=1e-5)
    held = mean((near - returns) ** 2 > (value - returns) ** 2)
    assert 0 < held < 1
    np.testing.assert_allclose(means["value_clip_fraction"], held, rtol=1e-5)


def test_policy_gradient_signs_and_clips():
    """Rows: inside the clip; above it; below it. Columns: a good action; a bad one."""
    logp = jnp.log(jnp.asarray([[1.0, 1.0], [1.5, 1.5], [0.5, 0.5]]))
    advantage = jnp.asarray([[1.0, -1.0]] * 3)

    def loss(logp, old, advantage):
        return jnp.sum(policy_loss(logp, old, advantage, clip_low=0.2, clip_high=0.2))

    gradient, old, weight = jax.jit(jax.grad(loss, (0, 1, 2)))(logp, jnp.zeros((3, 2)), advantage)
    np.testing.assert_array_equal(np.sign(gradient), [[-1, 1], [0, 1], [-1, 0]])
    assert np.all(old == 0) and np.all(weight == 0)


def test_unequal_clips():
    logp = jnp.log(jnp.asarray([1.25, 0.85]))
    advantage = jnp.asarray([1.0, -1.0])
    got = policy_loss(logp, jnp.zeros(2), advantage, clip_low=0.1, clip_high=0.3)
    np.testing.assert_allclose(got, [-1.25, 0.9], rtol=1e-6)


def test_the_sampler_correction_multiplies_the_policys_loss_alone_and_is_not_trained_through():
    sampler = (OLD + 0.3 * np.random.default_rng(3).normal(size=OLD.shape)).astype(np.float32)

    def run(sampler, old=OLD, **options):
        return objective(LOGP, old, *ARGS[2:], sampler, **OPTIONS, **options)

    plain, corrected = run(None), run(sampler, sampler_correction="token", sampler_cap=1.1)
    weight = np.minimum(np.exp((OLD - sampler).astype(np.float64)), 1.1)
    here = MASK > 0
    assert (weight[here] < 1.1).any() and (weight[here] == 1.1).any()
    np.testing.assert_allclose(
        np.asarray(corrected.terms["policy"].value)[here], (weight * plain.terms["policy"].value)[here], rtol=1e-5)
    np.testing.assert_array_equal(corrected.terms["value"].value, plain.terms["value"].value)
    np.testing.assert_allclose(reduce(corrected.metrics)[1]["sampler_weight"], weight[here].mean(), rtol=1e-5)
    loss = lambda s, o: reduce(run(s, o, sampler_correction="token").terms)[0]  # noqa: E731
    assert all(np.all(np.asarray(g) == 0) for g in jax.jit(jax.grad(loss, (0, 1)))(sampler, OLD))
    for options in ({"sampler_correction": "sequence"}, {"sampler_correction": "token"}):
        with pytest.raises(ConfigError, match="one of none, token, product, and needs sampler_logp_BT"):
            run(None, **options)


def test_value_gradient_signs_and_clip():
    """A value below its return rises; one that has already moved beyond the clip towards it stays."""
    value, old, returns = jnp.asarray([0.0, 2.0, 0.5, -0.5]), jnp.asarray([0.0, 2.0, 0.0, 0.0]), jnp.ones(4)
    loss = lambda *x: jnp.sum(value_loss(*x, clip=0.2))  # noqa: E731
    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))(value, old, returns)
    np.testing.assert_array_equal(np.sign(gradient[0]), [-1, 1, 0, -1])
    assert np.all(gradient[1] == 0) and np.all(gradient[2] == 0)


def test_infinite_value_clip_is_the_plain_square():
    got = value_loss(VALUE, OLD_VALUE, RETURNS, clip=float("inf"))
    np.testing.assert_allclose(got, 0.5 * (VALUE - RETURNS) ** 2, rtol=1e-5)


def test_first_epoch_is_the_policy_gradient():
    """At ratio 1 the gradient is −Â/n, REINFORCE's, and nothing is clipped."""
    loss = lambda logp: reduce(objective(logp, LOGP, *ARGS[2:], **OPTIONS).terms)[1]["policy"]  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(LOGP), -ADVANTAGE * MASK / MASK.sum(), rtol=1e-5, atol=1e-6)


def test_entropy_bonus_raises_entropy():
    loss = lambda entropy: reduce(objective(*ARGS[:6], entropy, MASK, **OPTIONS).terms)[0]  # noqa: E731
    gradient = np.asarray(jax.jit(jax.grad(loss))(ENTROPY))
    assert np.all(gradient[MASK > 0] < 0) and np.all(gradient[MASK == 0] == 0)
