"""Models that see pictures, made and read by transformers: the logits of their language models, which alone are imported."""

from __future__ import annotations

import functools
import pathlib
import tempfile

import torch
import transformers
from flax import nnx

import families
import published_models as published
import published_tokenizer
from comparison import Row
from jaxalign.exchange import import_model
from jaxalign.models.transformer import logits_of

VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
          "patch_size": 4}  # fmt: skip
# The model's architecture, the case of its language model, that of what sees.
KINDS = {"gemma3": ("Gemma3ForConditionalGeneration", "gemma3", "siglip_vision_model"),
         "mistral3": ("Mistral3ForConditionalGeneration", "mistral", "pixtral")}  # fmt: skip


def logits(draw, *, kind):
    architecture, case, vision = KINDS[kind]
    text = {key: value for key, value in published.config_of(case).items() if key != "architectures"}
    config = transformers.AutoConfig.for_model(kind, text_config=text, vision_config={"model_type": vision, **VISION}, image_token_index=23,
                                               boi_token_index=22, eoi_token_index=21, mm_tokens_per_image=4)
    torch.manual_seed(int(draw.integers(2**31)))
    model = getattr(transformers, architecture)(config).float().eval()
    for parameter in model.parameters():  # of the size that trained ones have
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.5 / min(parameter.shape) ** 0.5)
    documents = [draw.integers(2, 20, size).tolist() for size in (9, 14)]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save_pretrained(folder / "model")
        published_tokenizer.write_tokenizer(folder / "model")
        import_model(folder / "model", folder / "run")
        graphdef, params, _ = families.read(folder / "run")
        module = nnx.merge(graphdef, params)
        inputs, at = families.packed(documents, 32)
        mine = logits_of(module(*inputs), module.unembedding_DV, module.softcap)[0]
        with torch.no_grad():
            theirs = [model(input_ids=torch.tensor([document])).logits[0].numpy() for document in documents]
    return families.numbered({"logits": [mine[part] for part in at]}), families.numbered({"logits": theirs})


ROWS = [Row(f"{kind}, which sees: logits of words", f"transformers {KINDS[kind][0]}", functools.partial(logits, kind=kind), 1e-4, draws=2)
        for kind in KINDS]
