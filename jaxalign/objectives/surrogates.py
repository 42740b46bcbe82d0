"""What a policy objective makes of a drawn token: one function a surrogate, each with the ratio that it clips.

All take logp_BT (trained), old_logp_BT, advantage_BT and mask_BT (1 where the policy drew the target; one response a
row), 0 where the mask is 0, and clip_low, clip_high ≥ 0. They return `(value_BT, ratio_BT)`: the value to be minimised,
and the ratio to the policy that the batch began with, to be logged. Gradient flows to logp_BT only.

The ratios here are of the trained policy to its old self. What corrects for a sampler that is not quite the old policy
is a weight, not a ratio to be clipped: `sampler_weights.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.objectives.ppo import policy_loss


def clip(logp_BT, old_logp_BT, advantage_BT, mask_BT, *, clip_low, clip_high):
    """PPO's clipped surrogate per token (arXiv:1707.06347, eq. 7); with clip_high > clip_low DAPO's (arXiv:2503.14476,
    eq. 10): see `ppo.policy_loss`."""
    value_BT = policy_loss(logp_BT, old_logp_BT, advantage_BT, clip_low=clip_low, clip_high=clip_high)
    return value_BT, jnp.exp(logp_BT - jax.lax.stop_gradient(old_logp_BT))


def gspo(logp_BT, old_logp_BT, advantage_BT, mask_BT, *, clip_low, clip_high):
    """The clipped surrogate of the whole response's length-normalised ratio (GSPO, Zheng et al. 2025, arXiv:2507.18071,
    eq. 5 and 7), the same number on each of its tokens.

        sᵢ = (π(oᵢ)/π_old(oᵢ))^(1/|oᵢ|)        ℓᵢₜ = −min(sᵢ · Âᵢ, clip(sᵢ, 1 − clip_low, 1 + clip_high) · Âᵢ)

    Averaged over a response's tokens (aggregation "sequence") it is the printed ℓᵢ. A response is clipped as a whole;
    as sᵢ is a geometric mean it stays near 1: the paper's clips are 3e-4 and 4e-4.
    """
    ratio_BT = _length_normalised_ratio(logp_BT, jax.lax.stop_gradient(old_logp_BT), mask_BT)
    return _clipped(ratio_BT, advantage_BT, clip_low, clip_high), ratio_BT


def gspo_token(logp_BT, old_logp_BT, advantage_BT, mask_BT, *, clip_low, clip_high):
    """GSPO's ratio in value, each token's own gradient (GSPO-token, arXiv:2507.18071, eq. 13 and 14).

        sᵢₜ = sg[sᵢ] · π(oᵢₜ) / sg[π(oᵢₜ)]        sg: no gradient

    Where a response's tokens share one advantage it has the value and the gradient of `gspo`; it is for advantages that
    differ from token to token.
    """
    held_BT = _length_normalised_ratio(*jax.lax.stop_gradient((logp_BT, old_logp_BT)), mask_BT)
    ratio_BT = held_BT * jnp.exp(logp_BT - jax.lax.stop_gradient(logp_BT))
    return _clipped(ratio_BT, advantage_BT, clip_low, clip_high), ratio_BT


def cispo(logp_BT, old_logp_BT, advantage_BT, mask_BT, *, clip_low, clip_high):
    """REINFORCE under a clipped importance weight that is not trained through (CISPO, MiniMax-M1 2025,
    arXiv:2506.13585, eq. 4 and 5).

        ℓᵢₜ = −sg[clip(ρᵢₜ, 1 − clip_low, 1 + clip_high)] · Âᵢₜ · log π(oᵢₜ)

    No token's gradient is ever dropped. The paper leaves the lower side open (clip_low ≥ 1), tunes the upper one.
    """
    ratio_BT = jnp.exp(logp_BT - old_logp_BT)
    weight_BT, advantage_BT = jax.lax.stop_gradient(
        (jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high), advantage_BT)
    )
    return -weight_BT * advantage_BT * logp_BT, ratio_BT


def reinforce(logp_BT, old_logp_BT, advantage_BT, mask_BT, *, clip_low, clip_high):
    """The plain policy gradient (Williams 1992; RLOO, Ahmadian et al. 2024, arXiv:2402.14740): no ratio, no clip.

        ℓᵢₜ = −Âᵢₜ · log π(oᵢₜ)

    Right only while the policy is the one that drew the tokens: one optimizer step a rollout.
    """
    return -jax.lax.stop_gradient(advantage_BT) * logp_BT, jnp.exp(logp_BT - jax.lax.stop_gradient(old_logp_BT))


def _clipped(ratio_BT, advantage_BT, clip_low, clip_high):
    advantage_BT = jax.lax.stop_gradient(advantage_BT)
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
    return -jnp.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)


def _length_normalised_ratio(logp_BT, old_logp_BT, mask_BT):
    """The geometric mean of a response's token ratios, on each of its positions."""
    length_B1 = jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1.0)
    mean_B1 = jnp.sum((logp_BT - old_logp_BT) * mask_BT, axis=1, keepdims=True) / length_B1
    return jnp.broadcast_to(jnp.exp(mean_B1), logp_BT.shape)


SURROGATES = {"clip": clip, "gspo": gspo, "gspo_token": gspo_token, "cispo": cispo, "reinforce": reinforce}
