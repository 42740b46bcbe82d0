"""config.json → the fields of a `ModelConfig`, for each family of published models."""

import math

from jaxalign.errors import ConfigError

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
               "gelu_pytorch_tanh": "gelu_tanh"}


def refuse(name, value, known):
    raise ConfigError(f"config.json: {name}={value!r} is not something jaxalign can run; it knows {known}")


def activation(c, key="hidden_act", default="silu"):
    name = c.get(key) or default
    if name not in ACTIVATIONS:
        refuse(key, name, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def rope(c, theta=10_000.0, fraction=None):
    """Rotary positions, as written by transformers before version 5 (`rope_theta`, `rope_scaling`) and since
    (`rope_parameters`); `fraction` is the usual one of a family that may turn a part of each head alone."""
    p = c.get("rope_parameters") or c.get("rope_scaling") or {}
    theta = p.get("rope_theta") or c.get("rope_theta") or theta
    given = p.get("partial_rotary_factor") or c.get("partial_rotary_factor")
    if fraction is None and given not in (None, 1):
        refuse("partial_rotary_factor", given, "whole heads in this family")
    fraction = given or fraction or 1.0
    return {"rope_theta": float(theta), "rope_fraction": float(fraction), "rope_scaling": scaling(p, c)}


def scaling(p, c):
    """The `rope_scaling` of our config from the published one's parameters."""
    kind = p.get("rope_type", p.get("type", "default"))
    original = p.get("original_max_position_embeddings") or c.get("max_position_embeddings")
    if kind == "default":
        return ()
    if kind == "linear":
        return "linear", float(p["factor"])
    if kind == "llama3":
        return "llama3", float(p["factor"]), float(p["low_freq_factor"]), float(p["high_freq_factor"]), float(original)
    if kind == "yarn" and not p.get("mscale_all_dim") and p.get("truncate", True):
        size = p.get("attention_factor") or 0.1 * math.log(p["factor"]) + 1.0
        return "yarn", float(p["factor"]), float(p.get("beta_fast") or 32), float(p.get("beta_slow") or 1), float(
            original), float(size)
    if kind in ("longrope", "su"):  # the latter in the first files of Phi-3
        original = c.get("original_max_position_embeddings") or p["original_max_position_embeddings"]
        factor = p.get("factor") or c["max_position_embeddings"] / original
        size = p.get("attention_factor") or math.sqrt(1.0 + max(math.log(factor), 0.0) / math.log(original))
        return "longrope", float(original), float(size), *map(float, p["short_factor"])
    refuse("rope_type", kind, "default, linear, llama3, longrope, yarn (without mscale_all_dim)")


def windows(c, fields, kinds=None):
    """Adds which layers see a window, from `layer_types` where it is written, else from `kinds`."""
    names = {"full_attention": "full", "sliding_attention": "window"}
    types = c.get("layer_types")
    if types:
        if unknown := sorted(set(types) - set(names)):
            refuse("layer_types", unknown[0], ", ".join(names))
        kinds = [names[t] for t in types]
        if len(kinds) != c["num_hidden_layers"]:
            refuse("layer_types", f"{len(kinds)} entries", f"one for each of num_hidden_layers={c['num_hidden_layers']}")
    if not kinds or not c.get("sliding_window") or "window" not in kinds:
        return fields
    if len(set(kinds)) == 1:
        kinds = kinds[:1]
    return fields | {"layer_kinds": tuple(kinds), "window": int(c["sliding_window"])}


def llama(c, fraction=None):
    heads = c["num_attention_heads"]
    bias = bool(c.get("attention_bias", False))
    return {
        "vocab_size": c["vocab_size"], "width": c["hidden_size"], "num_layers": c["num_hidden_layers"],
        "num_heads": heads, "num_kv_heads": c.get("num_key_value_heads") or heads,
        "head_dim": c.get("head_dim") or c["hidden_size"] // heads, "mlp_dim": c["intermediate_size"],
        "norm_eps": c.get("rms_norm_eps", 1e-6), "tied_embeddings": bool(c.get("tie_word_embeddings", False)),
        "activation": activation(c), "qkv_bias": bias, "out_bias": bias, "mlp_bias": bool(c.get("mlp_bias", False)),
    } | rope(c, fraction=fraction)  # fmt: skip


def smollm3(c):
    """Every fourth layer leaves its queries and keys unrotated (Kazemnejad et al. 2023, arXiv:2305.19466)."""
    if c.get("use_sliding_window"):
        refuse("use_sliding_window", True, "false")
    layers, every = c["num_hidden_layers"], c.get("no_rope_layer_interval", 4)
    rotated = c.get("no_rope_layers") or [int((n + 1) % every != 0) for n in range(layers)]
    kinds = tuple("full" if r else "full_unrotated" for r in rotated)
    return llama({"tie_word_embeddings": True, "num_key_value_heads": 4} | c) | rope(c, 2e6) | {"layer_kinds": kinds}


def mistral(c):
    return windows(c, llama(c), ["window"])


def qwen2(c):
    """Biases of queries, keys and values; the first layers may see all, the others a window."""
    c = c if c.get("use_sliding_window") else c | {"sliding_window": None}
    first = c.get("max_window_layers", 28)
    kinds = ["window" if n >= first else "full" for n in range(c["num_hidden_layers"])]
    return windows(c, llama(c) | {"qkv_bias": True, "out_bias": False}, kinds)


def qwen3(c):
    bias = bool(c.get("attention_bias", False))
    return qwen2({"head_dim": 128} | c) | {"qk_norm": True, "qkv_bias": bias, "out_bias": bias}


def qwen3_moe(c):
    if c.get("mlp_only_layers") or c.get("decoder_sparse_step", 1) != 1:
        refuse("mlp_only_layers or decoder_sparse_step", c.get("mlp_only_layers") or c["decoder_sparse_step"],
               "experts in every layer")
    c = c | {"max_window_layers": 0}  # with a window, all layers have it
    return qwen3({"head_dim": c["hidden_size"] // c["num_attention_heads"]} | c) | {
        "mlp": "experts", "mlp_dim": c["moe_intermediate_size"], "num_experts": c["num_experts"],
        "experts_per_token": c["num_experts_per_tok"], "normalize_experts": bool(c.get("norm_topk_prob", False))}


def mixtral(c):
    fields = llama(c) | rope(c, 1e6) | {"mlp": "experts", "num_experts": c["num_local_experts"],
                                        "experts_per_token": c["num_experts_per_tok"]}
    return windows(c, fields, ["window"])


def gemma(c):
    c = {"tie_word_embeddings": True, "head_dim": 256} | c
    act = activation(c, "hidden_activation" if c.get("hidden_activation") else "hidden_act", "gelu_pytorch_tanh")
    return llama(c | {"hidden_act": None}) | {"norm": "rms_plus_one", "activation": act,
                                              "embed_scale": c["hidden_size"] ** 0.5}


def gemma2(c):
    kinds = ["window" if n % 2 == 0 else "full" for n in range(c["num_hidden_layers"])]
    c = c | {"hidden_activation": c.get("hidden_activation") or "gelu_pytorch_tanh"}  # the first Gemma's name for it is not read
    fields = gemma(c) | {"block": "sandwich", "query_scale": c.get("query_pre_attn_scalar", 256) ** -0.5,
                         "attention_softcap": c.get("attn_logit_softcapping", 50.0) or 0.0,
                         "logit_softcap": c.get("final_logit_softcapping", 30.0) or 0.0}
    return windows({"sliding_window": 4096} | c, fields, kinds)


def gemma3(c):
    """Five layers that see a window, then one that sees all and turns slower. What the larger ones leave out is as here."""
    c = {"vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
         "num_key_value_heads": 4, "sliding_window": 4096} | c
    if c.get("use_bidirectional_attention"):
        refuse("use_bidirectional_attention", True, "false")
    every = c.get("sliding_window_pattern", c.get("_sliding_window_pattern", 6))
    kinds = ["full" if (n + 1) % every == 0 else "window" for n in range(c["num_hidden_layers"])]
    c = {"attn_logit_softcapping": None, "final_logit_softcapping": None} | c
    places = c.get("rope_parameters") or {}
    if "full_attention" in places:
        whole, near = places["full_attention"], places["sliding_attention"]
        if near.get("rope_type", "default") != "default":
            refuse("rope_parameters of sliding_attention", near["rope_type"], "default")
        local = near.get("rope_theta", 1e4)
    else:
        whole, local = places or c.get("rope_scaling") or {}, c.get("rope_local_base_freq", 1e4)
    whole = {"rope_theta": c.get("rope_theta", 1e6)} | whole
    fields = gemma2(c | {"rope_parameters": whole, "layer_types": c.get("layer_types") or [
        {"full": "full_attention", "window": "sliding_attention"}[kind] for kind in kinds]})
    return fields | {"qk_norm": True, "window_rope_theta": float(local)}


def phi3(c):
    return windows(c, llama(c, fraction=1.0), ["window"])


def olmo2(c):
    return llama({"rms_norm_eps": 1e-5} | c) | {"block": "post", "qk_norm": True, "qk_norm_over": "width"}


def gpt2(c):
    for key, plain in (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True),
                       ("add_cross_attention", False)):
        if c.get(key, plain) != plain:
            refuse(key, c[key], plain)
    width, heads = c["n_embd"], c["n_head"]
    return {
        "vocab_size": c["vocab_size"], "width": width, "num_layers": c["n_layer"], "num_heads": heads,
        "num_kv_heads": heads, "head_dim": width // heads, "mlp_dim": c.get("n_inner") or 4 * width,
        "norm_eps": c.get("layer_norm_epsilon", 1e-5), "tied_embeddings": bool(c.get("tie_word_embeddings", True)),
        "activation": activation(c, "activation_function", "gelu_new"), "learned_positions": c["n_positions"],
        "rope_fraction": 0.0, "norm": "layer", "mlp": "plain", "qkv_bias": True, "out_bias": True, "mlp_bias": True,
    }  # fmt: skip


def gpt_neox(c):
    # Under names of its own; what other families call rope_theta is not looked at.
    c = c | {"rope_theta": c.get("rotary_emb_base"), "partial_rotary_factor": c.get("rotary_pct")}
    fields = llama({"hidden_act": "gelu"} | c | {"num_key_value_heads": None}, fraction=0.25)
    bias = bool(c.get("attention_bias", True))
    return fields | {
        "norm": "layer", "norm_eps": c.get("layer_norm_eps", 1e-5), "mlp": "plain", "qkv_bias": bias, "out_bias": bias,
        "mlp_bias": True, "block": "parallel" if c.get("use_parallel_residual", True) else "pre"}
