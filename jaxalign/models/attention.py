"""Grouped-query attention with rotary positions, over a row's own tokens or over a cache."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.layers import Linear, RMSNorm, rotate


class Attention(nnx.Module):
    """Multi-head attention whose N query heads share K key-value heads (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        dtype = config.jnp_dtype
        self.query = Linear((D,), (N, H), ("embed", "heads", "head_dim"), dtype=dtype, rngs=rngs)
        self.key = Linear((D,), (K, H), ("embed", "kv_heads", "head_dim"), dtype=dtype, rngs=rngs)
        self.value = Linear((D,), (K, H), ("embed", "kv_heads", "head_dim"), dtype=dtype, rngs=rngs)
        self.out = Linear((N, H), (D,), ("heads", "head_dim", "embed"), dtype=dtype, scale=config.residual_scale,
                          rngs=rngs)
        # Queries and keys of unit size (Henry et al. 2020, arXiv:2010.04245), as in Qwen 3 and Gemma 3.
        norm = functools.partial(RMSNorm, H, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.query_norm, self.key_norm = (norm(), norm()) if config.qk_norm else (None, None)

    def __call__(self, x_BTD, angles, mix):
        """Args:
          x_BTD: normalised hidden states.
          angles: (cos, sin) of `rotary_angles` at the tokens' positions.
          mix: (q_BTNH, k_BTKH, v_BTKH) → what each query head gathers, (B, T, N, H): `attend` over the row itself, or
            over a cache.
        """
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return self.out(mix(rotate(q, *angles), rotate(k, *angles), v))


def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """softmax(q·kᵀ/√H) v with scores and softmax in float32; query head n reads key-value head n // (N/K)."""
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None, :, :])


def causal_mask(segment_ids_BT):
    """True where query t may see key s: s ≤ t and both in the same segment.

    Padding (segment 0) sees padding: it never sees a document and never yields an empty softmax.
    """
    T = segment_ids_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    return causal[None] & (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])
