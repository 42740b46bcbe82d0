"""GGUF files of small models, as llama.cpp's conversion writes them: names by the package, what it changes written out."""

import json

import gguf
import numpy as np
from published_models import config_of, write_model
from published_tokenizer import TEMPLATE, write_tokenizer
from sentencepiece import sentencepiece_model_pb2

from jaxalign.exchange.safetensors import Safetensors

COMMON = {"block_count": "num_hidden_layers", "embedding_length": "hidden_size", "head_count": "num_attention_heads",
          "head_count_kv": "num_key_value_heads", "feed_forward_length": "intermediate_size", "key_length": "head_dim",
          "layer_norm_rms_eps": "rms_norm_eps", "rope_freq_base": "rope_theta",
          "context_length": "max_position_embeddings"}  # fmt: skip
GEMMA = COMMON | {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
                  "sliding_window": "sliding_window"}
EXPERTS = {"expert_used_count": "num_experts_per_tok"}
NEOX = {**COMMON, "layer_norm_eps": "layer_norm_eps", "parallel_residual": "use_parallel_residual"}
# model_type → (architecture, {a number's name in the package: in config.json})
WRITTEN = {
    "llama": ("llama", COMMON), "mistral": ("llama", COMMON), "smollm3": ("smollm3", COMMON), "qwen2": ("qwen2", COMMON),
    "qwen3": ("qwen3", COMMON), "gemma": ("gemma", COMMON), "gemma2": ("gemma2", GEMMA), "gemma3_text": ("gemma3", GEMMA),
    "phi3": ("phi3", {**COMMON, "sliding_window": "sliding_window"}), "olmo2": ("olmo2", COMMON),
    "mixtral": ("llama", COMMON | EXPERTS | {"expert_count": "num_local_experts"}),
    "qwen3_moe": ("qwen3moe", COMMON | EXPERTS | {"expert_count": "num_experts",
                                                  "expert_feed_forward_length": "moe_intermediate_size"}),
    "gpt2": ("gpt2", {"block_count": "n_layer", "embedding_length": "n_embd", "head_count": "n_head",
                      "context_length": "n_positions", "layer_norm_eps": "layer_norm_epsilon",
                      "feed_forward_length": "n_inner"}),
    "gpt_neox": ("gptneox", {key: name for key, name in NEOX.items() if key not in (
        "head_count_kv", "key_length", "layer_norm_rms_eps", "rope_freq_base")}),
}  # fmt: skip


def their_name(names, name):
    stem, kind = name.rsplit(".", 1)
    return f"{names.get_name(stem)}.{kind}"


def changed(name, x, config):
    """A tensor as the conversion of its family leaves it."""
    family, part = config["model_type"], name.split(".")[-2]
    if family in ("llama", "mistral", "mixtral", "smollm3") and part in ("q_proj", "k_proj"):
        heads = config["num_attention_heads" if part == "q_proj" else "num_key_value_heads"]
        return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)  # a pair's rows side by side
    if family.startswith("gemma") and name.endswith("norm.weight"):
        return x + np.float32(1)
    if family == "gpt2" and part in ("c_attn", "c_proj", "c_fc") and name.endswith("weight"):
        return x.T
    if family == "gpt_neox" and part == "query_key_value":
        heads = config["num_attention_heads"]
        blocks = x.reshape(heads, 3, config["hidden_size"] // heads, *x.shape[1:])
        return np.concatenate([blocks[:, n].reshape(-1, *x.shape[1:]) for n in range(3)])
    return x


def write_gguf(path, folder, config, kinds=(), architecture=None, leave_out=(), rope_table=None, more=None, one_by_one=False):
    """The model that `write_model` wrote to a folder as a file.

    Args:
      kinds: published name → (type, its bytes or None).
      architecture: another than the family's, of the metadata.
      leave_out: names of numbers that are not written.
      more: (writer) → None, which adds metadata.
      one_by_one: whether each expert is a tensor.
    """
    files, (own, numbers) = Safetensors(folder), WRITTEN[config["model_type"]]
    names = gguf.get_tensor_name_map(next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == own), 64)
    writer = gguf.GGUFWriter(path, architecture or own)
    if "hidden_size" in config:
        config = {"head_dim": config["hidden_size"] // config["num_attention_heads"]} | config
    for name, key in numbers.items():
        if name not in leave_out and config.get(key) is not None:
            getattr(writer, f"add_{name}")(config[key])
    if more:
        more(writer)
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["ab" if text == "q" else text for text in sorted(ids, key=ids.get)])
    writer.add_token_types([3, 3] + [1] * (len(ids) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, x in sorted(_together(files).items()):
        kind, data = dict(kinds).get(name, (None, None))
        x = np.ascontiguousarray(changed(name, x, config))
        if one_by_one and ".experts." in name:
            for n, each in enumerate(x):
                writer.add_tensor(their_name(names, name).replace("_exps", f".{n}"), each)
        elif kind is None:
            writer.add_tensor(their_name(names, name), x)
        else:
            data = gguf.quants.quantize(x, kind) if data is None else data
            writer.add_tensor(their_name(names, name), data, raw_dtype=kind)
    if rope_table is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_table, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _together(files):
    """The tensors by name, a layer's experts as one."""
    tensors, experts = {}, {}
    for name in files.names:
        before, found, after = name.partition(".experts.")
        if not found:
            tensors[name] = files.read(name)
        else:
            n, _, after = after.partition(".")
            experts.setdefault(f"{before}.experts.{after}", {})[int(n)] = files.read(name)
    return tensors | {name: np.stack([x for _, x in sorted(each.items())]) for name, each in experts.items()}


LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def turned(writer):
    writer.add_rope_dimension_count(4)


def linear(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(16)


def longrope(writer):
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_attn_factors((1 + np.log(64 / 32) / np.log(32)) ** 0.5)
    for length, factors in (("short", [1.0, 1.5]), ("long", [4.0, 20.0])):
        writer.add_tensor(f"rope_factors_{length}.weight", np.asarray(factors, np.float32))


def windows(order):
    """Every third layer sees all, and those that do not have waves of their own."""
    def add(writer):
        linear(writer)
        writer.add_sliding_window_pattern(order)
        writer.add_float32("gemma3.rope.freq_base_swa", 50.0)
    return add


# name → (case of published_models, what differs from it as the file cannot say it, what else is written)
FILES = {
    "llama": ("llama", {}, None),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, None),
    "llama, biases": ("llama, biases, yarn", {"rope_scaling": None}, None),
    "llama, yarn": ("llama", {"rope_scaling": YARN}, yarn),
    "llama, linear": ("llama", {"rope_scaling": LINEAR}, linear),
    "mistral": ("mistral", {"sliding_window": None}, None),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}, None),
    "qwen2": ("qwen2", {}, None), "qwen3": ("qwen3", {}, None), "olmo2": ("olmo2", {}, None),
    "gemma": ("gemma", {}, None),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 6}, None),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 6, "num_hidden_layers": 7, "sliding_window_pattern": 6,
                          "rope_local_base_freq": 10_000.0}, linear),
    "gemma3, its own order": ("gemma3", {"query_pre_attn_scalar": 6, "final_logit_softcapping": 3.0}, windows(3)),
    "gemma3, layer by layer": ("gemma3", {"query_pre_attn_scalar": 6}, windows([True, True, False, True])),
    "gemma3, no windows": ("gemma3", {"query_pre_attn_scalar": 6, "sliding_window": None, "rope_local_base_freq": 1e4}, linear),
    "phi3": ("phi3", {}, turned),
    "phi3, no windows": ("phi3", {"sliding_window": 0, "partial_rotary_factor": 1.0, "tie_word_embeddings": True}, None),
    "phi3, longrope": ("phi3, longrope", {}, longrope),
    "gpt2": ("gpt2", {"n_inner": 64}, None),
    "gpt_neox": ("gpt_neox", {"rotary_emb_base": 10_000}, turned),
    "gpt_neox, in turn": ("gpt_neox, in turn", {}, None),
    "mixtral": ("mixtral", {}, None), "qwen3_moe": ("qwen3_moe", {}, None),
}  # fmt: skip


def files(folder, name, **changes):
    """(config.json, path of the file) of a model written both ways."""
    case, own, more = FILES[name]
    config = config_of(case) | {"layer_norm_epsilon": 1e-5, "layer_norm_eps": 1e-5} | own | changes
    write_model(folder / "model", config)
    write_tokenizer(folder / "model")
    return config, write_gguf(folder / "model.gguf", folder / "model", config, more=more)


def metadata_of_pieces(model, *, prefix=True, runs=False):
    """A GGUF file's metadata of a SentencePiece model of byte pairs, as llama.cpp's conversion writes them.

    Args:
      prefix: whether a space stands before a text.
      runs: whether users defined runs of spaces, as in Gemma's.
    """
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model).pieces
    ids = {p.piece: i for i, p in enumerate(pieces)}
    more = ["  ", "   ", "    "] if runs else []
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": prefix,
            "tokenizer.ggml.tokens": [p.piece for p in pieces] + more,
            "tokenizer.ggml.scores": [p.score for p in pieces] + [-1000.0] * len(more),
            "tokenizer.ggml.token_type": [3 if p.type == 2 else p.type for p in pieces] + [4] * len(more),
            "tokenizer.ggml.bos_token_id": ids["<s>"], "tokenizer.ggml.eos_token_id": ids["</s>"],
            "tokenizer.ggml.unknown_token_id": ids["<unk>"]}
