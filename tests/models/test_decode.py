"""Decoding against a cache gives the hidden states of the whole forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, documents, split

from jaxalign.models.cache import empty_cache

SIZES = (9, 4, 1)  # ragged prompts, padded on the left
PROMPT, NEW = 9, 4


def decoded(graphdef, params, prompt_BP, length_B, more_BN, chunk):
    """Hidden states of a prompt and then of `chunk` more tokens at a time."""
    model = nnx.merge(graphdef, params)
    slots = np.arange(PROMPT)[None]
    first_B1 = PROMPT - length_B[:, None]
    cache = empty_cache(model.config, len(length_B), PROMPT + NEW)
    hidden, cache = model.decode(prompt_BP, jnp.maximum(slots - first_B1, 0), slots >= first_B1, cache)
    out = [hidden]
    for n in range(0, NEW, chunk):
        tokens = more_BN[:, n:n + chunk]
        positions = length_B[:, None] + n + np.arange(chunk)[None]
        hidden, cache = model.decode(tokens, positions, np.ones(tokens.shape, bool), cache)
        out.append(hidden)
    return jnp.concatenate(out, axis=1), cache.length


decode = jax.jit(decoded, static_argnums=(0, 5))
forward = jax.jit(lambda graphdef, params, tokens: nnx.merge(graphdef, params)(tokens), static_argnums=0)


@pytest.mark.parametrize(("chunk", "change"), [(1, {}), (2, {"unroll": 2}), (1, {"num_kv_heads": 4}),
                                               (1, {"qk_norm": True, "embed_scale": 4.0})])
def test_cached_decoding_of_ragged_prompts_is_the_whole_forward_pass(chunk, change):
    graphdef, params = split(dataclasses.replace(CONFIG, **change))
    whole = documents([size + NEW for size in SIZES])
    prompt = np.full((3, PROMPT), 7, np.int32)  # what stands in the padding is another id
    for row, size in enumerate(SIZES):
        prompt[row, PROMPT - size:] = whole[row][:size]
    more = np.array([d[-NEW:] for d in whole], np.int32)
    got, length = decode(graphdef, params, prompt, np.array(SIZES, np.int32), more, chunk)
    assert int(length) == PROMPT + NEW
    for row, size in enumerate(SIZES):
        expected = forward(graphdef, params, np.array([whole[row]], np.int32))[0]
        np.testing.assert_allclose(got[row, PROMPT - size:], expected, rtol=2e-5, atol=2e-5)
