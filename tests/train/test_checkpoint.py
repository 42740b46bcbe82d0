"""Checkpoints: everything comes back, on any mesh; what does not fit is named; what is broken is said to be."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_models
from flax import nnx

from jaxalign.errors import CheckpointError
from jaxalign.models.heads import ScalarModel
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.sharding import make_mesh, shardings
from jaxalign.train.checkpoint import Checkpointer, compare, find, flat_shapes, load_params, plain, read_meta
from jaxalign.train.state import create_state

CONFIG = ModelConfig(vocab_size=32, width=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=16)
ONE = make_mesh(devices=jax.devices()[:1])
META = {"policy": "policy", "stage": "sft", "lineage": [{"stage": "pretrain"}]}


def init(key):
    return {"policy": nnx.split(Transformer(CONFIG, rngs=nnx.Rngs(params=key)))[1]}


def state(seed=0, mesh=ONE):
    return create_state(init, optax.adam(1e-3), jax.random.key(seed), mesh)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 3 and 5, and the state of the last."""
    workdir, last = tmp_path_factory.mktemp("run"), state()
    checkpointer = Checkpointer(workdir, keep=2)
    for step in (1, 3, 5):
        last = type(last)(jnp.int32(step), jax.tree.map(lambda x: x + 1, last.trainable), last.optimizer_state, last.key)
        checkpointer.save(last, dict(META, step_was=step))
    checkpointer.close()
    return workdir, last


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.trainable, b.trainable)
    jax.tree.map(np.testing.assert_array_equal, a.optimizer_state, b.optimizer_state)
    assert int(a.step) == int(b.step)
    np.testing.assert_array_equal(*(np.asarray(jax.random.key_data(x.key)) for x in (a, b)))


@pytest.mark.parametrize("sizes", [dict(data=1), dict(fsdp=4, tensor=2)])
def test_the_newest_comes_back_whole_on_any_mesh(saved, sizes):
    workdir, last = saved
    mesh = make_mesh(**sizes, devices=jax.devices()[:int(np.prod(list(sizes.values())))])
    empty = state(seed=9, mesh=mesh)
    checkpointer = Checkpointer(workdir, keep=2)
    got, meta = checkpointer.restore(empty)
    checkpointer.close()
    same(got, last)
    assert meta["step"] == 5 == meta["step_was"] and meta["lineage"] == META["lineage"]
    for a, b in zip(jax.tree.leaves(got.trainable), jax.tree.leaves(empty.trainable)):
        assert a.sharding == b.sharding


def test_only_as_many_stay_as_are_kept(saved):
    assert sorted(p.name for p in (saved[0] / "checkpoints").iterdir() if p.name.isdigit()) == ["3", "5"]


def test_a_path_may_be_a_workdir_its_checkpoints_or_one_of_them(saved):
    workdir, _ = saved
    newest = workdir / "checkpoints" / "5"
    assert find(workdir) == find(workdir / "checkpoints") == find(newest) == newest
    assert find(workdir / "checkpoints" / "3").name == "3"
    with pytest.raises(CheckpointError, match="nowhere: no checkpoint found; expected a stage's workdir"):
        find(workdir / "nowhere")
    (workdir / "chain" / "sft" / "checkpoints").mkdir(parents=True)
    (workdir / "chain" / "ppo" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="chain: no checkpoint of its own; it holds those of ppo, sft: name one"):
        find(workdir / "chain")


def test_a_part_is_loaded_where_the_mesh_wants_it(saved):
    workdir, last = saved
    _, like = tiny_models.abstract(CONFIG)
    mesh = make_mesh(fsdp=8)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings(like, mesh))
    got = load_params(find(workdir), "policy", placed)
    jax.tree.map(np.testing.assert_array_equal, got, last.trainable["policy"])
    assert got["embed"][...].sharding.spec == jax.sharding.PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize(("changes", "cls", "message"), [
    (dict(tied_embeddings=False), Transformer, r"missing: unembed/kernel"),
    (dict(mlp_dim=24), Transformer, r"other shape: layers/mlp/down/kernel is \[2, 16, 16\], expected \[2, 24, 16\]"),
    (dict(vocab_size=40), Transformer, r"other shape: embed is \[32, 16\], expected \[40, 16\]"),
    (dict(), ScalarModel, r"missing: backbone/embed, .* and 9 more; unexpected: embed, "),
])
def test_parameters_that_do_not_fit_are_named(saved, changes, cls, message):
    _, like = tiny_models.abstract(dataclasses.replace(CONFIG, **changes), cls)
    with pytest.raises(CheckpointError, match=message):
        load_params(find(saved[0]), "policy", like)


def test_a_part_that_is_not_there_is_missing_whole(saved):
    with pytest.raises(CheckpointError, match=r"\(critic\).*missing: embed"):
        load_params(find(saved[0]), "critic", tiny_models.abstract(CONFIG)[1])


def test_names_are_those_of_the_tree():
    shapes = flat_shapes(plain(jax.eval_shape(init, jax.random.key(0))))
    assert shapes["policy/layers/attention/key/kernel"] == [[2, 16, 2, 8], "float32"]
    compare(shapes, shapes, "here")


def test_damage_is_said_to_be_damage(saved, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(saved[0] / "checkpoints" / "5", copy)
    for file in (copy / "meta").iterdir():
        file.write_bytes(b"\x00nonsense")
    with pytest.raises(CheckpointError, match="cannot be read .*it is damaged"):
        read_meta(copy)


def test_an_optimizer_of_another_kind_does_not_go_on(saved):
    checkpointer = Checkpointer(saved[0], keep=2)
    for other in (optax.sgd(1e-3), optax.adam(1e-3, mu_dtype=jnp.bfloat16)):
        with pytest.raises(CheckpointError, match="its optimizer holds .* config.optimizer makes .*, not the same"):
            checkpointer.restore(create_state(init, other, jax.random.key(0), ONE))
    checkpointer.close()


def test_a_checkpoint_that_lost_a_part_is_damaged(saved, tmp_path):
    shutil.copytree(saved[0] / "checkpoints" / "5", tmp_path / "checkpoints" / "5")
    shutil.rmtree(tmp_path / "checkpoints" / "5" / "params")
    with pytest.raises(CheckpointError, match="cannot be read .* it is damaged"):
        load_params(find(tmp_path), "policy", tiny_models.abstract(CONFIG)[1])
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read .* it is damaged"):
        checkpointer.restore(state())
    checkpointer.close()
