"""GGUF files of small models: every tensor as transformers reads it from the same file, and the ids of texts where the tokenizer
that is made of a file is read there."""

from __future__ import annotations

import functools
import pathlib
import sys
import tempfile

import numpy as np
import transformers

import families
import trained
from comparison import Row
from jaxalign.data.tokenizer import train_tokenizer
from jaxalign.exchange import gguf_metadata as metadata
from jaxalign.exchange.gguf import read_gguf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "exchange"))

import gguf_files  # noqa: E402
import tiny_stages  # noqa: E402

# Of FILES what transformers 5.10 reads, and sizes which it does not read from a file, as it takes them to be.
READ_THERE = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 128}, "qwen3_moe": {"moe_intermediate_size": 768}, "gemma2": {},
              "gemma3": {}, "phi3": {}, "gpt2": {"n_positions": 1024}}


def tensors(draw, *, name):
    """Under the names of a folder, float32; one that is not there is a difference. Tied matrices there have two names."""
    with tempfile.TemporaryDirectory() as folder:
        _, path = gguf_files.files(pathlib.Path(folder), name, **READ_THERE[name])
        mine = read_gguf(path)[3]
        ours = {each: mine.read(each) for each in mine.names}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name)
        theirs = dict(apart({each: x.numpy() for each, x in model.state_dict().items() if each in ours or ".experts." in each}))
    return ours, {each: theirs.get(each, np.float32(np.nan)) for each in ours}


def apart(named):
    """Experts that lie in one tensor, one by one."""
    for name, x in named.items():
        before, found, part = name.partition(".experts.")
        for n in range(len(x) if found else 0):
            parts = zip(("gate_proj", "up_proj"), np.split(x[n], 2)) if part == "gate_up_proj" else [(part, x[n])]
            yield from ((f"{before}.experts.{n}.{each}.weight", y) for each, y in parts)
        if not found:
            yield name, x


def ids(draw, *, architecture):
    """Of random texts, by the very files that an export writes."""
    gemma = architecture.startswith("gemma")
    model = train_tokenizer(tiny_stages.TEXTS, vocab_size=400, model_type="bpe").model_bytes
    fields = gguf_files.metadata_of_pieces(model, prefix=not gemma, runs=gemma)
    ours = metadata.tokenizer(metadata.Fields(fields, architecture, {}, None))
    texts = ["".join(draw.choice(trained.PARTS, 9)) for _ in range(60)]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in ours.files.items():
            (pathlib.Path(folder) / name).write_bytes(data)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return (families.numbered({"ids": [[*ours.start_ids, *ours.encode(text)] for text in texts]}),
            families.numbered({"ids": [theirs(text)["input_ids"] for text in texts]}))


ROWS = [Row(f"GGUF {name}: tensors", "transformers, from the same file", functools.partial(tensors, name=name), 1e-6, draws=1)
        for name in READ_THERE] + [
        Row(f"GGUF {name}: ids", "transformers AutoTokenizer", functools.partial(ids, architecture=name)) for name in ("llama", "gemma2", "phi3")]
