"""A published model → a checkpoint that any stage starts from."""

import dataclasses
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxalign import config as configs
from jaxalign.data.published import read_folder
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.exchange.folder import common_dtype, head_of, mapping_of, read_json, stop_ids
from jaxalign.exchange.multimodal import language_part
from jaxalign.exchange.parameters import Source, read_parameters
from jaxalign.exchange.peft import read_adapters
from jaxalign.exchange.safetensors import Safetensors
from jaxalign.models.config import ModelConfig
from jaxalign.models.families import model_config
from jaxalign.models.heads import ScalarModel
from jaxalign.models.transformer import Transformer
from jaxalign.sharding import make_mesh, replicated, wait_for_all
from jaxalign.train.adapters import base_record, fingerprint_of
from jaxalign.train.checkpoint import Checkpointer, flat_shapes, load_params, pack_tokenizer, read_meta
from jaxalign.train.state import TrainState

SURPLUS = 64  # special tokens that no text uses and the model has no row for: as many may stand behind the others
MODULES = {"policy": Transformer, "reward": ScalarModel}


class Published:
    """A published model before its weights are read.

    Attributes: `path`; `config`, `generation` (config.json and generation_config.json as dicts); `tokenizer`; `files`
    (its tensors, as `parameters.Source` takes them).
    """

    def __init__(self, path, config, generation, tokenizer, files):
        self.path, self.config, self.generation = path, config, generation
        self.tokenizer, self.files = tokenizer, files


def open_published(path):
    """A folder with safetensors, or a GGUF file, as `Published`; reads no weight."""
    path = pathlib.Path(path)
    if not path.exists():
        raise CheckpointError(f"--from={path}: no such file or folder")
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(f"--from={path}: expected a published model's folder, or a .gguf file")
        from jaxalign.exchange.gguf import read_gguf  # which needs a package of its own

        return Published(path, *read_gguf(path))
    config = read_json(path / "config.json", required=True)
    config, files = language_part(config, Safetensors(path), path / "config.json")
    head_of(config, path / "config.json")
    generation = read_json(path / "generation_config.json")
    return Published(path, config, generation, read_folder(path, config), files)


def import_model(source, to, *, mesh=None):
    """Writes the checkpoint of a published model; returns what it is.

    All that can be said against the source is said before its weights are read (but for a tensor that should be the copy of
    another), and what is broken off leaves nothing. Of several processes each calls this, and holds its own devices' parts
    alone; they share the file system.

    Args:
      source: a folder as transformers writes it, or a GGUF file.
      to: the checkpoint's workdir; it must not exist or be empty.
      mesh: where the weights go on their way; None takes all devices, each a part of every matrix.
    Returns:
      {"family", "parameters", "dtype", "vocab_size", "tokens", "template"}.
    Raises:
      ConfigError, CheckpointError, DataError.
    """
    to = pathlib.Path(to).absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"--to={to}: there is something already; name a new folder")
    published = open_published(source)
    where, head = published.path, head_of(published.config, published.path)
    more = {"tied_embeddings": True} if head == "reward" else {}
    model = model_config(published.config, where / "config.json" if where.is_dir() else where, **more)
    if model.num_layers * max(1, model.num_experts) > len(published.files.names):
        raise ConfigError(f"{where}: config.json tells of {model.num_layers} layers"
                          + (f" of {model.num_experts} experts" if model.num_experts else "")
                          + f", there are {len(published.files.names)} tensors; one of the two is another model's")
    tokenizer = published.tokenizer
    if tokenizer.least_rows > model.vocab_size or tokenizer.vocab_size > model.vocab_size + SURPLUS:
        raise ConfigError(f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model embeds "
                          f"{model.vocab_size}; one of the two is another model's")
    check_ids(published.config, tokenizer, where)
    last = (tokenizer.tail_ids or [tokenizer.end_id])[-1]
    if head == "reward" and published.config.get("pad_token_id") == last:
        raise ConfigError(f"{where}: a classifier whose pad_token_id={last} is {tokenizer.piece(last)!r}, which ends a conversation: "
                          "transformers scores the token before it, jaxalign that itself; if it was trained with another pad token, "
                          "name that in config.json")
    abstract, shapes = shapes_of(model, head)
    mapping = mapping_of(published.config, model, head, shapes)
    read = Source(published.files, mapping, where, copies=("lm_head.weight", "embed_out.weight"))
    dtype, others = common_dtype(read.dtypes)
    meta = {
        "stage": "import", "policy": "policy" if head == "policy" else "reward/backbone",
        "config": configs.to_json(ConfigDict(dict(stage="import", source=str(source)))),
        "model": dataclasses.asdict(model), "tokenizer": pack_tokenizer(tokenizer.model_bytes),
        "lineage": [{"stage": "import", "path": str(to), "steps": 0, "parent": str(source)}],
        "published": {"config": published.config, "generation": published.generation, "head": head, "dtype": dtype,
                      "dtypes": others, "bare": read.bare, "copied": read.copied,
                      "stop_ids": stop_ids(published.generation, published.config)},
    } | ({"pooling": "last"} if head == "reward" else {})
    mesh = mesh or make_mesh(fsdp=-1)
    params = read_parameters(read, abstract, mesh, made=("gate/kernel",) if head == "reward" else ())
    _write(to, head, params, meta, mesh)
    return {"family": published.config["model_type"], "parameters": sum(x.size for x in jax.tree.leaves(params)),
            "dtype": dtype, "vocab_size": model.vocab_size, "tokens": tokenizer.vocab_size,
            "template": tokenizer.has_template}


def shapes_of(model, head):
    """(abstract state, path → shape) of a `ModelConfig` with a head, of `MODULES`."""
    abstract = nnx.split(nnx.eval_shape(lambda: MODULES[head](model, rngs=nnx.Rngs(0))))[1]
    return abstract, {path: tuple(shape) for path, (shape, _) in flat_shapes(nnx.to_pure_dict(abstract)).items()}


def check_ids(config, tokenizer, where):
    """Refuses a tokenizer in which an id that the model knows as the begin or end of a text stands for a word: what a model
    was trained to stop at is never a word. Ids that the tokenizer has no token for tell nothing."""
    for name, own in (("bos_token_id", tokenizer.bos_id), ("eos_token_id", tokenizer.eos_id)):
        ids = config.get(name)
        for i in ids if isinstance(ids, list) else [ids]:
            if own is not None and isinstance(i, int) and i != own and tokenizer.is_word(i):
                raise CheckpointError(f"{where}: config.json has {name}={i}, which is {tokenizer.piece(i)!r} in the "
                                      f"tokenizer; expected {own} ({tokenizer.piece(own)!r}) or another of its special "
                                      "tokens; one of the two is another model's: copy both from where the weights are from")


def import_adapters(source, to, base):
    """Writes a checkpoint of adapters in PEFT's layout, beside a model that was imported before; returns what it is.

    Args:
      source: the folder with adapter_config.json.
      to: as of `import_model`.
      base: a checkpoint of the model that the adapters are of.
    Raises:
      ConfigError, CheckpointError: of `peft.read_adapters` too.
    """
    to = pathlib.Path(to).absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"--to={to}: there is something already; name a new folder")
    folder, below = read_meta(base)
    if below["policy"] != "policy":
        raise ConfigError(f"--base={base}: a reward model; adapters are read for language models alone")
    lora, adapters = read_adapters(pathlib.Path(source), below)
    model = ModelConfig(**below["model"])
    like = nnx.split(nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0))))[1]
    mark = fingerprint_of(folder, below, load_params(folder, "policy", like))
    meta = {key: below[key] for key in ("policy", "model", "tokenizer", "published") if key in below} | {
        "stage": "import", "config": configs.to_json(ConfigDict(dict(stage="import", source=str(source)))),
        "lineage": [*below["lineage"], {"stage": "import", "path": str(to), "steps": 0, "parent": str(folder)}],
        "lora": dataclasses.asdict(lora), "base": base_record(folder, mark, to),
    }
    _write(to, "policy", adapters, meta, make_mesh(devices=jax.local_devices()[:1]))
    return {"family": f"adapters of rank {lora.rank}", "parameters": sum(x.size for x in jax.tree.leaves(adapters)),
            "dtype": "float32", "template": "published" in below}


def _write(to, head, params, meta, mesh):
    """Aside first, so that nothing half-written ever stands at `to`."""
    aside, first = to.with_name(f".{to.name}.importing"), jax.process_index() == 0
    if first:
        shutil.rmtree(aside, ignore_errors=True)
    wait_for_all("import: read")
    try:
        checkpointer = Checkpointer(aside, at_once=max(x.nbytes for x in jax.tree.leaves(params)))
        step, key = jax.jit(lambda: (jnp.zeros((), jnp.int32), jax.random.key(0)), out_shardings=replicated(mesh))()
        checkpointer.save(TrainState(step, {head: params}, (), key), meta)
        checkpointer.close()
        wait_for_all("import: written")
        if first:
            if to.exists():
                to.rmdir()
            os.replace(aside, to)
        wait_for_all("import: in its place")
    finally:
        if first:
            shutil.rmtree(aside, ignore_errors=True)
