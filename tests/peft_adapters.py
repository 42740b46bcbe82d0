"""Small adapters in PEFT's layout for the models of published_models.py, numbers by formula."""

import base64
import json
import pathlib
import zlib

import jax
import numpy as np
from flax import nnx
from published_models import DOCUMENTS, config_of, mapping_and_abstract

from jaxalign.exchange.safetensors import write
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import Transformer, logits_of
from jaxalign.train.checkpoint import load_params, read_meta

GOLDEN = pathlib.Path(__file__).parent / "golden" / "peft.json"
# name → (case of published_models, what the adapter has)
CASES = {
    "llama": ("llama", dict(r=3)),
    "llama, rslora, some": ("llama", dict(r=4, use_rslora=True, target_modules=["q_proj", "down_proj"])),
    "llama, dora": ("llama", dict(r=2, use_dora=True)),
    "llama, ranks": ("llama", dict(r=2, rank_pattern={"o_proj": 4}, alpha_pattern={"o_proj": 5.0, "up_proj": 1.0})),
    "phi3": ("phi3", dict(r=2)),
    "gpt2": ("gpt2", dict(r=2)),
    "gpt_neox, dora": ("gpt_neox", dict(r=2, use_dora=True)),
}
OTHERS = ("embed", "lm_head", "wte", "wpe", "norm", "ln_", "score")  # what has a weight and is no adapted matrix


def write_adapter(folder, family, r, target_modules=None, rank_pattern=None, alpha_pattern=None, use_dora=False, **more):
    """Writes adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True)
    mapping = mapping_and_abstract(config_of(family))[0]
    columns = any(tensor.layout == "columns" for tensor, _ in mapping.published.values())
    tensors = {}
    for name in mapping.published:
        if not name.endswith(".weight") or any(part in name for part in OTHERS):
            continue
        module = name.removesuffix(".weight")
        kind = module.rpartition(".")[2]
        if target_modules and kind not in target_modules:
            continue
        outputs, inputs = mapping.shape(name)[::-1] if columns else mapping.shape(name)
        rank = (rank_pattern or {}).get(kind, r)
        tensors[f"base_model.model.{module}.lora_A.weight"] = (rank, inputs)
        tensors[f"base_model.model.{module}.lora_B.weight"] = (outputs, rank)
        if use_dora:
            tensors[f"base_model.model.{module}.lora_magnitude_vector"] = (outputs,)
    made = {name: number(name, shape) for name, shape in tensors.items()}
    write(folder, {name: (x.dtype, x.shape) for name, x in made.items()}, made.get, stem="adapter_model")
    kinds = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": 2.0 * r, "target_modules": kinds,
              "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": columns, "use_dora": use_dora,
              "rank_pattern": rank_pattern or {}, "alpha_pattern": alpha_pattern or {}, "modules_to_save": None,
              "base_model_name_or_path": None, **more}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def number(name, shape):
    draw = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if name.endswith("magnitude_vector"):
        return (1.0 + 0.2 * draw).astype(np.float32)
    return (0.3 * draw).astype(np.float32)


def packed(array):
    return base64.b64encode(np.asarray(array, np.float32).tobytes()).decode()


def unpacked(text):
    return np.frombuffer(base64.b64decode(text), np.float32)


def logits(run):
    """Of `DOCUMENTS`, each (T, V), of what was imported."""
    folder, meta = read_meta(run)
    config = ModelConfig(**meta["model"])
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    params = load_params(folder, "policy", abstract)

    @jax.jit
    def compute(params, tokens):
        model = nnx.merge(graphdef, params)
        return logits_of(model(tokens), model.unembedding_DV, model.softcap)[0]

    return [np.asarray(compute(params, np.array([document], np.int32))) for document in DOCUMENTS]
