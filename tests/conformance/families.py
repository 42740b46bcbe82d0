"""Models of every family, imported and exported again, against transformers' reading of what was published.

A family's rows, the PARTS:

    logits     ours, both documents packed in one row, against a padded batch there; then what transformers reads from
               what we exported against the same
    gradients  of every tensor
    cache      the documents' first halves read at once, the rest token by token through the ring of slots, against the
               logits of the whole documents there; a classifier has no cache
    export     how many tensors come back with the same type and bytes, in float32 and in bfloat16; the error is how
               many do not
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx

from comparison import Row
from jaxalign.exchange import export_model, import_model
from jaxalign.exchange.importing import MODULES
from jaxalign.exchange.safetensors import Safetensors
from jaxalign.models.cache import filled
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import logits_of
from jaxalign.train.checkpoint import load_params, read_meta
from page import PARTS

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "golden")]

import make_families  # noqa: E402
import published_models as published  # noqa: E402
import published_tokenizer  # noqa: E402

TOLERANCE = 1e-4
LENGTH = 30
SLOTS = 16  # of a row's cache: from here on attention reads it in parts, and documents are shorter
# What sums over logits or scores are divided by before the gradient is taken: about as many as there are, so that the
# gradients' largest entries are of order one and the tolerance says something of them.
SIZE = 300.0


class Made:
    """A case's model as published, `run` as imported and `out` as exported, in a folder that goes with this."""

    def __init__(self, case, dtype=np.float32, **options):
        self._folder = tempfile.TemporaryDirectory(prefix="jaxalign-conformance-")
        folder = pathlib.Path(self._folder.name)
        self.model, self.run, self.out = folder / "model", folder / "run", folder / "out"
        self.config = published.config_of(case)
        published.write_model(self.model, self.config, dtype, **options)
        published_tokenizer.write_tokenizer(self.model)
        import_model(self.model, self.run)
        export_model(self.run, self.out)


# The rows of a case follow one another over the same draws: what they share is made once.
made = functools.lru_cache(maxsize=1)(Made)


def drawn(draw):
    return tuple(tuple(draw.integers(2, published.VOCABULARY, n).tolist()) for n in draw.integers(6, 14, 2))


def logits(draw, *, case):
    documents = drawn(draw)
    theirs = in_transformers(case, documents)[0]
    mine = {"ours": ours(case, documents)[0], "exported": in_transformers(case, documents, "out")[0]}
    return numbered(mine), numbered(dict.fromkeys(mine, theirs))


def gradients(draw, *, case):
    documents = drawn(draw)
    return ours(case, documents)[1], in_transformers(case, documents)[1]


def cache(draw, *, case):
    documents = drawn(draw)
    theirs = in_transformers(case, documents)[0]
    mine = decoded(*opened(case)[:2], documents, int(draw.integers(SLOTS)), SLOTS)
    return numbered({"logits": mine}), numbered({"logits": [x[len(d) // 2:] for x, d in zip(theirs, documents)]})


def export(draw, *, case):
    kept, there = 0, 0
    for each in (made(case), Made(case, ml_dtypes.bfloat16, largest_shard=4000)):
        before, after = Safetensors(each.model), Safetensors(each.out)
        there += len(before.names | after.names)
        kept += sum(before.dtype(name) == after.dtype(name) and before.read(name).tobytes() == after.read(name).tobytes()
                    for name in before.names & after.names)
    return {"tensors": kept}, {"tensors": there}


def numbered(sides):
    """Arrays by name and number. A score is a number: near 0 terms have cancelled, and its share of itself says nothing."""
    sides = {f"{name} {n}": np.asarray(x) for name, parts in sides.items() for n, x in enumerate(parts)}
    return {name: x[0] if x.shape == (1,) else x for name, x in sides.items()}


@functools.lru_cache(maxsize=20)
def in_transformers(case, documents, folder="model"):
    """Of each document its logits, or its score; and the gradients by name."""
    model = make_families.load(getattr(made(case), folder))
    ids = np.zeros((2, LENGTH), np.int64)
    seen = np.zeros((2, LENGTH), np.int64)
    for row, document in enumerate(documents):
        ids[row, :len(document)], seen[row, :len(document)] = document, 1
    model.config.pad_token_id = 0
    logits = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(seen)).logits
    parts = [logits[row, :len(d)] for row, d in enumerate(documents)] if logits.ndim == 3 else list(logits)
    sum((x * torch.tensor(make_families.slope(x.shape))).sum() / SIZE for x in parts).backward()
    named = {f"d/d {name}": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return [x.detach().numpy() for x in parts], in_memory(named)


@functools.lru_cache(maxsize=1)
def opened(case):
    return read(made(case).run)


def read(run):
    """(graphdef, params, head) of a checkpoint."""
    folder, meta = read_meta(run)
    head = meta["published"]["head"]
    model = ModelConfig(**meta["model"])
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: MODULES[head](model, rngs=nnx.Rngs(0))))
    return graphdef, load_params(folder, head, abstract), head


def packed(documents, length):
    """((tokens, positions, segments), where each document lies): all in one row, after one place of padding."""
    tokens, positions, segments = (np.zeros((1, length), np.int32) for _ in "123")
    at, start = [], 1
    for n, document in enumerate(documents):
        at.append(slice(start, start + len(document)))
        tokens[0, at[-1]], positions[0, at[-1]], segments[0, at[-1]] = document, np.arange(len(document)), n + 1
        start += len(document)
    return (tokens, positions, segments), at


@functools.lru_cache(maxsize=10)
def ours(case, documents):
    """As `in_transformers`."""
    graphdef, params, head = opened(case)
    inputs, at = packed(documents, LENGTH)
    where = [(0, slice(part.stop - 1, part.stop) if head == "reward" else part) for part in at]
    slopes = np.zeros((1, LENGTH) if head == "reward" else (1, LENGTH, published.VOCABULARY), np.float32)
    for place in where:
        slopes[place] = make_families.slope(slopes[place].shape)
    out, gradient = _outputs_and_gradient(graphdef, head, params, inputs, slopes / SIZE)
    mapping = published.mapping_and_abstract(made(case).config)[0]
    leaves = dict(zip(mapping.shapes, map(np.asarray, jax.tree.leaves(gradient))))
    named = {f"d/d {name}": mapping.put_together(name, leaves) for name in mapping.published}
    return [np.asarray(out[place]) for place in where], in_memory(named)


# Compiled once a case: every draw has the same shapes.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs_and_gradient(graphdef, head, params, inputs, slopes):
    def value(params):
        module = nnx.merge(graphdef, params)
        out = module(*inputs)
        out = out if head == "reward" else logits_of(out, module.unembedding_DV, module.softcap)
        return jnp.sum(out * slopes), out

    (_, out), gradient = jax.value_and_grad(value, has_aux=True)(params)
    return out, gradient


@functools.partial(jax.jit, static_argnums=0)
def _read_first(graphdef, params, inputs, source_BW):
    return filled(nnx.merge(graphdef, params).keys_values(*inputs), source_BW)


@functools.partial(jax.jit, static_argnums=0)
def _read_rest(graphdef, params, cache, end, length_B, tokens_TB):
    module = nnx.merge(graphdef, params)
    groups, slots = module.layer_groups(), jax.tree.leaves(cache)[0].shape[-2]

    def step(cache, xs):
        token_B, t = xs
        hidden_BD, cache = module.decode(token_B, length_B + t, jnp.mod(end + t, slots), cache, groups)
        return cache, logits_of(hidden_BD, module.unembedding_DV, module.softcap)

    return jax.lax.scan(step, cache, (tokens_TB, jnp.arange(len(tokens_TB))))[1]


def decoded(graphdef, params, documents, end, slots):
    """Logits after each token of the documents' second halves, the first of which go into slot `end` of the cache."""
    halves = [len(document) // 2 for document in documents]
    inputs, at = packed([d[:half] for d, half in zip(documents, halves)], slots)
    source_BW = np.zeros((len(documents), slots), np.int32)
    # A row that has ended reads on, and nobody its logits.
    tokens_TB = np.zeros((slots // 2, len(documents)), np.int32)
    for row, (document, half) in enumerate(zip(documents, halves)):
        source_BW[row, (end - half + np.arange(half)) % slots] = np.arange(at[row].start, at[row].stop)
        tokens_TB[:len(document) - half, row] = document[half:]
    held = _read_first(graphdef, params, inputs, source_BW)
    logits_TBV = _read_rest(graphdef, params, held, np.int32(end), np.array(halves, np.int32), tokens_TB)
    return [logits_TBV[:len(d) - half, row] for row, (d, half) in enumerate(zip(documents, halves))]


def in_memory(named):
    """Gradients by the names and in the shapes that transformers has in memory, where its files have others.

    Its own go through here too: not every version of it that may be installed has the same.
    """
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
        read = {case: ([make_families.unpacked(text) for text in golden["logits"]],
                       make_families.unpacked(golden["embedding_gradient"]) / SIZE) for case, golden in cases.items()}
        return numbered({case: logits for case, (logits, _) in read.items()}) | {
            f"d/d {case}": gradient for case, (_, gradient) in read.items()}

    return numbers(held), numbers(made)


def _rows(case):
    sides = dict(zip(PARTS, (logits, gradients, cache, export)))
    if case.endswith("classifier"):
        del sides["cache"]
    against = f"transformers {published.config_of(case)['architectures'][0]}"
    for part, function in sides.items():
        of_case = functools.partial(function, case=case)
        yield (Row(f"{case}: {part}", "the files that were imported", of_case, tolerance=0.0, draws=1) if part == "export"
               else Row(f"{case}: {part}", against, of_case, TOLERANCE))


ROWS = [row for case in published.CASES for row in _rows(case)] + [
    Row("tests/golden/families.json", "transformers, made afresh", goldens, TOLERANCE, draws=1)]
