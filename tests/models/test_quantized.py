"""Frozen weights in fewer bits: how far off they are, what they pass through, and what a step of them takes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from tiny_models import CONFIG, logits, split

from jaxalign.models.lora import LoraConfig, adapt, is_trained, merged
from jaxalign.models.quantized import bits, is_quantized, plain, quantized
from jaxalign.models.transformer import Transformer
from jaxalign.sharding import make_mesh, shardings

TOKENS = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
# The 16 values of NF4 (arXiv:2305.14314, appendix E).
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])
MIXTURE = dict(mlp="experts", num_experts=3, experts_per_token=2)
run = jax.jit(logits, static_argnums=0)


def kernels(state):
    """Of linear maps and experts: what few bits are for."""
    return {path[1:3]: variable for path, variable in nnx.to_flat_state(state)
            if "router" not in path and (path[-1] == "kernel" or "experts" in variable.get_metadata()["out_sharding"])}


@pytest.mark.parametrize("mixture", [{}, MIXTURE], ids=["mlp", "experts"])
def test_every_number_is_the_nearest_there_is_in_its_tile_or_column(mixture):
    _, base = split(dataclasses.replace(CONFIG, width=128, mlp_dim=40, **mixture))
    exact = kernels(base)
    for name in (("attention", "query"), ("attention", "out"), ("mlp", "down"), ("mlp", "up")):
        W = np.asarray(exact[name][...], np.float64)
        first = 2 if mixture and name[0] == "mlp" else 1  # layers, and experts
        inputs = 2 if name[1] == "out" else 1
        axis = first + inputs - 1  # the last of the inputs
        tile = {128: 64, 6: 6, 40: 40}[W.shape[axis]]
        tiled = W.reshape(*W.shape[:axis], -1, tile, *W.shape[axis + 1:])
        top = np.abs(tiled).max(axis + 1, keepdims=True)
        nearest = NF4[np.abs(tiled[..., None] / top[..., None] - NF4).argmin(-1)] * top
        got = np.asarray(plain(kernels(quantized(base, "nf4"))[name].get_value()))
        # Scales are bfloat16, of eight bits: so far off is a value, and where two are equally near, the one or the other.
        assert np.abs(got - nearest.reshape(W.shape)).max() <= 2**-7 * np.abs(W).max()
        assert (np.abs(got - W).reshape(tiled.shape) <= (0.152 + 2**-7) * top).all()  # half the widest gap
        column = np.abs(W).max(tuple(range(first, first + inputs)), keepdims=True)
        got = np.asarray(plain(kernels(quantized(base, "int8"))[name].get_value()))
        assert (np.abs(got - W) <= column / 127 * 0.5001 + 1e-7).all()


def test_four_bits_stand_for_what_qwix_takes_them_for():
    _, base = split(dataclasses.replace(CONFIG, width=128))
    for name, variable in kernels(quantized(base, "nf4")).items():
        few = jax.tree.map(lambda x: x[0], variable.get_value())
        expected = jax.jit(lambda few: qwix.dequantize(few.astype(jnp.float32)))(few)
        np.testing.assert_array_equal(jax.jit(plain)(few), expected, err_msg=str(name))
        assert len(np.unique(np.asarray(few.qvalue, np.int32))) == 16


@pytest.mark.parametrize("mixture", [{}, MIXTURE], ids=["mlp", "experts"])
@pytest.mark.parametrize("base", ["bfloat16", "int8", "nf4"])
def test_in_few_bits_a_kernel_is_split_over_devices_as_it_was(base, mixture):
    _, exact = split(dataclasses.replace(CONFIG, width=256, head_dim=8, mlp_dim=256, **mixture))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    placed = jax.device_put(exact, shardings(exact, mesh))
    was = kernels(placed)
    for name, variable in kernels(quantized(placed, base)).items():
        parts = jax.tree.leaves(variable.get_value())
        assert parts[0].sharding.is_equivalent_to(was[name].get_value().sharding, parts[0].ndim), (name, parts[0].sharding)
        assert parts[0].addressable_shards[0].data.size == parts[0].size // 4
        for part in parts[1:]:  # scales, along what they have of the axes that are split
            split_by = [n for n, axis in enumerate(part.sharding.spec) if axis]
            assert split_by == [n for n, axis in enumerate(was[name].get_value().sharding.spec)
                                if axis and part.shape[n] > 1], (name, part.sharding)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_experts_of_few_bits_compute_the_same_over_devices(base):
    graphdef, exact = split(dataclasses.replace(CONFIG, width=64, mlp_dim=64, **MIXTURE))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    over = quantized(jax.device_put(exact, shardings(exact, mesh)), base)
    expected = run(graphdef, quantized(exact, base), TOKENS)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(run(graphdef, over, TOKENS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixture", [{}, MIXTURE], ids=["mlp", "experts"])
@pytest.mark.parametrize("base, error, size", [("bfloat16", 0.02, None), ("int8", 0.05, 8), ("nf4", 0.5, 4)])
def test_a_model_of_few_bits_is_scanned_split_decoded_and_nearly_the_same(base, error, size, mixture):
    config = dataclasses.replace(CONFIG, width=64, mlp_dim=64, num_layers=3, **mixture)
    graphdef, exact = split(config)
    few = quantized(exact, base)
    assert all(is_quantized(v.get_value()) == (size is not None) for v in kernels(few).values())
    again = nnx.split(nnx.merge(graphdef, few))[1]
    assert jax.tree.structure(again) == jax.tree.structure(few)
    got, expected = run(graphdef, again, TOKENS), run(graphdef, exact, TOKENS)
    relative = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 0 < relative < error
    if size:
        each, count = bits(few)
        assert size < each < size + 2.2 and count == sum(v.get_value().size for v in kernels(exact).values())
    for path, variable in nnx.to_flat_state(few):
        if "norm" in path[-2] if len(path) > 1 else False:
            assert variable.get_value().dtype == jnp.float32
    assert few["embed"].get_value().dtype == jnp.bfloat16


@pytest.mark.parametrize("base", ["int8", "nf4"])
@pytest.mark.parametrize("form", ["lora", "dora"])
def test_merged_it_is_what_was_trained(base, form):
    """t22: adapters are merged into the weights that they were trained beside, not into those these were made of."""
    plain_graph, exact = split(CONFIG)
    lora = LoraConfig(rank=2, alpha=8.0, form=form, base=base)
    graphdef, state = nnx.split(adapt(nnx.merge(plain_graph, exact), lora, rngs=nnx.Rngs(params=5)))
    trained, frozen = nnx.split_state(state, is_trained, ...)
    trained = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), trained)
    whole = nnx.merge_state(quantized(frozen, base), trained)
    together = jax.jit(merged, static_argnums=0)(graphdef, whole)
    assert jax.tree.structure(together) == jax.tree.structure(exact)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(together))
    np.testing.assert_allclose(run(plain_graph, together, TOKENS), run(graphdef, whole, TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mixture", [{}, MIXTURE], ids=["mlp", "experts"])
def test_gradients_are_those_of_the_dequantised_model(mixture):
    plain_graph, exact = split(dataclasses.replace(CONFIG, **mixture))
    lora = LoraConfig(rank=2, targets=("attention",) if mixture else ("attention", "mlp"))
    graphdef, state = nnx.split(adapt(nnx.merge(plain_graph, exact), lora, rngs=nnx.Rngs(params=5)))
    trained, frozen = nnx.split_state(state, is_trained, ...)
    trained = jax.tree.map(lambda x: x + 0.1, trained)
    few = quantized(frozen, "nf4")
    back = nnx.from_flat_state([(path, v.replace(plain(v.get_value()))) for path, v in nnx.to_flat_state(few)])

    @jax.jit
    def gradient(trained, frozen):
        return jax.grad(lambda t: jnp.sum(jnp.cos(nnx.merge(graphdef, nnx.merge_state(frozen, t))(TOKENS))))(trained)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient(trained, few),
                 gradient(trained, back))


@pytest.mark.parametrize("mixture", [{}, MIXTURE], ids=["mlp", "experts"])
def test_a_step_never_holds_all_kernels_dequantised(mixture):
    """What the compiler says a gradient takes: of few bits, not more than one layer's kernels beside the same step's in
    float32; a model that was dequantised, or kept so for the gradient, as a whole would take all layers'."""
    config = dataclasses.replace(CONFIG, width=64, mlp_dim=256, num_layers=16, num_heads=4, num_kv_heads=4, head_dim=16,
                                 **mixture)
    lora = functools.partial(LoraConfig, rank=2, targets=("attention",) if mixture else ("attention", "mlp"))
    held = {}
    for base in ("float32", "int8", "nf4"):
        made = nnx.eval_shape(lambda base=base: adapt(
            Transformer(config, rngs=nnx.Rngs(0)), lora(base=base), rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(made)
        trained, frozen = nnx.split_state(state, is_trained, ...)
        frozen = jax.eval_shape(lambda s, base=base: quantized(s, base), frozen)

        def loss(trained, frozen, graphdef=graphdef):
            return jnp.sum(nnx.merge(graphdef, nnx.merge_state(frozen, trained))(TOKENS))

        compiled = jax.jit(jax.grad(loss)).lower(trained, frozen).compile()
        held[base] = compiled.memory_analysis()
    layer = 4 * (4 * 64 * 64 + 3 * 64 * 256 * mixture.get("num_experts", 1))
    for base in ("int8", "nf4"):
        assert held[base].temp_size_in_bytes < held["float32"].temp_size_in_bytes + 4 * layer, held
        assert held[base].argument_size_in_bytes < held["float32"].argument_size_in_bytes / 2.5


def test_without_the_package_it_is_said(monkeypatch):
    import sys

    from jaxalign.errors import ConfigError

    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match="need the package qwix; install jaxalign.quant."):
        quantized(split(CONFIG)[1], "nf4")
