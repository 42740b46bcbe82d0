"""A checkpoint → the folder of a published model, as transformers and what serves models read it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np

from jaxalign.data.published import unpack_files
from jaxalign.data.tokenizer import open_tokenizer
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.exchange.folder import mapping_of
from jaxalign.exchange.importing import shapes_of
from jaxalign.exchange.parameters import bare
from jaxalign.exchange.peft import CONFIG, WEIGHTS, adapter_files
from jaxalign.exchange.safetensors import write
from jaxalign.exchange.tokenizer_json import sentencepiece_json
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import describe, find_family
from jaxalign.train.checkpoint import load_params, read_meta, read_params, unpack_tokenizer

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
EMBEDDINGS = ("embed", "backbone/embed")
TALKING = ("sft", "reward", "dpo", "ppo", "grpo")  # stages that read conversations


def export_model(checkpoint, to, *, dtype="", largest_shard=5_000_000_000):
    """Writes a published model's folder from a checkpoint, adapters merged into what they adapt; returns what it is.

    A model that was imported goes back into its own family, names and types, with its own config and tokenizer files:
    untrained, bit for bit. One that was trained from random weights becomes a Llama or a Qwen 3.

    Args:
      checkpoint: a stage's workdir or a checkpoint's folder.
      to: a folder that does not exist or is empty.
      dtype: "float32", "float16" or "bfloat16"; "" is as imported, else float32.
      largest_shard: bytes a file.
    Raises:
      ConfigError, CheckpointError.
    """
    if dtype not in ("", "float32", "float16", "bfloat16"):
        raise ConfigError(f"--dtype={dtype}: expected float32, float16 or bfloat16")
    to = _free(to)
    folder, meta = read_meta(checkpoint)
    head = "reward" if meta["policy"] == "reward/backbone" else "policy"
    if head == "reward" and meta.get("pooling", "last") != "last":
        raise ConfigError(f"{folder}: its scores are pooled by {meta['pooling']!r}, which no sequence classifier of "
                          "transformers does; only pooling='last' can be exported")
    model = ModelConfig(**meta["model"])
    origin = meta.get("published", {})
    # The scale of what is looked up goes into it; where the same numbers score what comes next, these become a matrix of their own.
    held, scale = model, 1.0 if origin else model.embed_scale
    untied = scale != 1 and model.tied_embeddings and head == "policy"
    model = dataclasses.replace(model, embed_scale=model.embed_scale / scale, tied_embeddings=model.tied_embeddings and not untied)
    tokenizer = open_tokenizer(unpack_tokenizer(meta))
    published = _config(origin, model, head, dtype, tokenizer)
    part = "reward" if head == "reward" else meta["policy"]
    abstract, shapes = shapes_of(held, head)
    mapping = mapping_of(published, model, head, shapes_of(model, head)[1])
    types = {name: DTYPES[dtype or origin.get("dtypes", {}).get(name) or origin.get("dtype", "float32")]
             for name in mapping.published}
    params = load_params(folder, part, abstract) if "lora" in meta else read_params(
        folder, meta, part, abstract, _in_its_type(mapping, types, () if scale == 1 else EMBEDDINGS))
    leaves = dict(zip(shapes, map(np.asarray, jax.tree.leaves(params))))
    if untied:
        leaves["unembed/kernel"] = leaves["embed"].T
    if scale != 1:
        leaves |= {path: leaves[path] * np.float32(scale) for path in EMBEDDINGS if path in leaves}
    if head == "reward" and np.any(leaves["gate/kernel"]):
        raise ConfigError(f"{folder}: its score counts log-probabilities too, which no classifier of transformers does")
    name_of = {name: bare(name) if origin.get("bare") and name.partition(".")[0] not in ("lm_head", "score")
               else name for name in mapping.published}
    tensors = {name_of[name]: (types[name], mapping.shape(name)) for name in mapping.published}
    inverse = {found: name for name, found in name_of.items()}
    for name in origin.get("copied", ()):  # of a tied embedding
        inverse[name] = next(n for n, (t, _) in mapping.published.items() if t.parts[0].endswith("embed"))
        tensors[name] = types[inverse[name]], mapping.shape(inverse[name])

    def make(name):
        return mapping.put_together(inverse[name], leaves).astype(types[inverse[name]])

    with _written_whole(to) as aside:
        write(aside, tensors, make, largest_shard=largest_shard)
        _dump(aside / "config.json", published)
        if generation := origin.get("generation") if origin else _ends(tokenizer):
            _dump(aside / "generation_config.json", generation)
        other_pad = head == "reward" and origin.get("config", {}).get("pad_token_id") != published["pad_token_id"] != tokenizer.pad_id
        for name, data in tokenizer_files(meta, tokenizer, published["pad_token_id"] if other_pad else None).items():
            (aside / name).write_bytes(data)
    return {"family": published["model_type"], "parameters": sum(a.size for a in leaves.values()),
            "dtype": dtype or origin.get("dtype", "float32"), "tensors": len(tensors)}


def _in_its_type(mapping, types, but):
    """(path, variable) → what is kept of it: a parameter that is written in one type alone is never held in a wider one, `but` for
    some."""
    wanted = {}
    for name, (tensor, _) in mapping.published.items():
        for part in tensor.parts:
            wanted.setdefault(part, set()).add(types[name])

    def each(path, variable):
        name = "/".join(map(str, path))
        kinds = () if name in but else wanted.get(name, ())
        return variable.replace(np.asarray(variable.get_value()).astype(*kinds) if len(kinds) == 1 else variable.get_value())

    return each


def export_adapters(checkpoint, to):
    """Writes a checkpoint's adapters alone, as PEFT reads them; returns what they are.

    Args: as of `export_model`.
    Raises:
      ConfigError, CheckpointError: of `peft.adapter_files` too.
    """
    to = _free(to)
    config, tensors = adapter_files(*read_meta(checkpoint))
    with _written_whole(to) as aside:
        write(aside, {name: (x.dtype, x.shape) for name, x in tensors.items()}, tensors.get, stem=WEIGHTS)
        _dump(aside / CONFIG, config)
    return {"family": "adapters of " + (config["base_model_name_or_path"] or "a model trained here"),
            "parameters": sum(x.size for x in tensors.values()), "dtype": "float32", "tensors": len(tensors)}


def _free(to):
    to = pathlib.Path(to).absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"--to={to}: there is something already; name a new folder")
    return to


@contextlib.contextmanager
def _written_whole(to):
    """A folder beside `to` that takes its place once all is written; what is broken off leaves nothing."""
    aside = to.with_name(f".{to.name}.exporting")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        if to.exists():
            to.rmdir()
        os.replace(aside, to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _ends(tokenizer):
    """What a config says of where texts begin and end; without it others would take those of the family's first model."""
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad_id}


def _config(origin, model, head, dtype, tokenizer):
    published = dict(origin.get("config") or describe(model) | _ends(tokenizer))
    if head == "reward" and published.get("pad_token_id") in (None, tokenizer.end_id, *tokenizer.tail_ids):
        published["pad_token_id"] = _pad_of(tokenizer)
    family = find_family(published)
    kind = "ForSequenceClassification" if head == "reward" else None
    if kind and not published.get("architectures", [""])[0].endswith(kind):
        published |= {"architectures": [family.classifier], "num_labels": 1, "id2label": {"0": "LABEL_0"},
                      "label2id": {"LABEL_0": 0}}
    if not kind:
        published["architectures"] = [family.architecture]
    if dtype or not origin:
        published.pop("torch_dtype", None)
        published["dtype"] = dtype or "float32"
    return published


def _pad_of(tokenizer):
    """An id for padding that no document ends with: a classifier of transformers scores the last token that is none."""
    ends = {tokenizer.end_id, *tokenizer.tail_ids}
    if tokenizer.pad_id not in ends:
        return tokenizer.pad_id
    others = sorted(tokenizer.special_ids - {*tokenizer.stop_ids, *ends}, key=lambda i: (i != tokenizer.unk_id, i == tokenizer.bos_id, i))
    if not others:
        raise ConfigError("its tokenizer has no special token but those that end a text, so none can be padding, beside which a "
                          "classifier of transformers finds the token to score; train from a model with a pad token of its own")
    return others[0]


def tokenizer_files(meta, tokenizer, pad_id=None):
    """The files of a checkpoint's tokenizer: as published, with a pad token if another is given, or for one trained here its
    SentencePiece model with a template that writes what `data.chat.TEMPLATE` does."""
    data = unpack_tokenizer(meta)
    if data.startswith(b"PK"):
        files = unpack_files(data)
        for name in ("tokenizer_config.json", "special_tokens_map.json") if pad_id is not None else ():
            if name in files or name == "tokenizer_config.json":
                named = json.loads(files.get(name, b"{}")) | {"pad_token": tokenizer.piece(pad_id)}
                files |= {name: json.dumps(named, indent=2, ensure_ascii=False).encode()}
        talks = any(stage["stage"] in TALKING for stage in meta["lineage"])
        # Published without a template, and has learned to converse in ours.
        return files | ({"chat_template.jinja": tokenizer.template.source.encode()} if talks and not tokenizer.has_template else {})
    headers = {role: header for role, (header, _) in tokenizer.template.roles.items()}
    template = ("{{ bos_token }}{% for m in messages %}{{ {" + ", ".join(f"'{r}': '{h}'" for r, h in headers.items())
                + "}[m['role']] + m['content'] + '" + tokenizer.template.end + "' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '" + tokenizer.template.generation + "' }}{% endif %}")
    config = {"bos_token": "<s>", "eos_token": tokenizer.template.end, "pad_token": "<pad>", "add_bos_token": True,
              "chat_template": template}
    same = sentencepiece_json(data, config["bos_token"])
    config |= {"unk_token": "<unk>"} if same is None else {"tokenizer_class": "PreTrainedTokenizerFast"}
    files = {"tokenizer.model": data, "tokenizer_config.json": json.dumps(config, indent=2).encode()}
    return files | ({} if same is None else {"tokenizer.json": same})


def _dump(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
