"""Group-relative policy optimisation and its family: no value function, groups of responses, a KL term in the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.objectives.kl import KL_ESTIMATORS, k3
from jaxalign.objectives.reduce import Loss, Term, counted
from jaxalign.objectives.sampler_weights import SAMPLER_CORRECTIONS
from jaxalign.objectives.surrogates import SURROGATES


def grpo(
    logp_BT,
    old_logp_BT,
    advantage_BT,
    mask_BT,
    ref_logp_BT=None,
    sampler_logp_BT=None,
    budget_B=None,
    *,
    surrogate="clip",
    clip_low=0.2,
    clip_high=0.2,
    kl_coefficient,
    kl_estimator="k3",
    aggregation="sequence",
    sampler_correction="none",
    sampler_cap=2.0,
) -> Loss:
    """Clipped policy loss with a KL term (Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4), and by other choices of its
    parts the objectives of DAPO, Dr. GRPO, GSPO, CISPO, RLOO and REINFORCE++ (the table in README.md).

        ℓ = 1/G · Σᵢ 1/|oᵢ| · Σₜ { −min(ρᵢₜ · Âᵢ, clip(ρᵢₜ, 1 − ε, 1 + ε) · Âᵢ) + β · KLᵢₜ(π ‖ π_ref) }

    This is what the defaults give; the paper maximises its negative. Three parts are chosen apart from each other: the
    advantage (made by the stage: `experience.shaping.group_targets`), the surrogate in place of −min(…), and the
    aggregation in place of 1/G · Σᵢ 1/|oᵢ| · Σₜ.

    Args:
      logp_BT: log π(aₜ|sₜ) in nats. Trained.
      old_logp_BT: the same under the policy that the batch began with. No gradient.
      advantage_BT: Âᵢ on each of the response's tokens. No gradient.
      mask_BT: 1 where the policy drew the target; one response a row.
      ref_logp_BT: log π_ref(aₜ|sₜ) of the frozen reference. Needed with a kl_coefficient above 0. No gradient.
      sampler_logp_BT: log-probability of the distribution that drew the token. Needed with a sampler_correction. No
        gradient.
      budget_B: the most tokens that the response could have had. Needed with aggregation "budget". No gradient.
      surrogate: "clip" as printed, "gspo", "gspo_token", "cispo" or "reinforce" (`surrogates.SURROGATES`).
      clip_low: ε below 1.
      clip_high: ε above 1; DAPO (arXiv:2503.14476, eq. 8) widens it to 0.28.
      kl_coefficient: β ≥ 0.
      kl_estimator: "k1", "k2" or "k3" (`kl.KL_ESTIMATORS`); the paper's is k3.
      aggregation: "sequence", as printed: every response weighs the same; "token" (DAPO, eq. 8): every token does;
        "sum": a response weighs as its length; "budget": so it does, over the budget (`AGGREGATIONS`).
      sampler_correction: "none", "token" or "product": what multiplies the surrogate where sampler and trainer disagree
        (`sampler_weights.SAMPLER_CORRECTIONS`).
      sampler_cap: the most that this may be, > 0.

    Returns:
      Terms `policy` and, with a reference, `kl`, per token. Metrics `kl` (per token, the estimator's); `ratio`, the surrogate's;
      `clip_fraction`, the share of ratios outside the clip whatever the sign of the advantage (not for "reinforce",
      which clips none); `approx_kl` (k3 of KL(π_old ‖ π), nats per token); with a correction `sampler_weight`.

    Raises:
      ConfigError: an unknown choice, or an array that the choice needs and that is not there.
    """
    _known(surrogate=(surrogate, SURROGATES), kl_estimator=(kl_estimator, KL_ESTIMATORS),
           aggregation=(aggregation, AGGREGATIONS),
           sampler_correction=(sampler_correction, ["none", *SAMPLER_CORRECTIONS]))
    logp_BT, old_logp_BT, advantage_BT = (counted(x, mask_BT) for x in (logp_BT, old_logp_BT, advantage_BT))
    old_logp_BT = jax.lax.stop_gradient(old_logp_BT)
    policy_BT, ratio_BT = SURROGATES[surrogate](
        logp_BT, old_logp_BT, advantage_BT, mask_BT, clip_low=clip_low, clip_high=clip_high
    )
    metrics = {"ratio": Term(ratio_BT, mask_BT), "approx_kl": Term(k3(old_logp_BT, logp_BT), mask_BT)}
    if surrogate != "reinforce":
        outside_BT = (ratio_BT < 1.0 - clip_low) | (ratio_BT > 1.0 + clip_high)
        metrics["clip_fraction"] = Term(outside_BT.astype(jnp.float32), mask_BT)
    if sampler_correction != "none":
        _there(f'sampler_correction="{sampler_correction}"', sampler_logp_BT=sampler_logp_BT)
        correct = SAMPLER_CORRECTIONS[sampler_correction]
        sampler_weight_BT = correct(old_logp_BT, sampler_logp_BT, mask_BT, cap=sampler_cap)
        policy_BT = sampler_weight_BT * policy_BT
        metrics["sampler_weight"] = Term(sampler_weight_BT, mask_BT)
    if aggregation == "budget":
        _there('aggregation="budget"', budget_B=budget_B)
    scale_BT, weight_BT = AGGREGATIONS[aggregation](mask_BT, budget_B)
    terms = {"policy": Term(scale_BT * policy_BT, weight_BT)}
    if kl_coefficient:
        _there(f"kl_coefficient={kl_coefficient}", ref_logp_BT=ref_logp_BT)
    if ref_logp_BT is not None:
        kl_BT = KL_ESTIMATORS[kl_estimator](logp_BT, jax.lax.stop_gradient(counted(ref_logp_BT, mask_BT)))
        metrics["kl"] = Term(kl_BT, mask_BT)
        terms["kl"] = Term(scale_BT * kl_BT, weight_BT, kl_coefficient)
    return Loss(terms, metrics)


def by_sequence(mask_BT, budget_B=None):
    """1/G · Σᵢ 1/|oᵢ| · Σₜ: weights that sum to 1 in each row, so that over the batch they sum to the number of rows
    that have a token."""
    weight_BT = mask_BT / jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.ones_like(mask_BT), weight_BT


def by_token(mask_BT, budget_B=None):
    """1/Σᵢ|oᵢ| · Σᵢ Σₜ (DAPO, arXiv:2503.14476, eq. 8), over the batch; the paper's sum is over one prompt's group."""
    return jnp.ones_like(mask_BT), mask_BT


def by_sum(mask_BT, budget_B=None):
    """1/G · Σᵢ Σₜ (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, as printed): with −Â · log π it is −Âᵢ · log π(oᵢ)."""
    _, weight_BT = by_sequence(mask_BT)
    length_B1 = jnp.sum(mask_BT, axis=1, keepdims=True)
    return jnp.broadcast_to(length_B1, mask_BT.shape), weight_BT


def by_budget(mask_BT, budget_B):
    """1/G · Σᵢ 1/L · Σₜ with L the same for all responses, short or long: Dr. GRPO's code (arXiv:2503.20783,
    listing 1)."""
    length_BT, weight_BT = by_sum(mask_BT)
    return length_BT / jnp.maximum(budget_B, 1.0)[:, None], weight_BT


# Each gives (what multiplies a token's value, its weight): the weights sum to what the printed equation divides by.
AGGREGATIONS = {"sequence": by_sequence, "token": by_token, "sum": by_sum, "budget": by_budget}


def _known(**choices):
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def _there(choice, **arrays):
    for name, array in arrays.items():
        if array is None:
            raise ConfigError(f"grpo: {choice} needs {name}, which was not given; pass it, or make another choice")
