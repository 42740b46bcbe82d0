"""Small published models of every family: a config.json each, weights by formula, documents to read."""

import json
import zlib

import jax
import numpy as np
from flax import nnx

from jaxalign.exchange.folder import head_of, mapping_of
from jaxalign.exchange.importing import MODULES
from jaxalign.exchange.parameters import Source, read_parameters
from jaxalign.exchange.safetensors import Safetensors, write
from jaxalign.models.families import FAMILIES, model_config
from jaxalign.sharding import make_mesh
from jaxalign.train.checkpoint import flat_shapes

VOCABULARY = 24
DOCUMENTS = [[5, 1, 7, 3, 20, 11, 2], [9, 4, 4, 17, 23, 8, 13, 6, 1, 19, 10, 22]]

COMMON = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 500.0,
          "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [4.0, 20.0]}
GEMMA = {"head_dim": 6, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}
MOE = {"num_experts_per_tok": 2}

# name → (what differs from COMMON)
CASES = {
    "llama": {"model_type": "llama"},
    "llama, llama3 rope, tied": {"model_type": "llama", "rope_scaling": LLAMA3, "tie_word_embeddings": True},
    "llama, biases, yarn": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "rope_scaling": YARN},
    "llama, new keys": {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 300.0}, "head_dim": 6},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5},
    "mistral": {"model_type": "mistral", "sliding_window": 4},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, windows": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 6},
    "gemma": {"model_type": "gemma", **GEMMA},
    "gemma2": {"model_type": "gemma2", **GEMMA, "sliding_window": 4, "query_pre_attn_scalar": 9,
               "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "gemma3": {"model_type": "gemma3_text", **GEMMA, "sliding_window": 4, "query_pre_attn_scalar": 9,
               "num_hidden_layers": 4, "sliding_window_pattern": 3, "rope_local_base_freq": 50.0,
               "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3": {"model_type": "phi3", "sliding_window": 5, "head_dim": 8, "partial_rotary_factor": 0.5, "hidden_size": 32},
    "phi3, longrope": {"model_type": "phi3", "rope_scaling": LONGROPE, "original_max_position_embeddings": 32},
    "olmo2": {"model_type": "olmo2"},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32},
    "gpt_neox": {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 500, "hidden_act": "gelu",
                 "hidden_size": 32},
    "gpt_neox, in turn": {"model_type": "gpt_neox", "rotary_pct": 1.0, "use_parallel_residual": False},
    "mixtral": {"model_type": "mixtral", **MOE, "num_local_experts": 4},
    "qwen3_moe": {"model_type": "qwen3_moe", **MOE, "num_experts": 4, "moe_intermediate_size": 12, "head_dim": 6,
                  "norm_topk_prob": True},
}  # fmt: skip
for _family in FAMILIES:
    _case = next(case for case, changes in CASES.items() if changes["model_type"] == _family)
    CASES[f"{_family}, classifier"] = {**CASES[_case], "architectures": [FAMILIES[_family].classifier], "num_labels": 1}


def config_of(case):
    """config.json of a case, as a dict."""
    changes = CASES[case]
    base = {k: v for k, v in COMMON.items() if k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
            } if changes["model_type"] == "gpt2" else COMMON
    return {"architectures": [FAMILIES[changes["model_type"]].architecture], **base, **changes}


def mapping_and_abstract(config):
    """(`Mapping`, abstract state, graphdef, `ModelConfig`) of a config.json."""
    head = head_of(config, "config.json")
    model = model_config(config, **({"tied_embeddings": True} if head == "reward" else {}))
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: MODULES[head](model, rngs=nnx.Rngs(0))))
    shapes = {path: tuple(shape) for path, (shape, _) in flat_shapes(nnx.to_pure_dict(abstract)).items()}
    return mapping_of(config, model, head, shapes), abstract, graphdef, model


def weight(name, shape, centre=1.0):
    """The numbers of a tensor, by its name: of the size that trained ones have, so that every part tells.

    `centre` is where a norm's scale lies.
    """
    draw = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) == 1:
        return (0.3 * draw + (0.0 if name.endswith("bias") else centre)).astype(np.float32)
    if any(part in name for part in ("embed", "wte", "wpe")):
        return draw.astype(np.float32)
    return (1.5 * draw / np.sqrt(min(shape))).astype(np.float32)


def write_model(folder, config, dtype=np.float32, **options):
    """Writes config.json and safetensors of a config; returns its mapping."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping, *_, model = mapping_and_abstract(config)
    tensors = {name: (np.dtype(dtype), mapping.shape(name)) for name in mapping.published}
    centre = 0.0 if model.norm == "rms_plus_one" else 1.0
    write(folder, tensors, lambda name: weight(name, mapping.shape(name), centre).astype(dtype), **options)
    (folder / "config.json").write_text(json.dumps(config))
    return mapping


def read_model(folder, config, devices=1):
    """(graphdef, params, `Mapping`) of what `write_model` wrote."""
    mapping, abstract, graphdef, _ = mapping_and_abstract(config)
    made = [path for path in mapping.shapes if path.startswith("gate")]
    source = Source(Safetensors(folder), mapping, folder)
    mesh = make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    return graphdef, read_parameters(source, abstract, mesh, made), mapping
