"""From scores and log-probabilities to what the objectives want, as pure functions of arrays."""

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.objectives.advantages import gae, group_relative, leave_one_out, whiten
from jaxalign.objectives.reduce import counted


def ppo_targets(score_B, logp_BT, ref_logp_BT, value_BT, mask_BT, *, kl_coefficient, discount, gae_lambda,
                whitening="advantages"):
    """Advantages and returns of InstructGPT's reward (arXiv:2203.02155, eq. 2): the score at the end of the response,
    and a penalty of β · (log π − log π_ref) for every token drawn.

    Args:
      score_B: what a response earns, reward units.
      logp_BT, ref_logp_BT: nats, of the policy that drew the tokens and of the reference.
      value_BT: V(sₜ), reward units.
      mask_BT: 1 where the policy drew the target.
      kl_coefficient: β ≥ 0.
      discount, gae_lambda: of `gae`.
      whitening: what gets unit variance over all tokens of the batch: the "advantages", whose mean becomes 0, the
        "rewards" before `gae`, whose mean stays, "both" or "none" (arXiv:2403.17031, details 24 and 25).

    Returns:
      dict with advantage_BT, returns_BT, old_value_BT. No gradient flows.

    Raises:
      ConfigError: an unknown whitening.
    """
    if whitening not in WHITENINGS:
        raise ConfigError(f"whitening must be one of {', '.join(WHITENINGS)}; got {whitening!r}")
    penalty_BT = kl_coefficient * (logp_BT - ref_logp_BT) * mask_BT
    T = mask_BT.shape[1]
    last_B = jnp.max(jnp.where(mask_BT > 0, jnp.arange(T)[None], -1), axis=1)
    at_end_BT = (jnp.arange(T)[None] == last_B[:, None]).astype(jnp.float32)
    reward_BT = at_end_BT * score_B[:, None] - penalty_BT
    if whitening in ("rewards", "both"):
        reward_BT = whiten(reward_BT, mask_BT, shift_mean=False)
    advantage_BT, returns_BT = gae(reward_BT, value_BT, mask_BT, discount=discount, gae_lambda=gae_lambda)
    if whitening in ("advantages", "both"):
        advantage_BT = whiten(advantage_BT, mask_BT)
    return {"advantage_BT": advantage_BT, "returns_BT": returns_BT, "old_value_BT": value_BT}


WHITENINGS = ("advantages", "rewards", "both", "none")


def group_targets(score_B, mask_BT, penalty_BT=None, *, group_size, scale, baseline="group"):
    """Advantages without a critic, on every token of its response.

        Rᵢₜ = rᵢ − Σ_{s ≥ t} penaltyᵢₛ                    Rᵢ = Rᵢ₁, the whole response's

        baseline="group"     Âᵢ  = Rᵢ − mean of the group      GRPO, arXiv:2402.03300; Dr. GRPO, arXiv:2503.20783
                 "others"    Âᵢ  = Rᵢ − mean of the others     RLOO, arXiv:2402.14740
                 "none"      Âᵢₜ = Rᵢₜ                         REINFORCE++, arXiv:2501.03262
        scale=   "std"       over the group's standard deviation, with "group" only: GRPO
                 "none"      as it is: Dr. GRPO, RLOO
                 "batch"     zero mean and unit variance over all tokens of the batch: REINFORCE++, and with "group"
                             its variant with a baseline

    Args:
      score_B: r, one reward a response; a prompt's responses stand next to each other.
      mask_BT: 1 where the policy drew the target.
      penalty_BT: what a token costs, in reward units, as β · (log π − log π_ref); nothing if None.
      group_size: responses a prompt, dividing B; ≥ 2 with a baseline.
      scale, baseline: choices as above.

    Returns:
      {"advantage_BT"}, float32, 0 where mask is 0. No gradient flows.

    Raises:
      ConfigError: an unknown choice, choices that do not go together, or groups that do not fit.
    """
    if baseline not in BASELINES or scale not in SCALES or (scale == "std" and baseline != "group"):
        raise ConfigError(f"baseline must be one of {', '.join(BASELINES)} and scale one of {', '.join(SCALES)}, "
                          f'"std" with baseline "group" alone; got baseline={baseline!r}, scale={scale!r}')
    cost_BT = jnp.zeros_like(mask_BT) if penalty_BT is None else counted(penalty_BT, mask_BT) * mask_BT
    to_go_BT = jnp.flip(jnp.cumsum(jnp.flip(cost_BT, axis=1), axis=1), axis=1)
    reward_B = score_B - to_go_BT[:, 0]
    if baseline == "none":
        advantage_BT = score_B[:, None] - to_go_BT
    elif baseline == "others":
        advantage_BT = leave_one_out(reward_B, group_size=group_size)[:, None]
    else:
        within = "std" if scale == "std" else "none"
        advantage_BT = group_relative(reward_B, group_size=group_size, scale=within)[:, None]
    advantage_BT = advantage_BT * mask_BT
    return {"advantage_BT": whiten(advantage_BT, mask_BT) if scale == "batch" else jax.lax.stop_gradient(advantage_BT)}


BASELINES, SCALES = ("group", "others", "none"), ("std", "none", "batch")


def overlong_punishment(length_B, *, budget, share):
    """What a response loses for coming near its limit (soft overlong punishment, DAPO, arXiv:2503.14476, eq. 13).

        0                          |y| ≤ L − C
        ((L − C) − |y|) / C        L − C < |y| ≤ L
        −1                         |y| > L

    A response that was cut has |y| = L and loses 1 as well.

    Args:
      length_B: |y|, tokens drawn.
      budget: L, the longest response.
      share: C / L in [0, 1]; 0 punishes nothing. The paper's is 4096 / 20480.

    Returns:
      punishment_B in [−1, 0], float32, to be added to the reward.
    """
    margin = share * budget
    over_B = jnp.asarray(length_B, jnp.float32) - (budget - margin)
    return -jnp.clip(over_B / margin, 0.0, 1.0) if margin else jnp.zeros_like(over_B)
