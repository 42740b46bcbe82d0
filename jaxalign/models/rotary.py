"""Rotary positions (Su et al. 2021, arXiv:2104.09864), and how published models stretch them to longer texts."""

import math

import jax.numpy as jnp


def rotary_angles(positions_BT, config, kind="full"):
    """(cos, sin), each (B, T, 1, R/2), of the rotation of every pair of dimensions (arXiv:2104.09864, eq. 15).

    Args:
      positions_BT: within the document.
      config: a `ModelConfig`; R are the dimensions it rotates.
      kind: of `LAYER_KINDS`: windows may turn with another base, and unrotated layers turn by nothing.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if kind == "window" and config.window_rope_theta:
        theta, scaling = config.window_rope_theta, ()
    frequency_R = theta ** (-jnp.arange(0, config.rope_dim, 2, dtype=jnp.float32) / config.rope_dim)
    size = 1.0
    if scaling:
        frequency_R, size = SCALINGS[scaling[0]](frequency_R, theta, *scaling[1:])
    if kind == "full_unrotated":
        frequency_R, size = jnp.zeros_like(frequency_R), 1.0
    angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_R[None, None, None, :]
    if size == 1.0:
        return jnp.cos(angle), jnp.sin(angle)
    return jnp.cos(angle) * size, jnp.sin(angle) * size


def rotate(x_BTNH, cos, sin):
    """Rotates the two halves of a head's first dimensions against each other (the Llama convention), in float32; what
    there are no angles for stays."""
    rotated = 2 * cos.shape[-1]
    if rotated < x_BTNH.shape[-1]:
        if not rotated:
            return x_BTNH
        return jnp.concatenate([rotate(x_BTNH[..., :rotated], cos, sin), x_BTNH[..., rotated:]], axis=-1)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def _linear(frequency_R, theta, factor):
    """Places are divided by `factor` (Chen et al. 2023, arXiv:2306.15595)."""
    return frequency_R / factor, 1.0


def _llama3(frequency_R, theta, factor, low, high, original):
    """Waves longer than original/low are stretched by `factor`, those shorter than original/high stay, and between the
    two there is a straight line: what the models of Llama 3.1 were trained with."""
    turns_R = original * frequency_R / (2 * math.pi)  # how often a wave fits into the texts it was first trained on
    kept_R = jnp.clip((turns_R - low) / (high - low), 0.0, 1.0)
    return frequency_R * (kept_R + (1.0 - kept_R) / factor), 1.0


def _yarn(frequency_R, theta, factor, fast, slow, original, size):
    """Waves that turn less than `slow` times are stretched, more than `fast` times kept (Peng et al. 2023,
    arXiv:2309.00071, section 3.2), on a straight line over the dimensions, with rounded ends; cos and sin grow by
    `size`."""
    half = frequency_R.shape[0]

    def dimension(turns):
        return half * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), 2 * half - 1)
    stretched_R = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / max(high - low, 0.001), 0.0, 1.0)
    return frequency_R * (1.0 - stretched_R + stretched_R / factor), size


def _longrope(frequency_R, theta, original, size, *short_R):
    """Each wave by a factor of its own, cos and sin by `size` (Ding et al. 2024, arXiv:2402.13753), in texts of up to `original`
    tokens; for longer ones there are other factors, which are not here (`ModelConfig.need_places`)."""
    return frequency_R / jnp.asarray(short_R, jnp.float32), size


SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
