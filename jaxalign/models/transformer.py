"""A decoder-only transformer in Flax NNX, its layers stacked and scanned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import ConfigError
from jaxalign.models.attention import Attention, causal_mask
from jaxalign.models.cache import Cache
from jaxalign.models.layers import Linear, RMSNorm, SwiGLU, param, rotary_angles
from jaxalign.sharding import look_up

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. `dtype` is what it computes in; master weights are always float32."""

    vocab_size: int
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    mlp_dim: int = 384
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False  # RMSNorm of queries and keys before they are rotated
    embed_scale: float = 1.0  # multiplies what is looked up; Gemma takes √width
    tied_embeddings: bool = True
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1  # layers per scan iteration: more is faster to run and slower to compile

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"model.num_heads={self.num_heads} must be a multiple of "
                              f"model.num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs")
        if self.remat not in REMAT_POLICIES:
            raise ConfigError(f"model.remat={self.remat!r} must be one of {sorted(REMAT_POLICIES)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"model.dtype={self.dtype!r} must be 'float32' or 'bfloat16'")

    @property
    def jnp_dtype(self):
        return jnp.dtype(self.dtype)

    @property
    def residual_scale(self):
        """Shrinks what each layer adds at the start, so that the residual stream's size does not grow with depth."""
        return (2 * self.num_layers) ** -0.5


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        norm = functools.partial(RMSNorm, config.width, eps=config.norm_eps, dtype=config.jnp_dtype, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(config, rngs=rngs)
        self.mlp = SwiGLU(config, rngs=rngs)

    def __call__(self, x_BTD, angles, mask_BTS, store=None):
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles, mask_BTS, store)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Transformer(nnx.Module):
    """Tokens to hidden states; `unembedding` turns those into logits.

    Returning hidden states rather than logits lets the losses compute log-probabilities in chunks, so that the
    B·T·V logits never exist at once.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.width
        embed_VD = jax.random.normal(rngs.params(), (V, D), jnp.float32) * 0.02
        self.embed = param(embed_VD, "vocab", "embed")
        make = nnx.vmap(lambda rngs: Block(config, rngs=rngs), in_axes=0, out_axes=0, axis_size=config.num_layers,
                        transform_metadata={nnx.PARTITION_NAME: "layers"})
        self.layers = make(rngs.split(config.num_layers))
        self.final_norm = RMSNorm(D, eps=config.norm_eps, dtype=config.jnp_dtype, rngs=rngs)
        if not config.tied_embeddings:
            self.unembed = Linear((D,), (V,), ("embed", "vocab"), dtype=config.jnp_dtype, rngs=rngs)

    @property
    def unembedding_DV(self):
        """The matrix from hidden states to logits, float32 as it is trained."""
        if self.config.tied_embeddings:
            return self.embed[...].T
        return self.unembed.kernel[...]

    def __call__(self, tokens_BT, positions_BT=None, segment_ids_BT=None):
        """Hidden states (B, T, D), causal within each segment.

        Args:
          tokens_BT: int32 ids.
          positions_BT: position within the document; default 0, 1, 2, ….
          segment_ids_BT: documents of a packed row, 0 for padding; default one document a row.
        """
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones((B, T), jnp.int32)
        angles = rotary_angles(positions_BT, self.config.head_dim, self.config.rope_theta)
        mask_BTS = causal_mask(segment_ids_BT)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x_BTD, state):
            return nnx.merge(graphdef, state)(x_BTD, angles, mask_BTS), None

        if self.config.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)
        x_BTD, _ = jax.lax.scan(layer, self._embedded(tokens_BT), stacked, unroll=self.config.unroll)
        return self.final_norm(x_BTD)

    def decode(self, tokens_BT, positions_BT, valid_BT, cache: Cache):
        """Runs T more tokens against a cache; returns (hidden_BTD, cache).

        Args:
          tokens_BT, positions_BT: the new tokens, in slots `cache.length` to `cache.length + T - 1`.
          valid_BT: bool, False for padding, which is never attended to.
        """
        T, S = tokens_BT.shape[1], cache.valid_BS.shape[1]
        start = cache.length
        seen_BS = jax.lax.dynamic_update_slice(cache.valid_BS, valid_BT, (0, start))
        causal_TS = jnp.arange(S)[None, :] <= start + jnp.arange(T)[:, None]
        # A padded query sees its own slot only: no softmax is empty.
        own_TS = jnp.arange(S)[None, :] == start + jnp.arange(T)[:, None]
        mask_BTS = causal_TS[None] & seen_BS[:, None, :] | own_TS[None]
        angles = rotary_angles(positions_BT, self.config.head_dim, self.config.rope_theta)
        graphdef, stacked = nnx.split(self.layers)

        def layer(carry, indexed):
            x_BTD, keys, values = carry
            index, state = indexed
            written = None

            def store(k, v):
                nonlocal written
                new_keys = jax.lax.dynamic_update_slice(keys, k[None], (index, 0, start, 0, 0))
                new_values = jax.lax.dynamic_update_slice(values, v[None], (index, 0, start, 0, 0))
                written = new_keys, new_values
                return (jax.lax.dynamic_index_in_dim(new_keys, index, keepdims=False),
                        jax.lax.dynamic_index_in_dim(new_values, index, keepdims=False))

            x_BTD = nnx.merge(graphdef, state)(x_BTD, angles, mask_BTS, store)
            return (x_BTD, *written), None

        carry = self._embedded(tokens_BT), cache.key_LBSKH, cache.value_LBSKH
        indexed = jnp.arange(self.config.num_layers), stacked
        (x_BTD, keys, values), _ = jax.lax.scan(layer, carry, indexed, unroll=self.config.unroll)
        return self.final_norm(x_BTD), Cache(keys, values, seen_BS, start + T)

    def _embedded(self, tokens_BT):
        return look_up(self.embed[...], tokens_BT).astype(self.config.jnp_dtype) * self.config.embed_scale


def logits_of(hidden, unembedding_DV):
    """float32 logits of hidden states (…, D), the product in the hidden states' type."""
    return jnp.einsum("...d,dv->...v", hidden, unembedding_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
