"""Proximal policy optimisation: clipped policy loss, clipped value loss, entropy bonus."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.objectives.kl import k3
from jaxalign.objectives.reduce import Loss, Term, counted
from jaxalign.objectives.sampler_weights import SAMPLER_CORRECTIONS


def ppo(
    logp_BT,
    old_logp_BT,
    advantage_BT,
    value_BT,
    old_value_BT,
    returns_BT,
    entropy_BT,
    mask_BT,
    sampler_logp_BT=None,
    *,
    clip=0.2,
    value_clip=0.2,
    value_coefficient,
    entropy_coefficient,
    sampler_correction="none",
    sampler_cap=2.0,
) -> Loss:
    """Clipped policy loss, value loss and entropy bonus (Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9).

        ℓ = policy_loss + value_coefficient · value_loss − entropy_coefficient · entropy

    The paper maximises; this is its negative. The three terms are those of `policy_loss`, `value_loss` and H(π(·|sₜ)).

    Args:
      logp_BT: log π(aₜ|sₜ) in nats. Trained.
      old_logp_BT: the same under the policy that the batch began with. No gradient.
      advantage_BT: Âₜ, usually whitened. No gradient.
      value_BT: V(sₜ). Trained.
      old_value_BT: V(sₜ) as the batch began. No gradient.
      returns_BT: what V(sₜ) should be. No gradient.
      entropy_BT: entropy of π(·|sₜ) in nats. Trained, if entropy_coefficient > 0.
      mask_BT: 1 where the policy drew the target.
      sampler_logp_BT: log-probability of the distribution that drew the token. Needed with a sampler_correction. No
        gradient.
      clip: ε > 0 on the ratio.
      value_clip: ε > 0 on the value, in reward units; `float("inf")` for none.
      value_coefficient: c₁ ≥ 0.
      entropy_coefficient: c₂ ≥ 0.
      sampler_correction: "none", "token" or "product": what multiplies the policy's loss where sampler and trainer
        disagree (`sampler_weights.SAMPLER_CORRECTIONS`); not in the paper.
      sampler_cap: the most that this may be, > 0.

    Returns:
      Terms `policy`, `value`, `entropy` (its negative), per token. Metrics: `entropy`; `clip_fraction`, `approx_kl`,
      `ratio` (see `ratio_metrics`); `value_clip_fraction`, the share of tokens whose value the clip holds back; with a
      correction `sampler_weight`.

    Raises:
      ConfigError: an unknown correction, or one without sampler_logp_BT.
    """
    logp_BT, old_logp_BT, advantage_BT, value_BT, old_value_BT, returns_BT, entropy_BT = (
        counted(x, mask_BT)
        for x in (logp_BT, old_logp_BT, advantage_BT, value_BT, old_value_BT, returns_BT, entropy_BT)
    )
    policy_BT = policy_loss(logp_BT, old_logp_BT, advantage_BT, clip_low=clip, clip_high=clip)
    squared_BT = value_loss(value_BT, old_value_BT, returns_BT, clip=value_clip)
    terms = {
        "policy": Term(policy_BT, mask_BT),
        "value": Term(squared_BT, mask_BT, value_coefficient),
        "entropy": Term(-entropy_BT, mask_BT, entropy_coefficient),
    }
    if sampler_correction != "none":
        if sampler_correction not in SAMPLER_CORRECTIONS or sampler_logp_BT is None:
            raise ConfigError(f"objective.sampler_correction={sampler_correction!r} must be one of none, "
                              f"{', '.join(SAMPLER_CORRECTIONS)}, and needs sampler_logp_BT")
        correct = SAMPLER_CORRECTIONS[sampler_correction]
        sampler_weight_BT = correct(jax.lax.stop_gradient(old_logp_BT), sampler_logp_BT, mask_BT, cap=sampler_cap)
        terms["policy"] = Term(sampler_weight_BT * policy_BT, mask_BT)
    held_BT = squared_BT > 0.5 * jnp.square(value_BT - returns_BT)
    metrics = ratio_metrics(logp_BT, old_logp_BT, mask_BT, clip_low=clip, clip_high=clip) | {
        "entropy": Term(entropy_BT, mask_BT),
        "value_clip_fraction": Term(held_BT.astype(jnp.float32), mask_BT),
    }
    if sampler_correction != "none":
        metrics["sampler_weight"] = Term(sampler_weight_BT, mask_BT)
    return Loss(terms, metrics)


def policy_loss(logp, old_logp, advantage, *, clip_low, clip_high):
    """Clipped surrogate, negated so that it is minimised (arXiv:1707.06347, eq. 7).

        ρ = exp(log π − log π_old)
        ℓ = −min(ρ · Â, clip(ρ, 1 − clip_low, 1 + clip_high) · Â)

    Two clips instead of one ε as in DAPO (arXiv:2503.14476, eq. 10); equal, they are PPO's.

    Args: same shapes. Gradient flows to logp only.
    """
    old_logp, advantage = jax.lax.stop_gradient((old_logp, advantage))
    ratio = jnp.exp(logp - old_logp)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(value, old_value, returns, *, clip):
    """Squared error, no better than with the value kept near its old one (N+ implementation details, Huang et al. 2024,
    arXiv:2403.17031).

        ℓ = ½ · max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²)

    The ½ is that of the public implementations; arXiv:1707.06347, eq. 9, has neither ½ nor clip.

    Args: same shapes, reward units. Gradient flows to value only.
    """
    old_value, returns = jax.lax.stop_gradient((old_value, returns))
    clipped = jnp.clip(value, old_value - clip, old_value + clip)
    return 0.5 * jnp.maximum(jnp.square(value - returns), jnp.square(clipped - returns))


def ratio_metrics(logp, old_logp, mask, *, clip_low, clip_high):
    """How far the policy has moved from the one that drew the tokens.

    Returns:
      Metrics `ratio` (its mean is 1 in expectation), `clip_fraction` (ratios outside the clip, whatever the sign of the
      advantage) and `approx_kl` (k3 of KL(π_old ‖ π), nats per token).
    """
    ratio = jnp.exp(logp - old_logp)
    outside = (ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high)
    return {
        "ratio": Term(ratio, mask),
        "clip_fraction": Term(outside.astype(jnp.float32), mask),
        "approx_kl": Term(k3(old_logp, logp), mask),  # the tokens were drawn from π_old
    }
