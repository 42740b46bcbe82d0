"""Sampling in lower precision than training: what the weights become, and what corrects for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages
from flax import nnx
from tiny_models import CONFIG, documents, split

from jaxalign.errors import ConfigError
from jaxalign.models.lora import LoraConfig, adapt
from jaxalign.rollout.engine import Sampler
from jaxalign.rollout.precision import Int8, lowered
from jaxalign.stages import train_stage

PROMPTS = documents((3, 7, 1, 5), seed=5)


def test_int8_is_off_by_half_a_step_of_each_output_at_most():
    kernel = np.random.default_rng(0).normal(size=(3, 8, 2, 5)).astype(np.float32)
    kernel[:, :, 0, 1] = 0.0
    made = Int8.of(jnp.asarray(kernel), (1,))
    assert made.value.dtype == jnp.int8 and made.scale.shape == (3, 1, 2, 5) and made.shape == kernel.shape
    step = np.abs(kernel).max(1, keepdims=True) / 127
    error = np.abs(np.asarray(made.astype(jnp.float32)) - kernel)
    assert np.all(error <= 0.5001 * step) and error.max() > 0.4 * step.max()


@pytest.mark.parametrize("precision, near", [("bfloat16", 0.2), ("int8", 0.2)])
def test_the_sampler_runs_the_lowered_model(precision, near):
    graphdef, params = split()
    low_graph, low = lowered(graphdef, params, precision)
    kinds = {str(x.dtype) for x in jax.tree.leaves(low)}
    assert kinds == {"bfloat16": {"bfloat16", "float32"}, "int8": {"int8", "float32"}}[precision]
    assert low["embed"][...].dtype == (jnp.bfloat16 if precision == "bfloat16" else jnp.float32)
    ids = np.array([documents((9,), seed=1)[0]])
    hidden, rough = (np.asarray(nnx.merge(*of)(ids), np.float32) for of in ((graphdef, params), (low_graph, low)))
    assert 1e-4 < np.abs(hidden - rough).max() < near
    keys = jax.random.split(jax.random.key(0), len(PROMPTS))
    made = functools.partial(Sampler, graphdef, stop_ids=(), max_new_tokens=8, slots=4, bucket=8)
    exact, out = (made(precision=name)(params, PROMPTS, keys) for name in ("model", precision))
    same = np.cumprod(exact.tokens == out.tokens, axis=1) > 0
    off = np.abs(exact.logp - out.logp)[same]
    assert same.sum() > 4 and 1e-5 < off.max() < near


@pytest.mark.parametrize("precision, near", [("bfloat16", 0.2), ("int8", 0.2)])
def test_experts_are_lowered_and_their_router_is_not(precision, near):
    graphdef, params = split(dataclasses.replace(CONFIG, mlp="experts", num_experts=3, experts_per_token=2))
    low_graph, low = lowered(graphdef, params, precision)
    mlp = low["layers"]["mlp"]
    assert mlp["router"]["kernel"][...].dtype == jnp.float32
    for name in ("gate", "up", "down"):
        (value, *scale), exact = jax.tree.leaves(mlp[name].get_value()), params["layers"]["mlp"][name][...]
        assert str(value.dtype) == precision and value.shape == exact.shape
        assert [x.shape for x in scale] == ([(*exact.shape[:2], 1, exact.shape[3])] if precision == "int8" else [])
    ids = np.array([documents((9,), seed=1)[0]])
    hidden, rough = (np.asarray(nnx.merge(*of)(ids), np.float32) for of in ((graphdef, params), (low_graph, low)))
    assert 0 < np.abs(rough - hidden).max() < near


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_adapters_are_part_of_what_is_rounded(precision):
    model = adapt(nnx.merge(*split()), LoraConfig(rank=2), rngs=nnx.Rngs(1))
    graphdef, params = nnx.split(model)
    params = nnx.from_flat_state([(path, x.replace(x[...] + 0.05) if isinstance(x, nnx.LoRAParam) else x)
                                  for path, x in nnx.to_flat_state(params)])
    ids = np.array([documents((9,), seed=1)[0]])
    exact, rough, without = (np.asarray(nnx.merge(*of)(ids), np.float32) for of in (
        (graphdef, params), lowered(graphdef, params, precision), split()))
    off, moved = (np.abs(exact - other).max() for other in (rough, without))
    assert 1e-4 < off < 0.3 * moved
    assert lowered(graphdef, params, "model") == (graphdef, params)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="one of model, bfloat16, int8; got 'fp4'"):
        Sampler(split()[0], stop_ids=(), max_new_tokens=8, precision="fp4")


@functools.cache
def trained(stage, precision, correction):
    config = tiny_stages.config(stage, sampler_precision=precision)
    config.objective.update(dict(sampler_correction=correction))
    workdir = tiny_stages.folder() / f"{stage}-{precision}"
    train_stage(config, workdir)
    return tiny_stages.metrics(workdir)


@pytest.mark.parametrize("stage, precision", [("grpo", "int8"), pytest.param("ppo", "bfloat16", marks=pytest.mark.slow)])
def test_a_run_that_draws_in_lower_precision_logs_how_far_off_it_is_and_weights_its_tokens(stage, precision):
    rows, exact = trained(stage, precision, "token"), trained(stage, "model", "token")
    assert len(rows) == 4
    for row, other in zip(rows, exact):
        assert np.isfinite(row["loss"]) and 1e-8 < row["sampler_kl"] < 0.05 and abs(other["sampler_kl"]) < 1e-10
        assert 0.5 < row["sampler_weight"] < 1.5 and abs(row["sampler_weight"] - 1) > 1e-6
        assert other["sampler_weight"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision, correction, warned", [
    ("int8", "none", True), ("int8", "token", False), ("model", "none", False)])
def test_a_sampler_that_nothing_corrects_is_told_of(tmp_path, capsys, precision, correction, warned):
    config = tiny_stages.config("grpo", sampler_precision=precision, steps=1)
    config.objective.update(dict(sampler_correction=correction))
    train_stage(config, tmp_path / "run")
    said = capsys.readouterr()
    assert ("nothing corrects that" in said.out + said.err) == warned
