from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.objectives import advantages

RNG = np.random.default_rng(5)
B, T = 4, 9
REWARD, VALUE = (RNG.normal(size=(B, T)).astype(np.float32) for _ in range(2))
MASK = np.array(  # responses: whole, right-padded, after a prompt, two turns with a tool's words between
    [[1] * 9, [1] * 5 + [0] * 4, [0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 1, 1, 1, 0]], np.float32
)
gae = jax.jit(advantages.gae, static_argnames=("discount", "gae_lambda"))
whiten = jax.jit(advantages.whiten, static_argnames="shift_mean")
group_relative = jax.jit(advantages.group_relative, static_argnames=("group_size", "scale"))
leave_one_out = jax.jit(advantages.leave_one_out, static_argnames="group_size")


def gae_as_printed(rewards, values, discount, lam):
    """Eq. 16: Âₜ = Σₗ (γλ)ˡ · δₜ₊ₗ, each sum written out, over one response without padding."""
    values = np.append(values, 0.0)
    delta = rewards + discount * values[1:] - values[:-1]
    return np.array(
        [sum((discount * lam) ** (l - t) * delta[l] for l in range(t, len(delta))) for t in range(len(delta))]
    )


@pytest.mark.parametrize("discount, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_float64_reference(discount, lam):
    advantage, returns = gae(REWARD, VALUE, MASK, discount=discount, gae_lambda=lam)
    for b in range(B):
        here = MASK[b] > 0
        expected = gae_as_printed(REWARD[b, here].astype(np.float64), VALUE[b, here].astype(np.float64), discount, lam)
        np.testing.assert_allclose(advantage[b, here], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(returns[b, here], expected + VALUE[b, here], rtol=1e-5, atol=1e-5)
        assert np.all(advantage[b, ~here] == 0) and np.all(returns[b, ~here] == 0)


def test_gae_with_lambda_one_and_no_discount_is_reward_to_go():
    _, returns = gae(REWARD, VALUE, MASK, discount=1.0, gae_lambda=1.0)
    expected = np.cumsum((REWARD * MASK)[:, ::-1], axis=1)[:, ::-1] * MASK
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-5)


def test_gae_ignores_what_stands_where_nothing_counts():
    clean = gae(REWARD, VALUE, MASK, discount=0.9, gae_lambda=0.8)
    dirty = gae(*(np.where(MASK > 0, x, np.nan) for x in (REWARD, VALUE)), MASK, discount=0.9, gae_lambda=0.8)
    longer = gae(
        *(np.pad(x, ((0, 0), (2, 3)), constant_values=7.0) for x in (REWARD, VALUE)),
        np.pad(MASK, ((0, 0), (2, 3))), discount=0.9, gae_lambda=0.8,
    )  # fmt: skip
    for a, b, c in zip(clean, dirty, longer):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c[:, 2:-3], rtol=1e-6)


def test_group_relative_as_printed():
    reward = RNG.normal(size=12).astype(np.float32)
    groups = reward.astype(np.float64).reshape(3, 4)
    centred = groups - groups.mean(1, keepdims=True)
    got = group_relative(reward, group_size=4)
    np.testing.assert_allclose(got, (centred / groups.std(1, keepdims=True)).ravel(), rtol=1e-5, atol=1e-6)
    got = group_relative(reward, group_size=4, scale="none")
    np.testing.assert_allclose(got, centred.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [4, 6, 7, 8, 12, 16])
def test_equal_rewards_have_no_advantage(size):
    values = jnp.asarray([0.0, 1.0, 0.1, 0.3, 0.7, 3.3, 10.7, 100.7, -1e6], jnp.float32)  # of most the mean is rounded
    for function in (group_relative, partial(group_relative, scale="none"), leave_one_out):
        np.testing.assert_array_equal(jax.jit(partial(function, group_size=size))(jnp.repeat(values, size)), 0.0)


@pytest.mark.parametrize("value", [0.3, 10.7, 100.7])
def test_rewards_that_differ_by_their_last_bit_have_next_to_no_advantage(value):
    reward = np.full(8, value, np.float32)
    reward[::2] = np.nextafter(reward[0], np.float32(np.inf))
    assert np.abs(group_relative(reward, group_size=8)).max() < 0.1
    assert np.abs(group_relative(reward + np.float32(1e-3) * (np.arange(8) % 2), group_size=8)).min() > 0.9


def test_leave_one_out_as_printed():
    reward = RNG.normal(size=6).astype(np.float32)
    expected = [r - np.delete(g, i).mean() for g in reward.astype(np.float64).reshape(2, 3) for i, r in enumerate(g)]
    np.testing.assert_allclose(leave_one_out(reward, group_size=3), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 5])
def test_groups_that_do_not_fit_are_refused(size):
    with pytest.raises(ConfigError, match=f"divide the number of responses, 12; got {size}"):
        advantages.group_relative(jnp.zeros(12), group_size=size)


def test_unknown_scale_is_refused():
    with pytest.raises(ConfigError, match="'max'"):
        advantages.group_relative(jnp.zeros(4), group_size=2, scale="max")


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_reference(shift_mean):
    counted = VALUE[MASK > 0].astype(np.float64)
    expected = (counted - counted.mean()) / counted.std() + (0.0 if shift_mean else counted.mean())
    got = whiten(np.where(MASK > 0, VALUE, np.nan), MASK, shift_mean=shift_mean)
    np.testing.assert_allclose(got[MASK > 0], expected, rtol=1e-5, atol=1e-5)
    assert np.all(np.asarray(got)[MASK == 0] == 0)


def test_whiten_of_nothing_or_a_constant_is_finite():
    for x, mask in ((VALUE, np.zeros_like(MASK)), (np.full_like(VALUE, 3.0), MASK)):
        np.testing.assert_allclose(whiten(x, mask), np.zeros_like(VALUE), atol=1e-3)


def test_no_gradient_flows():
    def total(reward, value):
        advantage, returns = advantages.gae(reward, value, MASK, discount=0.9, gae_lambda=0.8)
        relative = advantages.group_relative(reward[:, 0], group_size=2)
        others = advantages.leave_one_out(reward[:, 0], group_size=2)
        white = advantages.whiten(value, MASK)
        return jnp.sum(advantage * returns) + jnp.sum(relative**3) + jnp.sum(others**3) + jnp.sum(white**3)

    for gradient in jax.jit(jax.grad(total, (0, 1)))(REWARD, VALUE):
        assert np.all(gradient == 0)
