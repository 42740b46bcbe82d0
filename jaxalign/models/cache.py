"""The key-value cache of incremental decoding: a ring of slots a row, in which all rows write at the same place.

A cache is a tuple of (key, value), one for each group of layers (`Transformer.layer_groups`): (B, K, W, H) where the
group is one layer, (L, B, K, W, H) where it is scanned. Heads come before slots, so that attention's products read
memory in its order: with heads last they took three to ten times as long on a CPU. A row's newest token is in the slot
before `end`, its others in those before; so rows of unequal length need no place of their own to write to, and a row can
begin at any time. Until the ring has been filled once nothing stands behind `end`, and attention reads the first part of it.

What is kept of 16-bit floats are their bits: a CPU has no such floats, and its compiler would widen a whole cache of them
to write one token.
"""

import jax
import jax.numpy as jnp

from jaxalign.sharding import by_rows

LOWEST = -1e30  # stands for −∞ where a difference of two of them must not be NaN


def empty_cache(config, group_sizes, rows: int, window: int):
    """A cache of `window` slots a row, in the model's compute type."""
    def zeros(layers):
        stacked = (layers,) if layers > 1 else ()
        shape = (*stacked, rows, config.num_kv_heads, window, config.head_dim)
        return split(as_bits(jnp.zeros(shape, config.jnp_dtype)))

    return tuple((zeros(layers), zeros(layers)) for layers in group_sizes)


def split(x):
    """Over the devices: rows as batches, heads as their weights are, so that each device keeps what it made."""
    return by_rows(x, x.ndim - 4, heads=x.ndim - 3)


def as_bits(x):
    """What a cache holds of numbers."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def from_bits(x, dtype):
    """The numbers, of the type that they had before `as_bits`."""
    return jax.lax.bitcast_convert_type(x, dtype) if x.dtype == jnp.uint16 else x


def parts(window: int):
    """How many of the first slots attention may read alone, each a compiled branch; the last is the whole ring."""
    return (window // 2, window * 3 // 4, window) if window >= 16 else (window,)


def narrowest(window: int, length_B, end):
    """The index in `parts(window)` of the fewest slots that hold the token in slot `end` and the `length_B` before it."""
    fits = [(end < part) & (length_B.max() <= end) for part in parts(window)[:-1]]
    return sum(((~fit).astype(jnp.int32) for fit in fits), jnp.int32(0))


def first_slots(x, part: int, layer=None):
    """(B, K, part, H): the first slots of a group's keys or values, of one of its layers where they are stacked."""
    if layer is None:
        return jax.lax.slice_in_dim(x, 0, part, axis=-2)
    _, B, K, _, H = x.shape
    return jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0), (1, B, K, part, H))[0]


def attend_cached(q_BNH, key_BKWH, value_BKWH, length_B, end, *, scale=None, softcap=0.0):
    """Attention of one query a row, the one in slot `end`, over itself and the `length_B` slots before; scores in float32.

    Query head n reads key-value head n // (N/K). `scale` and `softcap` as of `attend`.
    """
    (B, N, H), (_, K, W, _) = q_BNH.shape, key_BKWH.shape
    age_W = jnp.mod(end - jnp.arange(W), W)
    seen_BW = age_W[None] <= length_B[:, None]
    scores = jnp.einsum("bkgh,bkwh->bkgw", q_BNH.reshape(B, K, N // K, H), key_BKWH, preferred_element_type=jnp.float32)
    scores = scores * (H**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(seen_BW[:, None, None], scores, LOWEST)
    weight = jnp.exp(scores - scores.max(-1, keepdims=True))
    out = jnp.einsum("bkgw,bkwh->bkgh", weight.astype(value_BKWH.dtype), value_BKWH, preferred_element_type=jnp.float32)
    return (out / weight.sum(-1, keepdims=True)).astype(q_BNH.dtype).reshape(B, N, H)


def resized(cache, end, window: int):
    """With `window` slots, the oldest token in the first: empty ones added behind, or the oldest taken off."""
    def of(x):
        W, axis = x.shape[-2], x.ndim - 2
        x = jnp.roll(x, -end, axis)
        if window <= W:
            return split(jax.lax.slice_in_dim(x, W - window, W, axis=axis))
        return split(jnp.pad(x, [(0, window - W) if i == axis else (0, 0) for i in range(x.ndim)]))

    return jax.tree.map(of, cache)


def chosen(cache, rows_R):
    """Some of the rows, in the order given."""
    return jax.tree.map(lambda x: split(jnp.take(x, rows_R, axis=x.ndim - 4)), cache)


def inserted(cache, keys_values, rows_R, source_RW):
    """With the slots of some rows replaced by prompts that were read elsewhere.

    Args:
      keys_values: of `Transformer.keys_values`: (key, value), each (L, M, S, K, H), for each group of layers.
      rows_R: which rows; those beyond the last are nobody's and dropped.
      source_RW: where in M·S the token of each slot stands; any place for slots that hold none.
    """
    def of(x, new):
        if x.ndim == 4:
            return split(x.at[rows_R].set(new, mode="drop"))
        return split(x.at[:, rows_R].set(new, mode="drop"))

    return jax.tree.map(of, cache, filled(keys_values, source_RW))


def filled(keys_values, source_BW):
    """A cache whose rows are all prompts that were read elsewhere; args as of `inserted`."""
    def of(new_LMSKH):
        new_LMSKH = as_bits(new_LMSKH)
        L, M, S, K, H = new_LMSKH.shape
        new_LBKWH = jnp.take(new_LMSKH.reshape(L, M * S, K, H), source_BW, axis=1).swapaxes(2, 3)
        return split(new_LBKWH[0] if L == 1 else new_LBKWH)

    return jax.tree.map(of, keys_values)
