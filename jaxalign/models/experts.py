"""A mixture of experts that drops no token."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.layers import ACTIVATIONS, Linear, drawn, param
from jaxalign.models.quantized import is_quantized, product


class Experts(nnx.Module):
    """y = Σₑ wₑ · MLPₑ(x) over the k experts that the router finds likeliest for a token (Shazeer et al. 2017,
    arXiv:1701.06538, eq. 1 and 3, without noise), w = softmax(router · x), in float32.

    Tokens are sorted by expert and each expert multiplies as many as it got: no capacity, nothing dropped (Gale et al.
    2022, arXiv:2211.15841).
    """

    def __init__(self, config, *, rngs: nnx.Rngs):
        D, F, E = config.width, config.mlp_dim, config.num_experts
        self.dtype, self.activation = config.jnp_dtype, config.activation
        self.chosen, self.normalize = config.experts_per_token, config.normalize_experts
        self.router = Linear((D,), (E,), ("embed", None), dtype=jnp.float32, rngs=rngs)
        self.gate = param(drawn((E, D, F), D, 1.0, rngs), "experts", "embed", "mlp")
        self.up = param(drawn((E, D, F), D, 1.0, rngs), "experts", "embed", "mlp")
        self.down = param(drawn((E, F, D), F, config.residual_scale, rngs), "experts", "mlp", "embed")
        # Of models/lora.py, where there are any.
        self.gate_adapter, self.up_adapter, self.down_adapter = nnx.data(None), nnx.data(None), nnx.data(None)

    def __call__(self, x_BTD):
        B, T, D = x_BTD.shape
        x_MD, k = x_BTD.reshape(B * T, D), self.chosen
        p_ME = jax.nn.softmax(self.router(x_MD.astype(jnp.float32)), axis=-1)
        weight_Mk, expert_Mk = jax.lax.top_k(p_ME, k)
        if self.normalize:
            weight_Mk = weight_Mk / weight_Mk.sum(-1, keepdims=True)
        order = jnp.argsort(expert_Mk.reshape(-1), stable=True)  # a token stands k times, beside others of its expert
        sizes_E = jnp.bincount(expert_Mk.reshape(-1), length=p_ME.shape[-1]).astype(jnp.int32)

        def each(x, weights, adapter):  # rows of one expert after those of another, each by its own matrix
            weights = weights.get_value()
            if is_quantized(weights):
                y = product(x, weights, self.dtype, lambda x, w_EIO: jax.lax.ragged_dot(x, w_EIO, sizes_E))
            else:
                y = jax.lax.ragged_dot(x, weights.astype(self.dtype), sizes_E)
            return y if adapter is None else adapter(x, y, weights, sizes_E)

        x = x_MD[order // k]
        x = ACTIVATIONS[self.activation](each(x, self.gate, self.gate_adapter)) * each(x, self.up, self.up_adapter)
        y = each(x, self.down, self.down_adapter)[jnp.argsort(order)].reshape(B * T, k, D)
        y_MD = jnp.einsum("mkd,mk->md", y, weight_Mk.astype(self.dtype))
        return y_MD.reshape(B, T, D)
