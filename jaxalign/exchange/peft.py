"""Adapters alone, in the layout of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

    base_model.model.NAME.lora_A.weight    (r, inputs)         Aᵀ
    base_model.model.NAME.lora_B.weight    (outputs, r)        Bᵀ
    base_model.model.NAME.lora_magnitude_vector                DoRA's m

Where a published tensor holds several of our matrices (queries, keys and values in one), theirs is one adapter whose rank
is the sum of ours: A's rows one after the other, B's blocks each at its own outputs.
"""

import dataclasses
import math
import re

import jax
import numpy as np
from flax import nnx

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.exchange.folder import mapping_of, read_json
from jaxalign.exchange.safetensors import Safetensors
from jaxalign.models.families import describe
from jaxalign.models.families.layouts import LAYOUTS
from jaxalign.models.lora import LoraConfig, adapt, is_trained
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.train.adapters import abstract_adapters, base_folder
from jaxalign.train.checkpoint import flat_shapes, read_meta, read_params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # of init_lora_weights: how factors began, and the base with them
# What makes of the factors another product, or puts it elsewhere, where it is set.
OTHER_PRODUCTS = ("alora_invocation_tokens", "arrow_config", "layer_replication", "lora_bias", "megatron_config", "target_parameters",
                  "trainable_token_indices", "use_bdlora", "use_qalora")
FACTORS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}


class Places:
    """Which published tensor an adapter of ours belongs to, for one model.

    Attributes: `modules` (published name without ".weight" → (our modules' paths, layer, layout)); `shapes` (of our
    parameters, by path); `columns` (whether kernels, not adapters, are published with inputs first).
    """

    def __init__(self, meta):
        config = ModelConfig(**meta["model"])
        # Of a model trained here as it is exported: its embedding's scale is no adapter's concern.
        published = meta.get("published", {}).get("config") or describe(dataclasses.replace(config, embed_scale=1.0))
        abstract = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))[1]
        self.shapes = {path: tuple(shape) for path, (shape, _) in flat_shapes(nnx.to_pure_dict(abstract)).items()}
        self.mapping = mapping_of(published, config, "policy", self.shapes)
        self.layers = config.num_layers
        self.modules = {}
        for name, (tensor, index) in self.mapping.published.items():
            if name.endswith(".weight") and all(part.endswith("/kernel") and part.startswith("layers/")
                                                for part in tensor.parts):
                parts = [part.removesuffix("/kernel") for part in tensor.parts]
                # Conv1D holds its kernel the other way round, not its adapters.
                layout = "linear" if tensor.layout == "columns" else tensor.layout
                self.modules[name.removesuffix(".weight")] = parts, index[0], layout
        self.columns = any(t.layout == "columns" for t, _ in self.mapping.published.values())

    def inputs(self, module):
        """How many axes of this module's kernel, without layers, are inputs."""
        return 2 if module.endswith("/out") else 1

    def together(self, layout, arrays):
        """Our B's, each (rank, …outputs), as the published one, (outputs, rank)."""
        return LAYOUTS[layout].write(arrays, [1] * len(arrays))

    def apart(self, layout, array, modules):
        """The reverse: of (outputs, rank) each module's (rank, …outputs)."""
        outputs = [self.shapes[f"{m}/kernel"][1 + self.inputs(m):] for m in modules]
        shapes = [(array.shape[1], *out) for out in outputs]
        return LAYOUTS[layout].read(array, shapes, [1] * len(modules))


def adapter_files(folder, meta):
    """(adapter_config.json as a dict, {tensor name: float32 array}) of a checkpoint of adapters.

    Raises:
      ConfigError: a checkpoint without adapters, or ones that PEFT has no way to say.
    """
    if "lora" not in meta:
        raise ConfigError(f"{folder}: it holds whole weights and no adapters; export it without --adapters")
    if meta["policy"] != "policy":
        raise ConfigError(f"{folder}: a reward model has a head beside its adapters; export it without --adapters")
    _, below = read_meta(base_folder(folder, meta))
    if "lora" in below:
        raise ConfigError(f"{folder}: its adapters are beside weights with other adapters in them, so alone they are of "
                          "no published model; export it without --adapters")
    lora, places = LoraConfig(**meta["lora"]), Places(meta)
    state = read_params(folder, meta, "policy", abstract_adapters(meta, Transformer)[1])
    ours = {"/".join(map(str, path)): np.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(state)}
    if experts := sorted({path.rpartition("_adapter/")[0] for path in ours if "_adapter/" in path}):
        raise ConfigError(f"{folder}: it adapts experts ({', '.join(experts)}), for which PEFT has one layout a version of "
                          "transformers; export it without --adapters")
    tensors, ranks, alphas = {}, {}, {}
    for name, (modules, layer, layout) in places.modules.items():
        there = [m for m in modules if f"{m}/adapter/a" in ours]
        if not there:
            continue
        if lora.form == "dora" and there != modules:
            raise ConfigError(f"{folder}: {name} holds {len(modules)} matrices of which {len(there)} are adapted, which "
                              "DoRA cannot say in PEFT; export it without --adapters")
        r, total = lora.rank, lora.rank * len(there)
        rows = [ours[f"{m}/adapter/a"][layer].reshape(-1, r).T for m in there]
        blocks = []
        for module in modules:
            shape = places.shapes[f"{module}/kernel"][1 + places.inputs(module):]
            block = np.zeros((total, *shape), np.float32)
            if module in there:
                first = there.index(module) * r
                block[first:first + r] = ours[f"{module}/adapter/b"][layer]
            blocks.append(block)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.concatenate(rows)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = places.together(layout, blocks)
        if lora.form == "dora":
            m = [ours[f"{module}/adapter/magnitude"][layer][None] for module in modules]
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = places.together(layout, m)[:, 0]
        if total != r:
            ranks[name.rpartition(".")[2]] = total
            alphas[name.rpartition(".")[2]] = lora.scale * (math.sqrt(total) if lora.scaling == "rslora" else total)
    targets = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": _origin(below), "r": lora.rank,
        "lora_alpha": lora.alpha, "use_rslora": lora.scaling == "rslora", "use_dora": lora.form == "dora",
        "lora_dropout": lora.dropout, "target_modules": targets, "rank_pattern": ranks, "alpha_pattern": alphas,
        "fan_in_fan_out": places.columns, "bias": "none", "modules_to_save": None, "inference_mode": True,
    }  # fmt: skip
    return config, {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}


def _origin(meta):
    """Where the base was imported from, else its own folder."""
    first = meta["lineage"][0]
    return first["parent"] if first["stage"] == "import" and len(meta["lineage"]) == 1 else meta["lineage"][-1]["path"]


def read_adapters(path, meta):
    """(`LoraConfig`, `nnx.State` of adapters) of a PEFT folder, for the model that `meta` describes.

    Ranks and scales may differ from module to module there: the largest rank is everybody's here, others are filled up
    with zeros, and what their scale is more or less goes into B.

    Raises:
      ConfigError, CheckpointError: no such folder, another kind of adapter, or another model's.
    """
    where = path / CONFIG
    given = read_json(where, required=True)
    for key, right in (("peft_type", ("LORA",)), ("bias", ("none", None)), ("modules_to_save", (None, []))):
        if given.get(key) not in right:
            raise ConfigError(f"{where}: {key}={given.get(key)!r}; jaxalign reads adapters of type LORA alone, without "
                              "biases or further modules")
    if other := [key for key in OTHER_PRODUCTS if given.get(key)]:
        raise ConfigError(f"{where}: {other[0]}={given[other[0]]!r}, with which PEFT computes something else than W + s · A · B; "
                          "jaxalign reads adapters without it")
    begun = str(given.get("init_lora_weights")).lower()
    if begun.startswith(CHANGES_BASE):
        raise ConfigError(f"{where}: init_lora_weights={begun!r}, with which PEFT changes the base too when it reads the adapter; "
                          "save it anew as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)")
    if not isinstance(given.get("lora_alpha"), (int, float)):
        raise ConfigError(f"{where}: lora_alpha={given.get('lora_alpha')!r}; expected a number")
    files, places = Safetensors(path, WEIGHTS), Places(meta)
    found = {}  # published module → {"a": …, "b": …}
    for name in files.names:
        module, factor = next(((name.removeprefix(PREFIX)[:-len(end) - 1], ours) for end, ours in FACTORS.items()
                               if name.endswith("." + end)), (name, None))
        if factor is None or module not in places.modules:
            raise CheckpointError(f"{path}: {name} adapts nothing that jaxalign adapts in this model; it knows "
                                  f"{', '.join(sorted({m.rpartition('.')[2] for m in places.modules}))}")
        found.setdefault(module, {})[factor] = files.read(name).astype(np.float32)
    if not all({"a", "b"} <= set(factors) for factors in found.values()) or not found:
        raise CheckpointError(f"{path}: it holds no pairs of lora_A and lora_B; expected adapters as PEFT saves them")
    dora = bool(given.get("use_dora"))
    lora = LoraConfig(
        rank=max(factors["a"].shape[0] for factors in found.values()), alpha=float(given["lora_alpha"]),
        targets=tuple(sorted({m.rpartition("/")[2] for name in found for m in places.modules[name][0]})),
        scaling="rslora" if given.get("use_rslora") else "lora", form="dora" if dora else "lora",
        dropout=float(given.get("lora_dropout") or 0.0))
    ours = {}
    for name, factors in found.items():
        modules, layer, layout = places.modules[name]
        rank = factors["a"].shape[0]
        scale = _scale(given, name, rank, lora.scaling) / lora.scale
        fill = ((0, lora.rank - rank), (0, 0))
        a, b = np.pad(factors["a"], fill), np.pad(factors["b"].T * scale, fill).T
        try:
            parts = places.apart(layout, b, modules)
            sizes = places.apart(layout, factors["magnitude"][:, None], modules) if dora else [None] * len(modules)
            for module, part, m in zip(modules, parts, sizes):
                inputs = places.shapes[f"{module}/kernel"][1:1 + places.inputs(module)]
                ours[f"{module}/adapter/a", layer] = a.T.reshape(*inputs, lora.rank)
                ours[f"{module}/adapter/b", layer] = part
                if dora:
                    ours[f"{module}/adapter/magnitude", layer] = m[0]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: the adapter of {name} does not fit the model ({error})") from None
    config = ModelConfig(**meta["model"])
    abstract = nnx.split_state(nnx.state(nnx.eval_shape(lambda: adapt(
        Transformer(config, rngs=nnx.Rngs(0)), lora, rngs=nnx.Rngs(0)))), is_trained, ...)[0]
    leaves = []
    for module_path, leaf in flat_shapes(nnx.to_pure_dict(abstract)).items():
        layers = [ours.get((module_path, layer)) for layer in range(places.layers)]
        if any(x is None or x.shape != tuple(leaf[0][1:]) for x in layers):
            raise CheckpointError(f"{path}: {module_path} is not adapted in every layer, or is of another size; jaxalign "
                                  "adapts all layers of a model or none")
        leaves.append(np.stack(layers).astype(np.float32))
    return lora, jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _scale(given, name, rank, scaling):
    patterns = given.get("alpha_pattern") or {}
    try:  # the first that fits, as PEFT has it: an expression for the end of a name
        alpha = float(next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), given["lora_alpha"]))
    except (re.error, TypeError, ValueError) as error:
        raise ConfigError(f"adapter_config.json: alpha_pattern={patterns!r} cannot be read ({error})") from None
    return alpha / (math.sqrt(rank) if scaling == "rslora" else rank)
