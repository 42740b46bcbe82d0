"""From scores and log-probabilities to what the objectives want, as pure functions of arrays."""

import jax.numpy as jnp

from jaxalign.objectives.advantages import gae, group_relative, whiten


def ppo_targets(score_B, logp_BT, ref_logp_BT, value_BT, mask_BT, *, kl_coefficient, discount, gae_lambda):
    """Advantages and returns of InstructGPT's reward (arXiv:2203.02155, eq. 2): the score at the end of the response,
    and a penalty of β · (log π − log π_ref) for every token drawn.

    Returns:
      dict with advantage_BT (whitened over the whole batch), returns_BT, old_value_BT.
    """
    penalty_BT = kl_coefficient * (logp_BT - ref_logp_BT) * mask_BT
    T = mask_BT.shape[1]
    last_B = jnp.max(jnp.where(mask_BT > 0, jnp.arange(T)[None], -1), axis=1)
    at_end_BT = (jnp.arange(T)[None] == last_B[:, None]).astype(jnp.float32)
    reward_BT = at_end_BT * score_B[:, None] - penalty_BT
    advantage_BT, returns_BT = gae(reward_BT, value_BT, mask_BT, discount=discount, gae_lambda=gae_lambda)
    return {"advantage_BT": whiten(advantage_BT, mask_BT), "returns_BT": returns_BT, "old_value_BT": value_BT}


def group_targets(score_B, mask_BT, *, group_size, scale):
    """GRPO's advantage (arXiv:2402.03300) on every token of its response: {"advantage_BT"}."""
    advantage_B = group_relative(score_B, group_size=group_size, scale=scale)
    return {"advantage_BT": advantage_B[:, None] * mask_BT}
