"""One rollout off the policy: the order of draws and updates, what the ratio is to, and that nothing waits."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_stages

from jaxalign.sharding import make_mesh, put_batch
from jaxalign.stages import STAGES, train_stage
from jaxalign.train.checkpoint import load_params, read_meta
from jaxalign.train.optimizer import make_optimizer
from jaxalign.train.state import create_state
from jaxalign.train.step import make_train_step

STEPS = 8
# Nearly the gradient itself, for Adam makes of what is only rounding a step as large as any.
OPTIMIZER = dict(peak_lr=0.2, eps=1.0, warmup_steps=0, schedule="constant")
CHANGES = {
    "grpo": dict(optimizer=OPTIMIZER, rewards=[dict(name="length", most=8, least=4, unit="characters")]),
    "ppo": dict(optimizer=OPTIMIZER, kl_control="adaptive", kl_target=0.1, reward_scaling="std", critic_warmup=2),
}


def configured(name, **changes):
    return tiny_stages.config(name, steps=STEPS, epochs=1, init_from=tiny_stages.ends_its_turns(), **(CHANGES[name] | changes))


def made(name, folder, **changes):
    config = configured(name, **changes)
    return STAGES[name](config, folder, make_mesh(devices=jax.devices()[:1])), config


def off_policy_by_hand(name, folder):
    """Two steps a rollout; rollout n by a copy of the weights that rollout n − 1 was trained from, in turn."""
    stage, config = made(name, folder)
    optimizer, schedule = make_optimizer(config.optimizer, STEPS)
    state = create_state(stage.init, optimizer, jax.random.key(config.seed), stage.mesh)
    state = dataclasses.replace(state, trainable=stage.start(state.trainable))
    step_fn = jax.jit(make_train_step(stage.loss_fn, optimizer, schedule))
    drawing, batches_of_all, step = state.trainable, [], 0
    while step < STEPS:
        batches, _ = stage.next_batches(dataclasses.replace(state, trainable=drawing, step=step))
        drawing = state.trainable
        for batch in batches:
            with jax.set_mesh(stage.mesh):
                state, _ = step_fn(state, stage.frozen, put_batch(batch, stage.mesh))
            step += 1
        batches_of_all.append(batches)
    return state, batches_of_all


@pytest.mark.parametrize("name", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_overlapped_training_is_the_off_policy_order_one_after_the_other(name, tmp_path):
    by_hand, _ = off_policy_by_hand(name, tmp_path / "by_hand")
    stage, config = made(name, tmp_path / "other", overlap=True)
    train_stage(config, tmp_path / "run")
    folder, _ = read_meta(tmp_path / "run")
    got = load_params(folder, "policy", stage.network.abstract)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, by_hand.trainable["policy"])
    train_stage(configured(name), tmp_path / "on_policy")
    other = load_params(read_meta(tmp_path / "on_policy")[0], "policy", stage.network.abstract)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (got, other)))) > 1e-3


def test_the_ratio_is_to_the_weights_that_drew(tmp_path):
    """π_old is the sampler's policy, one rollout behind: at a rollout's first step the trained policy is elsewhere."""
    for overlap in (False, True):
        _, config = made("grpo", tmp_path, overlap=overlap)
        train_stage(config, tmp_path / str(overlap))
        lines = tiny_stages.metrics(tmp_path / str(overlap))
        drift = [line["approx_kl"] > 1e-9 for line in lines]
        assert drift == ([False, True] * 4 if not overlap else [False] + [True] * 7)
        assert all(line["sampler_kl"] < 1e-6 for line in lines)


def test_nothing_is_asked_of_the_step_before(tmp_path):
    """The second rollout is drawn from what the first call copied, whatever becomes of the state."""
    stage, _ = made("grpo", tmp_path / "a", overlap=True)
    trainable = stage.start(jax.jit(stage.init)(jax.random.key(7)))

    @dataclasses.dataclass
    class State:
        step: int
        trainable: dict
        key: jax.Array

    stage.next_batches(State(0, trainable, jax.random.key(1)))
    moved = jax.tree.map(lambda x: 2 * x, trainable)
    second = stage.next_batches(State(2, moved, None))[0]
    plain, _ = made("grpo", tmp_path / "b")
    plain.start(jax.jit(plain.init)(jax.random.key(7)))
    plain.next_batches(State(0, trainable, jax.random.key(1)))
    expected = plain.next_batches(State(2, trainable, jax.random.key(1)))[0]
    for ours, theirs in zip(second, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, stage.beside, moved)
