"""Direct preference optimisation: a policy from preferences, without a reward model or sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.objectives.bradley_terry import wins
from jaxalign.objectives.reduce import Loss, Term, counted


def dpo(
    chosen_logp_B, rejected_logp_B, chosen_ref_B, rejected_ref_B, weight_B=None, chosen_length_B=None, *, beta,
    smoothing=0.0, nll_coefficient=0.0
) -> Loss:
    """Negative log-likelihood of preferring y⁺ to y⁻ (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), with label
    smoothing (conservative DPO, Mitchell 2023, ericmitchell.ai/cdpo.pdf) and, at choice, the chosen answer's own
    likelihood (Pang et al. 2024, arXiv:2404.19733, eq. 1), which keeps it from falling with the rejected one's.

        r(y) = β · [log π(y|x) − log π_ref(y|x)]
        ℓ    = −(1 − ε) · log σ(r⁺ − r⁻) − ε · log σ(r⁻ − r⁺) − α · log π(y⁺|x) / |y⁺|

    Args:
      chosen_logp_B: log π(y⁺|x) in nats, summed over the answer's tokens. Trained.
      rejected_logp_B: log π(y⁻|x). Trained.
      chosen_ref_B: log π_ref(y⁺|x) under the frozen reference. No gradient.
      rejected_ref_B: log π_ref(y⁻|x). No gradient.
      weight_B: 1 where the pair counts, else 0; every pair counts if None. No gradient.
      chosen_length_B: |y⁺|, its tokens. Needed if α > 0. No gradient.
      beta: β > 0; the smaller, the further the policy may move.
      smoothing: ε in [0, ½): the share of preferences believed to be turned round.
      nll_coefficient: α ≥ 0.

    Returns:
      Terms `preference` and, if α > 0, `nll`, per pair. Metrics `accuracy` (r⁺ > r⁻; a draw counts half), `margin` (r⁺ − r⁻), `chosen_reward`
      and `rejected_reward` (r⁺, r⁻), in nats times β.

    Raises:
      ConfigError: α > 0 without |y⁺|.
    """
    weight_B = jnp.ones_like(chosen_logp_B) if weight_B is None else weight_B
    chosen_B, rejected_B = counted(chosen_logp_B, weight_B), counted(rejected_logp_B, weight_B)
    chosen_ref_B, rejected_ref_B = (
        jax.lax.stop_gradient(counted(x, weight_B)) for x in (chosen_ref_B, rejected_ref_B)
    )
    chosen_reward_B = beta * (chosen_B - chosen_ref_B)
    rejected_reward_B = beta * (rejected_B - rejected_ref_B)
    margin_B = chosen_reward_B - rejected_reward_B
    value_B = -(1.0 - smoothing) * jax.nn.log_sigmoid(margin_B) - smoothing * jax.nn.log_sigmoid(-margin_B)
    metrics = {
        "accuracy": Term(wins(margin_B), weight_B),
        "margin": Term(margin_B, weight_B),
        "chosen_reward": Term(chosen_reward_B, weight_B),
        "rejected_reward": Term(rejected_reward_B, weight_B),
    }
    terms = {"preference": Term(value_B, weight_B)}
    if nll_coefficient:
        if chosen_length_B is None:
            raise ConfigError(f"dpo: nll_coefficient={nll_coefficient} needs chosen_length_B, which was not given; pass it, or "
                              "set nll_coefficient=0")
        length_B = jax.lax.stop_gradient(jnp.maximum(chosen_length_B, 1.0))
        terms["nll"] = Term(-chosen_B / length_B, weight_B, nll_coefficient)
    return Loss(terms, metrics)
