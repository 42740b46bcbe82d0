"""From hidden states to per-token log-probabilities, without ever holding B·T·V logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.objectives.reduce import counted


class TokenStatistics(NamedTuple):
    """What objectives need of the distribution over the next token, all float32, log-probabilities in nats."""

    logp_BT: jax.Array  # log p(target)
    entropy_BT: jax.Array  # −Σᵥ p(v) · log p(v)
    logz_BT: jax.Array  # log Σᵥ exp(logit(v)), after softcap and temperature
    mean_logp_BT: jax.Array  # (1/V) · Σᵥ log p(v), for label smoothing
    top_BT: jax.Array  # 1 where no token is likelier than the target, else 0; no gradient


def token_statistics(hidden_BTD, unembed_DV, targets_BT, *, chunk, temperature=1.0, softcap=None) -> TokenStatistics:
    """Log-probability of the targets and the distribution's entropy, chunk by chunk over time.

        logits = softcap · tanh(h · W / softcap) / temperature        (no tanh if softcap is None)
        log p  = logits − log Σ exp logits                            (float32)

    Each chunk's logits are made again in the backward pass instead of being kept. Chunks are cut from the time axis, so
    that the batch axis keeps its sharding.

    Args:
      hidden_BTD: last hidden states, any float dtype; the product runs in this dtype, sums in float32. Trained.
      unembed_DV: output embedding; pass the float32 master weights, so that chunks add up their gradients in float32.
        Trained.
      targets_BT: token ids in [0, V).
      chunk: time steps per chunk, ≥ 1. With chunk ≥ T all at once: nothing is made twice, but two to four times B·T·V
        floats are held. On CPUs small chunks are faster too, staying in the cache: B · chunk · V of half a million.
      temperature: > 0; the distribution whose log-probabilities are wanted.
      softcap: > 0 or None (Gemma 2, arXiv:2408.00118, section 2).

    Returns:
      `TokenStatistics`, each [B, T] float32.
    """
    B, T, D = hidden_BTD.shape

    def statistics(hidden_BtD, targets_Bt):
        logits_BtV = jnp.einsum(
            "btd,dv->btv", hidden_BtD, unembed_DV.astype(hidden_BtD.dtype), preferred_element_type=jnp.float32
        )
        if softcap is not None:
            logits_BtV = softcap * jnp.tanh(logits_BtV / softcap)
        return _statistics(logits_BtV / temperature, targets_Bt)

    if chunk >= T:
        return statistics(hidden_BTD, targets_BT)
    # Even chunks: fewer than `count` time steps are padded, whatever T is.
    count = -(-T // chunk)
    size = -(-T // count)
    pad = count * size - T
    hidden_BSD = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0)))
    targets_BS = jnp.pad(targets_BT, ((0, 0), (0, pad)))
    hidden_CBtD = jnp.moveaxis(hidden_BSD.reshape(B, count, size, D), 1, 0)
    targets_CBt = jnp.moveaxis(targets_BS.reshape(B, count, size), 1, 0)
    body = jax.checkpoint(statistics, prevent_cse=False)  # inside scan nothing can be shared between the two passes
    _, stats = jax.lax.scan(lambda carry, xs: (carry, body(*xs)), None, (hidden_CBtD, targets_CBt))
    return jax.tree.map(lambda x_CBt: jnp.moveaxis(x_CBt, 0, 1).reshape(B, count * size)[:, :T], stats)


def sequence_logp(logp_BT, mask_BT):
    """Log-probability of each row's counted tokens: Σₜ maskₜ · logpₜ, [B], nats."""
    return jnp.sum(counted(logp_BT, mask_BT) * mask_BT, axis=-1)


def _statistics(logits_BTV, targets_BT) -> TokenStatistics:
    logz_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    p_BTV = jnp.exp(logits_BTV - logz_BT[..., None])
    # A logit of −inf (a forbidden token) has probability 0 and adds nothing to the entropy.
    mean_logit_BT = jnp.sum(p_BTV * jnp.where(p_BTV > 0, logits_BTV, 0.0), axis=-1)
    return TokenStatistics(
        logp_BT=target_BT - logz_BT,
        entropy_BT=logz_BT - mean_logit_BT,
        logz_BT=logz_BT,
        mean_logp_BT=jnp.mean(logits_BTV, axis=-1) - logz_BT,
        top_BT=(target_BT >= jnp.max(logits_BTV, axis=-1)).astype(jnp.float32),
    )
