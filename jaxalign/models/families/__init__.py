"""Families of published models. To add one: a function in configs.py, one in names.py for new names, a line here."""

from typing import Callable, NamedTuple

from jaxalign.errors import ConfigError
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import configs, names


class Family(NamedTuple):
    """How one family is read and written.

    Attributes:
      architecture: of its language models in config.json.
      config: config.json as a dict → fields of `ModelConfig`.
      tensors: `ModelConfig` → list of `names.Tensor`.
      classifier: architecture of its sequence classifiers, which hold reward models.
    """

    architecture: str
    config: Callable
    tensors: Callable
    classifier: str


def _family(name, config, tensors, head="ForCausalLM", classifier=""):
    return Family(name + head, config, tensors, classifier or f"{name}ForSequenceClassification")


FAMILIES = {
    "llama": _family("Llama", configs.llama, names.llama),
    "smollm3": _family("SmolLM3", configs.smollm3, names.llama),
    "mistral": _family("Mistral", configs.mistral, names.llama),
    "qwen2": _family("Qwen2", configs.qwen2, names.llama),
    "qwen3": _family("Qwen3", configs.qwen3, names.llama),
    "gemma": _family("Gemma", configs.gemma, names.llama),
    "gemma2": _family("Gemma2", configs.gemma2, names.llama),
    "gemma3_text": _family("Gemma3", configs.gemma3, names.llama, classifier="Gemma3TextForSequenceClassification"),
    "phi3": _family("Phi3", configs.phi3, names.phi3),
    "olmo2": _family("Olmo2", configs.olmo2, names.llama),
    "gpt2": _family("GPT2", configs.gpt2, names.gpt2, "LMHeadModel"),
    "gpt_neox": _family("GPTNeoX", configs.gpt_neox, names.gpt_neox),
    "mixtral": _family("Mixtral", configs.mixtral, names.mixtral),
    "qwen3_moe": _family("Qwen3Moe", configs.qwen3_moe, names.qwen3_moe),
}
# Of tensors that are not parameters: masks and tables which old files hold beside them.
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


def find_family(published, where="config.json"):
    """The `Family` of a config.json, given as a dict. Raises ConfigError for one that is not in the table."""
    name = published.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"{where}: model_type={name!r} is no family that jaxalign knows; it knows "
                          f"{', '.join(FAMILIES)}")
    if "quantization_config" in published:
        method = (published["quantization_config"] or {}).get("quant_method")
        raise ConfigError(f"{where}: its weights are quantised ({method}), which jaxalign cannot read from "
                          "safetensors; take the unquantised model, or a GGUF file of it")
    return FAMILIES[name]


def model_config(published, where="config.json", **more):
    """The `ModelConfig` of a config.json, given as a dict. Raises ConfigError for what cannot be run."""
    try:
        fields = find_family(published, where).config(published) | more
    except KeyError as error:
        name = published["model_type"]
        raise ConfigError(f"{where}: the key {error} is missing; it is no config of the family {name}") from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{where}: a value cannot be used ({error})") from None
    try:
        return ModelConfig(**fields)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def describe(config):
    """config.json of a model that was not imported: as the first family that says the same of it, a Llama or a Qwen 3, with
    experts a Mixtral or a Qwen 3 of theirs.

    Raises ConfigError where neither can: they lack what the config asks for.
    """
    common = {
        "vocab_size": config.vocab_size, "hidden_size": config.width, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "intermediate_size": config.mlp_dim, "rms_norm_eps": config.norm_eps,
        "hidden_act": config.activation, "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.out_bias, "mlp_bias": config.mlp_bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}, "rope_theta": config.rope_theta,
    }  # fmt: skip
    names = "llama", "qwen3"
    if config.mlp == "experts":
        names = "mixtral", "qwen3_moe"
        common |= {"num_local_experts": config.num_experts, "num_experts": config.num_experts,
                   "num_experts_per_tok": config.experts_per_token, "moe_intermediate_size": config.mlp_dim,
                   "norm_topk_prob": config.normalize_experts, "sliding_window": None}
    runtime = {name: getattr(config, name) for name in ("dtype", "remat", "unroll")}
    for name in names:
        published = {"model_type": name, "architectures": [FAMILIES[name].architecture], **common}
        if model_config(published, **runtime) == config:
            return published
    other = ModelConfig(**FAMILIES[names[0]].config(common) | runtime)
    differs = [f for f in config.__dataclass_fields__ if getattr(config, f) != getattr(other, f)]
    raise ConfigError(f"this model is none that transformers knows under the names {' or '.join(names)}: it differs in "
                      f"{', '.join(f'model.{f}={getattr(config, f)!r}' for f in differs)}")
