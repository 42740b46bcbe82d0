"""Kahneman–Tversky optimisation: a policy from answers that were each liked or not, without pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.objectives.reduce import Loss, Term, counted


def kto(
    logp_B, ref_logp_B, desirable_B, reference_point_B, weight_B=None, *, beta, desirable_weight=1.0,
    undesirable_weight=1.0
) -> Loss:
    """Human utility of each answer, relative to a reference point (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8).

        r = log π(y|x) − log π_ref(y|x)
        v = λ_D · σ(β · (r − z₀))   y desirable,        λ_U · σ(β · (z₀ − r))   y undesirable
        ℓ = λ_y − v

    Args:
      logp_B: log π(y|x) in nats, summed over the answer's tokens. Trained.
      ref_logp_B: the same under the frozen reference. No gradient.
      desirable_B: 1 where the answer was liked, 0 where it was not.
      reference_point_B: z₀ ≥ 0 in nats, one number for the whole batch: `kto_reference_point`. No gradient.
      weight_B: 1 where the row counts, else 0; every row counts if None. No gradient.
      beta: β > 0; the smaller, the further the policy may move.
      desirable_weight: λ_D > 0.
      undesirable_weight: λ_U > 0. The paper keeps λ_D · n_D / (λ_U · n_U) between 1 and 1.5.

    Returns:
      Term `preference`, per row. Metrics `desirable_reward` and `undesirable_reward` (β · r, over the rows of that
      kind), `accuracy` (r > z₀ where desirable, r < z₀ where not; a draw counts half), `reference_point` (z₀).
    """
    weight_B = jnp.ones_like(logp_B) if weight_B is None else weight_B
    desirable_B, reference_point_B, ref_logp_B = (
        jax.lax.stop_gradient(counted(x, weight_B)) for x in (desirable_B, reference_point_B, ref_logp_B)
    )
    reward_B = counted(logp_B, weight_B) - ref_logp_B
    # 1 − σ(x) is σ(−x): no difference of near numbers where an answer is far on the right side.
    sign_B = jnp.where(desirable_B > 0, 1.0, -1.0)
    scale_B = jnp.where(desirable_B > 0, desirable_weight, undesirable_weight)
    ahead_B = sign_B * (reward_B - reference_point_B)
    terms = {"preference": Term(scale_B * jax.nn.sigmoid(-beta * ahead_B), weight_B)}
    metrics = {
        "desirable_reward": Term(beta * reward_B, weight_B * (desirable_B > 0)),
        "undesirable_reward": Term(beta * reward_B, weight_B * (desirable_B <= 0)),
        "accuracy": Term(0.5 * (1.0 + jnp.sign(ahead_B)), weight_B),
        "reference_point": Term(reference_point_B, weight_B),
    }
    return Loss(terms, metrics)


def kto_reference_point(mismatched_logp_B, mismatched_ref_B, weight_B):
    """z₀ of `kto`: a biased, cheap estimate of KL(π ‖ π_ref), from answers to other prompts (arXiv:2402.01306,
    section 4.2).

        z₀ = max(0, 1/m · Σᵢ [log π(y′ᵢ|xᵢ) − log π_ref(y′ᵢ|xᵢ)])        y′ᵢ: an answer to another prompt than xᵢ

    Over the whole batch: compute it before the batch is cut into microbatches.

    Args:
      mismatched_logp_B: log π(y′|x) in nats, summed over the answer's tokens.
      mismatched_ref_B: the same under the frozen reference.
      weight_B: 1 where the row counts, else 0.

    Returns:
      reference_point_B, the same number in every row, float32. No gradient flows.
    """
    ratio_B = counted(mismatched_logp_B, weight_B) - counted(mismatched_ref_B, weight_B)
    mean = jnp.sum(ratio_B * weight_B) / jnp.maximum(jnp.sum(weight_B), 1.0)
    return jax.lax.stop_gradient(jnp.full_like(ratio_B, jnp.maximum(mean, 0.0)))
