"""Low-rank adapters beside the frozen matrices of a transformer, as parameters of a kind of their own.

`adapt` adds them to a model's linear maps; from then on they are told from the rest by their type, `nnx.LoRAParam`, so
that training them is a filter of `nnx.split` and no other model.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import ConfigError
from jaxalign.models.layers import Linear, drawn
from jaxalign.models.quantized import BASES, plain

SCALINGS = {"lora": lambda alpha, rank: alpha / rank, "rslora": lambda alpha, rank: alpha / math.sqrt(rank)}
FORMS = ("lora", "dora")
DTYPES = ("float32", "bfloat16")
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
    targets: tuple = ("attention", "mlp")  # names of linear maps, or of the parts that hold them
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
    """The trained part of an adapted `Linear`. Leading axes that its kernel has, such as layers, it has too.

    Args:
      linear: what it adapts; its kernel's axes are shared out between A and B, with their names.
    """

    def __init__(self, linear: Linear, lora: LoraConfig, *, rngs: nnx.Rngs):
        axes, shape = linear.kernel.get_metadata()["out_sharding"], linear.kernel.shape
        stacked = 1 if axes[0] == "layers" else 0
        cut = stacked + len(linear.in_shape)
        self.scale, self.dropout, self.key = lora.scale, lora.dropout, nnx.data(None)
        a = drawn((*shape[:cut], lora.rank), math.prod(linear.in_shape), 1.0, rngs).astype(lora.dtype)
        self.a = _param(a, *axes[:cut], "rank")
        self.b = _param(jnp.zeros((*shape[:stacked], lora.rank, *shape[cut:]), lora.dtype), *axes[:stacked], "rank",
                        *axes[cut:])
        self.magnitude = nnx.data(None)
        if lora.form == "dora":
            norm = column_norms(linear.kernel[...], tuple(range(stacked, cut)))
            self.magnitude = _param(norm, *axes[:stacked], *axes[cut:])

    def __call__(self, x_MI, y_MO, kernel):
        """y_MO = x·W with the adapter's part added, for inputs and outputs as plain matrices."""
        a_IR, b_RO = self.matrices()
        if self.key is not None and self.dropout:
            kept_MI = jax.random.bernoulli(self.key, 1.0 - self.dropout, x_MI.shape)
            x_MI = jnp.where(kept_MI, x_MI / (1.0 - self.dropout), 0.0).astype(x_MI.dtype)
        y_MO = y_MO + self.scale * ((x_MI @ a_IR.astype(x_MI.dtype)) @ b_RO.astype(x_MI.dtype))
        if self.magnitude is None:
            return y_MO
        return y_MO * self._stretch(plain(kernel).reshape(a_IR.shape[0], -1), a_IR, b_RO).astype(y_MO.dtype)

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
        whole_IO = kernel_IO + self.scale * (a_IR @ b_RO)
        return self.magnitude[...].reshape(1, -1) / jax.lax.stop_gradient(column_norms(whole_IO, (0,))[None])


def column_norms(kernel, inputs):
    """‖·‖₂ over a kernel's input axes."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=inputs))


def _param(value, *axes):
    return nnx.LoRAParam(value, out_sharding=axes, eager_sharding=False)


def adapt(model, lora: LoraConfig, *, rngs: nnx.Rngs):
    """`model` with an adapter at every linear map of its layers that `lora.targets` names, itself or a part it is in.

    Raises:
      ConfigError: a target that names nothing, or experts, whose matrices are no linear maps.
    """
    linear = {path: module for path, module in nnx.iter_modules(model)
              if isinstance(module, Linear) and "layers" in path and path[-1] != "router"}
    for target in lora.targets:
        if not any(target in path for path in linear):
            names = dict.fromkeys(name for path in sorted(linear) for name in path[path.index("layers") + 1:])
            raise ConfigError(f"lora.targets has {target!r}, which adapts nothing in this model (experts cannot be "
                              f"adapted); expected some of {', '.join(names)}")
    for path in sorted(linear):
        if set(path) & set(lora.targets):
            linear[path].adapter = Adapter(linear[path], lora, rngs=rngs)
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
    for linear in _adapted(model):
        linear.kernel.set_value(_by_layer(Adapter.weight, linear))
        linear.adapter = None
    whole = nnx.to_flat_state(nnx.split(model)[1])
    return nnx.from_flat_state([(path, variable.replace(plain(variable.get_value()))) for path, variable in whole])


def unmerged(graphdef, state):
    """The reverse of `merged`: of kernels that hold their adapters' products already, the adapted model's without them.

    Raises ConfigError for DoRA, of whose kernels the length is lost.
    """
    model = nnx.merge(graphdef, state)
    for linear in _adapted(model):
        if linear.adapter.magnitude is not None:
            raise ConfigError("lora.form='dora' cannot be taken out of merged weights; keep the checkpoint of the base")
        added = _by_layer(lambda adapter, kernel: adapter.weight(jnp.zeros_like(kernel)), linear)
        linear.kernel.set_value(linear.kernel[...] - added)
    return nnx.split(model)[1]


def with_magnitudes(graphdef, state):
    """`state` with DoRA's magnitudes as the kernels have them: for kernels that came after the adapters."""
    model = nnx.merge(graphdef, state)
    for linear in _adapted(model):
        if linear.adapter.magnitude is not None:
            inputs = tuple(range(len(linear.in_shape)))
            norms = _by_layer(lambda _, kernel, inputs=inputs: column_norms(kernel, inputs), linear)
            linear.adapter.magnitude.set_value(norms)
    return nnx.split(model)[1]


def _adapted(model):
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, Linear) and module.adapter is not None]


def _by_layer(function, linear):
    """function(adapter, kernel) of every layer that the kernel holds, float32."""
    graphdef, state = nnx.split(linear.adapter)

    def of(state, kernel):
        return function(nnx.merge(graphdef, state), plain(kernel))

    stacked = linear.adapter.a.ndim - len(linear.in_shape) - 1
    return (jax.vmap(of) if stacked else of)(state, linear.kernel.get_value())
