"""A scalar read off every hidden state: the reward of a reward model, the value of a critic."""

import jax.numpy as jnp
from flax import nnx

from jaxalign.models.layers import Linear
from jaxalign.models.transformer import ModelConfig, Transformer


class ScalarModel(nnx.Module):
    """A transformer whose output is one number a token, in float32.

    `backbone` has the parameters of a language model, so that one can be started from a checkpoint of the other. The
    head starts at zero: before training every score is 0. So does `gate`, the weight of a token's log-probability where a reward counts it (`rewards/learned.py`).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.backbone = Transformer(config, rngs=rngs)
        self.head = Linear((config.width,), (1,), ("embed", None), dtype=jnp.float32, scale=0.0, rngs=rngs)
        self.gate = Linear((config.width,), (1,), ("embed", None), dtype=jnp.float32, scale=0.0, rngs=rngs)

    def __call__(self, tokens_BT, positions_BT=None, segment_ids_BT=None):
        hidden_BTD = self.backbone(tokens_BT, positions_BT, segment_ids_BT)
        return self.head(hidden_BTD.astype(jnp.float32))[..., 0]


class ValueHead(nnx.Module):
    """A number for every hidden state of a transformer that is somebody else's, in float32; 0 before training."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.head = Linear((config.width,), (1,), ("embed", None), dtype=jnp.float32, scale=0.0, rngs=rngs)

    def __call__(self, hidden_BTD):
        return self.head(hidden_BTD.astype(jnp.float32))[..., 0]


def unshifted(tokens_BT, targets_BT, segment_ids_BT):
    """The whole sequences of a shifted batch, (B, T+1): inputs drop a row's last token, which a score must see.

    Returns:
      (tokens, segment_ids) of one document a row, from its first token to its last target, wherever the padding is.
    """
    # Column t holds the target of column t - 1; a document's first token, which is nobody's target, its own input.
    before, here = jnp.pad(segment_ids_BT, ((0, 0), (1, 0))), jnp.pad(segment_ids_BT, ((0, 0), (0, 1)))
    inputs, targets = jnp.pad(tokens_BT, ((0, 0), (0, 1))), jnp.pad(targets_BT, ((0, 0), (1, 0)))
    return jnp.where(before > 0, targets, inputs), jnp.maximum(before, here)


def score_at_end(score_BT, segment_ids_BT):
    """The score at each row's last real token, (B,), wherever the padding is; 0 for a row of padding only."""
    T = segment_ids_BT.shape[1]
    last_B = jnp.max(jnp.where(segment_ids_BT > 0, jnp.arange(T)[None], -1), axis=1)
    score_B = jnp.take_along_axis(score_BT, jnp.maximum(last_B, 0)[:, None], axis=1)[:, 0]
    return jnp.where(last_B >= 0, score_B, 0.0)
