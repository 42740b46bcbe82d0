"""Weights of a sampler that runs in lower precision than the trainer; `objectives/sampler_weights.py` corrects that."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.experts import Experts
from jaxalign.models.layers import Linear
from jaxalign.models.lora import has_adapters, merged
from jaxalign.models.transformer import Transformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A kernel of integers from −127 to 127 with one scale for each output; a `Linear` widens it where it is used.

        W ≈ value · scale, scale = max |W| / 127 over the axes that are contracted
    """

    value: jax.Array
    scale: jax.Array

    @classmethod
    def of(cls, kernel, axes):
        scale = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True) / 127.0
        return cls(jnp.round(kernel / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8), scale)

    @property
    def shape(self):
        return self.value.shape

    def astype(self, dtype):
        return (self.value.astype(jnp.float32) * self.scale).astype(dtype)


def lowered(graphdef, params, precision):
    """(graphdef, params) of the model as the sampler runs it.

    Args:
      graphdef, params: a `Transformer`, split.
      precision: a name in `PRECISIONS`: "model", as it is trained; "bfloat16", matrices and products; "int8", the
        matrices but the embedding are stored so, products are in the model's own type. Routers stay as they are.
    """
    config, adapted = nnx.merge(graphdef, params).config, has_adapters(params)
    if precision == "model" and config.dtype == "bfloat16" and not adapted:
        precision = "bfloat16"  # what it computes with anyway, cast once instead of at every token
    if precision == "model":
        return graphdef, params
    if adapted:  # multiplied into their kernels, so that it is the policy that is rounded
        graphdef, params = _plain(config), _merged(graphdef, params)
    if precision == "bfloat16":
        return _plain(dataclasses.replace(config, dtype="bfloat16")), _params(graphdef, params, precision)
    return graphdef, _params(graphdef, params, precision)


@functools.lru_cache(maxsize=8)
def _plain(config):
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[0]


_merged = jax.jit(merged, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _params(graphdef, params, precision):
    model = nnx.merge(graphdef, params)
    for path, module in nnx.iter_modules(model):
        first = int("layers" in path)  # layers are stacked
        if isinstance(module, Linear) and "router" not in path:  # whose choice the trainer makes in float32
            axes = tuple(range(first, first + len(module.in_shape)))
            module.kernel.set_value(PRECISIONS[precision](module.kernel[...], axes))
        elif isinstance(module, Experts):
            for weights in (module.gate, module.up, module.down):
                weights.set_value(PRECISIONS[precision](weights[...], (first + 1,)))  # after layers and experts
    if precision == "bfloat16":
        model.embed.set_value(model.embed[...].astype(jnp.bfloat16))
    return nnx.split(model)[1]


PRECISIONS = {"model": None, "bfloat16": lambda kernel, axes: kernel.astype(jnp.bfloat16), "int8": Int8.of}
