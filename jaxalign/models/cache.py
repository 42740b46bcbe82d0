"""The key-value cache of incremental decoding."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far, for all layers.

    Slot s of every row is written at the same step, so rows of unequal length are padded on the left and `valid_BS`
    tells which slots hold a token. Attention sees valid slots only.
    """

    key_LBSKH: jax.Array
    value_LBSKH: jax.Array
    valid_BS: jax.Array  # bool
    length: jax.Array  # int32 scalar: slots written so far


def empty_cache(config, batch: int, slots: int) -> Cache:
    """A cache for `slots` tokens a row, in the model's compute type."""
    shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.jnp_dtype)
    return Cache(zeros, zeros, jnp.zeros((batch, slots), bool), jnp.zeros((), jnp.int32))
