"""A decoder-only transformer in Flax NNX, its layers stacked and scanned."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.attention import Attention, attend, causal_mask
from jaxalign.models.cache import as_bits, attend_cached, first_slots, from_bits, narrowest, parts
from jaxalign.models.config import REMAT_POLICIES, ModelConfig
from jaxalign.models.experts import Experts
from jaxalign.models.layers import MLP, Linear, make_norm, param
from jaxalign.models.lora import with_dropout
from jaxalign.models.rotary import rotary_angles
from jaxalign.sharding import look_up


class Block(nnx.Module):
    """One layer: attention and MLP, each added to what it read, in one of four arrangements of their norms.

        pre       x + f(norm(x)), for f attention and then MLP
        post      x + norm(f(x))
        sandwich  x + norm(f(norm(x)))
        parallel  x + attention(norm(x)) + mlp(norm(x))
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        norm = functools.partial(make_norm, config, config.width, rngs)
        before, after = config.block != "post", config.block in ("post", "sandwich")
        self.parallel = config.block == "parallel"
        self.attention_norm, self.mlp_norm = (norm(), norm()) if before else (None, None)
        self.attention_post_norm, self.mlp_post_norm = (norm(), norm()) if after else (None, None)
        self.attention = Attention(config, rngs=rngs)
        self.mlp = (Experts if config.mlp == "experts" else MLP)(config, rngs=rngs)

    def __call__(self, x_BTD, angles, mix):
        added = _normed(self.attention_post_norm, self.attention(_normed(self.attention_norm, x_BTD), angles, mix))
        if self.parallel:
            return x_BTD + added + self.mlp(self.mlp_norm(x_BTD))
        x_BTD = x_BTD + added
        return x_BTD + _normed(self.mlp_post_norm, self.mlp(_normed(self.mlp_norm, x_BTD)))


def _normed(norm, x_BTD):
    return x_BTD if norm is None else norm(x_BTD)


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
        self.final_norm = make_norm(config, D, rngs)
        if not config.tied_embeddings:
            self.unembed = Linear((D,), (V,), ("embed", "vocab"), dtype=config.jnp_dtype, rngs=rngs)
        if config.learned_positions:
            self.positions = param(jax.random.normal(rngs.params(), (config.learned_positions, D), jnp.float32) * 0.02,
                                   None, "embed")

    @property
    def unembedding_DV(self):
        """The matrix from hidden states to logits, float32 as it is trained."""
        if self.config.tied_embeddings:
            return self.embed[...].T
        return self.unembed.kernel[...]

    @property
    def softcap(self):
        """What the logits are capped at (`ModelConfig.logit_softcap`), None where they are not."""
        return self.config.logit_softcap or None

    def __call__(self, tokens_BT, positions_BT=None, segment_ids_BT=None, key=None):
        """Hidden states (B, T, D), causal within each segment.

        Args:
          tokens_BT: int32 ids.
          positions_BT: position within the document; default 0, 1, 2, ….
          segment_ids_BT: documents of a packed row, 0 for padding; default one document a row.
          key: typed key of the adapters' dropout; None drops nothing.
        """
        B, T = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones((B, T), jnp.int32)
        angles = self._angles(positions_BT)
        masks = [causal_mask(segment_ids_BT, self._window(kind)) for kind in self.config.kinds]
        graphdef, stacked = nnx.split(self.layers)

        def layer(x_BTD, xs):
            kind, state, key = xs
            mix = functools.partial(self._attend, mask_BTS=_of_kind(masks, kind))
            return with_dropout(nnx.merge(graphdef, state), key)(x_BTD, _of_kind(angles, kind), mix), None

        if self.config.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)
        keys = None if key is None else jax.random.split(key, self.config.num_layers)
        x_BTD, _ = jax.lax.scan(layer, self._placed(self._embedded(tokens_BT), positions_BT),
                                (self._kinds(), stacked, keys), unroll=self.config.unroll)
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
        angles = self._angles(positions_MS)
        masks = [causal_mask(segment_ids_MS, self._window(kind)) for kind in self.config.kinds]
        graphdef, layers = nnx.split(self.layers)

        def layer(x_MSD, xs):
            (kind, state), pair = xs, None

            def mix(q, k, v):
                nonlocal pair
                pair = k, v
                return self._attend(q, k, v, _of_kind(masks, kind))

            return nnx.merge(graphdef, state)(x_MSD, _of_kind(angles, kind), mix), pair

        # Scanned whatever `unroll` says: a prompt's layers are work enough, and one is compiled instead of all.
        x_MSD = self._placed(self._embedded(tokens_MS), positions_MS)
        _, pairs = jax.lax.scan(layer, x_MSD, (self._kinds(), layers))
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
        positions_B1 = length_B[:, None]
        angles = self._angles(positions_B1)
        windows = [self._window(kind) for kind in self.config.kinds]
        seen = [jnp.minimum(length_B, window - 1) if window else length_B for window in windows]
        graphdef, out, W = nnx.split(self.layers)[0], [], jax.tree.leaves(cache)[0].shape[-2]
        fits = narrowest(W, length_B, end)

        def layer(x_B1D, kind, state, pair, index=None):
            def mix(q, k, v):
                nonlocal pair
                at = (0, 0, end, 0) if index is None else (index, 0, 0, end, 0)
                new = [x.swapaxes(1, 2) if index is None else x.swapaxes(1, 2)[None] for x in (k, v)]
                pair = tuple(jax.lax.dynamic_update_slice(x, as_bits(n), at) for x, n in zip(pair, new))

                def over(part):
                    here = [from_bits(first_slots(x, part, index), k.dtype) for x in pair]
                    return attend_cached(q[:, 0], *here, _of_kind(seen, kind), end, scale=self.config.query_scale or None,
                                         softcap=self.config.attention_softcap)[:, None]

                return jax.lax.switch(fits, [functools.partial(over, part) for part in parts(W)])

            return nnx.merge(graphdef, state)(x_B1D, _of_kind(angles, kind), mix), pair

        def scanned(carry, xs):
            (x_B1D, pair), (index, kind, state) = carry, xs
            return layer(x_B1D, kind, state, pair, index), None

        x_B1D = self._placed(self._embedded(token_B[:, None]), positions_B1)
        for (first, _), group, pair in zip(_spans(self.config), groups, cache):
            if pair[0].ndim == 4:
                state = jax.tree.map(lambda x: x[0], group)
                x_B1D, pair = layer(x_B1D, self.config.kind_of_layer[first], state, pair)
            else:
                (x_B1D, pair), _ = jax.lax.scan(scanned, (x_B1D, pair),
                                                (jnp.arange(self.config.num_layers), self._kinds(), group))
            out.append(pair)
        return self.final_norm(x_B1D)[:, 0], tuple(out)

    def _embedded(self, tokens_BT):
        return look_up(self.embed[...], tokens_BT).astype(self.config.jnp_dtype) * self.config.embed_scale

    def _placed(self, x_BTD, positions_BT):
        if not self.config.learned_positions:
            return x_BTD
        # A place beyond the last has no embedding: NaN shows what the nearest one would hide.
        place_BTD = self.positions[...].at[positions_BT].get(mode="fill", fill_value=jnp.nan)
        return x_BTD + place_BTD.astype(self.config.jnp_dtype)

    def _attend(self, q, k, v, mask_BTS):
        return attend(q, k, v, mask_BTS, scale=self.config.query_scale or None, softcap=self.config.attention_softcap)

    def _kinds(self):
        return jnp.array(self.config.kind_of_layer, jnp.int32)

    def _angles(self, positions_BT):
        return [rotary_angles(positions_BT, self.config, kind) for kind in self.config.kinds]

    def _window(self, kind):
        return self.config.window if kind == "window" else 0


def group_sizes(config: ModelConfig):
    """How many layers each of `Transformer.layer_groups` has."""
    return [last - first for first, last in _spans(config)]


def _spans(config):
    L = config.num_layers
    return [(i, i + 1) for i in range(L)] if config.unroll >= L else [(0, L)]


def _of_kind(options, kind):
    """What a layer's kind has of its own: one of several trees of equal shapes, by a number or, in a scan, an array."""
    if len(options) == 1 or isinstance(kind, int):
        return options[kind if isinstance(kind, int) else 0]
    return jax.tree.map(lambda *x: jax.lax.select_n(kind, *x), *options)


def logits_of(hidden, unembedding_DV, softcap=None):
    """float32 logits of hidden states (…, D), the product in the hidden states' type, capped where a cap is given."""
    logits = jnp.einsum("...d,dv->...v", hidden, unembedding_DV.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
