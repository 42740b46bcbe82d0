"""Every family against transformers: logits, padded, packed and decoded; gradients; the way back, bit for bit."""

import base64
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from published_models import CASES, DOCUMENTS, VOCABULARY, config_of, read_model, write_model

from jaxalign.errors import ConfigError
from jaxalign.exchange.safetensors import Safetensors
from jaxalign.models.cache import empty_cache
from jaxalign.models.families import FAMILIES, model_config
from jaxalign.models.transformer import group_sizes, logits_of

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "families.json").read_text())["cases"]
LENGTH = 24
LANGUAGE = [case for case in CASES if "classifier" not in case]


def unpacked(text, shape):
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(shape)


def expected(case):
    return [unpacked(text, (len(d), VOCABULARY)) for text, d in zip(GOLDEN[case]["logits"], DOCUMENTS)]


def batch():
    """Both documents packed in one row with padding after them, and each alone with padding before and after it."""
    first, second = DOCUMENTS
    rows = [[(first, 1), (second, 9)], [(first, 3)], [(second, 12)]]
    tokens, positions, segments = np.full((3, LENGTH), 6), np.zeros((3, LENGTH)), np.zeros((3, LENGTH))
    for row, documents in enumerate(rows):
        for n, (document, start) in enumerate(documents):
            at = slice(start, start + len(document))
            tokens[row, at], positions[row, at], segments[row, at] = document, np.arange(len(document)), n + 1
    places = [(0, 1, 0), (0, 9, 1), (1, 3, 0), (2, 12, 1)]
    return [x.astype(np.int32) for x in (tokens, positions, segments)], places


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, inputs):
    """(logits of the padded and packed batch, gradient of the embedding as the golden's)."""

    def value(params):
        model = nnx.merge(graphdef, params)
        logits = logits_of(model(*inputs), model.unembedding_DV, model.softcap)
        slopes = jnp.zeros_like(logits)
        for row, start, n in batch()[1][2:]:
            size = len(DOCUMENTS[n]) * VOCABULARY
            slope = jnp.cos(jnp.arange(size, dtype=jnp.float32)).reshape(-1, VOCABULARY)
            slopes = slopes.at[row, start:start + len(DOCUMENTS[n])].set(slope)
        return jnp.sum(logits * slopes), logits

    (_, logits), gradient = jax.value_and_grad(value, has_aux=True)(params)
    return logits, gradient["embed"][...]


@pytest.mark.parametrize("case", LANGUAGE)
def test_logits_and_gradients_are_those_of_transformers_under_padding_and_packing(case, tmp_path):
    config = config_of(case)
    write_model(tmp_path, config)
    graphdef, params, _ = read_model(tmp_path, config)
    inputs, places = batch()
    logits, gradient = run(graphdef, params, inputs)
    for row, start, n in places:
        got = logits[row, start:start + len(DOCUMENTS[n])]
        np.testing.assert_allclose(got, expected(case)[n], rtol=1e-4, atol=1e-4)
    theirs = unpacked(GOLDEN[case]["embedding_gradient"], gradient.shape)
    scale = np.abs(theirs).max()
    assert scale > 0.1
    np.testing.assert_allclose(gradient / scale, theirs / scale, atol=1e-4)


@pytest.mark.parametrize("case", sorted(set(CASES) - set(LANGUAGE)))
def test_a_classifiers_score_is_that_of_transformers(case, tmp_path):
    config = config_of(case)
    write_model(tmp_path, config)
    graphdef, params, _ = read_model(tmp_path, config)
    score = nnx.merge(graphdef, params)(*batch()[0])
    for text, row, last in zip(GOLDEN[case]["logits"], (1, 2), (3 + 6, 12 + 11)):
        np.testing.assert_allclose(score[row, last], unpacked(text, (1,))[0], atol=1e-4)


@functools.partial(jax.jit, static_argnums=(0, 3))
def decoded(graphdef, params, tokens_T, window):
    """Logits of one document read token by token from an empty ring of slots, begun in its midst."""
    model = nnx.merge(graphdef, params)
    groups = model.layer_groups()

    def step(cache, xs):
        token, t = xs
        hidden, cache = model.decode(token[None], t[None], jnp.mod(t + 5, window), cache, groups)
        return cache, logits_of(hidden, model.unembedding_DV, model.softcap)[0]

    cache = empty_cache(model.config, group_sizes(model.config), 1, window)
    return jax.lax.scan(step, cache, (tokens_T, jnp.arange(len(tokens_T))))[1]


@pytest.mark.parametrize("case", LANGUAGE)
def test_cached_decoding_gives_the_same_logits(case, tmp_path):
    config = config_of(case)
    write_model(tmp_path, config)
    graphdef, params, _ = read_model(tmp_path, config)
    got = decoded(graphdef, params, np.array(DOCUMENTS[1], np.int32), 16)
    np.testing.assert_allclose(got, expected(case)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_back_bit_for_bit(case, tmp_path):
    config = config_of(case)
    mapping = write_model(tmp_path, config, ml_dtypes.bfloat16, largest_shard=4000)
    files = Safetensors(tmp_path)
    assert len({entry.path for entry in files.entries.values()}) > 1
    _, params, _ = read_model(tmp_path, config)
    leaves = dict(zip(mapping.shapes, map(np.asarray, jax.tree.leaves(params))))
    held = {part for tensor, _ in mapping.published.values() for part in tensor.parts}
    assert held | {"gate/kernel"} >= set(mapping.shapes)
    for name in mapping.published:
        back = mapping.put_together(name, leaves).astype(ml_dtypes.bfloat16)
        assert back.tobytes() == files.read(name).tobytes()


def test_a_text_in_which_longrope_would_turn_by_its_long_factors_is_refused():
    model = model_config(config_of("phi3, longrope"))
    model.need_places(32, "a row", "")
    with pytest.raises(ConfigError, match="a row takes 33 places, the model turns by longrope's short factors, .* up to 32; be brief"):
        model.need_places(33, "a row", "be brief")


@pytest.mark.parametrize("numbers", [(32.0, float("nan"), 1.0, 1.0), (32.0, 1.0, 1.0, 0.0), (32.0, 1.0, "1", 1.0)])
def test_numbers_that_nothing_can_turn_by_are_refused(numbers):
    model = model_config(config_of("phi3, longrope"))
    with pytest.raises(ConfigError, match="its numbers must be finite, longrope's above 0"):
        dataclasses.replace(model, rope_scaling=("longrope", *numbers))


def test_each_device_reads_its_own_part(tmp_path):
    config = config_of("phi3")
    write_model(tmp_path, config)
    whole, parts = (read_model(tmp_path, config, devices)[1] for devices in (1, 8))
    kernel = parts["layers"]["mlp"]["up"]["kernel"][...]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 4, 20)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b)), whole, parts)


def test_every_family_is_compared():
    assert {config_of(case)["model_type"] for case in CASES} == set(FAMILIES)
