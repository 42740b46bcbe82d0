"""The small parts of a transformer: linear maps, RMSNorm, SwiGLU, rotary positions."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


def param(value, *axes) -> nnx.Param:
    """A parameter with the logical name of each of its axes; where it lives is decided later, by `sharding`."""
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


class Linear(nnx.Module):
    """y = x · W, contracting the last `len(in_shape)` axes of x; float32 master weights, computed in `dtype`.

    Args:
      in_shape, out_shape: the axes of the kernel, so that heads keep an axis of their own.
      axes: the logical name of every kernel axis.
      scale: multiplies the initial standard deviation 1/√fan_in.
    """

    def __init__(self, in_shape, out_shape, axes, *, dtype, scale=1.0, rngs: nnx.Rngs):
        self.in_shape, self.dtype = tuple(in_shape), dtype
        shape = tuple(in_shape) + tuple(out_shape)
        init = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32) * (scale / math.prod(in_shape)**0.5)
        self.kernel = param(init, *axes)

    def __call__(self, x):
        # As plain matrices: the gradient of a product with more axes is a transposed copy and a slow product on a CPU.
        leading = x.shape[: x.ndim - len(self.in_shape)]
        fan_in, out_shape = math.prod(self.in_shape), self.kernel.shape[len(self.in_shape):]
        kernel = self.kernel[...].astype(self.dtype).reshape(fan_in, -1)
        return (x.reshape(-1, fan_in) @ kernel).reshape(*leading, *out_shape)


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + ε) · g (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4), the mean taken in float32."""

    def __init__(self, size, *, eps, dtype, rngs: nnx.Rngs):
        self.eps, self.dtype = eps, dtype
        self.scale = param(jnp.ones((size,), jnp.float32), "norm")

    def __call__(self, x):
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (x * inverse * scale).astype(self.dtype)


class SwiGLU(nnx.Module):
    """W_down(silu(W_gate x) ⊙ W_up x) (Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_dim
        self.gate = Linear((D,), (F,), ("embed", "mlp"), dtype=config.jnp_dtype, rngs=rngs)
        self.up = Linear((D,), (F,), ("embed", "mlp"), dtype=config.jnp_dtype, rngs=rngs)
        self.down = Linear((F,), (D,), ("mlp", "embed"), dtype=config.jnp_dtype, scale=config.residual_scale, rngs=rngs)

    def __call__(self, x_BTD):
        return self.down(jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD))


def rotary_angles(positions_BT, head_dim, theta):
    """(cos, sin), each (B, T, 1, H/2), of the rotation of every pair of dimensions (arXiv:2104.09864, eq. 15)."""
    frequency_H = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_H[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH, cos, sin):
    """Rotates the two halves of the head dimension against each other (the Llama convention), in float32."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
