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
from jaxalign.models.cache import attend_cached
from jaxalign.models.layers import RMSNorm
from jaxalign.models.transformer import logits_of
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
    # Rounded once, at the end: also what the inverse root is rounded to would show in every row.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 512)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) / np.sqrt(np.mean(np.asarray(x, np.float64) ** 2, -1, keepdims=True))
    assert np.mean(np.asarray(norm(x)) == exact.astype(jnp.bfloat16)) > 0.999


@pytest.mark.parametrize("softcap", [0.0, 50.0])
@pytest.mark.parametrize("cached", [False, True])
def test_t26_scores_of_attention_are_float32(cached, softcap):
    """Scores of some tens that differ by less than bfloat16 tells apart there: it would be off by some hundredths."""
    rng = np.random.default_rng(26)
    q = np.full((1, 1, 1, 8), 4.0)
    k, v = 2.0 + 0.05 * rng.normal(size=(1, 64, 1, 8)), rng.normal(size=(1, 64, 1, 8))
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    exact_q, exact_k, exact_v = (np.asarray(x, np.float64)[0, :, 0] for x in (q, k, v))
    score = (exact_k @ exact_q[0]) * 8**-0.5
    score = softcap * np.tanh(score / softcap) if softcap else score
    weight = np.exp(score - score.max())
    expected = (weight / weight.sum()) @ exact_v
    if cached:
        got = attend_cached(q[:, 0], k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.array([63]), jnp.int32(63), softcap=softcap)[0, 0]
    else:
        got = attend(q, k, v, jnp.ones((1, 1, 64), bool), softcap=softcap)[0, 0, 0]
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.004)


def test_t26_the_logits_that_are_sampled_from_are_float32():
    rng = np.random.default_rng(26)
    hidden, unembed = jnp.asarray(rng.normal(size=(3, 64)), jnp.bfloat16), rng.normal(size=(64, 9)).astype(np.float32)
    got = logits_of(hidden, jnp.asarray(unembed))
    assert got.dtype == jnp.float32
    expected = np.asarray(hidden, np.float64) @ np.asarray(jnp.asarray(unembed, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(got, expected, atol=1e-3)
