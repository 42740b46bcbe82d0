"""Sampling as pure functions: one token from logits, and whole responses from prompts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.cache import empty_cache
from jaxalign.models.transformer import logits_of

LOWEST = -1e30  # stands for −∞ where a difference of two of them must not be NaN


class Settings(NamedTuple):
    """How tokens are drawn. All may be traced, so changing them compiles nothing."""

    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0


class Responses(NamedTuple):
    """What was drawn, padded on the right."""

    tokens_BN: jax.Array  # int32; padding after the end
    mask_BN: jax.Array  # float32: 1 for drawn tokens, the stop token included
    logp_BN: jax.Array  # nats: log-probability under the model itself (temperature 1, nothing cut)
    sampler_logp_BN: jax.Array  # nats: under the distribution that drew the token
    finished_B: jax.Array  # bool: False where the length limit cut the response


def filtered_logits(logits_BV, settings: Settings):
    """Logits of the distribution that tokens are drawn from: divided by the temperature, then cut to the top k, then
    to the smallest set of probability ≥ top_p (Holtzman et al. 2020, arXiv:1904.09751); what is cut is `LOWEST`."""
    logits_BV = logits_BV.astype(jnp.float32) / jnp.maximum(settings.temperature, 1e-6)

    def cut(logits_BV):
        V = logits_BV.shape[-1]
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        k = jnp.where(settings.top_k > 0, settings.top_k, V)
        p_BV = jax.nn.softmax(jnp.where(jnp.arange(V)[None] < k, sorted_BV, LOWEST), axis=-1)
        # A token stays while the mass before it is below top_p, so the likeliest always stays.
        keep_BV = (jnp.cumsum(p_BV, axis=-1) - p_BV < settings.top_p) & (jnp.arange(V)[None] < k)
        lowest_B = jnp.min(jnp.where(keep_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits_BV >= lowest_B, logits_BV, LOWEST)

    # Sorting the vocabulary costs more than the model at small sizes, so it is skipped where nothing is to be cut.
    plain = (settings.top_k <= 0) & (settings.top_p >= 1.0)
    return jax.lax.cond(plain, lambda x: x, cut, logits_BV)


def draw(uniform_B, logits_BV, settings: Settings):
    """One token a row by inverting the cumulative distribution at a uniform number; the likeliest at temperature 0.

    Returns:
      (token_B, logp_B under softmax(logits), sampler_logp_B under the distribution drawn from), float32 nats.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    drawn_BV = filtered_logits(logits_BV, settings)
    weight_BV = jnp.exp(drawn_BV - jnp.max(drawn_BV, axis=-1, keepdims=True))
    mass_BV = jnp.cumsum(weight_BV, axis=-1)
    total_B = mass_BV[:, -1:]
    token_B = jnp.sum(mass_BV <= uniform_B[:, None] * total_B, axis=-1)
    # Rounding may point past the last token that has any mass.
    last_B = jnp.argmax(jnp.where(weight_BV > 0, jnp.arange(weight_BV.shape[-1])[None], -1), axis=-1)
    greedy = settings.temperature <= 0
    token_B = jnp.where(greedy, jnp.argmax(logits_BV, axis=-1), jnp.minimum(token_B, last_B)).astype(jnp.int32)
    logp_B = _pick(logits_BV, token_B) - jax.nn.logsumexp(logits_BV, axis=-1)
    sampler_logp_B = _pick(drawn_BV, token_B) - jax.nn.logsumexp(drawn_BV, axis=-1)
    return token_B, logp_B, jnp.where(greedy, 0.0, sampler_logp_B)


def generate(graphdef, params, prompt_BP, length_B, key_B, settings: Settings, first=0, *, stop_ids, max_new_tokens,
             pad_id=0):
    """Draws a response to each prompt.

    A row depends on its own prompt, key and settings, never on the rows beside it: token n is drawn with
    fold_in(key, first + n), and padding is not attended to.

    Args:
      graphdef, params: a `Transformer`, split.
      prompt_BP: int32 ids, padded on the left.
      length_B: int32, tokens in each prompt, ≥ 1.
      key_B: typed keys, one a row.
      first: how many tokens at the end of every prompt were drawn before with the same key.
      stop_ids: tuple of ids that end a response; the one drawn is part of it.
      max_new_tokens: N.
    Returns:
      `Responses`.
    """
    model = nnx.merge(graphdef, params)
    (B, P), N = prompt_BP.shape, max_new_tokens
    slot_P = jnp.arange(P)[None]
    valid_BP = slot_P >= P - length_B[:, None]
    position_BP = jnp.maximum(slot_P - (P - length_B[:, None]), 0)
    cache = empty_cache(model.config, B, P + N)
    hidden_BPD, cache = model.decode(prompt_BP, position_BP, valid_BP, cache)
    stops = jnp.asarray(stop_ids, jnp.int32)
    unembedding_DV = model.unembedding_DV

    def sample(n, hidden_BD, done_B, out):
        uniform_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, first + n)))(key_B)
        token_B, logp_B, sampler_logp_B = draw(uniform_B, logits_of(hidden_BD, unembedding_DV), settings)
        live_B = ~done_B
        token_B = jnp.where(live_B, token_B, pad_id)
        columns = token_B, live_B.astype(jnp.float32), logp_B * live_B, sampler_logp_B * live_B
        out = tuple(jax.lax.dynamic_update_slice(a, c[:, None].astype(a.dtype), (0, n)) for a, c in zip(out, columns))
        done_B = done_B | jnp.any(token_B[:, None] == stops[None], axis=1)
        return token_B, done_B, out

    def step(carry):
        n, token_B, done_B, cache, out = carry
        hidden_B1D, cache = model.decode(token_B[:, None], (length_B + n - 1)[:, None], ~done_B[:, None], cache)
        token_B, done_B, out = sample(n, hidden_B1D[:, 0], done_B, out)
        return n + 1, token_B, done_B, cache, out

    out = (jnp.full((B, N), pad_id, jnp.int32),) + (jnp.zeros((B, N), jnp.float32),) * 3
    token_B, done_B, out = sample(0, hidden_BPD[:, -1], jnp.zeros((B,), bool), out)
    carry = jnp.ones((), jnp.int32), token_B, done_B, cache, out
    *_, done_B, _, out = jax.lax.while_loop(lambda c: (c[0] < N) & ~jnp.all(c[2]), step, carry)
    return Responses(*out, done_B)


def _pick(x_BV, index_B):
    return jnp.take_along_axis(x_BV, index_B[:, None], axis=-1)[:, 0]
