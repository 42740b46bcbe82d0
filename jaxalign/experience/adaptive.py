"""Numbers that a run adapts from rollout to rollout: the KL penalty's coefficient, the scale of the scores."""

import jax.numpy as jnp

from jaxalign.objectives.advantages import TINY_SPREAD


def adapted_coefficient(coefficient, kl, *, target, gain):
    """The proportional controller in log space of Ziegler et al. 2019 (arXiv:1909.08593, section 2.2).

        e  = clip((KL − target) / target, −0.2, 0.2)
        β′ = β · (1 + gain · e)

    Args:
      coefficient: β of the rollout that was measured.
      kl: KL(π ‖ π_ref) of that rollout, nats a response.
      target: the KL to be held, > 0.
      gain: K_β; the paper's is 0.1. What TRL and verl call the horizon is the responses of a rollout over this.
    Returns:
      β of the next rollout, a float.
    """
    return coefficient * (1.0 + gain * min(max((kl - target) / target, -0.2), 0.2))


def merged_moments(moments, x_B, mask_B):
    """Count, mean and sum of squared deviations of all numbers so far and these (Chan et al. 1979, updating formulae).

        n = nₐ + n_b,   δ = μ_b − μₐ,   μ = μₐ + δ · n_b / n,   M = Mₐ + M_b + δ² · nₐ · n_b / n

    Args:
      moments: (n, μ, M), scalars; (0, 0, 0) before the first.
      x_B: the new numbers.
      mask_B: 1 counts, 0 does not.
    """
    count, mean, squares = moments
    new_count = jnp.sum(mask_B)
    new_mean = jnp.sum(x_B * mask_B) / jnp.maximum(new_count, 1.0)
    total, delta = jnp.maximum(count + new_count, 1.0), new_mean - mean
    new_squares = jnp.sum(jnp.square(x_B - new_mean) * mask_B)
    return (count + new_count, mean + delta * new_count / total,
            squares + new_squares + jnp.square(delta) * count * new_count / total)


def scaled(x_B, moments, *, scaling):
    """Numbers on the scale of those so far.

        "none"  x        "std"  x / σ        "normalise"  (x − μ) / σ

    σ is the population's; where nothing has varied yet it is taken to be 1.
    """
    if scaling == "none":
        return x_B
    count, mean, squares = moments
    std = jnp.sqrt(squares / jnp.maximum(count, 1.0))
    std = jnp.where(std > TINY_SPREAD, std, 1.0)
    return (x_B - mean) / std if scaling == "normalise" else x_B / std


SCALINGS = ("none", "std", "normalise")
