"""Importance weights for a sampler that is not quite the policy: other precision, other kernels, older parameters.

    w = π_old / π_sampler, truncated at a cap C

π_old is the trainer's own view of the policy that drew the tokens, π_sampler the distribution that they were drawn from
in fact. The weight multiplies a token's loss and is not trained through; it has nothing to do with the ratio π/π_old
that a surrogate clips (`surrogates.py`), and in particular it is never the length-normalised ratio of GSPO.

Truncated importance sampling: Ionides 2008, J. Comput. Graph. Stat. 17, p. 295; the weights of V-trace, Espeholt et al.
2018, arXiv:1802.01561, section 4.1. Between trainer and sampler: Yao et al. 2025, fengyao.notion.site/off-policy-rl.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.objectives.reduce import counted


def per_token(old_logp_BT, sampler_logp_BT, mask_BT, *, cap):
    """wₜ = min(π_old(aₜ|sₜ) / π_sampler(aₜ|sₜ), C), each token on its own: little variance, biased by what came before.

    Args:
      old_logp_BT, sampler_logp_BT: nats.
      mask_BT: 1 where the policy drew the target.
      cap: C > 0, in practice 2 to 3.

    Returns:
      weight_BT, float32, 0 where mask is 0. No gradient flows.
    """
    log_weight_BT = counted(old_logp_BT, mask_BT) - counted(sampler_logp_BT, mask_BT)
    return _truncated(log_weight_BT, mask_BT, cap)


def product(old_logp_BT, sampler_logp_BT, mask_BT, *, cap):
    """w = min(Πₜ π_old(aₜ|sₜ) / π_sampler(aₜ|sₜ), C), the whole response's, on each of its tokens: unbiased before it
    is truncated, and of a variance that grows with the length.

    Args, Returns: as `per_token`; one response a row.
    """
    log_weight_BT = counted(old_logp_BT, mask_BT) - counted(sampler_logp_BT, mask_BT)
    return _truncated(jnp.broadcast_to(jnp.sum(log_weight_BT, axis=1, keepdims=True), mask_BT.shape), mask_BT, cap)


def _truncated(log_weight_BT, mask_BT, cap):
    # Capped before the exponential, which of a long product would overflow.
    weight_BT = jnp.exp(jnp.minimum(log_weight_BT, jnp.log(jnp.float32(cap))))
    return jax.lax.stop_gradient(counted(weight_BT, mask_BT))


SAMPLER_CORRECTIONS = {"token": per_token, "product": product}
