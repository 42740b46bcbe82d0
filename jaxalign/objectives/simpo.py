"""Simple preference optimisation: the mean log-probability of a token as reward, without a reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.objectives.bradley_terry import wins
from jaxalign.objectives.reduce import Loss, Term, counted


def simpo(
    chosen_logp_B, rejected_logp_B, chosen_length_B, rejected_length_B, weight_B=None, *, beta, target_margin=0.0
) -> Loss:
    """Negative log-likelihood of preferring y⁺ to y⁻ by a target margin (Meng et al. 2024, arXiv:2405.14734, eq. 6).

        r(y) = β / |y| · log π(y|x)
        ℓ    = −log σ(r⁺ − r⁻ − γ)

    Args:
      chosen_logp_B: log π(y⁺|x) in nats, summed over the answer's tokens. Trained.
      rejected_logp_B: log π(y⁻|x). Trained.
      chosen_length_B: |y⁺|, its tokens. No gradient.
      rejected_length_B: |y⁻|. No gradient.
      weight_B: 1 where the pair counts, else 0; every pair counts if None. No gradient.
      beta: β > 0; the paper's are 2 to 10, as rewards are per token.
      target_margin: γ ≥ 0, in units of the reward.

    Returns:
      Term `preference`, per pair. Metrics `accuracy` (r⁺ > r⁻; a draw counts half), `margin` (r⁺ − r⁻),
      `chosen_reward` and `rejected_reward`.
    """
    weight_B = jnp.ones_like(chosen_logp_B) if weight_B is None else weight_B
    chosen_B, rejected_B = (
        beta * counted(logp_B, weight_B) / jnp.maximum(counted(length_B, weight_B), 1.0)
        for logp_B, length_B in ((chosen_logp_B, jax.lax.stop_gradient(chosen_length_B)),
                                 (rejected_logp_B, jax.lax.stop_gradient(rejected_length_B)))
    )
    margin_B = chosen_B - rejected_B
    terms = {"preference": Term(-jax.nn.log_sigmoid(margin_B - target_margin), weight_B)}
    metrics = {
        "accuracy": Term(wins(margin_B), weight_B),
        "margin": Term(margin_B, weight_B),
        "chosen_reward": Term(chosen_B, weight_B),
        "rejected_reward": Term(rejected_B, weight_B),
    }
    return Loss(terms, metrics)
