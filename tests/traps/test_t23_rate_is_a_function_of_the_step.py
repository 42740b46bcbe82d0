"""t23: a learning-rate schedule counts microbatches, or restarts after a resume."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages
from flax import nnx
from ml_collections import ConfigDict
from test_t18_resume_is_uninterrupted import arrays

from jaxalign.stages import train_stage
from jaxalign.stages.defaults import OPTIMIZER
from jaxalign.train.optimizer import make_optimizer, make_schedule
from jaxalign.train.state import TrainState
from jaxalign.train.step import make_train_step

SETTINGS = ConfigDict(OPTIMIZER | dict(peak_lr=0.5, warmup_steps=3, clip_norm=0.0, b1=0.0, b2=0.0, eps=1e-30))
STEPS = 8


def run(microbatches, *, stop=None):
    """The distance the weight moves in each step, with Adam at b1 = b2 = 0: the learning rate itself."""
    def loss_fn(params, frozen, batch, key):
        return params["w"][...][None] * batch["x"], batch["x"]

    def fresh():
        optimizer, schedule = make_optimizer(SETTINGS, STEPS)
        return optimizer, jax.jit(make_train_step(loss_fn, optimizer, schedule, microbatches=microbatches))

    optimizer, step = fresh()
    params = nnx.State({"w": nnx.Param(jnp.zeros(()), out_sharding=())})
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(0))
    moved, logged = [], []
    for n in range(STEPS):
        if n == stop:  # what a checkpoint holds, given to a new optimizer
            leaves, structure = jax.tree.flatten(state)
            optimizer, step = fresh()
            state = jax.tree.unflatten(structure, [jnp.array(leaf) for leaf in leaves])
        after, metrics = step(state, {}, {"x": jnp.ones(4)})
        moved.append(float(state.trainable["w"][...] - after.trainable["w"][...]))
        logged.append(float(metrics["lr"]))
        state = after
    return moved, logged


@pytest.mark.parametrize(("microbatches", "stop"), [(1, None), (4, None), (2, 5)])
def test_t23_the_rate_of_step_n_is_that_of_the_schedule_and_is_what_is_logged(microbatches, stop):
    expected = [float(make_schedule(SETTINGS, STEPS)(n)) for n in range(STEPS)]
    assert expected[3] == 0.5 and expected[0] == 0.0 and len(set(expected)) == STEPS
    moved, logged = run(microbatches, stop=stop)
    np.testing.assert_allclose(logged, expected, rtol=1e-6)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-7)


def test_t23_so_it_is_in_a_stage_whole_or_resumed(tmp_path):
    config = tiny_stages.config("pretrain", microbatches=2, checkpoint_every=2, keep=2)
    train_stage(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    train_stage(config, tmp_path / "resumed")
    schedule = make_schedule(config.optimizer, config.steps)
    for name in ("whole", "resumed"):
        lr = [row["lr"] for row in tiny_stages.metrics(tmp_path / name) if "lr" in row]
        np.testing.assert_allclose(lr, [float(schedule(n)) for n in range(4)], rtol=1e-6)
    # And it is what the weights were moved by.
    a, b = (arrays(tmp_path / name, 4)[0] for name in ("whole", "resumed"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
