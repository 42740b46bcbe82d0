"""What a transformer is: one config of plain values, whose defaults are a Llama and whose fields say what differs."""

import dataclasses
import math
from numbers import Integral, Real

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
CHOICES = {
    "remat": tuple(REMAT_POLICIES),
    "dtype": ("float32", "bfloat16"),
    "block": ("pre", "post", "sandwich", "parallel"),
    "norm": ("rms", "rms_plus_one", "layer"),
    "qk_norm_over": ("head", "width"),
    "mlp": ("gated", "plain", "experts"),
    "activation": ("silu", "gelu", "gelu_tanh"),
}
SIZES = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "unroll")  # at least 1
LAYER_KINDS = ("full", "window", "full_unrotated")
# name → how many numbers follow it, see models/rotary.py; of longrope two, and one for each pair that is rotated
ROPE_SCALINGS = {"linear": 1, "llama3": 4, "yarn": 5, "longrope": 2}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. `dtype` is what it computes in; master weights are always float32."""

    vocab_size: int
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    mlp_dim: int = 384
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False  # norm of queries and keys before they are rotated
    embed_scale: float = 1.0  # multiplies what is looked up; Gemma takes √width
    tied_embeddings: bool = True
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1  # layers per scan iteration: more is faster to run and slower to compile
    # Where the families of published models differ.
    block: str = "pre"  # norms before attention and MLP, after them, both; or attention and MLP side by side
    norm: str = "rms"  # scaled by g; by 1 + g; or a LayerNorm with a bias
    qk_norm_over: str = "head"  # each head alone, or all heads of a token as one vector
    mlp: str = "gated"  # or without a gate, or a mixture of gated experts
    activation: str = "silu"
    qkv_bias: bool = False
    out_bias: bool = False  # of attention's output
    mlp_bias: bool = False
    query_scale: float = 0.0  # multiplies queries' products with keys; 0 is head_dim^−½
    attention_softcap: float = 0.0  # c · tanh(score / c) before the softmax; 0 is none
    logit_softcap: float = 0.0  # the same of the logits
    layer_kinds: tuple = ("full",)  # of LAYER_KINDS, one a layer, begun anew where there are more layers
    window: int = 0  # tokens that a layer of kind "window" sees, the newest included
    rope_fraction: float = 1.0  # of a head's dimensions that are rotated; 0 leaves places to `learned_positions`
    rope_scaling: tuple = ()  # a name of ROPE_SCALINGS and its numbers
    window_rope_theta: float = 0.0  # of layers of kind "window", then without rope_scaling; 0 is as the others
    learned_positions: int = 0  # places that have an embedding of their own, and the longest text then
    num_experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = True  # whether the weights of a token's chosen experts are made to sum to 1

    def __post_init__(self):
        for field in ("layer_kinds", "rope_scaling"):  # lists where they come from JSON, which cannot be hashed
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name in SIZES)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if field.type is int and not (whole and value >= least):
                raise ConfigError(f"model.{field.name}={value!r} must be a whole number, {least} or more")
            if field.type is float and not (isinstance(value, Real) and math.isfinite(value)):
                raise ConfigError(f"model.{field.name}={value!r} must be a finite number")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"model.num_heads={self.num_heads} must be a multiple of "
                              f"model.num_kv_heads={self.num_kv_heads}")
        if self.rope_dim % 2:
            raise ConfigError(f"model.head_dim={self.head_dim} must be even: rotary positions turn pairs"
                              + (f"; of them model.rope_fraction={self.rope_fraction} takes {self.rope_dim}"
                                 if self.rope_fraction != 1 else ""))
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                either = f"one of {sorted(choices)}" if len(choices) > 2 else " or ".join(map(repr, choices))
                raise ConfigError(f"model.{field}={getattr(self, field)!r} must be {either}")
        if self.rope_theta <= 0 or self.window_rope_theta < 0:
            raise ConfigError(f"model.rope_theta={self.rope_theta} must be above 0, model.window_rope_theta={self.window_rope_theta} not "
                              "below")
        if not self.layer_kinds or not set(self.layer_kinds) <= set(LAYER_KINDS):
            raise ConfigError(f"model.layer_kinds={self.layer_kinds!r} must hold some of {', '.join(LAYER_KINDS)}")
        if "window" in self.kinds and self.window < 1:
            raise ConfigError(f"model.layer_kinds has layers that see a window, model.window={self.window} must say "
                              "how many tokens")
        name, *numbers = self.rope_scaling or ("",)
        if not all(isinstance(x, Real) and math.isfinite(x) for x in numbers) or name == "longrope" and min(numbers, default=0) <= 0:
            raise ConfigError(f"model.rope_scaling={self.rope_scaling!r}: its numbers must be finite, longrope's above 0")
        if name and ROPE_SCALINGS.get(name) != len(numbers) - (self.rope_dim // 2 if name == "longrope" else 0):
            raise ConfigError(f"model.rope_scaling={self.rope_scaling!r} must be () or one of "
                              f"{', '.join(f'{n} with {k} numbers' for n, k in ROPE_SCALINGS.items())}")
        if self.mlp == "experts" and not 0 < self.experts_per_token <= self.num_experts:
            raise ConfigError(f"model.mlp='experts' needs 1 ≤ model.experts_per_token={self.experts_per_token} ≤ "
                              f"model.num_experts={self.num_experts}")

    def need_places(self, tokens, what, cure):
        """Raises ConfigError where a text of so many tokens would go on beyond the last learned position, or beyond where longrope
        turns by other numbers."""
        long = self.rope_scaling[:1] == ("longrope",)
        most = int(self.rope_scaling[1]) if long else self.learned_positions
        if 0 < most < tokens:
            which = f"turns by longrope's short factors, as jaxalign does, up to {most}" if long else f"has learned {most}"
            raise ConfigError(f"{what} takes {tokens} places, the model {which}; {cure}")

    @property
    def jnp_dtype(self):
        return jnp.dtype(self.dtype)

    @property
    def residual_scale(self):
        """Shrinks what each layer adds at the start, so that the residual stream's size does not grow with depth."""
        return (2 * self.num_layers) ** -0.5

    @property
    def rope_dim(self):
        """How many of a head's dimensions are rotated."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def kinds(self):
        """The kinds of layers there are, each once."""
        return tuple(dict.fromkeys(self.layer_kinds[:self.num_layers]))

    @property
    def kind_of_layer(self):
        """For each layer, which of `kinds` it is."""
        period = [self.kinds.index(kind) for kind in self.layer_kinds[:self.num_layers]]
        return tuple(period[n % len(self.layer_kinds)] for n in range(self.num_layers))
