"""Optimizers and schedules by name; which parameters decay and which Muon turns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny_models import CONFIG, abstract

from jaxalign.errors import ConfigError
from jaxalign.models.heads import ScalarModel
from jaxalign.models.lora import LoraConfig
from jaxalign.stages.defaults import OPTIMIZER
from jaxalign.stages.network import Network
from jaxalign.train.optimizer import decays, make_optimizer, make_schedule


def config(**changes):
    return ConfigDict(OPTIMIZER | changes)


@pytest.mark.parametrize(("schedule", "middle", "end"), [("constant", 2.0, 2.0), ("linear", 1.1, 0.2),
                                                         ("cosine", 1.1, 0.2)])
def test_warmup_from_zero_then_the_named_schedule_to_its_end(schedule, middle, end):
    rate = make_schedule(config(schedule=schedule, peak_lr=2.0, warmup_steps=4, end_fraction=0.1), 24)
    got = [float(rate(step)) for step in (0, 2, 4, 14, 24, 99)]
    np.testing.assert_allclose(got, [0.0, 1.0, 2.0, middle, end, end], rtol=1e-6)


def test_without_warmup_the_first_step_has_the_peak():
    assert make_schedule(config(peak_lr=2.0), 10)(0) == 2.0


@pytest.mark.parametrize("wrong", [dict(schedule="step"), dict(name="lion")])
def test_unknown_names_are_refused_with_those_there_are(wrong):
    with pytest.raises(ConfigError, match="must be one of"):
        make_optimizer(config(**wrong), 10)


def names_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "get_metadata"))
    return {"/".join(str(k.key) for k in path): leaf.get_value() for path, leaf in leaves}


def test_norm_scales_do_not_decay_and_matrices_do():
    decayed = names_of(decays(abstract()[1]))
    assert {name for name, yes in decayed.items() if not yes} == {
        "final_norm/scale", "layers/attention_norm/scale", "layers/mlp_norm/scale"}
    params = abstract()[1]
    optimizer, _ = make_optimizer(config(weight_decay=0.5, peak_lr=1.0, clip_norm=0.0), 10)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(ones, zeros)
    for name, update in names_of(updates).items():
        np.testing.assert_allclose(update, -0.5 if decayed[name] else 0.0, rtol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm():
    optimizer, _ = make_optimizer(config(clip_norm=1.0, b1=0.0, b2=0.0, eps=1.0, peak_lr=1.0), 10)
    params = abstract()[1]
    big = jax.tree.map(lambda x: jnp.full(x.shape, 100.0), params)
    # With b1 = b2 = 0 Adam gives g / (|g| + 1), from which g can be read.
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(big, big)
    gradient = jax.tree.map(lambda u: -u / (1.0 + u), updates)
    assert float(optax.tree.norm(gradient)) == pytest.approx(1.0, rel=1e-4)


def test_the_second_factor_of_an_adapter_learns_faster():
    """LoRA+ (arXiv:2402.12354): B at λ times the rate of all else; with Adam's first step the rate can be read off."""
    trained = Network(ScalarModel, CONFIG, LoraConfig(rank=2, form="dora")).trained
    updates = {}
    for name, ratio in (("adamw", 1.0), ("adamw", 16.0), ("muon", 1.0), ("muon", 16.0)):
        optimizer, _ = make_optimizer(config(name=name, peak_lr=0.5, clip_norm=0.0, lora_plus=ratio), 10)
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), trained)
        rng = np.random.default_rng(0)
        gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), trained)
        updates[name, ratio] = names_of(jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(ones, gradient)[0])
    for path, update in updates["adamw", 16.0].items():
        np.testing.assert_allclose(np.abs(update), 8.0 if path.endswith("/b") else 0.5, rtol=1e-4)
    for path, update in updates["muon", 16.0].items():
        np.testing.assert_allclose(update, updates["muon", 1.0][path] * (16.0 if path.endswith("/b") else 1.0), rtol=1e-4)


def test_muon_turns_each_experts_matrices():
    mixture = dataclasses.replace(CONFIG, mlp="experts", num_experts=3, experts_per_token=2)
    optimizer, _ = make_optimizer(config(name="muon", peak_lr=1.0, clip_norm=0.0), 10)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract(mixture)[1])
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, gradient)
    for name in ("gate", "up", "down"):
        singular = np.linalg.svd(np.asarray(updates["layers"]["mlp"][name][...]), compute_uv=False)  # of (2, 3, in, out)
        assert singular.shape == (2, 3, 16) and np.all(singular.max(-1) < 2.0 * singular.min(-1)), name


def test_muon_turns_the_matrices_of_the_layers():
    optimizer, _ = make_optimizer(config(name="muon", peak_lr=1.0, clip_norm=0.0), 10)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract()[1])
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(params, gradient)
    for name, update in names_of(updates).items():
        if "kernel" in name:  # as a matrix of inputs × outputs, every layer of its own, nearly orthogonal
            inputs = update.shape[1] * (update.shape[2] if "out" in name else 1)
            singular = np.linalg.svd(np.asarray(update).reshape(2, inputs, -1), compute_uv=False)
            assert singular.max() < 2.0 * singular.min(), name
        else:
            # AdamW's first step at its lower rate, lengthened by Nesterov's momentum.
            np.testing.assert_allclose(jnp.abs(update), 0.3 * (0.9 / (1 + 0.9) + 1), rtol=1e-3)
