"""Frozen weights in fewer bits: the base under adapters (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

A quantised kernel is a `qwix.QArray` where an array was: numbers and scales with the same leading axis, so that a scan
over layers cuts both, and each layer is dequantised where it is used, never the model as a whole.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxalign.errors import ConfigError
from jaxalign.sharding import partition_spec

BASES = ("float32", "bfloat16", "int8", "nf4")  # how frozen weights are held
# The 16 values that four bits stand for (its appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
TILE = 64  # numbers of one column that share a scale in NF4 (its section 3), or the most below that divide the column


def quantized(state, base):
    """Frozen weights of a model in the type that `base` names; scales of norms and biases stay float32.

        int8  W ≈ c_o · q, |q| ≤ 127, one c for each output of each layer, of each expert
        nf4   W ≈ c_to · v[q], v the 16 quantiles of a normal distribution, one c (bfloat16) for `TILE` inputs of an output

    Of int8 and nf4 these are the linear maps' kernels of the layers and the experts' matrices; embeddings, routers and the
    output matrix are bfloat16.

    Args:
      state: `nnx.State` of a plain model, float32 arrays over any mesh.
    """
    if base in ("int8", "nf4"):
        qwix()
    return nnx.from_flat_state([(path, variable.replace(held(path, variable, base)))
                                for path, variable in nnx.to_flat_state(state)])


def plain(value):
    """A parameter's value as a float32 array."""
    # Of a `QArray` the scales are: products in bfloat16 would be rounded or not, as it pleases the compiler.
    value = value.astype(jnp.float32)
    if not is_quantized(value):
        return value
    if value.qtype != "nf4":
        return qwix().dequantize(value)
    # Beside the axis that is cut in tiles one of their numbers; the scales have one for a tile there.
    cut = next((n for n, (a, b) in enumerate(zip(value.qvalue.shape, value.scale.shape)) if a != b), 0)
    split = (*value.scale.shape[:cut + 1], -1, *value.scale.shape[cut + 1:])
    return (_chosen(value.qvalue.reshape(split)) * jnp.expand_dims(value.scale, cut + 1)).reshape(value.qvalue.shape)


def _chosen(q):
    """v[q], v of NF4, by q's bits from the last to the first.

    Looked up, as qwix does it, every number of a kernel would take several times its four bytes on a TPU, and a while.
    """
    # As constants, a gradient's scan would keep each as large as a kernel from the start of its loop to the end.
    q, values = jax.lax.optimization_barrier((q, jnp.array(NF4, jnp.float32)))
    chosen = list(values)
    for bit in range(4):
        odd = (q >> bit) & 1 == 1
        chosen = [jnp.where(odd, b, a) for a, b in zip(chosen[::2], chosen[1::2])]
    return chosen[0]


def is_quantized(value):
    """Whether it is a `qwix.QArray`, asked without the package."""
    return hasattr(value, "qvalue")


def product(x, kernel, dtype, multiply):
    """multiply(x, W) with W dequantised for this once, and once more for the gradient of x; nothing of it is kept between
    the two."""
    def of(x, kernel):
        return multiply(x, plain(kernel).astype(dtype))

    return jax.checkpoint(of, prevent_cse=False)(x, kernel)


def qwix():
    """The package; only a base of int8 or nf4 needs it. Raises ConfigError."""
    try:
        import qwix
    except ImportError:
        raise ConfigError("lora.base='int8' and 'nf4' need the package qwix; install jaxalign[quant]") from None
    return qwix


def held(path, variable, base):
    """The value of one frozen parameter, by its path in the state, as of `quantized`."""
    value, names = variable.get_value(), variable.get_metadata()["out_sharding"]
    if base == "float32":
        return value
    if value.ndim == 1 or "norm" in names or path[-1] == "bias":
        return value
    experts = int("experts" in names)
    if base == "bfloat16" or not (path[-1] == "kernel" or experts) or "layers" not in path or "router" in path:
        return jax.jit(lambda x: x.astype(jnp.bfloat16))(value)
    # (layers, [experts,] in…, out…): a projection out of the heads has two axes of inputs.
    inputs = range(experts, experts + (2 if path[-2] == "out" else 1))
    mesh = getattr(getattr(value, "sharding", None), "mesh", None)
    return _quantize(value, base=base, inputs=inputs, names=names, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("base", "inputs", "names", "mesh"))
def _quantize(value, *, base, inputs, names, mesh):
    def of(kernel):  # one layer
        if base == "int8":
            outputs = tuple(n for n in range(kernel.ndim) if n not in inputs)
            return qwix().quantize(kernel, jnp.int8, channelwise_axes=outputs)
        axis = inputs[-1]
        others = tuple(n for n in range(kernel.ndim) if n != axis)
        tile = max(n for n in range(1, TILE + 1) if kernel.shape[axis] % n == 0)
        return qwix().quantize(kernel, "nf4", channelwise_axes=others, tiled_axes={axis: tile}, scale_dtype=jnp.bfloat16)

    made = jax.lax.map(of, value)
    if not isinstance(mesh, Mesh):  # on one device, or only a shape
        return made
    # Left to itself, the compiler holds NF4's numbers whole along one of the axes that the kernel is split by.
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(
        x, NamedSharding(mesh, partition_spec(names, x.shape, mesh))), made)


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
