"""t26: bfloat16 parameters swallow small updates; softmax or log-probabilities in bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models
from flax import nnx

from jaxalign.models.attention import attend
from jaxalign.models.layers import RMSNorm
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.train.state import TrainState
from jaxalign.train.step import make_train_step

CONFIG = dataclasses.replace(tiny_models.CONFIG, dtype="bfloat16")
BATCH = tiny_models.rows(tiny_models.documents((9, 6)), 10)


@pytest.fixture(scope="module")
def stepped():
    """The state before and after one step whose update is far below bfloat16's spacing."""
    graphdef, params = tiny_models.split(CONFIG)
    optimizer = optax.adam(1e-6)

    def loss_fn(params, frozen, batch, key):
        return -tiny_models.logp(graphdef, params, batch), batch["mask_BT"]

    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(0))
    step = make_train_step(loss_fn, optimizer, lambda step: 1e-6, microbatches=2)
    return state, jax.jit(step)(state, {}, BATCH)[0]


def test_t26_an_update_below_bfloat16s_spacing_survives(stepped):
    before, after = (state.trainable["layers"]["mlp"]["up"]["kernel"][...] for state in stepped)
    assert before.dtype == after.dtype == jnp.float32
    moved = np.abs(np.asarray(after - before))
    assert (moved > 0).mean() > 0.9 and moved.max() < 2e-6
    lost = np.asarray(before.astype(jnp.bfloat16) == after.astype(jnp.bfloat16)).mean()
    assert lost > 0.95  # the same step on bfloat16 parameters would be no step


def test_t26_masters_moments_and_gradients_are_float32(stepped):
    floats = [leaf.dtype for leaf in jax.tree.leaves((stepped[1].trainable, stepped[1].optimizer_state))
              if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert floats and set(floats) == {jnp.dtype("float32")}


def test_t26_log_probabilities_are_float32_and_sum_to_one():
    graphdef, params = tiny_models.split(CONFIG)
    model = nnx.merge(graphdef, params)
    hidden = jax.random.normal(jax.random.key(0), (1, 4, CONFIG.width)).astype(jnp.bfloat16)
    total = 0.0
    for token in range(CONFIG.vocab_size):
        stats = jax.jit(token_statistics, static_argnames="chunk")(
            hidden, model.unembedding_DV, np.full((1, 4), token, np.int32), chunk=2)
        assert all(x.dtype == jnp.float32 for x in stats)
        total = total + np.exp(np.asarray(stats.logp_BT, np.float64))
    np.testing.assert_allclose(total, 1.0, atol=1e-6)  # in bfloat16 they are a hundredth off


def test_t26_attention_and_norms_work_in_float32_inside():
    # 300 keys of equal score: a bfloat16 sum stops growing at 256.
    ones = jnp.ones((1, 300, 1, 8), jnp.bfloat16)
    out = attend(ones[:, :1], ones, ones, jnp.ones((1, 1, 300), bool))
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=0.01)
    x = jnp.full((1, 1, 512), 1.01, jnp.bfloat16)
    norm = RMSNorm(512, eps=0.0, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), 1.0, atol=0.004)
