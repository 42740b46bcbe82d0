"""What was trained here, exported: its tokenizer's ids and its logits where transformers reads them."""

from __future__ import annotations

import functools
import pathlib
import tempfile

import torch
import transformers
from flax import nnx

import families
import make_families
import tiny_stages
from comparison import Row
from jaxalign.data.chat import render
from jaxalign.data.tokenizer import train_tokenizer
from jaxalign.evaluate.assistant import Assistant
from jaxalign.exchange import export_model
from jaxalign.exchange.exporting import tokenizer_files
from jaxalign.models.transformer import logits_of
from jaxalign.stages import train_stage
from jaxalign.train.checkpoint import pack_tokenizer

PARTS = "The fox| is|  red|\n|12|\u00eb|\U0001f642|\u00a0|<unk>|</s|f\u00e9|.|,| |\t".split("|")
MODEL = dict(tiny_stages.MODEL, qk_norm=True, tied_embeddings=False, embed_scale=4.0)  # as the quickstart's


@functools.cache
def tokenizers(model_type):
    """(ours, what AutoTokenizer makes of what an export writes of it)."""
    texts = [*tiny_stages.TEXTS, "Numbers as 12 + 7 = 19, names as Zo\u00eb;  two spaces, <unk>.\n\tA tab.", "caf\u00e9"] * 3
    ours = train_tokenizer(texts, vocab_size=400, model_type=model_type)
    with tempfile.TemporaryDirectory() as folder:
        for name, data in tokenizer_files({"tokenizer": pack_tokenizer(ours.model_bytes), "lineage": []}, ours).items():
            (pathlib.Path(folder) / name).write_bytes(data)
        return ours, transformers.AutoTokenizer.from_pretrained(folder)


def ids(draw, model_type):
    """Of random texts, and of random conversations by both templates."""
    ours, theirs = tokenizers(model_type)
    texts = ["".join(draw.choice(PARTS, 9)) for _ in range(60)]
    talks = [[{"role": role, "content": "".join(draw.choice(PARTS, 9))} for role in ("system", "user", "assistant")] for _ in range(20)]
    mine = [[ours.bos_id, *ours.encode(text)] for text in texts] + [render(talk, ours)[0] for talk in talks]
    other = [theirs(text)["input_ids"] for text in texts] + [theirs.apply_chat_template(t, return_dict=True)["input_ids"] for t in talks]
    return families.numbered({"ids": mine}), families.numbered({"ids": other})


def logits(draw):
    """Of a model whose embedding has a scale, which Qwen 3 has not."""
    with tempfile.TemporaryDirectory() as folder:
        run, out = pathlib.Path(folder) / "run", pathlib.Path(folder) / "out"
        train_stage(tiny_stages.config("pretrain", model=MODEL, steps=2), run)
        export_model(run, out)
        documents = [draw.integers(4, 200, size).tolist() for size in (9, 16)]
        ours = Assistant.load(run)
        module = nnx.merge(ours.graphdef, ours.params)
        inputs, at = families.packed(documents, 32)
        mine = logits_of(module(*inputs), module.unembedding_DV, module.softcap)[0]
        model = make_families.load(out)
        with torch.no_grad():
            theirs = [make_families.logits_of(model, document).numpy() for document in documents]
    return families.numbered({"logits": [mine[part] for part in at]}), families.numbered({"logits": theirs})


ROWS = [Row(f"trained here: ids, {kind}", "transformers AutoTokenizer", functools.partial(ids, model_type=kind))
        for kind in ("unigram", "bpe")] + [
        Row("trained here: logits", "transformers Qwen3ForCausalLM", logits, 1e-4, draws=1)]
