"""Estimators of the Kullback–Leibler divergence from samples (Schulman 2020, joschu.net/blog/kl-approx.html).

All estimate KL(π ‖ π_ref) = E_{y∼π}[log π(y) − log π_ref(y)] from tokens drawn from π, one value per token, in nats.
With u = log π_ref(y) − log π(y), so that Schulman's ratio r = p/q is exp(u):

    k1 = −u               unbiased, large variance, may be negative
    k2 = ½ u²             biased, small variance
    k3 = exp(u) − 1 − u   unbiased, small variance, never negative

These are estimates of the *value*. As a loss, with samples held fixed, their slopes differ: E[∇k1] = 0, so k1 teaches
nothing; E[∇k2] = ∇KL(π ‖ π_ref); E[∇k3] = ∇KL(π_ref ‖ π), the other direction (both where the tokens are fresh).
"""

from __future__ import annotations

import jax.numpy as jnp


def k1(logp, ref_logp):
    """k1 = log π − log π_ref. Args: same shapes, nats, tokens drawn from π. Gradient flows to both."""
    return logp - ref_logp


def k2(logp, ref_logp):
    """k2 = ½ (log π − log π_ref)². Args: same shapes, nats, tokens drawn from π. Gradient flows to both."""
    return 0.5 * jnp.square(logp - ref_logp)


def k3(logp, ref_logp):
    """k3 = π_ref/π − 1 − log(π_ref/π). Args: same shapes, nats, tokens drawn from π. Gradient flows to both."""
    log_ratio = ref_logp - logp
    # expm1 keeps the difference where the two policies nearly agree.
    return jnp.expm1(log_ratio) - log_ratio


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
