"""Trap t22: export is not what was trained: transposed, tied weights lost (maxtext #3003, #551).

Every family's tensors bit for bit, and its gradients against transformers': tests/exchange/test_families.py and
tools/conformance.sh. Here the whole way: import, train, export, import again; the same logits, and the tie as it was.
"""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from published_models import config_of, write_model

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

import tiny_stages  # noqa: E402
from published_tokenizer import write_tokenizer  # noqa: E402

from jaxalign.evaluate.assistant import Assistant  # noqa: E402
from jaxalign.exchange import export_model, import_model  # noqa: E402
from jaxalign.exchange.safetensors import Safetensors  # noqa: E402
from jaxalign.models.transformer import ModelConfig, Transformer, logits_of  # noqa: E402
from jaxalign.stages import train_stage  # noqa: E402
from jaxalign.train.adapters import abstract_adapters, load_base  # noqa: E402
from jaxalign.train.checkpoint import load_params, read_meta, read_params  # noqa: E402

TOKENS = np.array([[5, 1, 7, 3, 20, 11, 2]], np.int32)


def logits(run):
    assistant = Assistant.load(run, batch_size=1)

    @jax.jit
    def forward(params):
        model = nnx.merge(assistant.graphdef, params)
        return logits_of(model(TOKENS), model.unembedding_DV, model.softcap)

    return np.asarray(forward(assistant.params))


@pytest.mark.parametrize("case, tied", [
    ("llama", False), ("gemma2", True), *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("llama", "gpt2"))])
def test_t22_what_was_trained_is_what_is_exported(case, tied, tmp_path):
    config = config_of(case) | ({"tie_word_embeddings": tied} if case == "llama" else {})
    write_model(tmp_path / "model", config)
    write_tokenizer(tmp_path / "model")
    import_model(tmp_path / "model", tmp_path / "run")
    rows = [{"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "cba"}]}] * 8
    source = dict(path=str(tiny_stages.jsonl(tmp_path / "rows.jsonl", rows)), shape="messages")
    train_stage(tiny_stages.config("sft", init_from=str(tmp_path / "run"), data=dict(train=[source], dev=[])),
                tmp_path / "sft")
    export_model(tmp_path / "sft", tmp_path / "out", dtype="float32")
    import_model(tmp_path / "out", tmp_path / "again")
    before, trained = logits(tmp_path / "run"), logits(tmp_path / "sft")
    assert np.abs(trained - before).max() > 1e-2
    np.testing.assert_array_equal(logits(tmp_path / "again"), trained)
    assert ("lm_head.weight" in Safetensors(tmp_path / "out").names) == (not tied)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.get("tie_word_embeddings", True) == tied
    # Untrained it goes back bit for bit.
    export_model(tmp_path / "run", tmp_path / "untrained")
    one, other = Safetensors(tmp_path / "model"), Safetensors(tmp_path / "untrained")
    assert one.names == other.names and all(one.read(n).tobytes() == other.read(n).tobytes() for n in one.names)


@pytest.mark.parametrize("form", ["lora", "dora"])
def test_t22_a_merged_adapter_is_the_adapter_applied(form, tmp_path):
    config = tiny_stages.config("sft", lora=dict(rank=2, form=form), optimizer=dict(peak_lr=0.1))
    train_stage(config, tmp_path / "sft")
    folder, meta = read_meta(tmp_path / "sft")
    graphdef, abstract = abstract_adapters(meta, Transformer)
    plain = nnx.split(nnx.eval_shape(lambda: Transformer(ModelConfig(**meta["model"]), rngs=nnx.Rngs(0))))[1]
    whole = nnx.merge_state(load_base(folder, meta, plain)[1], read_params(folder, meta, "policy", abstract))

    @jax.jit
    def applied(params):
        model = nnx.merge(graphdef, params)
        return logits_of(model(TOKENS), model.unembedding_DV, model.softcap)

    expected = np.asarray(applied(whole))
    assert np.abs(logits(config.init_from) - expected).max() > 1e-2
    np.testing.assert_allclose(logits(tmp_path / "sft"), expected, rtol=1e-4, atol=1e-5)
    export_model(tmp_path / "sft", tmp_path / "out")
    written, base = Safetensors(tmp_path / "out"), nnx.to_pure_dict(load_params(folder, "policy", plain))
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(written.read(name), np.asarray(base["layers"]["mlp"]["down"]["kernel"][0]).T)
