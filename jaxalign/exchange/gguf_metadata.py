"""What a GGUF file's metadata say, as the files of a published folder would: config.json, generation_config.json, tokenizer.

What llama.cpp knows of an architecture without its standing in the file, as which layers of Gemma 3 see a window, is here.
"""

import json

import numpy as np

from jaxalign.data.published import PublishedTokenizer, pack_files
from jaxalign.data.vocabularies import BEGINS, CUTS, byte_level_json
from jaxalign.errors import ConfigError
from jaxalign.exchange.tokenizer_json import sentencepiece_json
from jaxalign.models.families.configs import scaling
from jaxalign.models.rotary import SCALINGS

LONG = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}  # of longrope, for each wave
ROPE_TABLE = "rope_freqs.weight"  # of Llama 3.1 and later: what each wave is stretched by
LLAMA3 = [{"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192} for factor in (8.0, 32.0)]  # of 3.1 and 3.3; of 3.2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # of tokenizer.ggml.token_type
# Special whatever a file calls them, as in llama.cpp.
ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
CUT_OF = {"gpt2": "gpt-2", "gptneox": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2", "qwen3moe": "qwen2"}  # where a file does not say
TAKES_NO_SPACE = ("<unk>", "<s>", "<|endoftext|>")  # of Phi-3's special tokens; the others take white space behind them along
GEMMA_27B = (46, 62)  # layers of Gemma 2 and 3 whose queries are scaled by width / heads in place of a head's size


class Fields:
    """A file's metadata.

    Attributes: `all` (name → value); `architecture`; `tensors` (name → the package's tensor); `read` (a tensor of it → its
    numbers).
    """

    def __init__(self, values, architecture, tensors, read):
        self.all, self.architecture, self.tensors, self.read = values, architecture, tensors, read

    def __call__(self, key, default=None):
        """A value under the architecture's name. Raises KeyError where there is neither it nor a default."""
        value = self.all.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise KeyError(f"{self.architecture}.{key}")
        return value

    def count(self, key, default=None, most=2**31):
        """A whole number, 1 or more."""
        value = self(key, default)
        if isinstance(value, (bool, str, list)) or value != int(value) or not 1 <= value <= most:
            raise ConfigError(f"{self.architecture}.{key}={value!r} must be a whole number from 1 to {most}")
        return int(value)

    def token(self, name):
        """Of tokenizer.ggml.{name}_token_id; None where there is none, or no token of that number."""
        i = self.all.get(f"tokenizer.ggml.{name}_token_id")
        return i if type(i) is int and 0 <= i < len(self.all["tokenizer.ggml.tokens"]) else None

    def epsilon(self, key):
        return float(np.float32(self(f"attention.{key}"))).__round__(12)


def common(of):
    """What config.json says in most families, whatever the architecture."""
    if int(of.all.get("split.count", 1)) > 1:
        raise ConfigError(f"one of {of.all['split.count']} parts of a model; join them with llama-gguf-split --merge")
    heads, width = of.count("attention.head_count"), of.count("embedding_length")
    size = of.count("attention.key_length", width // heads)
    config = {
        "vocab_size": int(of.tensors["token_embd.weight"].shape[-1]), "hidden_size": width,
        "num_hidden_layers": of.count("block_count", most=len(of.tensors)), "num_attention_heads": heads,
        "num_key_value_heads": of.count("attention.head_count_kv", heads), "head_dim": size,
        "intermediate_size": of.count("feed_forward_length"), "rope_theta": float(of("rope.freq_base", 10000.0)),
        "max_position_embeddings": of.count("context_length", 2048), "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in of.tensors,
    }  # fmt: skip
    turned = of.count("rope.dimension_count", size)
    if turned != size:
        config["partial_rotary_factor"] = turned / size
    stretched = _rope_scaling(of, config)
    return config | ({"rope_scaling": stretched} if stretched else {})


def _rope_scaling(of, config):
    """The rope_scaling of config.json; None where positions are not stretched."""
    factor = float(of("rope.scaling.factor", of("rope.scale_linear", 1.0)))
    kind = of("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
    if ROPE_TABLE in of.tensors:
        return _of_table(of.read(of.tensors[ROPE_TABLE]).reshape(-1), config["rope_theta"], config["head_dim"])
    if LONG["short_factor"] in of.tensors:
        factors = {name: of.read(of.tensors[tensor]).reshape(-1).tolist() for name, tensor in LONG.items()}
        return {"type": "longrope", **factors}
    if kind == "none":
        return None
    # llama.cpp multiplies yarn's own size by what stands there, other programs write the product.
    if kind not in ("linear", "yarn") or of("rope.scaling.attn_factor", of("rope.scaling.yarn_attn_factor", 1.0)) != 1.0 or of(
            "rope.scaling.yarn_ext_factor", 1.0) != 1.0 or of("rope.scaling.yarn_log_multiplier", 0.0):
        raise ConfigError(f"rotary positions stretched by {kind!r} with its own factors of attention; expected linear or yarn "
                          "with the usual ones; import the model's safetensors")
    stretched = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        stretched |= {"original_max_position_embeddings": int(of("rope.scaling.original_context_length")),
                      "beta_fast": float(of("rope.scaling.yarn_beta_fast", 32.0)),
                      "beta_slow": float(of("rope.scaling.yarn_beta_slow", 1.0))}
    return stretched


def _of_table(wanted, theta, size):
    """The rope_scaling that stretches waves by a file's table, which holds nothing but the outcome."""
    frequency = theta ** (-np.arange(0, size, 2, dtype=np.float32) / size)
    for known in LLAMA3:
        kind, *numbers = scaling(known, {})
        factors = frequency / np.asarray(SCALINGS[kind](frequency, theta, *numbers)[0])
        if wanted.shape == factors.shape and np.allclose(wanted, factors, rtol=1e-3, atol=0.0):
            return dict(known)
    raise ConfigError(f"{ROPE_TABLE} stretches {wanted.size} waves by up to {wanted.max():g}; expected the {frequency.size} "
                      "factors of Llama 3.1, 3.2 or 3.3; import the model's safetensors")


def plain(family):
    """Of families that say nothing more than the common keys."""
    def config(of, c):
        return {"model_type": family, **c, "rms_norm_eps": of.epsilon("layer_norm_rms_epsilon"),
                "attention_bias": "blk.0.attn_output.bias" in of.tensors, "mlp_bias": "blk.0.ffn_up.bias" in of.tensors}

    return config


def llama(of, c):
    """A Mistral is written as a Llama, and so is a Mixtral."""
    if not of("expert_count", 0):
        return plain("llama")(of, c)
    return plain("mixtral")(of, c) | {"num_local_experts": of.count("expert_count"), "num_experts_per_tok": of.count("expert_used_count"),
                                      "sliding_window": None}


def qwen3_moe(of, c):
    """The chosen experts' weights sum to one, which the file does not say."""
    return plain("qwen3_moe")(of, c) | {
        "num_experts": of.count("expert_count"), "num_experts_per_tok": of.count("expert_used_count"),
        "moe_intermediate_size": of.count("expert_feed_forward_length"), "norm_topk_prob": True}


def gemma(of, c):
    return plain("gemma")(of, c) | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _gemma_since_2(of, c, family):
    scale = c["hidden_size"] // c["num_attention_heads"] if c["num_hidden_layers"] in GEMMA_27B else c["head_dim"]
    return gemma(of, c) | {"model_type": family, "query_pre_attn_scalar": scale}


def gemma2(of, c):
    return _gemma_since_2(of, c, "gemma2") | {
        "sliding_window": int(of("attention.sliding_window", 4096)),
        "attn_logit_softcapping": float(of("attn_logit_softcapping", 50.0)),
        "final_logit_softcapping": float(of("final_logit_softcapping", 30.0))}


def gemma3(of, c):
    """Five layers of six see a window, unless the file has an order of its own."""
    every, layers = of("attention.sliding_window_pattern", 6), c["num_hidden_layers"]
    near = [bool(n) for n in every] if isinstance(every, list) else [(n + 1) % int(every) != 0 for n in range(layers)]
    window = int(of("attention.sliding_window", 0))
    return _gemma_since_2(of, c, "gemma3_text") | {
        "sliding_window": window or None, "rope_local_base_freq": float(of("rope.freq_base_swa", 10000.0)),
        "rope_theta": float(of("rope.freq_base", 1e6)),
        "layer_types": [f"{'sliding' if n and window else 'full'}_attention" for n in near],
        "attn_logit_softcapping": None, "final_logit_softcapping": float(of("final_logit_softcapping", 0.0)) or None}


def phi3(of, c):
    config = plain("phi3")(of, c) | {"sliding_window": int(of("attention.sliding_window", 0)) or None}
    if c.get("rope_scaling", {}).get("type") == "longrope":
        config["original_max_position_embeddings"] = of.count("rope.scaling.original_context_length")
    return config


def olmo2(of, c):
    """With windows it is OLMo 3, which is written under the same name."""
    if int(of("attention.sliding_window", 0)):
        raise ConfigError("an OLMo with windows (OLMo 3), which jaxalign does not have yet")
    return plain("olmo2")(of, c)


def gpt2(of, c):
    return {
        "model_type": "gpt2", "vocab_size": c["vocab_size"], "n_embd": c["hidden_size"], "n_layer": c["num_hidden_layers"],
        "n_head": c["num_attention_heads"], "n_positions": c["max_position_embeddings"], "n_inner": c["intermediate_size"],
        "layer_norm_epsilon": of.epsilon("layer_norm_epsilon"), "activation_function": "gelu_new",
        "tie_word_embeddings": c["tie_word_embeddings"]}


def gpt_neox(of, c):
    return {key: value for key, value in c.items() if key not in ("head_dim", "num_key_value_heads", "rope_theta", "partial_rotary_factor")} | {
        "model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": of.epsilon("layer_norm_epsilon"),
        "rotary_pct": c.get("partial_rotary_factor", 1.0), "rotary_emb_base": c["rope_theta"],
        "use_parallel_residual": bool(of("use_parallel_residual", True)), "attention_bias": "blk.0.attn_qkv.bias" in of.tensors}


def generation(of, tokenizer):
    """generation_config.json: where a text ends, and where a turn of the file's template does."""
    ends = [of.token(name) for name in ("eos", "eot")]
    if tokenizer.has_template and not tokenizer.is_word(tokenizer.end_id):
        ends.append(tokenizer.end_id)
    ends = list(dict.fromkeys(i for i in ends if i is not None))
    return {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}


def tokenizer(of):
    """The file's `PublishedTokenizer`."""
    fields = of.all
    texts, kinds = fields["tokenizer.ggml.tokens"], list(fields["tokenizer.ggml.token_type"])
    kinds = [CONTROL if text in ENDS or i == of.token("eot") else kind for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))]
    config = {f"{name}_token": texts[of.token(key)] for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"),
                                                                      ("pad", "padding")) if of.token(key) is not None}
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    kind = fields["tokenizer.ggml.model"]
    if kind == "gpt2":
        files = {"tokenizer.json": _byte_level(of, texts, kinds, config.get("bos_token"))}
    elif kind == "llama":
        files = _sentencepiece(of, texts, kinds, config)
    else:
        raise ConfigError(f"tokenizer.ggml.model={kind!r}; expected gpt2 or llama")
    files["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    return PublishedTokenizer(pack_files(files))


def _sentencepiece(of, texts, kinds, config):
    """The files of pieces with scores; `config`, tokenizer_config.json, is made to fit."""
    stripping = ()
    if of.architecture == "phi3":  # what the file does not say
        kinds = [CONTROL if kind == USER_DEFINED else kind for kind in kinds]
        stripping = {text for text, kind in zip(texts, kinds) if kind == CONTROL and text not in TAKES_NO_SPACE}
    config["add_bos_token"] = bool(of.all.get("tokenizer.ggml.add_bos_token", True))
    prefix = bool(of.all.get("tokenizer.ggml.add_space_prefix", True))
    model = sentencepiece_model(texts, of.all["tokenizer.ggml.scores"], kinds, prefix, of.token("unknown") or 0)
    same = sentencepiece_json(model, config.get("bos_token") if config["add_bos_token"] else None, stripping)
    if same is None:
        return {"tokenizer.model": model}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("unk_token", None)  # it is never needed, and has another name there
    return {"tokenizer.model": model, "tokenizer.json": same}


def _byte_level(of, texts, kinds, bos):
    cut = of.all.get("tokenizer.ggml.pre", CUT_OF.get(of.architecture))
    if cut not in CUTS:
        raise ConfigError(f"tokenizer.ggml.pre={cut!r}, how texts are cut; expected one of {', '.join(CUTS)}"
                          + ("; the file is of before May 2024: take a newer one" if cut is None else ""))
    merges = [pair.split(" ") for pair in of.all["tokenizer.ggml.merges"]]
    special = [text for text, kind in zip(texts, kinds) if kind == CONTROL]
    whole = [text for text, kind in zip(texts, kinds) if kind == USER_DEFINED]
    first = bos if of.all.get("tokenizer.ggml.add_bos_token", cut in BEGINS) else None
    if first is not None and first not in special:
        special.append(first)
    return byte_level_json({t: i for i, t in enumerate(texts)}, merges, special, cut, whole=whole, first=first)


def sentencepiece_model(texts, scores, kinds, prefix=True, unknown=0):
    """The bytes of a SentencePiece model of byte pairs.

    Args:
      texts, scores, kinds: of the pieces; the best score is merged first, and where all are equal, as in files made without any,
        the first piece.
      prefix: whether a text begins with a space.
      unknown: the piece for what is unknown, which files also call special; no other is one.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = BYTE in kinds
    proto.trainer_spec.vocab_size = len(texts)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = False
    if len({score for score, kind in zip(scores, kinds) if kind == NORMAL}) == 1:
        scores = range(0, -len(texts), -1)
    for i, (text, score, kind) in enumerate(zip(texts, scores, kinds)):
        kind = UNKNOWN if i == unknown else CONTROL if kind == UNKNOWN else int(kind)
        # Files hold what users defined with plain spaces, which SentencePiece never meets.
        proto.pieces.add(piece=text.replace(" ", "\u2581") if kind == USER_DEFINED else text, score=float(score), type=kind)
    return proto.SerializeToString(deterministic=True)
