"""t20: whitening, or a group's statistics, include padding or other devices' rows wrongly (arXiv:2403.17031)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign.errors import ConfigError
from jaxalign.experience.shaping import group_targets
from jaxalign.objectives.advantages import group_relative, whiten

RNG = np.random.default_rng(20)
B, T = 8, 6
X = (2.0 + RNG.normal(size=(B, T)) * np.arange(1, B + 1)[:, None]).astype(np.float32)  # every row its own spread
MASK = (np.arange(T) < RNG.integers(1, T + 1, B)[:, None]).astype(np.float32)


@pytest.fixture(scope="module")
def over_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))


def test_t20_padding_is_outside_the_statistics():
    counted = X[MASK > 0].astype(np.float64)
    expected = (counted - counted.mean()) / counted.std()
    for junk in (0.0, 1e4, np.nan):
        got = np.asarray(jax.jit(whiten)(np.where(MASK > 0, X, np.float32(junk)), MASK))
        np.testing.assert_allclose(got[MASK > 0], expected, rtol=1e-5, atol=1e-5)
        assert np.all(got[MASK == 0] == 0)


def test_t20_whitening_over_eight_devices_is_that_over_one(over_eight_devices):
    one = jax.jit(whiten)(X, MASK)
    eight = jax.jit(whiten)(over_eight_devices(X), over_eight_devices(MASK))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)


def test_t20_a_groups_statistics_are_its_own(over_eight_devices):
    reward = jnp.asarray(np.concatenate([RNG.normal(size=4), 100.0 + 10.0 * RNG.normal(size=4)]), jnp.float32)
    relative = jax.jit(group_relative, static_argnames="group_size")
    got = relative(reward, group_size=4)
    for group in (slice(0, 4), slice(4, 8)):
        r = np.asarray(reward[group], np.float64)
        np.testing.assert_allclose(got[group], (r - r.mean()) / r.std(), rtol=1e-4)
    # One response a device: each group spans four of them.
    np.testing.assert_allclose(relative(over_eight_devices(reward), group_size=4), got, rtol=1e-5, atol=1e-6)


def test_t20_a_group_cut_in_two_is_refused():
    with pytest.raises(ConfigError, match="divide the number of responses, 6"):
        group_relative(jnp.zeros(6), group_size=4)


@pytest.mark.parametrize("baseline, scale", [("group", "std"), ("group", "none"), ("others", "none"), ("none", "batch"),
                                             ("group", "batch")])
def test_t20_no_advantage_of_the_family_sees_padding_or_how_many_devices_there_are(baseline, scale, over_eight_devices):
    score, penalty = RNG.normal(size=B).astype(np.float32), RNG.normal(size=(B, T)).astype(np.float32)
    targets = jax.jit(lambda *x: group_targets(*x, group_size=4, baseline=baseline, scale=scale)["advantage_BT"])
    one = np.asarray(targets(score, MASK, penalty))
    for junk in (0.0, 1e4, np.nan):
        dirty = np.where(MASK > 0, penalty, np.float32(junk))
        np.testing.assert_allclose(targets(score, MASK, dirty), one, rtol=1e-5, atol=1e-6)
    assert np.all(one[MASK == 0] == 0)
    longer = targets(score, np.pad(MASK, ((0, 0), (0, 3))), np.pad(penalty, ((0, 0), (0, 3)), constant_values=7.0))
    np.testing.assert_allclose(longer, np.pad(one, ((0, 0), (0, 3))), rtol=1e-5, atol=1e-6)
    eight = targets(*(over_eight_devices(x) for x in (score, MASK, penalty)))
    np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5)
    if scale == "batch":  # over all tokens at once, each response as often as it has tokens
        assert abs(one[MASK > 0].mean()) < 1e-5 and one[MASK > 0].std() == pytest.approx(1.0, abs=1e-4)
