"""Adapters against their papers' equations in float64; what they change at the start, what is trained, what is merged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, logits, split

from jaxalign.errors import ConfigError
from jaxalign.models.heads import ScalarModel
from jaxalign.models.layers import Linear
from jaxalign.models.lora import Adapter, LoraConfig, adapt, has_adapters, is_trained, merged, unmerged
from jaxalign.models.quantized import is_quantized, quantized
from jaxalign.models.quantized import plain as plain_value
from jaxalign.models.transformer import Transformer

TOKENS = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
FORMS = [dict(), dict(scaling="rslora"), dict(form="dora")]
EXPERTS = dataclasses.replace(CONFIG, mlp="experts", num_experts=3, experts_per_token=2)
BOTH = pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=["mlp", "experts"])


def linear(lora, in_shape=(5,), out_shape=(2, 3), bias=True):
    """An adapted map without layers, every number of it drawn."""
    axes = ("embed", "mlp", "head_dim")[:len(in_shape) + len(out_shape)]
    made = Linear(in_shape, out_shape, axes, dtype=jnp.float32, bias=bias, rngs=nnx.Rngs(params=0))
    made.adapter = Adapter(made.kernel, len(in_shape), lora, rngs=nnx.Rngs(params=1))
    rng = np.random.default_rng(3)
    for variable in jax.tree.leaves(nnx.state(made), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        variable.set_value(jnp.asarray(rng.normal(size=variable.shape), jnp.float32))
    return made


def expected(x, made, lora, norm=None):
    """The equations as printed, with one matrix each: h = W₀x + sBAx, and W′ = m · (W₀ + sBA) / ‖W₀ + sBA‖_c."""
    fan_in = int(np.prod(made.in_shape))

    def matrix(p, rows):
        return np.asarray(p[...], np.float64).reshape(rows, -1).T  # the papers' matrices have outputs first

    W, A, B = matrix(made.kernel, fan_in), matrix(made.adapter.a, fan_in), matrix(made.adapter.b, lora.rank)
    s = lora.alpha / (np.sqrt(lora.rank) if lora.scaling == "rslora" else lora.rank)
    V = W + s * B @ A
    if lora.form == "dora":
        norm = np.linalg.norm(V, axis=1, keepdims=True)  # of what leads to one output
        V = np.asarray(made.adapter.magnitude[...], np.float64).reshape(-1, 1) * V / norm
    y = np.asarray(x, np.float64).reshape(-1, fan_in) @ V.T
    return y + np.asarray(made.bias[...], np.float64).reshape(1, -1)


@pytest.mark.parametrize("in_shape, out_shape", [((5,), (2, 3)), ((2, 3), (5,))])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_adapted_map_is_the_papers_equation(form, in_shape, out_shape):
    lora = LoraConfig(rank=3, alpha=7.0, **form)
    made = linear(lora, in_shape, out_shape)
    x = np.random.default_rng(1).normal(size=(4, *in_shape)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(made(x)).reshape(4, -1), expected(x, made, lora), rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_through_doras_norm():
    lora = LoraConfig(rank=2, form="dora")
    made = linear(lora)
    graphdef, state = nnx.split(made)
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    got = jax.grad(lambda state: jnp.sum(jnp.cos(nnx.merge(graphdef, state)(x))))(state)
    W, b = made.kernel[...].reshape(5, -1), made.bias[...].reshape(1, -1)
    A, B, m = made.adapter.a[...], made.adapter.b[...].reshape(2, -1), made.adapter.magnitude[...].reshape(1, -1)
    norm = jnp.linalg.norm(W + lora.scale * A @ B, axis=0, keepdims=True)  # a constant of its own

    def whole(A, B, m):
        return jnp.sum(jnp.cos(x @ (W + lora.scale * A @ B) * (m / norm) + b))

    for name, gradient in zip(("a", "b", "magnitude"), jax.grad(whole, argnums=(0, 1, 2))(A, B, m)):
        np.testing.assert_allclose(got["adapter"][name][...].reshape(gradient.shape), gradient, rtol=1e-4, atol=1e-5)


@functools.cache
def adapted(form=(), cls=Transformer, moved=False, config=CONFIG):
    """(graphdef of the adapted, its state, graphdef of the plain, its state); `moved`: adapters as after training."""
    plain, base = split(config, cls)
    lora = LoraConfig(rank=2, alpha=3.0, **dict(form))
    graphdef, state = nnx.split(adapt(nnx.merge(plain, base), lora, rngs=nnx.Rngs(params=5)))
    if moved:
        rng = np.random.default_rng(2)
        for variable in jax.tree.leaves(nnx.filter_state(state, nnx.LoRAParam),
                                        is_leaf=lambda x: isinstance(x, nnx.Variable)):
            value = variable.get_value()
            variable.set_value(value + jnp.asarray(rng.normal(size=value.shape) * 0.3, jnp.float32))
    return graphdef, state, plain, base


run = jax.jit(logits, static_argnums=0)


@BOTH
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_before_training_nothing_is_changed(form, config):
    graphdef, state, plain, base = adapted(tuple(form.items()), config=config)
    np.testing.assert_allclose(run(graphdef, state, TOKENS), run(plain, base, TOKENS), rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_merged_it_computes_the_same_and_unmerged_again_it_is_the_base(form, config):
    graphdef, state, plain, base = adapted(tuple(form.items()), moved=True, config=config)
    together = jax.jit(merged, static_argnums=0)(graphdef, state)
    assert jax.tree.structure(together) == jax.tree.structure(base)
    got = run(plain, together, TOKENS)
    np.testing.assert_allclose(got, run(graphdef, state, TOKENS), rtol=1e-5, atol=5e-5)  # another order of sums
    assert np.abs(got - run(plain, base, TOKENS)).max() > 0.1
    twice = nnx.merge_state(state, together)  # kernels with the products in them, and the adapters
    if form.get("form") == "dora":
        with pytest.raises(ConfigError, match="'dora' cannot be taken out of merged weights"):
            unmerged(graphdef, twice)
        return
    apart = jax.jit(unmerged, static_argnums=0)(graphdef, twice)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), apart, state)


def test_only_adapters_and_heads_are_trained_and_a_does_not_move_before_b():
    graphdef, state, *_ = adapted((("form", "dora"),), ScalarModel)
    trained, frozen = nnx.split_state(state, is_trained, ...)
    names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(trained)}
    assert {name for name in names if "adapter" not in name} == {"head/kernel", "gate/kernel"}
    assert len(names) == 2 + 7 * 3 and not has_adapters(frozen) and has_adapters(state)
    assert all("adapter" not in path for path, _ in nnx.to_flat_state(frozen))
    # Which axes a layer's parts have: the leading one is the layers'.
    assert trained["backbone"]["layers"]["attention"]["query"]["adapter"]["a"].shape == (2, 16, 2)
    assert trained["backbone"]["layers"]["attention"]["out"]["adapter"]["a"].shape == (2, 4, 6, 2)
    gradient = jax.jit(jax.grad(lambda t: nnx.merge(graphdef, nnx.merge_state(frozen, t))(TOKENS).sum()))(trained)
    for path, variable in nnx.to_flat_state(gradient["backbone"]):
        assert (np.abs(variable[...]).max() > 1e-6) == (path[-1] != "a"), path


def test_adapters_have_the_axes_names_of_what_they_adapt():
    _, state, *_ = adapted((("form", "dora"),))
    out = state["layers"]["attention"]["out"]["adapter"]
    axes = {name: out[name].get_metadata()["out_sharding"] for name in ("a", "b", "magnitude")}
    assert axes == {"a": ("layers", "heads", "head_dim", "rank"), "b": ("layers", "rank", "embed"),
                    "magnitude": ("layers", "embed")}


def test_targets_are_maps_or_the_parts_that_hold_them():
    def paths(targets, config=CONFIG):
        plain, base = split(config)
        state = nnx.state(adapt(nnx.merge(plain, base), LoraConfig(rank=1, targets=targets), rngs=nnx.Rngs(0)))
        return {path[1:3] for path, _ in nnx.to_flat_state(nnx.filter_state(state, nnx.LoRAParam))}

    attention = {("attention", name) for name in ("query", "key", "value", "out")}
    assert paths(("attention",)) == attention
    assert paths(("query", "up")) == {("attention", "query"), ("mlp", "up")}
    assert paths(("attention", "mlp")) == attention | {("mlp", name) for name in ("gate", "up", "down")}
    with pytest.raises(ConfigError, match="'qurey', which adapts nothing .*expected some of attention, .*query"):
        paths(("qurey",))
    assert paths(("attention",), EXPERTS) == attention
    assert paths(("up",), EXPERTS) == {("mlp", "up_adapter")}
    assert paths(("mlp",), EXPERTS) == {("mlp", f"{name}_adapter") for name in ("gate", "up", "down")}
    with pytest.raises(ConfigError, match="'router', which adapts nothing .*expected some of attention"):
        paths(("router",), EXPERTS)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_adapted_experts_are_the_equation_of_each_for_the_rows_it_got(form):
    """Against experts that hold W + s·A·B, by DoRA's rule, computed in float64."""
    lora = LoraConfig(rank=2, alpha=3.0, **form)
    graphdef, state, plain, base = adapted(tuple(form.items()), moved=True, config=EXPERTS)
    together = jax.tree.map(jnp.array, jax.jit(merged, static_argnums=0)(graphdef, state))
    for name in ("gate", "up", "down"):
        adapter = state["layers"]["mlp"][f"{name}_adapter"]
        W, A, B = (np.asarray(p[...], np.float64) for p in (base["layers"]["mlp"][name], adapter["a"], adapter["b"]))
        V = W + lora.scale * np.einsum("leir,lero->leio", A, B)
        if lora.form == "dora":
            V *= np.asarray(adapter["magnitude"][...], np.float64)[:, :, None] / np.linalg.norm(V, axis=2, keepdims=True)
        np.testing.assert_allclose(together["layers"]["mlp"][name][...], V, rtol=1e-5, atol=1e-5)
        together["layers"]["mlp"][name].set_value(jnp.asarray(V, jnp.float32))
    got = run(graphdef, state, TOKENS)
    np.testing.assert_allclose(got, run(plain, together, TOKENS), rtol=1e-4, atol=1e-4)
    assert np.abs(got - run(plain, base, TOKENS)).max() > 0.1


@pytest.mark.parametrize("base_type", ["int8", "nf4"])
def test_adapters_of_experts_held_in_few_bits(base_type):
    pytest.importorskip("qwix")
    graphdef, state, _, _ = adapted((("form", "dora"),), moved=True, config=EXPERTS)
    trained, frozen = nnx.split_state(state, is_trained, ...)
    held = quantized(frozen, base_type)
    widened = jax.tree.map(plain_value, held, is_leaf=is_quantized)
    np.testing.assert_allclose(run(graphdef, nnx.merge_state(held, trained), TOKENS),
                               run(graphdef, nnx.merge_state(widened, trained), TOKENS), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(split(EXPERTS)[0], merged(graphdef, nnx.merge_state(held, trained)), TOKENS),
                               run(graphdef, nnx.merge_state(widened, trained), TOKENS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrong, message", [
    (dict(scaling="sqrt"), "lora.scaling='sqrt' must be one of lora, rslora"), (dict(form="x"), "lora.form='x' must"),
    (dict(rank=-1), "lora.rank=-1: expected 0"), (dict(dropout=1.0), "lora.dropout=1.0 must be"),
    (dict(targets=()), "lora.targets is empty"),
])
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**wrong)


def test_dropout_drops_by_its_key_in_every_layer_otherwise_and_changes_no_mean():
    lora = LoraConfig(rank=3, dropout=0.4)
    made = linear(lora, bias=False)
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    whole = made(x)

    graphdef, state = nnx.split(made)

    def dropped(key):
        mine = nnx.merge(graphdef, state)
        mine.adapter.key = key
        return mine(x)

    many = jax.vmap(dropped)(jax.random.split(jax.random.key(0), 4000))
    spread = np.asarray(many).std(0).max()
    assert spread > 0.5
    np.testing.assert_allclose(many.mean(0), whole, atol=6 * spread / np.sqrt(4000))
    graphdef, state, *_ = adapted((("dropout", 0.5),), moved=True)
    hidden = jax.jit(lambda key: nnx.merge(graphdef, state)(TOKENS, key=key))
    one, two = jax.random.split(jax.random.key(1))
    np.testing.assert_array_equal(hidden(one), hidden(one))
    plain = hidden(None)
    assert np.abs(hidden(one) - hidden(two)).max() > 1e-2 < np.abs(hidden(one) - plain).max()
    still = adapted((), moved=True)
    np.testing.assert_allclose(plain, nnx.merge(*still[:2])(TOKENS), rtol=1e-5, atol=1e-5)


@BOTH
def test_adapters_decode_as_they_read(config):
    """What the sampler does of an adapted model is what the trainer does of it."""
    graphdef, state, *_ = adapted((("form", "dora"),), moved=True, config=config)
    whole = nnx.merge(graphdef, state)(TOKENS[:, :3])
    model = nnx.merge(graphdef, state)
    cache = jax.tree.map(lambda x: jnp.zeros(x, jnp.float32), (((2, 2, 2, 8, 6), (2, 2, 2, 8, 6)),),
                         is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int))
    for n in range(3):
        hidden, cache = model.decode(TOKENS[:, n], jnp.full(2, n), jnp.int32(n), cache, model.layer_groups())
        np.testing.assert_allclose(hidden, whole[:, n], rtol=1e-4, atol=1e-5)
