"""Meshes, the rule table, and what they buy: fewer bytes a device, the same numbers, nothing computed twice."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from tiny_models import abstract

from jaxalign.errors import ConfigError
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.objectives.cross_entropy import cross_entropy
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.sharding import batch_sharding, make_mesh, partition_spec, put_batch, replicated
from jaxalign.train.state import create_state
from jaxalign.train.step import make_train_step

CONFIG = ModelConfig(vocab_size=128, width=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
GRAPHDEF, _ = abstract(CONFIG)
OPTIMIZER = optax.sgd(1.0)


def init(key):
    return {"policy": nnx.split(Transformer(CONFIG, rngs=nnx.Rngs(params=key)))[1]}


def loss_fn(trainable, frozen, batch, key):
    model = nnx.merge(GRAPHDEF, trainable["policy"])
    hidden_BTD = model(batch["tokens_BT"], batch["positions_BT"], batch["segment_ids_BT"])
    logp_BT = token_statistics(hidden_BTD, model.unembedding_DV, batch["targets_BT"], chunk=99).logp_BT
    return cross_entropy(logp_BT, logp_BT, logp_BT, batch["mask_BT"])


def batch(B=16, T=12):
    """Ragged rows: what one row counts another does not."""
    rng = np.random.default_rng(0)
    filled = np.arange(T)[None] < rng.integers(2, T + 1, B)[:, None]
    tokens = rng.integers(1, 128, (B, T + 1)).astype(np.int32)
    return {"tokens_BT": tokens[:, :-1] * filled, "targets_BT": tokens[:, 1:] * filled,
            "mask_BT": (filled & (rng.random((B, T)) < 0.7)).astype(np.float32),
            "positions_BT": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)) * filled,
            "segment_ids_BT": filled.astype(np.int32)}


def one_step(mesh, rows, microbatches=1):
    """(loss, gradient, compiled step) on a mesh: plain descent at rate 1 shows the gradient."""
    state = create_state(init, OPTIMIZER, jax.random.key(0), mesh)
    step = jax.jit(make_train_step(loss_fn, OPTIMIZER, lambda step: 1.0, microbatches=microbatches))
    placed = put_batch(rows, mesh)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, {}, placed).compile()
        after, metrics = compiled(state, {}, placed)
        gradient = jax.jit(lambda a, b: jax.tree.map(jnp.subtract, a, b), out_shardings=replicated(mesh))(
            state.trainable, after.trainable)
    return float(metrics["loss"]), gradient, compiled


@functools.cache
def stepped(microbatches=1, **sizes):
    devices = jax.devices()[:int(np.prod(list(sizes.values())))]
    return one_step(make_mesh(**sizes, devices=devices), batch(), microbatches)


def same(a, b, rtol=2e-5, atol=2e-6):
    assert a[0] == pytest.approx(b[0], rel=1e-5) and a[0] > 1
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(b[1]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a[1], b[1])


def bytes_per_device(tree):
    first = jax.devices()[0]
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards
               if shard.device == first)


def test_bytes_per_device_fall_with_fsdp():
    def held(**sizes):
        mesh = make_mesh(**sizes)
        return bytes_per_device(create_state(init, optax.adam(1e-3), jax.random.key(0), mesh))

    whole, sharded = held(data=8), held(fsdp=8)
    # Parameters and both moments, all but the scales of the norms.
    assert sharded < whole / 8 * 1.3, (whole, sharded)
    assert held(fsdp=2, tensor=2, data=2) < whole / 4 * 1.4


@pytest.mark.parametrize("sizes", [dict(fsdp=4, tensor=2), pytest.param(dict(fsdp=8), marks=pytest.mark.slow)])
def test_the_compiler_finds_nothing_it_must_rematerialise(sizes, capfd):
    capfd.readouterr()
    _, _, compiled = stepped(**sizes)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    # Weights are gathered and gradients summed; activations, split by rows, never change hands.
    assert re.search(r"all-gather|all-reduce", compiled.as_text()) and "all-to-all" not in compiled.as_text()


def test_axes_that_do_not_divide_stay_whole():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert partition_spec(("embed", "heads", "head_dim"), (32, 4, 8), mesh) == P("fsdp", "tensor", None)
    assert partition_spec(("embed", "heads", "head_dim"), (32, 3, 8), mesh) == P("fsdp", None, None)
    assert partition_spec(("layers", "mlp", "embed"), (2, 64, 31), mesh) == P(None, "tensor", None)
    assert partition_spec(("embed", "embed"), (32, 32), mesh) == P("fsdp", None)  # no mesh axis twice
    assert partition_spec(("embed",), (32,), mesh, {"embed": "data"}) == P("data")
    with pytest.raises(ConfigError, match="'width' has no rule"):
        partition_spec(("width",), (32,), mesh)


def test_mesh_sizes():
    assert dict(make_mesh(data=-1, tensor=2).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert dict(make_mesh().shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    for wrong in (dict(data=-1, fsdp=-1), dict(data=0), dict(data=-2)):
        with pytest.raises(ConfigError, match="at most one -1"):
            make_mesh(**wrong)
    with pytest.raises(ConfigError, match="needs 16 devices, this machine has 8"):
        make_mesh(data=8, fsdp=2)


def test_batches_are_split_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = put_batch({"tokens_BT": np.arange(16).reshape(8, 2)}, mesh)["tokens_BT"]
    assert placed.sharding == batch_sharding(mesh)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 2)}
    assert jnp.array_equal(placed, np.arange(16).reshape(8, 2))
