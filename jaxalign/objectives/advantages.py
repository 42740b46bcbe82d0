"""How much better an action was than expected: inputs of the policy objectives, never differentiated."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.objectives.reduce import counted

# Of rewards of size 1: far below any spread that means something, well above float32's rounding.
TINY_SPREAD = 1e-6


def gae(reward_BT, value_BT, mask_BT, *, discount, gae_lambda):
    """Generalised advantage estimation (Schulman et al. 2015, arXiv:1506.02438, eq. 16).

        δₜ = rₜ + γ · V(sₜ₊₁) − V(sₜ)
        Âₜ = δₜ + γλ · Âₜ₊₁
        returnsₜ = Âₜ + V(sₜ)

    "t + 1" is the row's next position with mask 1; after the last one V and Â are 0, as an episode's end. Positions
    with mask 0 (prompt, padding, a tool's words between two turns) are stepped over: they neither discount nor carry a
    reward, and whatever stands there is ignored.

    Args:
      reward_BT: reward for drawing the target at t. A response's reward belongs on its last counted token.
      value_BT: V(sₜ), predicted before the target at t is drawn.
      mask_BT: 1 where the target was drawn by the policy.
      discount: γ in [0, 1].
      gae_lambda: λ in [0, 1].

    Returns:
      `(advantage_BT, returns_BT)`, float32, 0 where mask is 0. No gradient flows.
    """
    reward_BT, value_BT = (
        jax.lax.stop_gradient(counted(jnp.asarray(x, jnp.float32), mask_BT)) for x in (reward_BT, value_BT)
    )

    def step(carry, now):
        next_advantage_B, next_value_B = carry
        reward_B, value_B, mask_B = now
        delta_B = reward_B + discount * next_value_B - value_B
        advantage_B = delta_B + discount * gae_lambda * next_advantage_B
        carry = jnp.where(mask_B > 0, advantage_B, next_advantage_B), jnp.where(mask_B > 0, value_B, next_value_B)
        return carry, jnp.where(mask_B > 0, advantage_B, 0.0)

    end_B = jnp.zeros(reward_BT.shape[0], jnp.float32)
    _, advantage_TB = jax.lax.scan(step, (end_B, end_B), (reward_BT.T, value_BT.T, mask_BT.T), reverse=True)
    advantage_BT = advantage_TB.T
    return advantage_BT, advantage_BT + value_BT


def group_relative(reward_B, *, group_size, scale="std"):
    """Reward relative to the prompt's other responses (GRPO, Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        Âᵢ = (rᵢ − mean(r)) / std(r)          scale="std", as printed; std is the population's
        Âᵢ =  rᵢ − mean(r)                    scale="none" (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783)

    A group whose rewards are all equal gets 0, where the printed equation has 0/0; one whose rewards differ by no more than
    float32's rounding of them, as a model's scores of equal answers do, gets next to nothing.

    Args:
      reward_B: one reward per response; a prompt's responses stand next to each other, so no group straddles a shard
        whose size is a multiple of group_size.
      group_size: responses per prompt, ≥ 2, dividing B.
      scale: "std" or "none".

    Returns:
      advantage_B, float32. No gradient flows.

    Raises:
      ConfigError: group_size does not fit, or an unknown scale.
    """
    reward_GK = _groups(reward_B, group_size)
    centred_GK = reward_GK - jnp.mean(reward_GK, axis=1, keepdims=True)
    if scale == "std":
        std_G1 = jnp.sqrt(jnp.mean(jnp.square(centred_GK), axis=1, keepdims=True))
        size_G1 = jnp.max(jnp.abs(jax.lax.stop_gradient(reward_B)).reshape(-1, group_size), axis=1, keepdims=True)
        centred_GK = centred_GK / jnp.maximum(std_G1, TINY_SPREAD * jnp.maximum(size_G1, 1.0))
    elif scale != "none":
        raise ConfigError(f'scale must be "std" or "none"; got {scale!r}')
    return centred_GK.reshape(-1)


def leave_one_out(reward_B, *, group_size):
    """Reward relative to the mean of the prompt's *other* responses (RLOO, Ahmadian et al. 2024, arXiv:2402.14740).

        Âᵢ = rᵢ − 1/(k − 1) · Σ_{j≠i} rⱼ

    Args, Returns, Raises: as `group_relative`.
    """
    reward_GK = _groups(reward_B, group_size)
    others_GK = (jnp.sum(reward_GK, axis=1, keepdims=True) - reward_GK) / (group_size - 1)
    return (reward_GK - others_GK).reshape(-1)


def whiten(x, mask, *, shift_mean=True):
    """Zero mean and unit variance over every counted entry (Huang et al. 2024, arXiv:2403.17031).

        (x − μ) / √(σ² + 1e-8)        μ, σ² over entries with mask > 0, σ² the population's

    Global: give it the whole batch, before it is cut into microbatches. Under `jit` a sharded array counts as a whole.

    Args:
      x: any shape.
      mask: same shape; 1 counts, 0 is neither read nor written; fractions weigh.
      shift_mean: False adds μ back, for rewards whose sign must stay.

    Returns:
      Same shape, float32, 0 where mask is 0. No gradient flows.
    """
    x = jax.lax.stop_gradient(counted(jnp.asarray(x, jnp.float32), mask))
    total = jnp.maximum(jnp.sum(mask), jnp.finfo(jnp.float32).tiny)
    mean = jnp.sum(x * mask) / total
    variance = jnp.sum(jnp.square(x - mean) * mask) / total
    whitened = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return counted(whitened if shift_mean else whitened + mean, mask)


def _groups(reward_B, group_size):
    (B,) = reward_B.shape
    if group_size < 2 or B % group_size:
        raise ConfigError(f"group_size must be at least 2 and divide the number of responses, {B}; got {group_size}")
    reward_GK = jax.lax.stop_gradient(jnp.asarray(reward_B, jnp.float32)).reshape(-1, group_size)
    # Only differences matter, and of equal rewards these are 0, whereas their mean is rounded and may be none of them.
    return reward_GK - reward_GK[:, :1]
