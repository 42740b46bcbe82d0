"""Which published tensor holds which of our parameters, for each family.

A family's list is of `Tensor`s: `{layer}` and `{expert}` in a name run over all of them, and index the leading axes of
our stacked parameters.
"""

from typing import NamedTuple


class Tensor(NamedTuple):
    name: str
    parts: tuple
    layout: str


def _norm(name, ours, bias=False):
    tensors = [Tensor(f"{name}.weight", (f"{ours}/scale",), "same")]
    return tensors + [Tensor(f"{name}.bias", (f"{ours}/bias",), "same")] * bias


def _linear(name, *ours, bias=False, layouts=("linear", "vector")):
    tensors = [Tensor(f"{name}.weight", tuple(f"{part}/kernel" for part in ours), layouts[0])]
    return tensors + [Tensor(f"{name}.bias", tuple(f"{part}/bias" for part in ours), layouts[1])] * bias


def _ends(config, embed, norm, unembed):
    bias = config.norm == "layer"
    tensors = [Tensor(f"{embed}.weight", ("embed",), "same"), *_norm(norm, "final_norm", bias)]
    return tensors + ([] if config.tied_embeddings else _linear(unembed, "unembed"))


QKV = tuple(f"layers/attention/{part}" for part in ("query", "key", "value"))
OUT = "layers/attention/out"


def llama(config):
    """The names of Llama and of most families since, which add norms and biases or leave them out."""
    at, mlp = "model.layers.{layer}", "model.layers.{layer}.mlp"
    norms = {
        "pre": {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
        "post": {"post_attention_layernorm": "attention_post_norm", "post_feedforward_layernorm": "mlp_post_norm"},
        "sandwich": {"input_layernorm": "attention_norm", "post_attention_layernorm": "attention_post_norm",
                     "pre_feedforward_layernorm": "mlp_norm", "post_feedforward_layernorm": "mlp_post_norm"},
    }[config.block]  # fmt: skip
    tensors = _ends(config, "model.embed_tokens", "model.norm", "lm_head")
    for name, ours in norms.items():
        tensors += _norm(f"{at}.{name}", f"layers/{ours}")
    for name, ours in zip("qkv", QKV):
        tensors += _linear(f"{at}.self_attn.{name}_proj", ours, bias=config.qkv_bias)
    tensors += _linear(f"{at}.self_attn.o_proj", OUT, bias=config.out_bias)
    if config.qk_norm:
        tensors += _norm(f"{at}.self_attn.q_norm", "layers/attention/query_norm")
        tensors += _norm(f"{at}.self_attn.k_norm", "layers/attention/key_norm")
    if config.mlp == "gated":
        for name in ("gate", "up", "down"):
            tensors += _linear(f"{mlp}.{name}_proj", f"layers/mlp/{name}", bias=config.mlp_bias)
    return tensors


def qwen3_moe(config):
    mlp = "model.layers.{layer}.mlp"
    experts = [Tensor(f"{mlp}.experts.{{expert}}.{part}_proj.weight", (f"layers/mlp/{part}",), "linear")
               for part in ("gate", "up", "down")]
    return llama(config) + _linear(f"{mlp}.gate", "layers/mlp/router") + experts


def mixtral(config):
    mlp = "model.layers.{layer}.block_sparse_moe"
    experts = [Tensor(f"{mlp}.experts.{{expert}}.{name}.weight", (f"layers/mlp/{part}",), "linear")
               for name, part in (("w1", "gate"), ("w3", "up"), ("w2", "down"))]
    return llama(config) + _linear(f"{mlp}.gate", "layers/mlp/router") + experts


def phi3(config):
    """Llama with queries, keys and values in one tensor, and gate and up in one."""
    at = "model.layers.{layer}"
    fused = (".q_proj.", ".k_proj.", ".v_proj.", ".gate_proj.", ".up_proj.")
    return [t for t in llama(config) if not any(part in t.name for part in fused)] + [
        *_linear(f"{at}.self_attn.qkv_proj", *QKV),
        *_linear(f"{at}.mlp.gate_up_proj", "layers/mlp/gate", "layers/mlp/up")]


def gpt2(config):
    at, columns = "transformer.h.{layer}", {"bias": True, "layouts": ("columns", "vector")}
    return [
        *_ends(config, "transformer.wte", "transformer.ln_f", "lm_head"),
        Tensor("transformer.wpe.weight", ("positions",), "same"),
        *_norm(f"{at}.ln_1", "layers/attention_norm", True), *_norm(f"{at}.ln_2", "layers/mlp_norm", True),
        *_linear(f"{at}.attn.c_attn", *QKV, **columns), *_linear(f"{at}.attn.c_proj", OUT, **columns),
        *_linear(f"{at}.mlp.c_fc", "layers/mlp/up", **columns),
        *_linear(f"{at}.mlp.c_proj", "layers/mlp/down", **columns),
    ]


def gpt_neox(config):
    at = "gpt_neox.layers.{layer}"
    return [
        *_ends(config, "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"),
        *_norm(f"{at}.input_layernorm", "layers/attention_norm", True),
        *_norm(f"{at}.post_attention_layernorm", "layers/mlp_norm", True),
        *_linear(f"{at}.attention.query_key_value", *QKV, bias=config.qkv_bias, layouts=("by_head", "by_head")),
        *_linear(f"{at}.attention.dense", OUT, bias=config.out_bias),
        *_linear(f"{at}.mlp.dense_h_to_4h", "layers/mlp/up", bias=True),
        *_linear(f"{at}.mlp.dense_4h_to_h", "layers/mlp/down", bias=True),
    ]
