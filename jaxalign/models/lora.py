"""Low-rank adapters beside the frozen matrices of a transformer, as parameters of a kind of their own.

`adapt` adds them to a model's linear maps and experts; from then on they are told from the rest by their type, `nnx.LoRAParam`, so
that training them is a filter of `nnx.split` and no other model.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import ConfigError
from jaxalign.models.experts import Experts
from jaxalign.models.layers import Linear, drawn
from jaxalign.models.quantized import BASES, plain

SCALINGS = {"lora": lambda alpha, rank: alpha / rank, "rslora": lambda alpha, rank: alpha / math.sqrt(rank)}
FORMS = ("lora", "dora")
DTYPES = ("float32", "bfloat16")
STACKED = ("layers", "experts")  # axes along which there is a matrix each, and an adapter each
HEADS = ("head", "gate")  # of a `ScalarModel`, beside its backbone: what no pretrained model has is trained whole


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and how.

        lora    y = x·W + s·(x·A)·B, W frozen                                 (Hu et al. 2021, arXiv:2106.09685, eq. 3)
        dora    y = (x·W + s·(x·A)·B) ⊙ m / ‖W + s·A·B‖, norms of columns    (Liu et al. 2024, arXiv:2402.09353, eq. 5)

    s = α/r, or α/√r where `scaling="rslora"` (Kalajdzievski 2023, arXiv:2312.03732). A is drawn, B starts at zero and m
    at ‖W‖, so that an adapter changes nothing before it is trained. No gradient flows through DoRA's norm (its section
    4.3). W may be held in fewer bits (`models/quantized.py`).
    """

    rank: int = 0  # 0 is off: everything is trained
    alpha: float = 32.0
    targets: tuple = ("attention", "mlp")  # names of linear maps and experts' matrices, or of the parts that hold them
    scaling: str = "lora"
    form: str = "lora"
    dropout: float = 0.0  # of what A reads, in training
    base: str = "float32"  # how what is frozen is held, one of `quantized.BASES`
    dtype: str = "float32"  # how A and B are held, or "bfloat16", rounded by chance; the optimizer's moments are float32

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        for field, choices in (("scaling", SCALINGS), ("form", FORMS), ("base", BASES), ("dtype", DTYPES)):
            if getattr(self, field) not in choices:
                raise ConfigError(f"lora.{field}={getattr(self, field)!r} must be one of {', '.join(choices)}")
        if self.rank < 0:
            raise ConfigError(f"lora.rank={self.rank}: expected 0 (off) or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"lora.dropout={self.dropout} must be a probability below 1")
        if not self.targets:
            raise ConfigError("lora.targets is empty; name linear maps such as 'query', or parts such as 'attention'")

    @property
    def scale(self):
        """s, what the product of the two matrices is multiplied with."""
        return SCALINGS[self.scaling](self.alpha, self.rank)


class Adapter(nnx.Module):
    """The trained part of an adapted matrix. Leading axes that the matrix has, such as layers, its adapter has too.

    Args:
      kernel: the parameter that it adapts; its axes are shared out between A and B, with their names.
      inputs: how many of its axes, after the leading ones, are inputs.
    """

    def __init__(self, kernel: nnx.Param, inputs: int, lora: LoraConfig, *, rngs: nnx.Rngs):
        axes, shape = kernel.get_metadata()["out_sharding"], kernel.shape
        stacked = sum(name in STACKED for name in axes)
        cut = stacked + inputs
        self.scale, self.dropout, self.key = lora.scale, lora.dropout, nnx.data(None)
        a = drawn((*shape[:cut], lora.rank), math.prod(shape[stacked:cut]), 1.0, rngs).astype(lora.dtype)
        self.a = _param(a, *axes[:cut], "rank")
        self.b = _param(jnp.zeros((*shape[:stacked], lora.rank, *shape[cut:]), lora.dtype), *axes[:stacked], "rank",
                        *axes[cut:])
        self.magnitude = nnx.data(None)
        if lora.form == "dora":
            norm = column_norms(kernel[...], tuple(range(stacked, cut)))
            self.magnitude = _param(norm, *axes[:stacked], *axes[cut:])

    def __call__(self, x_MI, y_MO, kernel):
        """y_MO = x·W with the adapter's part added, for inputs and outputs as plain matrices."""
        a_IR, b_RO = self.matrices()
        x_MI = self.dropped(x_MI)
        y_MO = y_MO + self.scale * ((x_MI @ a_IR.astype(x_MI.dtype)) @ b_RO.astype(x_MI.dtype))
        if self.magnitude is None:
            return y_MO
        return y_MO * self._stretch(plain(kernel).reshape(a_IR.shape[0], -1), a_IR, b_RO).astype(y_MO.dtype)

    def dropped(self, x_MI):
        """What A reads."""
        if self.key is None or not self.dropout:
            return x_MI
        kept_MI = jax.random.bernoulli(self.key, 1.0 - self.dropout, x_MI.shape)
        return jnp.where(kept_MI, x_MI / (1.0 - self.dropout), 0.0).astype(x_MI.dtype)

    def matrices(self):
        """A and B of one layer as plain matrices, float32."""
        rank = self.a.shape[-1]
        a, b = (x[...].astype(jnp.float32) for x in (self.a, self.b))
        return a.reshape(-1, rank), b.reshape(rank, -1)

    def weight(self, kernel):
        """The kernel of one layer that does what this one and the adapter do together, float32."""
        a_IR, b_RO = self.matrices()
        kernel_IO = kernel.reshape(a_IR.shape[0], -1)
        made_IO = kernel_IO + self.scale * (a_IR @ b_RO)
        if self.magnitude is not None:
            made_IO = made_IO * self._stretch(kernel_IO, a_IR, b_RO)
        return made_IO.reshape(kernel.shape)

    def _stretch(self, kernel_IO, a_IR, b_RO):
        """m / ‖W + s·A·B‖ of every output, (1, O), float32."""
        return _stretched(self.magnitude[...].reshape(1, -1), kernel_IO + self.scale * (a_IR @ b_RO))


class ExpertAdapter(Adapter):
    """One adapter for each expert's matrix, of the rows that its expert got."""

    def __call__(self, x_MI, y_MO, kernel, sizes_E):
        """y_MO = x·Wₑ with the adapters' part added, rows of one expert after those of another."""
        x_MI = self.dropped(x_MI)
        a_EIR, b_ERO = (p[...].astype(x_MI.dtype) for p in (self.a, self.b))
        y_MO = y_MO + self.scale * jax.lax.ragged_dot(jax.lax.ragged_dot(x_MI, a_EIR, sizes_E), b_ERO, sizes_E)
        if self.magnitude is None:
            return y_MO
        product_EIO = jnp.einsum("eir,ero->eio", *(p[...].astype(jnp.float32) for p in (self.a, self.b)))
        stretch_EO = jax.vmap(_stretched)(self.magnitude[...][:, None], plain(kernel) + self.scale * product_EIO)[:, 0]
        return y_MO * jnp.repeat(stretch_EO, sizes_E, axis=0, total_repeat_length=len(y_MO)).astype(y_MO.dtype)


def _stretched(magnitude_1O, whole_IO):
    return magnitude_1O / jax.lax.stop_gradient(column_norms(whole_IO, (0,))[None])


def column_norms(kernel, inputs):
    """‖·‖₂ over a kernel's input axes."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=inputs))


def _param(value, *axes):
    return nnx.LoRAParam(value, out_sharding=axes, eager_sharding=False)


class Place(NamedTuple):
    """A matrix that can have an adapter: `module`'s parameter `kernel` and its `adapter`, by their names."""

    module: nnx.Module
    kernel: str
    adapter: str
    inputs: int  # axes of the matrix
    kind: type

    def get(self):
        return getattr(self.module, self.kernel), getattr(self.module, self.adapter)


def _places(model):
    """{path: `Place`} of all matrices of the layers but the routers'."""
    found = {}
    for path, module in nnx.iter_modules(model):
        if "layers" in path and isinstance(module, Linear) and path[-1] != "router":
            found[path] = Place(module, "kernel", "adapter", len(module.in_shape), Adapter)
        elif "layers" in path and isinstance(module, Experts):
            found |= {(*path, name): Place(module, name, f"{name}_adapter", 1, ExpertAdapter)
                      for name in ("gate", "up", "down")}
    return found


def adapt(model, lora: LoraConfig, *, rngs: nnx.Rngs):
    """`model` with an adapter at every matrix of its layers that `lora.targets` names, itself or a part it is in.

    Raises:
      ConfigError: a target that names nothing.
    """
    places = _places(model)
    for target in lora.targets:
        if not any(target in path for path in places):
            names = dict.fromkeys(name for path in sorted(places) for name in path[path.index("layers") + 1:])
            raise ConfigError(f"lora.targets has {target!r}, which adapts nothing in this model; expected some of "
                              f"{', '.join(names)}")
    for path in sorted(places):
        if set(path) & set(lora.targets):
            place = places[path]
            setattr(place.module, place.adapter, place.kind(place.get()[0], place.inputs, lora, rngs=rngs))
    return model


def with_dropout(block, key):
    """One layer with a key for each of its adapters to drop by; as it is where `key` is None."""
    if key is not None:
        adapters = [module for _, module in nnx.iter_modules(block) if isinstance(module, Adapter)]
        for n, adapter in enumerate(adapters):
            adapter.key = jax.random.fold_in(key, n)
    return block


def is_trained(path, variable):
    """What is trained of an adapted model: adapters, and heads. A filter of `nnx.split` and `nnx.split_state`."""
    return isinstance(variable, nnx.LoRAParam) or path[0] in HEADS


def has_adapters(state):
    """Whether a state is that of an adapted model."""
    return bool(jax.tree.leaves(nnx.filter_state(state, nnx.LoRAParam)))


def under(name, state):
    """`state` as that of a module's part of this name."""
    return nnx.from_flat_state([((name, *path), variable) for path, variable in nnx.to_flat_state(state)])


def merged(graphdef, state):
    """The state, float32, of the plain model that computes what the adapted one does: every adapter multiplied into its
    kernel."""
    model = nnx.merge(graphdef, state)
    for place in _adapted(model):
        place.get()[0].set_value(_each(Adapter.weight, place))
        setattr(place.module, place.adapter, None)
    whole = nnx.to_flat_state(nnx.split(model)[1])
    return nnx.from_flat_state([(path, variable.replace(plain(variable.get_value()))) for path, variable in whole])


def unmerged(graphdef, state):
    """The reverse of `merged`: of kernels that hold their adapters' products already, the adapted model's without them.

    Raises ConfigError for DoRA, of whose kernels the length is lost.
    """
    model = nnx.merge(graphdef, state)
    for place in _adapted(model):
        kernel, adapter = place.get()
        if adapter.magnitude is not None:
            raise ConfigError("lora.form='dora' cannot be taken out of merged weights; keep the checkpoint of the base")
        added = _each(lambda adapter, kernel: adapter.weight(jnp.zeros_like(kernel)), place)
        kernel.set_value(kernel[...] - added)
    return nnx.split(model)[1]


def with_magnitudes(graphdef, state):
    """`state` with DoRA's magnitudes as the kernels have them: for kernels that came after the adapters."""
    model = nnx.merge(graphdef, state)
    for place in _adapted(model):
        if (adapter := place.get()[1]).magnitude is not None:
            inputs = tuple(range(place.inputs))
            adapter.magnitude.set_value(_each(lambda _, kernel, inputs=inputs: column_norms(kernel, inputs), place))
    return nnx.split(model)[1]


def _adapted(model):
    return [place for place in _places(model).values() if place.get()[1] is not None]


def _each(function, place):
    """function(adapter, kernel) of every layer and expert that the kernel holds, float32."""
    kernel, adapter = place.get()
    graphdef, state = nnx.split(adapter)

    def of(state, kernel):
        return function(nnx.merge(graphdef, state), plain(kernel))

    for _ in range(adapter.a.ndim - place.inputs - 1):
        of = jax.vmap(of)
    return of(state, kernel.get_value())
