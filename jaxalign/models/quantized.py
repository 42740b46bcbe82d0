"""Frozen weights in fewer bits: the base under adapters (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

A quantised kernel is a `qwix.QArray` where an array was: numbers and scales with the same leading axis, so that a scan
over layers cuts both, and each layer is dequantised where it is used, never the model as a whole.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import ConfigError

BASES = ("float32", "bfloat16", "int8", "nf4")  # how frozen weights are held
TILE = 64  # numbers of one column that share a scale in NF4 (its section 3), or the most below that divide the column


def quantized(state, base):
    """Frozen weights of a model in the type that `base` names; scales of norms and biases stay float32.

        int8  W ≈ c_o · q, |q| ≤ 127, one c for each output of each layer
        nf4   W ≈ c_to · v[q], v the 16 quantiles of a normal distribution, one c (bfloat16) for `TILE` inputs of an output

    Of int8 and nf4 these are the linear maps' kernels of the layers; embeddings, experts, routers and the output matrix are
    bfloat16.

    Args:
      state: `nnx.State` of a plain model, float32 arrays over any mesh.
    """
    if base == "float32":
        return state
    if base in ("int8", "nf4"):
        qwix()
    return nnx.from_flat_state([(path, variable.replace(_held(path, variable, base)))
                                for path, variable in nnx.to_flat_state(state)])


def plain(value):
    """A parameter's value as a float32 array."""
    # Of a `QArray` the scales are: products in bfloat16 would be rounded or not, as it pleases the compiler.
    value = value.astype(jnp.float32)
    return qwix().dequantize(value) if is_quantized(value) else value


def is_quantized(value):
    """Whether it is a `qwix.QArray`, asked without the package."""
    return hasattr(value, "qvalue")


def product(x_MI, kernel, dtype):
    """x·W with W dequantised for this once, and once more for the gradient of x; nothing of it is kept between the two."""
    def of(x_MI, kernel):
        return x_MI @ plain(kernel).astype(dtype).reshape(x_MI.shape[1], -1)

    return jax.checkpoint(of, prevent_cse=False)(x_MI, kernel)


def qwix():
    """The package; only a base of int8 or nf4 needs it. Raises ConfigError."""
    try:
        import qwix
    except ImportError:
        raise ConfigError("lora.base='int8' and 'nf4' need the package qwix; install jaxalign[quant]") from None
    return qwix


def _held(path, variable, base):
    value, names = variable.get_value(), variable.get_metadata()["out_sharding"]
    if value.ndim == 1 or "norm" in names or path[-1] == "bias":
        return value
    if base == "bfloat16" or path[-1] != "kernel" or "layers" not in path or "router" in path:
        return jax.jit(lambda x: x.astype(jnp.bfloat16))(value)
    # (layers, in…, out…): a projection out of the heads has two axes of inputs.
    inputs = 2 if path[-2] == "out" else 1
    return _quantize(value, base=base, inputs=inputs)


@functools.partial(jax.jit, static_argnames=("base", "inputs"))
def _quantize(value, *, base, inputs):
    def of(kernel):  # one layer
        outputs = tuple(range(inputs, kernel.ndim))
        if base == "int8":
            return qwix().quantize(kernel, jnp.int8, channelwise_axes=outputs)
        axis = inputs - 1
        others = tuple(n for n in range(kernel.ndim) if n != axis)
        tile = max(n for n in range(1, TILE + 1) if kernel.shape[axis] % n == 0)
        return qwix().quantize(kernel, "nf4", channelwise_axes=others, tiled_axes={axis: tile}, scale_dtype=jnp.bfloat16)

    return jax.lax.map(of, value)


def bits(state):
    """Bits a number that the kernels in a state take, where four-bit numbers are packed: (bits, numbers)."""
    total = count = 0
    for path, variable in nnx.to_flat_state(state):
        value = variable.get_value()
        if is_quantized(value):
            total += sum(math.prod(x.shape) * (4 if x.dtype == jnp.uint4 else x.dtype.itemsize * 8)
                         for x in jax.tree.leaves(value))
            count += math.prod(value.shape)
    return total / max(count, 1), count
