"""Decoding against a cache gives the hidden states of the whole forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, documents, split

from jaxalign.models.cache import chosen, empty_cache, inserted, narrowest, parts, resized
from jaxalign.models.transformer import group_sizes

SIZES = (9, 4, 1)  # ragged prompts
NEW, WINDOW = 8, 16  # the ring is written past its end


@functools.partial(jax.jit, static_argnums=0)
def step(graphdef, params, token_B, length_B, cache, end):
    model = nnx.merge(graphdef, params)
    return model.decode(token_B, length_B, end, cache, model.layer_groups())


def decode(graphdef, params, tokens_BN, length_B, cache, end):
    """Hidden states of tokens read one by one after what the cache holds."""
    out = []
    for n in range(tokens_BN.shape[1]):
        hidden_BD, cache = step(graphdef, params, tokens_BN[:, n], length_B + n, cache, np.int32((end + n) % WINDOW))
        out.append(hidden_BD)
    return jnp.stack(out, axis=1), cache


forward = jax.jit(lambda graphdef, params, tokens: nnx.merge(graphdef, params)(tokens), static_argnums=0)
read = jax.jit(lambda graphdef, params, *packed: nnx.merge(graphdef, params).keys_values(*packed), static_argnums=0)


@pytest.mark.parametrize("change", [{}, {"unroll": 9}, {"num_kv_heads": 4, "unroll": 9},
                                    {"qk_norm": True, "embed_scale": 4.0}], ids=str)
def test_cached_decoding_of_ragged_prompts_is_the_whole_forward_pass(change):
    graphdef, params = split(dataclasses.replace(CONFIG, **change))
    whole = documents([size + NEW for size in SIZES])
    # The prompts packed in one row, after a stranger's tokens, all read at once.
    packed = np.concatenate([[5, 6], *(d[:size] for d, size in zip(whole, SIZES))])[None].astype(np.int32)
    starts = np.cumsum([2, *SIZES])[:-1]
    segments = np.repeat([1, 2, 3, 4], [2, *SIZES])[None]
    positions = np.concatenate([np.arange(n) for n in (2, *SIZES)])[None]
    end = 13
    source = np.zeros((3, WINDOW), np.int32)
    for row, (size, start) in enumerate(zip(SIZES, starts)):
        source[row, (end - size + np.arange(size)) % WINDOW] = start + np.arange(size)
    config = nnx.merge(graphdef, params).config
    cache = empty_cache(config, group_sizes(config), 3, WINDOW)
    order = np.array([2, 0, 1])  # rows as they stand in the cache; the last entry is nobody's
    cache = inserted(cache, read(graphdef, params, packed, positions, segments), np.append(order, 3),
                     np.concatenate([source, source[:1]]))
    cache = chosen(cache, order)
    more = np.array([d[-NEW:] for d in whole], np.int32)
    length = np.array(SIZES, np.int32)
    first, cache = decode(graphdef, params, more[:, :5], length, cache, end)
    # As wide as it was, but begun anew: the slots of what was read move, and nothing else.
    cache = resized(resized(cache, end + 5, WINDOW + 4), WINDOW, WINDOW)
    last, _ = decode(graphdef, params, more[:, 5:7], length + 5, cache, 0)
    got = np.concatenate([first, last], axis=1)
    for row, size in enumerate(SIZES):
        expected = forward(graphdef, params, np.array([whole[row]], np.int32))[0]
        np.testing.assert_allclose(got[row], expected[size:size + 7], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("unroll", [1, 9])
def test_no_more_of_the_ring_is_read_than_holds_tokens(unroll):
    graphdef, params = split(dataclasses.replace(CONFIG, unroll=unroll))
    config = nnx.merge(graphdef, params).config
    tokens_BN = np.array(documents([WINDOW] * 2), np.int32)
    expected = forward(graphdef, params, tokens_BN)
    cache = empty_cache(config, group_sizes(config), 2, WINDOW)
    assert parts(WINDOW) == (8, 12, 16)
    for end in range(WINDOW):
        part = parts(WINDOW)[int(narrowest(WINDOW, np.full(2, end), end))]
        assert part == min(size for size in parts(WINDOW) if size > end)
        # Whoever reads behind the part gets NaN.
        cache = jax.tree.map(lambda x: x.at[..., part:, :].set(jnp.nan), cache)
        hidden_BD, cache = step(graphdef, params, tokens_BN[:, end], np.full(2, end), cache, np.int32(end))
        cache = jax.tree.map(lambda x: x.at[..., part:, :].set(0.0), cache)
        np.testing.assert_allclose(hidden_BD, expected[:, end], rtol=2e-5, atol=2e-5)


def test_a_row_whose_tokens_go_round_the_ring_is_read_whole():
    assert [int(narrowest(20, np.array([0, length]), 4)) for length in (3, 4, 5)] == [0, 0, 2]
