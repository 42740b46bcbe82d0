"""The training step: what the first pass costs, what the chunked loss holds, what the metrics mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models
from flax import nnx
from tiny_models import abstract, documents, rows, split

from jaxalign.errors import ConfigError
from jaxalign.models.transformer import ModelConfig
from jaxalign.objectives.cross_entropy import cross_entropy
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.objectives.reduce import Loss, Term
from jaxalign.train.state import TrainState
from jaxalign.train.step import make_train_step


def loss_of(graphdef, chunk=10**6):
    def loss_fn(params, frozen, batch, key):
        model = nnx.merge(graphdef, params)
        hidden_BTD = model(batch["tokens_BT"], batch["positions_BT"], batch["segment_ids_BT"])
        s = token_statistics(hidden_BTD, model.unembedding_DV, batch["targets_BT"], chunk=chunk)
        return cross_entropy(s.logp_BT, s.logz_BT, s.mean_logp_BT, batch["mask_BT"])

    return loss_fn


def state_of(params, optimizer, abstractly=False):
    make = jax.eval_shape if abstractly else lambda f: f()
    return make(lambda: TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(0)))


def shapes_of(B, T):
    ints = ("tokens_BT", "targets_BT", "positions_BT", "segment_ids_BT")
    return {name: jax.ShapeDtypeStruct((B, T), jnp.int32) for name in ints} | {
        "mask_BT": jax.ShapeDtypeStruct((B, T), jnp.float32)}


def compiled(config, B, T, **options):
    """The compiled step of a model of that shape; nothing is run."""
    graphdef, params = abstract(config)
    optimizer = optax.adam(1e-3)
    chunk = options.pop("chunk", 10**6)
    step = make_train_step(loss_of(graphdef, chunk), optimizer, lambda step: 1e-3, **options)
    params = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params))
    state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p), jax.random.key(0)),
                           params)
    return jax.jit(step, donate_argnums=0).lower(state, {}, shapes_of(B, T)).compile()


def test_steps_too_small_for_sixteen_bits_are_made_on_average():
    """A hundred steps of 1e-4 from 1, whose last bit is 4e-3 below it: to the nearest none would be made."""
    optimizer, size = optax.sgd(1e-4), 20_000
    step = jax.jit(make_train_step(
        lambda params, *_: Loss({"w": Term(params["w"][None].astype(jnp.float32) * size, jnp.ones((1, size)))}, {}),
        optimizer, lambda step: 1e-4))
    for dtype in (jnp.bfloat16, jnp.float32):
        state = state_of({"w": jnp.ones(size, dtype)}, optimizer)
        for _ in range(100):
            state, _ = step(state, {}, {})
        w = np.asarray(state.trainable["w"], np.float64)
        assert state.trainable["w"].dtype == dtype and w.mean() == pytest.approx(1 - 100 * 1e-4, abs=3e-4)


def test_gradients_of_sixteen_bits_are_summed_over_microbatches_in_float32():
    """1024 shares of 1/1024: in bfloat16 their sum stands still at a quarter."""
    optimizer, parts = optax.sgd(1.0), 1024
    step = make_train_step(
        lambda params, _, batch, key: Loss({"w": Term(params["w"].astype(jnp.float32) * batch["x"], batch["x"])}, {}),
        optimizer, lambda step: 1.0, microbatches=parts)
    state, metrics = jax.jit(step)(state_of({"w": jnp.ones((), jnp.bfloat16)}, optimizer), {}, {"x": jnp.ones(parts)})
    assert metrics["grad_norm"] == 1.0 and state.trainable["w"] == 0.0


@pytest.mark.parametrize("microbatches", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_the_denominators_are_nearly_free(microbatches):
    config = ModelConfig(vocab_size=64, width=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=128)
    graphdef, params = abstract(config)

    def once(params, batch):
        loss = loss_of(graphdef)(params, {}, batch, None)
        return sum(jnp.sum(term.value * term.weight) for term in loss.terms.values())

    # A loop's body is counted once, so with two microbatches one forward and backward is that of half the batch.
    alone = jax.jit(jax.value_and_grad(once)).lower(params, shapes_of(8 // microbatches, 32)).compile()
    step = compiled(config, 8, 32, microbatches=microbatches)
    assert step.cost_analysis()["flops"] < 1.1 * alone.cost_analysis()["flops"]


def test_with_a_chunked_loss_the_logits_never_exist_at_once():
    B, T, V = 4, 64, 4096
    config = ModelConfig(vocab_size=V, width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=16)
    whole, chunked = (compiled(config, B, T, chunk=chunk).memory_analysis().temp_size_in_bytes for chunk in (T, 4))
    assert chunked < B * T * V * 4 < whole


def test_metrics_are_means_over_the_whole_batch():
    graphdef, params = split()
    optimizer = optax.sgd(0.1)
    batch = rows(documents((9, 3, 6, 2)), 8)
    step = jax.jit(make_train_step(loss_of(graphdef), optimizer, lambda step: 0.1, microbatches=2))
    state, metrics = step(state_of(params, optimizer), {}, batch)
    logp = jax.jit(lambda p: tiny_models.logp(graphdef, p, batch))(params)
    nll = -np.asarray(logp)[batch["mask_BT"] > 0].mean()
    assert float(metrics["nll"]) == pytest.approx(nll, rel=1e-5) == float(metrics["cross_entropy"])
    assert float(metrics["loss"]) == pytest.approx(nll, rel=1e-5)
    assert metrics["lr"] == np.float32(0.1) and int(state.step) == 1
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, params, state.trainable))
    assert float(metrics["grad_norm"]) == pytest.approx(float(moved) / 0.1, rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused():
    step = make_train_step(lambda p, f, b, k: (p * b["x"], b["x"]), optax.sgd(1.0), lambda s: 1.0, microbatches=3)
    with pytest.raises(ConfigError, match="batch_size=4 must divide into microbatches=3"):
        jax.eval_shape(step, state_of(jnp.ones(()), optax.sgd(1.0)), {}, {"x": jnp.ones(4)})


def test_each_step_and_each_microbatch_draws_from_its_own_key_and_a_repeated_step_draws_the_same():
    def loss_fn(params, frozen, batch, key):
        noise = jax.random.uniform(key, batch["x"].shape)
        return Loss({"loss": Term(params[None] * batch["x"], batch["x"])},
                    {"noise": Term(noise, batch["x"]), "noise_squared": Term(noise**2, batch["x"])})

    def drawn(state, k):
        step = jax.jit(make_train_step(loss_fn, optax.sgd(0.0), lambda s: 1.0, microbatches=k))
        return step(state, {}, {"x": jnp.ones(2)})

    start = state_of(jnp.ones(()), optax.sgd(0.0))
    state, first = drawn(start, 2)
    _, second = drawn(state, 2)
    _, again = drawn(start, 2)
    assert first["noise"] == again["noise"] != second["noise"]
    assert first["noise_squared"] - first["noise"] ** 2 > 1e-6  # the two microbatches drew different numbers
