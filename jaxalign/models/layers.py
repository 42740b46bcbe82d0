"""The small parts of a transformer: linear maps, norms, the MLP."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.products import matmul
from jaxalign.models.quantized import is_quantized, product

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def param(value, *axes) -> nnx.Param:
    """A parameter with the logical name of each of its axes; where it lives is decided later, by `sharding`."""
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


def drawn(shape, fan_in, scale, rngs):
    """Initial weights: normal, cut at two deviations, of standard deviation scale/√fan_in."""
    return jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32) * (scale / fan_in**0.5)


class Linear(nnx.Module):
    """y = x · W + b, contracting the last `len(in_shape)` axes of x; float32 master weights, computed in `dtype`.

    Args:
      in_shape, out_shape: the axes of the kernel, so that heads keep an axis of their own.
      axes: the logical name of every kernel axis.
      scale: multiplies the initial standard deviation 1/√fan_in.
      bias: whether there is a b; it starts at zero.
    """

    def __init__(self, in_shape, out_shape, axes, *, dtype, scale=1.0, bias=False, rngs: nnx.Rngs):
        self.in_shape, self.dtype = tuple(in_shape), dtype
        shape = tuple(in_shape) + tuple(out_shape)
        self.kernel = param(drawn(shape, math.prod(in_shape), scale, rngs), *axes)
        self.bias = param(jnp.zeros(out_shape, jnp.float32), *axes[len(in_shape):]) if bias else None
        self.adapter = nnx.data(None)  # of models/lora.py, where there is one

    def __call__(self, x):
        # As plain matrices: the gradient of a product with more axes is a transposed copy and a slow product on a CPU.
        leading, kernel = x.shape[: x.ndim - len(self.in_shape)], self.kernel.get_value()
        fan_in, out_shape = math.prod(self.in_shape), kernel.shape[len(self.in_shape):]
        x = x.reshape(-1, fan_in)
        if is_quantized(kernel):
            y = product(x, kernel, self.dtype, lambda x, w: matmul(x, w.reshape(fan_in, -1)))
        else:
            y = matmul(x, kernel.astype(self.dtype).reshape(fan_in, -1))
        if self.adapter is not None:
            y = self.adapter(x, y, kernel)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype).reshape(1, -1)
        return y.reshape(*leading, *out_shape)


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + ε) · (o + g) (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4), the mean taken in float32.

    Args:
      offset: o: 0, or 1 where g is learned as what differs from 1, as in Gemma. o + g starts at 1.
    """

    def __init__(self, size, *, eps, dtype, offset=0, rngs: nnx.Rngs):
        self.eps, self.dtype, self.offset = eps, dtype, offset
        self.scale = param(jnp.full((size,), 1 - offset, jnp.float32), "norm")

    def __call__(self, x):
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (x * inverse * (scale + self.offset if self.offset else scale)).astype(self.dtype)


class LayerNorm(nnx.Module):
    """(x − mean(x)) / √(var(x) + ε) · g + b (Ba et al. 2016, arXiv:1607.06450, eq. 4), in float32."""

    def __init__(self, size, *, eps, dtype, rngs: nnx.Rngs):
        self.eps, self.dtype = eps, dtype
        self.scale = param(jnp.ones((size,), jnp.float32), "norm")
        self.bias = param(jnp.zeros((size,), jnp.float32), "norm")

    def __call__(self, x):
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        scale, bias = (p[...].reshape((1,) * (x.ndim - 1) + (-1,)) for p in (self.scale, self.bias))
        return (x * inverse * scale + bias).astype(self.dtype)


NORMS = {"rms": RMSNorm, "rms_plus_one": functools.partial(RMSNorm, offset=1), "layer": LayerNorm}


def make_norm(config, size, rngs):
    """The config's norm, of vectors of that size."""
    return NORMS[config.norm](size, eps=config.norm_eps, dtype=config.jnp_dtype, rngs=rngs)


class MLP(nnx.Module):
    """W_down(a(W_gate x) ⊙ W_up x), SwiGLU where a is silu (Shazeer 2020, arXiv:2002.05202, eq. 6); without a gate
    W_down(a(W_up x))."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_dim
        linear = functools.partial(Linear, dtype=config.jnp_dtype, bias=config.mlp_bias, rngs=rngs)
        self.activation = config.activation
        self.gate = linear((D,), (F,), ("embed", "mlp")) if config.mlp == "gated" else None
        self.up = linear((D,), (F,), ("embed", "mlp"))
        self.down = linear((F,), (D,), ("mlp", "embed"), scale=config.residual_scale)

    def __call__(self, x_BTD):
        activation = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activation(self.up(x_BTD)))
        return self.down(activation(self.gate(x_BTD)) * self.up(x_BTD))
