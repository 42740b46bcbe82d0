"""Drawing one token from logits, as pure functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.models.cache import LOWEST

BLOCKS = 64  # the vocabulary is summed in so many parts, then one part token by token


class Settings(NamedTuple):
    """How tokens are drawn: numbers for all requests, or arrays with one a request. Changing them compiles nothing."""

    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0  # 0 keeps all


def filtered_logits(logits_BV, settings: Settings):
    """Logits of the distribution that tokens are drawn from.

    Divided by the temperature; then cut to the top k, to the smallest set of probability ≥ top_p (Holtzman et al. 2020,
    arXiv:1904.09751), and to what is at least min_p times as likely as the likeliest (Nguyen et al. 2024,
    arXiv:2407.01082); what is cut is `LOWEST`.

    Args:
      logits_BV: any float dtype.
      settings: each field a scalar or one number a row, (B,).
    """
    rows = logits_BV.shape[0]
    temperature, top_k, top_p, min_p = (jnp.broadcast_to(jnp.asarray(x), (rows,))[:, None] for x in settings)
    logits_BV = logits_BV.astype(jnp.float32) / jnp.maximum(temperature, 1e-6)

    def cut(logits_BV):
        V = logits_BV.shape[-1]
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        k = jnp.where(top_k > 0, top_k, V)
        p_BV = jax.nn.softmax(jnp.where(jnp.arange(V)[None] < k, sorted_BV, LOWEST), axis=-1)
        # A token stays while the mass before it is below top_p, so the likeliest always stays. Rounding brings that mass to 1
        # before the last token: a row that cuts nothing, beside one that does, must not lose its tail.
        within_BV = (jnp.cumsum(p_BV, axis=-1) - p_BV < top_p) | (top_p >= 1.0)
        keep_BV = within_BV & (jnp.arange(V)[None] < k) & (p_BV >= min_p * p_BV[:, :1])
        lowest_B = jnp.min(jnp.where(keep_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits_BV >= lowest_B, logits_BV, LOWEST)

    # Sorting the vocabulary costs more than the model at small sizes, so it is skipped where nothing is to be cut.
    return jax.lax.cond(uncut(settings), lambda x: x, cut, logits_BV)


def draw(uniform_B, logits_BV, settings: Settings, forbidden_V=None):
    """One token a row by inverting the cumulative distribution at a uniform number; the likeliest at temperature 0.

    Args:
      uniform_B: in [0, 1). One number a token, not Gumbel noise over the vocabulary: that costs more than the model.
      forbidden_V: bool, True for tokens that are never drawn; None for none. They keep their place in the model's own
        distribution.
    Returns:
      (token_B, logp_B under softmax(logits), sampler_logp_B under the distribution drawn from), float32 nats.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    allowed_BV = logits_BV if forbidden_V is None else jnp.where(forbidden_V[None], LOWEST, logits_BV)
    drawn_BV = filtered_logits(allowed_BV, settings)
    highest_B1 = jnp.max(drawn_BV, axis=-1, keepdims=True)
    temperature_B = jnp.broadcast_to(jnp.asarray(settings.temperature, jnp.float32), logits_BV.shape[:1])
    greedy_B = temperature_B <= 0

    def likeliest():
        # The first of them; argmax is several times slower on a CPU.
        ids = jnp.arange(logits_BV.shape[1])[None]
        return jnp.min(jnp.where(drawn_BV >= highest_B1, ids, logits_BV.shape[1]), axis=-1)

    inverted_B, total_B = _invert(uniform_B, jnp.exp(drawn_BV - highest_B1))
    # Each further walk over the vocabulary only where it is asked for.
    likeliest_B = jax.lax.cond(greedy_B.any(), likeliest, lambda: inverted_B)
    token_B = jnp.where(greedy_B, likeliest_B, inverted_B).astype(jnp.int32)
    sampler_logp_B = _pick(drawn_BV, token_B) - highest_B1[:, 0] - jnp.log(total_B)
    as_it_is = jnp.all(temperature_B == 1) & uncut(settings) & (forbidden_V is None)
    logp_B = jax.lax.cond(
        as_it_is, lambda: sampler_logp_B, lambda: _pick(logits_BV, token_B) - jax.nn.logsumexp(logits_BV, axis=-1))
    return token_B, logp_B, jnp.where(greedy_B, 0.0, sampler_logp_B)


def uncut(settings: Settings):
    """Whether nothing is cut from any row's distribution."""
    _, top_k, top_p, min_p = map(jnp.asarray, settings)
    return jnp.all(top_k <= 0) & jnp.all(top_p >= 1.0) & jnp.all(min_p <= 0.0)


def _invert(uniform_B, weight_BV):
    """(the first token at which the cumulative weight exceeds its share, the total weight).

    Whole blocks are summed first, so that nothing is cumulated over the vocabulary.
    """
    B, V = weight_BV.shape
    size = -(-V // BLOCKS)
    weight_BKS = jnp.pad(weight_BV, ((0, 0), (0, size * BLOCKS - V))).reshape(B, BLOCKS, size)
    sum_BK = weight_BKS.sum(-1)
    before_BK = jnp.cumsum(sum_BK, axis=1) - sum_BK
    total_B = before_BK[:, -1] + sum_BK[:, -1]
    target_B1 = (uniform_B * total_B)[:, None]
    # The last block and token of any weight that begin at or before the target: rounding never leaves the mass.
    block_B1 = jnp.max(jnp.where((before_BK <= target_B1) & (sum_BK > 0), jnp.arange(BLOCKS)[None], 0), axis=1)[:, None]
    inside_BS = jnp.take_along_axis(weight_BKS, block_B1[..., None], axis=1)[:, 0]
    start_BS = jnp.take_along_axis(before_BK, block_B1, axis=1) + jnp.cumsum(inside_BS, axis=1) - inside_BS
    first_B = jnp.argmax(inside_BS > 0, axis=1)  # where rounding puts the whole block behind the target
    found_B = jnp.max(jnp.where((start_BS <= target_B1) & (inside_BS > 0), jnp.arange(size)[None], -1), axis=1)
    return block_B1[:, 0] * size + jnp.where(found_B < 0, first_B, found_B), total_B


def _pick(x_BV, index_B):
    return jnp.take_along_axis(x_BV, index_B[:, None], axis=-1)[:, 0]
