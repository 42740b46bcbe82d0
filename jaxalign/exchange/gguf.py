"""GGUF files, as llama.cpp reads them: weights dequantised as they are read, config and tokenizer from the metadata."""

import json

import numpy as np

from jaxalign.data.published import PublishedTokenizer, pack_files
from jaxalign.data.vocabularies import CUTS, byte_level_json
from jaxalign.errors import CheckpointError, ConfigError, get_extra
from jaxalign.models.families.configs import scaling
from jaxalign.models.rotary import SCALINGS

# general.architecture → (model_type, whether rows of queries and keys are stored for pairs that stand side by side).
FAMILIES = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False)}
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
ROPE_TABLE = "rope_freqs.weight"  # of Llama 3.1 and later: what each wave is stretched by
LLAMA3 = [{"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192} for factor in (8.0, 32.0)]  # of 3.1 and 3.3; of 3.2
CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # of tokenizer.ggml.token_type
BEGINS = ("llama-bpe",)  # of tokenizer.ggml.pre: those whose texts begin with BOS where the file does not say


def read_gguf(path):
    """(config, generation config, tokenizer, tensors) of a file, as `importing.Published` holds them.

    Raises:
      CheckpointError: no GGUF file, one cut short, or a tensor of a type that cannot be read. ConfigError: an
        architecture or a tokenizer that is not known.
    """
    try:
        import gguf
    except ImportError:
        raise ConfigError(f"GGUF files need the package gguf; {get_extra('hf')}") from None
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever the package meets in bytes that are something else
        raise CheckpointError(f"{path}: cannot be read as GGUF ({type(error).__name__}: {str(error)[:200]}); it is "
                              "damaged or no GGUF file: copy or download it again") from None
    architecture = fields.get("general.architecture")
    if architecture not in FAMILIES:
        raise ConfigError(f"{path}: general.architecture={architecture!r}; expected one of {', '.join(FAMILIES)}")
    _check_types(path, reader.tensors)
    try:
        tensors = Tensors(path, reader, architecture, fields)
        config = _config(fields, architecture, tensors)
        tokenizer = _tokenizer(fields)
    except KeyError as error:
        raise ConfigError(f"{path}: its metadata lack {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise ConfigError(f"{path}: a value of its metadata cannot be used ({error})") from None
    eos = fields.get("tokenizer.ggml.eos_token_id")
    return config, {} if eos is None else {"eos_token_id": int(eos)}, tokenizer, tensors


def _check_types(path, tensors):
    """Refuses a tensor that cannot be dequantised before any is."""
    from gguf import GGMLQuantizationType

    known = {kind for kind in {tensor.tensor_type for tensor in tensors} if _is_readable(kind)}
    for tensor in tensors:
        if tensor.tensor_type not in known:
            names = ", ".join(kind.name for kind in GGMLQuantizationType if _is_readable(kind))
            raise CheckpointError(f"{path}: {tensor.name} is of type {tensor.tensor_type.name}; expected one of {names}; "
                                  "quantise the model to one of these, or import its safetensors")


def _is_readable(kind):
    """Whether the package dequantises a type, which it says only once asked to."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class Tensors:
    """A file's tensors under transformers' names, float32."""

    def __init__(self, path, reader, architecture, fields):
        self._paired = FAMILIES[architecture][1]
        heads = int(fields.get(f"{architecture}.attention.head_count", 0))
        self._heads = {"self_attn.q_proj": heads,
                       "self_attn.k_proj": int(fields.get(f"{architecture}.attention.head_count_kv", heads))}
        self._tensors = {_name(t.name): t for t in reader.tensors if t.name != ROPE_TABLE}
        self.rope_table = next((t for t in reader.tensors if t.name == ROPE_TABLE), None)
        self.names = set(self._tensors)

    def shape(self, name):
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def dtype(self, name):
        return np.dtype(np.float32)

    def read(self, name):
        """One tensor, dequantised."""
        x = _dequantised(self._tensors[name]).reshape(self.shape(name))
        heads = next((n for part, n in self._heads.items() if f".{part}." in name), 0)
        if self._paired and heads:
            # Pairs that are rotated together: here row after row, with us half a head apart.
            x = x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        return x


def _dequantised(tensor):
    from gguf.quants import dequantize

    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)


def _name(name):
    """A tensor's name as transformers has it; its own where there is none, for the error that follows."""
    layer, parts = "", name.split(".")
    if parts[0] == "blk" and len(parts) == 4:
        layer, parts = f"model.layers.{parts[1]}.", parts[2:]
    return f"{layer}{NAMES[parts[0]]}.{parts[1]}" if len(parts) == 2 and parts[0] in NAMES else name


def _config(fields, architecture, tensors):
    def of(key, default=None):
        value = fields.get(f"{architecture}.{key}", default)
        if value is None:
            raise KeyError(f"{architecture}.{key}")
        return value

    family, _ = FAMILIES[architecture]
    heads, width = int(of("attention.head_count")), int(of("embedding_length"))
    if of("rope.scaling.type", "none") != "none":
        raise ConfigError(f"rotary positions stretched by {of('rope.scaling.type')!r} cannot be read from GGUF yet; import "
                          "the model's safetensors")
    config = {
        "model_type": family, "vocab_size": tensors.shape("model.embed_tokens.weight")[0], "hidden_size": width,
        "num_hidden_layers": int(of("block_count")), "num_attention_heads": heads,
        "num_key_value_heads": int(of("attention.head_count_kv", heads)),
        "head_dim": int(of("attention.key_length", width // heads)),
        "intermediate_size": int(of("feed_forward_length")),
        "rms_norm_eps": float(np.float32(of("attention.layer_norm_rms_epsilon"))).__round__(12),
        "rope_theta": float(of("rope.freq_base", 10000.0)), "max_position_embeddings": int(of("context_length", 2048)),
        "tie_word_embeddings": "lm_head.weight" not in tensors.names, "hidden_act": "silu",
    }  # fmt: skip
    if tensors.rope_table is not None:
        config["rope_scaling"] = _rope_scaling(tensors.rope_table, config["rope_theta"], config["head_dim"])
    return config


def _rope_scaling(table, theta, size):
    """The rope_scaling of config.json that stretches waves by a file's table, which holds nothing but the outcome."""
    wanted = _dequantised(table).reshape(-1)
    frequency = theta ** (-np.arange(0, size, 2, dtype=np.float32) / size)
    for known in LLAMA3:
        kind, *numbers = scaling(known, {})
        factors = frequency / np.asarray(SCALINGS[kind](frequency, theta, *numbers)[0])
        if wanted.shape == factors.shape and np.allclose(wanted, factors, rtol=1e-3, atol=0.0):
            return dict(known)
    raise ConfigError(f"{ROPE_TABLE} stretches {wanted.size} waves by up to {wanted.max():g}; expected the {frequency.size} "
                      "factors of Llama 3.1, 3.2 or 3.3; import the model's safetensors")


def _tokenizer(fields):
    texts, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(texts, kinds) if kind == CONTROL]
    config = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        i = fields.get(f"tokenizer.ggml.{key}_token_id")
        if i is not None:
            config[f"{name}_token"] = texts[int(i)]
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    kind = fields["tokenizer.ggml.model"]
    if kind == "gpt2":
        cut = fields.get("tokenizer.ggml.pre", "gpt-2")
        if cut not in CUTS:
            raise ConfigError(f"tokenizer.ggml.pre={cut!r}; expected one of {', '.join(CUTS)}")
        merges = [pair.split(" ") for pair in fields["tokenizer.ggml.merges"]]
        whole = [text for text, kind in zip(texts, kinds) if kind == USER_DEFINED]
        first = config.get("bos_token") if fields.get("tokenizer.ggml.add_bos_token", cut in BEGINS) else None
        if first is not None and first not in special:
            special.append(first)
        files = {"tokenizer.json": byte_level_json({t: i for i, t in enumerate(texts)}, merges, special, cut, whole=whole,
                                                   first=first)}
    elif kind == "llama":
        prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
        files = {"tokenizer.model": sentencepiece_model(texts, fields["tokenizer.ggml.scores"], kinds, prefix)}
        config["add_bos_token"] = bool(fields.get("tokenizer.ggml.add_bos_token", True))
    else:
        raise ConfigError(f"tokenizer.ggml.model={kind!r}; expected gpt2 or llama")
    files["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    return PublishedTokenizer(pack_files(files))


def sentencepiece_model(texts, scores, kinds, prefix=True):
    """The bytes of a SentencePiece model of byte pairs: the best score is merged first. `prefix`: a text begins with a space."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = BYTE in kinds
    proto.trainer_spec.vocab_size = len(texts)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    for text, score, kind in zip(texts, scores, kinds):
        proto.pieces.add(piece=text, score=float(score), type=int(kind))
    return proto.SerializeToString(deterministic=True)
