"""Grouped-query attention with rotary positions, over a row's own tokens or over a cache."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.batches import BRANCH
from jaxalign.models.layers import Linear, make_norm
from jaxalign.models.rotary import rotate


class Attention(nnx.Module):
    """Multi-head attention whose N query heads share K key-value heads (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        linear = functools.partial(Linear, dtype=config.jnp_dtype, rngs=rngs)
        self.query = linear((D,), (N, H), ("embed", "heads", "head_dim"), bias=config.qkv_bias)
        self.key = linear((D,), (K, H), ("embed", "kv_heads", "head_dim"), bias=config.qkv_bias)
        self.value = linear((D,), (K, H), ("embed", "kv_heads", "head_dim"), bias=config.qkv_bias)
        self.out = linear((N, H), (D,), ("heads", "head_dim", "embed"), scale=config.residual_scale,
                          bias=config.out_bias)
        # Queries and keys of unit size (Henry et al. 2020, arXiv:2010.04245), as in Qwen 3 and Gemma 3; in OLMo 2 all
        # heads together.
        self.whole = config.qk_norm_over == "width"
        sizes = (N * H, K * H) if self.whole else (H, H)
        self.query_norm, self.key_norm = (make_norm(config, size, rngs) if config.qk_norm else None for size in sizes)

    def __call__(self, x_BTD, angles, mix):
        """Args:
          x_BTD: normalised hidden states.
          angles: (cos, sin) of `rotary_angles` at the tokens' positions.
          mix: (q_BTNH, k_BTKH, v_BTKH) → what each query head gathers, (B, T, N, H): `attend` over the row itself, or
            over a cache.
        """
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if self.query_norm is not None:
            q, k = self._normed(self.query_norm, q), self._normed(self.key_norm, k)
        return self.out(mix(rotate(q, *angles), rotate(k, *angles), v))

    def _normed(self, norm, x_BTNH):
        if not self.whole:
            return norm(x_BTNH)
        return norm(x_BTNH.reshape(*x_BTNH.shape[:2], -1)).reshape(x_BTNH.shape)


def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, scale=None, softcap=0.0):
    """softmax(s · q·kᵀ) v with scores and softmax in float32; query head n reads key-value head n // (N/K).

    Args:
      mask_BTS: True where query t may see key s.
      scale: s; None is 1/√H.
      softcap: c > 0 makes scores c · tanh(score / c) (Gemma 2, arXiv:2408.00118, section 2); 0 leaves them.
    """
    if not softcap:
        return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None, :, :], scale=scale)
    (B, T, N, H), K = q_BTNH.shape, k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    scores = softcap * jnp.tanh(scores * (H**-0.5 if scale is None else scale) / softcap)
    weights = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], scores, -jnp.inf), axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_BSKH).reshape(B, T, N, H)


def causal_mask(segment_ids_BT, window=0):
    """True where query t may see key s: s ≤ t, both in the same segment, and s > t − window where there is a window.

    Answers that share their prompt (`batches.BRANCH`) see it and themselves, not each other; a window would count their
    positions wrongly. Padding (segment 0) sees padding: it never sees a document and never yields an empty softmax.
    """
    T = segment_ids_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    if window:
        causal = causal & ~jnp.tril(jnp.ones((T, T), bool), -window)
    query, key = segment_ids_BT[:, :, None], segment_ids_BT[:, None, :]
    return causal[None] & ((query == key) | (query % BRANCH == key))
