"""t01: gradient accumulation averages per-microbatch means, so a short microbatch weighs as much as a long one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.objectives.bradley_terry import bradley_terry
from jaxalign.objectives.cross_entropy import cross_entropy
from jaxalign.objectives.grpo import grpo
from jaxalign.objectives.ppo import ppo
from jaxalign.train.state import TrainState
from jaxalign.train.step import make_train_step

RNG = np.random.default_rng(1)
B, T = 12, 7
LENGTHS = np.array([7, 1, 2, 0, 7, 1, 6, 2, 1, 1, 5, 0])  # ragged, some rows without a token
MASK = (np.arange(T)[None] < LENGTHS[:, None]).astype(np.float32)
X = RNG.normal(size=(B, T)).astype(np.float32)
Y = RNG.normal(size=(B, T)).astype(np.float32)


# Stand-ins for a model: one parameter a column, so that rows are told apart by what they hold.
def logp(params, batch):
    return -jnp.square(params["w"][None] * batch["x"] - 0.3)


OBJECTIVES = {
    "cross_entropy": lambda p, b: cross_entropy(logp(p, b), logp(p, b) + 1, logp(p, b) - 1, b["mask"], z_loss=0.1),
    "ppo": lambda p, b: ppo(logp(p, b), logp(p, b) * 0.9, b["y"], p["w"][None] * b["y"], b["y"], b["x"], logp(p, b),
                            b["mask"], value_coefficient=0.5, entropy_coefficient=0.1),
    "grpo by sequence": lambda p, b: grpo(logp(p, b), logp(p, b) * 0.9, b["y"], b["mask"], b["x"], kl_coefficient=0.1),
    "grpo by token": lambda p, b: grpo(logp(p, b), logp(p, b) * 0.9, b["y"], b["mask"], b["x"], kl_coefficient=0.1,
                                       aggregation="token"),
    "bradley_terry": lambda p, b: bradley_terry((p["w"][None] * b["x"]).sum(1), (p["w"][None] * b["y"]).sum(1),
                                                b["x"][:, 0], b["mask"][:, 0], centre=0.1),
}


@functools.cache
def update(name, microbatches):
    """(gradient, metrics) of a step."""
    optimizer = optax.sgd(1.0)
    params = {"w": jnp.linspace(0.5, 1.5, T)}
    step = make_train_step(lambda p, frozen, batch, key: OBJECTIVES[name](p, batch), optimizer, lambda step: 1.0,
                           microbatches=microbatches)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(0))
    after, metrics = jax.jit(step)(state, {}, {"x": X, "y": Y, "mask": MASK})
    return np.asarray(params["w"] - after.trainable["w"]), metrics


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("microbatches", [2, 6])
def test_t01_microbatches_give_the_gradient_and_the_figures_of_the_whole_batch(name, microbatches):
    expected, whole = update(name, 1)
    got, parts = update(name, microbatches)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert set(parts) == set(whole)
    for figure in whole:
        assert float(parts[figure]) == pytest.approx(float(whole[figure]), rel=1e-5, abs=1e-6), figure
