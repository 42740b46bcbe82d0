"""A decoder-only transformer in Flax NNX, its layers stacked and scanned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import ConfigError
from jaxalign.models.attention import Attention, attend, causal_mask
from jaxalign.models.cache import attend_cached
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

    def __call__(self, x_BTD, angles, mix):
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles, mix)
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
        mix = functools.partial(attend, mask_BTS=causal_mask(segment_ids_BT))
        graphdef, stacked = nnx.split(self.layers)

        def layer(x_BTD, state):
            return nnx.merge(graphdef, state)(x_BTD, angles, mix), None

        if self.config.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)
        x_BTD, _ = jax.lax.scan(layer, self._embedded(tokens_BT), stacked, unroll=self.config.unroll)
        return self.final_norm(x_BTD)

    def layer_groups(self):
        """The layers' stacked parameters, as decoding wants them: each layer a group of its own where `unroll` takes all
        of them, for then nothing is sliced at each step; else one group that is scanned."""
        stacked = nnx.split(self.layers)[1]
        return [jax.tree.map(lambda x: x[first:last], stacked) for first, last in _spans(self.config)]

    def keys_values(self, tokens_MS, positions_MS, segment_ids_MS):
        """What a cache is filled with: (key_LMSKH, value_LMSKH), rotated, for each group of layers.

        Args: as of `__call__`; several prompts may be packed in a row.
        """
        angles = rotary_angles(positions_MS, self.config.head_dim, self.config.rope_theta)
        mask = causal_mask(segment_ids_MS)
        graphdef = nnx.split(self.layers)[0]

        def layer(x_MSD, state):
            pair = None

            def mix(q, k, v):
                nonlocal pair
                pair = k, v
                return attend(q, k, v, mask)

            return nnx.merge(graphdef, state)(x_MSD, angles, mix), pair

        # Scanned whatever `unroll` says: a prompt's layers are work enough, and one is compiled instead of all.
        _, pairs = jax.lax.scan(layer, self._embedded(tokens_MS), nnx.split(self.layers)[1])
        return tuple(jax.tree.map(lambda x: x[first:last], pairs) for first, last in _spans(self.config))

    def decode(self, token_B, length_B, end, cache, groups):
        """Reads one more token a row into slot `end` of the cache; returns (hidden_BD, cache).

        Args:
          token_B: int32.
          length_B: tokens of the row that the cache holds, so the position of this one.
          end: int32 scalar, below the cache's slots.
          cache: of `models/cache.py`.
          groups: `layer_groups()`, taken once outside the loop over tokens.
        """
        angles = rotary_angles(length_B[:, None], self.config.head_dim, self.config.rope_theta)
        graphdef, out = nnx.split(self.layers)[0], []

        def layer(x_B1D, state, pair, index=None):
            def mix(q, k, v):
                nonlocal pair
                at = (0, 0, end, 0) if index is None else (index, 0, 0, end, 0)
                new = [x.swapaxes(1, 2) if index is None else x.swapaxes(1, 2)[None] for x in (k, v)]
                pair = tuple(jax.lax.dynamic_update_slice(x, n, at) for x, n in zip(pair, new))
                here = pair if index is None else [jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for x in pair]
                return attend_cached(q[:, 0], *here, length_B, end)[:, None]

            return nnx.merge(graphdef, state)(x_B1D, angles, mix), pair

        x_B1D = self._embedded(token_B[:, None])
        for group, pair in zip(groups, cache):
            if pair[0].ndim == 4:
                x_B1D, pair = layer(x_B1D, jax.tree.map(lambda x: x[0], group), pair)
            else:
                (x_B1D, pair), _ = jax.lax.scan(lambda carry, xs: (layer(carry[0], xs[1], carry[1], xs[0]), None),
                                                (x_B1D, pair), (jnp.arange(self.config.num_layers), group))
            out.append(pair)
        return self.final_norm(x_B1D)[:, 0], tuple(out)

    def _embedded(self, tokens_BT):
        return look_up(self.embed[...], tokens_BT).astype(self.config.jnp_dtype) * self.config.embed_scale


def group_sizes(config: ModelConfig):
    """How many layers each of `Transformer.layer_groups` has."""
    return [last - first for first, last in _spans(config)]


def _spans(config):
    L = config.num_layers
    return [(i, i + 1) for i in range(L)] if config.unroll >= L else [(0, L)]


def logits_of(hidden, unembedding_DV):
    """float32 logits of hidden states (…, D), the product in the hidden states' type."""
    return jnp.einsum("...d,dv->...v", hidden, unembedding_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
