"""The compiled parts of the engine, as pure functions: reading prompts, a chunk of decoding steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.transformer import logits_of
from jaxalign.rollout.sampling import Settings, draw


class Rows(NamedTuple):
    """What decoding knows of each row beside its cache; one entry a slot."""

    token_B: jax.Array  # int32: the last token, not read yet
    length_B: jax.Array  # int32: tokens before it, in the cache
    drawn_B: jax.Array  # int32: tokens drawn so far
    left_B: jax.Array  # int32: tokens it may still draw; 0 for a slot at rest
    key_B: jax.Array  # typed keys: token n is drawn with fold_in(key, n)
    settings: Settings  # of arrays, one number a slot


class Drawn(NamedTuple):
    """What a chunk of C steps drew, padded on the right."""

    token_BC: jax.Array  # int32
    mask_BC: jax.Array  # bool: False after the end
    logp_BC: jax.Array  # nats: log-probability under the model itself (temperature 1, nothing cut)
    sampler_logp_BC: jax.Array  # nats: under the distribution that drew the token


def read_prompts(graphdef, params, tokens_MS, positions_MS, segment_ids_MS):
    """Keys and values of packed prompts: `Transformer.keys_values`."""
    return nnx.merge(graphdef, params).keys_values(tokens_MS, positions_MS, segment_ids_MS)


def decode_chunk(graphdef, params, cache, end, rows: Rows, most, fewest, stop_ids, forbidden_V, *, steps, pad_id):
    """Draws up to `steps` more tokens a row.

    A row depends on its own tokens, key and settings, never on the rows beside it.

    Args:
      graphdef, params: a `Transformer`, split.
      cache: of `models/cache.py`; donate it.
      end: the slot to write first; from then on one after the other, around.
      most: int32, steps at most, up to `steps`.
      fewest: int32; it stops early when fewer rows than these go on, so that others can take the slots.
      stop_ids: int32, ids that end a response; −1 is none.
      forbidden_V: bool or None, as of `draw`.
    Returns:
      (cache with the tokens read, `Drawn`, the number of steps made).
    """
    model = nnx.merge(graphdef, params)
    groups, unembedding_DV = model.layer_groups(), model.unembedding_DV
    B, W = rows.token_B.shape[0], jax.tree.leaves(cache)[0].shape[-2]
    uniform_BC = jax.vmap(lambda key, drawn: jax.vmap(
        lambda c: jax.random.uniform(jax.random.fold_in(key, drawn + c)))(jnp.arange(steps)))(rows.key_B, rows.drawn_B)

    def step(carry):
        c, token_B, live_B, cache, out = carry
        hidden_BD, cache = model.decode(token_B, rows.length_B + c, jnp.mod(end + c, W), cache, groups)
        logits_BV = logits_of(hidden_BD, unembedding_DV, model.softcap)
        uniform_B = jax.lax.dynamic_index_in_dim(uniform_BC, c, axis=1, keepdims=False)
        token_B, logp_B, sampler_logp_B = draw(uniform_B, logits_BV, rows.settings, forbidden_V)
        token_B = jnp.where(live_B, token_B, pad_id)
        columns = token_B, live_B, jnp.where(live_B, logp_B, 0.0), jnp.where(live_B, sampler_logp_B, 0.0)
        out = Drawn(*(jax.lax.dynamic_update_slice(a, x[:, None], (0, c)) for a, x in zip(out, columns)))
        stopped_B = (token_B[:, None] == stop_ids[None]).any(1)
        return c + 1, token_B, live_B & ~stopped_B & (c + 1 < rows.left_B), cache, out

    shape = (B, steps)
    out = Drawn(jnp.full(shape, pad_id, jnp.int32), jnp.zeros(shape, bool), *(jnp.zeros(shape, jnp.float32),) * 2)
    carry = jnp.zeros((), jnp.int32), rows.token_B, rows.left_B > 0, cache, out

    def goes_on(carry):
        return (carry[0] < most) & (carry[2].sum() >= jnp.maximum(fewest, 1))

    made, _, _, cache, out = jax.lax.while_loop(goes_on, step, carry)
    return cache, out, made
