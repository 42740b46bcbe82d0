"""The model against its equations: float64 reference, causality, packing, remat, types, sizes it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformer_reference as reference
from flax import nnx
from tiny_models import CONFIG, abstract, logits, split

from jaxalign.errors import ConfigError
from jaxalign.models.config import REMAT_POLICIES

TOKENS = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
run = jax.jit(logits, static_argnums=0)


@pytest.mark.parametrize("change", [{}, {"num_kv_heads": 4}, {"num_kv_heads": 1, "tied_embeddings": False},
                                    {"qk_norm": True, "embed_scale": 4.0, "rope_theta": 100.0}])
def test_logits_are_those_of_the_equations_in_float64(change):
    config = dataclasses.replace(CONFIG, **change)
    graphdef, params = split(config)
    got = run(graphdef, params, TOKENS)
    for row in range(2):
        expected = reference.logits(nnx.to_pure_dict(params), config, TOKENS[row])
        assert np.abs(expected).max() > 1  # or else the comparison would say little
        np.testing.assert_allclose(got[row], expected, rtol=2e-5, atol=2e-5)


def test_no_token_sees_what_comes_after_it_nor_other_rows():
    graphdef, params = split(CONFIG)

    def influence(offset_BTD):
        model = nnx.merge(graphdef, params)
        # The tokens' embeddings moved by `offset`: what depends on it depends on the tokens.
        model._embedded = lambda tokens: model.embed[...][tokens] + offset_BTD
        return model(TOKENS).sum(-1)

    jacobian = jax.jit(jax.jacrev(influence))(jnp.zeros((2, 9, CONFIG.width)))  # (row, t, row, s, D)
    reach = np.asarray(jnp.abs(jacobian).max(-1))
    for row in range(2):
        assert np.all(reach[row, :, 1 - row] == 0)
        assert np.all(reach[row, :, row][np.triu_indices(9, 1)] == 0)
        assert np.all(reach[row, :, row][np.tril_indices(9)] > 0)


def test_attention_sees_distances_and_not_places():
    graphdef, params = split(CONFIG)
    near = run(graphdef, params, TOKENS, np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9)))
    far = run(graphdef, params, TOKENS, np.broadcast_to(np.arange(9, dtype=np.int32) + 40, (2, 9)))
    np.testing.assert_allclose(near, far, rtol=1e-4, atol=1e-4)


@functools.cache
def gradient(config):
    graphdef, _ = abstract(config)
    return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(logits(graphdef, p, TOKENS)))))(split(CONFIG)[1])


@pytest.mark.parametrize("change", [{"remat": name} for name in REMAT_POLICIES if name != "none"] + [{"unroll": 2}])
def test_how_it_is_run_changes_no_gradient(change):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient(CONFIG),
                 gradient(dataclasses.replace(CONFIG, **change)))


def test_full_remat_keeps_less():
    config = dataclasses.replace(CONFIG, num_layers=4, width=64, mlp_dim=256)
    tokens = np.zeros((8, 64), np.int32)

    def temporary(remat):
        graphdef, params = abstract(dataclasses.replace(config, remat=remat))
        gradient = jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(tokens))))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary("full") < 0.6 * temporary("none")


def test_bfloat16_computes_in_it_and_keeps_float32_masters():
    graphdef, params = split(dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(lambda p: nnx.merge(graphdef, p)(TOKENS), params).dtype == jnp.bfloat16
    got = run(graphdef, params, TOKENS)
    assert got.dtype == jnp.float32
    exact = run(split(CONFIG)[0], params, TOKENS)
    np.testing.assert_allclose(got, exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_every_parameter_names_its_axes():
    for tied in (True, False):
        _, params = abstract(dataclasses.replace(CONFIG, tied_embeddings=tied))
        variables = jax.tree.leaves(params, is_leaf=lambda leaf: hasattr(leaf, "get_metadata"))
        assert len(variables) == 11 + (not tied)
        for variable in variables:
            names = variable.get_metadata()["out_sharding"]
            assert len(names) == len(variable.shape) and names[-1] is not None, names


def test_compile_size_does_not_grow_with_depth():
    def size(layers):
        graphdef, params = abstract(dataclasses.replace(CONFIG, num_layers=layers))
        return len(jax.jit(lambda p: nnx.merge(graphdef, p)(TOKENS)).lower(params).as_text())

    assert size(12) < 1.05 * size(2)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of model.num_kv_heads=3"),
    ({"head_dim": 5}, "head_dim=5 must be even"),
    ({"remat": "some"}, "remat='some' must be one of"),
    ({"dtype": "float16"}, "dtype='float16' must be"),
])
def test_shapes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
