"""Group-relative policy optimisation: PPO's clipped ratio without a value function, a KL term in the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.objectives.kl import KL_ESTIMATORS
from jaxalign.objectives.ppo import policy_loss, ratio_metrics
from jaxalign.objectives.reduce import Loss, Term, counted


def grpo(
    logp_BT,
    old_logp_BT,
    ref_logp_BT,
    advantage_BT,
    mask_BT,
    *,
    clip_low=0.2,
    clip_high=0.2,
    kl_coefficient,
    kl_estimator="k3",
    aggregation="sequence",
) -> Loss:
    """Clipped policy loss with a KL term (Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4).

        ℓ = 1/G · Σᵢ 1/|oᵢ| · Σₜ { −min(ρᵢₜ · Âᵢ, clip(ρᵢₜ, 1 − ε, 1 + ε) · Âᵢ) + β · KLᵢₜ(π ‖ π_ref) }

    The paper maximises; this is its negative. The ratio ρ is per token.

    Args:
      logp_BT: log π(aₜ|sₜ) in nats. Trained.
      old_logp_BT: the same under the policy that the batch began with. No gradient.
      ref_logp_BT: the same under the frozen reference. No gradient.
      advantage_BT: Âᵢ (`advantages.group_relative`) on each of the response's tokens. No gradient.
      mask_BT: 1 where the policy drew the target; one response a row.
      clip_low: ε below 1.
      clip_high: ε above 1; DAPO (arXiv:2503.14476, eq. 8) widens it to 0.28.
      kl_coefficient: β ≥ 0.
      kl_estimator: "k1", "k2" or "k3" (`kl.KL_ESTIMATORS`); the paper's is k3.
      aggregation: "sequence", as printed: every response weighs the same; or "token" (DAPO, eq. 8): every token does.

    Returns:
      Terms `policy` and `kl`, per token. Metrics `kl` (per token, the estimator's), `ratio`, `clip_fraction`,
      `approx_kl` (see `ppo.ratio_metrics`).

    Raises:
      ConfigError: an unknown estimator or aggregation.
    """
    if kl_estimator not in KL_ESTIMATORS:
        raise ConfigError(f"kl_estimator must be one of {', '.join(KL_ESTIMATORS)}; got {kl_estimator!r}")
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"aggregation must be one of {', '.join(AGGREGATIONS)}; got {aggregation!r}")
    logp_BT, old_logp_BT, ref_logp_BT, advantage_BT = (
        counted(x, mask_BT) for x in (logp_BT, old_logp_BT, ref_logp_BT, advantage_BT)
    )
    weight_BT = AGGREGATIONS[aggregation](mask_BT)
    kl_BT = KL_ESTIMATORS[kl_estimator](logp_BT, jax.lax.stop_gradient(ref_logp_BT))
    policy_BT = policy_loss(logp_BT, old_logp_BT, advantage_BT, clip_low=clip_low, clip_high=clip_high)
    terms = {"policy": Term(policy_BT, weight_BT), "kl": Term(kl_BT, weight_BT, kl_coefficient)}
    metrics = ratio_metrics(logp_BT, old_logp_BT, mask_BT, clip_low=clip_low, clip_high=clip_high)
    return Loss(terms, metrics | {"kl": Term(kl_BT, mask_BT)})


def _by_sequence(mask_BT):
    """Weights that sum to 1 in each row, so that their sum over the batch is the number of rows that have a token."""
    return mask_BT / jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)


AGGREGATIONS = {"sequence": _by_sequence, "token": lambda mask_BT: mask_BT}
