"""Models of every family, imported and exported again: ours against transformers' reading of what we exported."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from comparison import Row
from jaxalign.exchange import export_model, import_model
from jaxalign.exchange.importing import MODULES
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import logits_of
from jaxalign.train.checkpoint import load_params, read_meta

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "golden")]

import make_families  # noqa: E402
import published_models as published  # noqa: E402
import published_tokenizer  # noqa: E402

TOLERANCE = 1e-4
LENGTH = 30
# What sums over logits or scores are divided by before the gradient is taken: about as many as there are, so that the
# gradients' largest entries are of order one and the tolerance says something of them.
SIZE = 300.0


def family(draw, *, case):
    """Logits and the gradient of every tensor. Ours reads both documents packed in one row, theirs a padded batch."""
    documents = [draw.integers(2, published.VOCABULARY, n).tolist() for n in draw.integers(6, 14, 2)]
    config = published.config_of(case)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        published.write_model(folder / "model", config)
        published_tokenizer.write_tokenizer(folder / "model")
        import_model(folder / "model", folder / "run")
        export_model(folder / "run", folder / "out")
        theirs = in_transformers(folder / "out", documents)
        return ours(folder / "run", config, documents), theirs


def in_transformers(folder, documents):
    model = make_families.load(folder)
    ids = np.zeros((2, LENGTH), np.int64)
    seen = np.zeros((2, LENGTH), np.int64)
    for row, document in enumerate(documents):
        ids[row, :len(document)], seen[row, :len(document)] = document, 1
    model.config.pad_token_id = 0
    logits = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(seen)).logits
    parts = [logits[row, :len(d)] for row, d in enumerate(documents)] if logits.ndim == 3 else list(logits)
    sum((x * torch.tensor(make_families.slope(x.shape))).sum() / SIZE for x in parts).backward()
    named = {f"d/d {name}": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {f"logits {n}": x.detach().numpy() for n, x in enumerate(parts)} | named


def ours(run, config, documents):
    folder, meta = read_meta(run)
    model = ModelConfig(**meta["model"])
    head = meta["published"]["head"]
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: MODULES[head](model, rngs=nnx.Rngs(0))))
    params = load_params(folder, head, abstract)
    tokens, positions, segments = (np.zeros((1, LENGTH), np.int32) for _ in "123")
    at, start = [], 1
    for n, document in enumerate(documents):
        at.append(slice(start, start + len(document)))
        tokens[0, at[-1]], positions[0, at[-1]], segments[0, at[-1]] = document, np.arange(len(document)), n + 1
        start += len(document)

    def value(params):
        module = nnx.merge(graphdef, params)
        out = module(tokens, positions, segments)
        if head == "reward":
            parts = [out[0, part.stop - 1][None] for part in at]
        else:
            logits = logits_of(out, module.unembedding_DV, module.softcap)[0]
            parts = [logits[part] for part in at]
        return sum(jnp.sum(x * make_families.slope(x.shape)) / SIZE for x in parts), parts

    (_, parts), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    mapping = published.mapping_and_abstract(config)[0]
    leaves = dict(zip(mapping.shapes, map(np.asarray, jax.tree.leaves(gradient))))
    named = {f"d/d {name}": mapping.put_together(name, leaves) for name in mapping.published}
    return {f"logits {n}": np.asarray(x) for n, x in enumerate(parts)} | in_memory(named)


def in_memory(named):
    """Gradients by the names and in the shapes that transformers has in memory, where its files have others."""
    out, experts = {}, {}
    for name, x in named.items():
        name = name.replace("embed_out", "lm_head").replace("block_sparse_moe", "mlp")
        if match := re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name):
            kind = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(match[3], match[3])
            experts.setdefault(match[1], {}).setdefault(kind, {})[int(match[2])] = x
        else:
            out[name] = x
    for name, kinds in experts.items():
        gate, up, down = (np.stack([kinds[kind][e] for e in sorted(kinds[kind])])
                          for kind in ("gate_proj", "up_proj", "down_proj"))
        out |= {f"{name}.gate_up_proj": np.concatenate([gate, up], axis=1), f"{name}.down_proj": down}
    return out


def goldens(draw):
    """The committed goldens against those that are made now."""
    held = json.loads(make_families.GOLDEN.read_text())["cases"]
    made = {case: make_families.golden(case) for case in published.CASES}

    def numbers(cases):
        return {f"{case} {n}": make_families.unpacked(text) for case, golden in cases.items()
                for n, text in enumerate([*golden["logits"], golden["embedding_gradient"]])}

    return numbers(held), numbers(made)


ROWS = [
    Row(f"import and export: {case}", f"transformers {published.config_of(case)['architectures'][0]}",
        functools.partial(family, case=case), TOLERANCE) for case in published.CASES
] + [Row("tests/golden/families.json", "transformers, made afresh", goldens, TOLERANCE)]
