"""GGUF files of every family: the same config and the same weights as the folder that they were made of."""

import dataclasses

import jax
import numpy as np
import pytest
from published_models import CASES, config_of, write_model
from published_tokenizer import write_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from gguf_files import FILES, WRITTEN, files, write_gguf, yarn  # noqa: E402

from jaxalign.errors import ConfigError  # noqa: E402
from jaxalign.exchange.gguf import ARCHITECTURES, read_gguf  # noqa: E402
from jaxalign.exchange.importing import import_model, shapes_of  # noqa: E402
from jaxalign.exchange.safetensors import Safetensors  # noqa: E402
from jaxalign.models.config import ModelConfig  # noqa: E402
from jaxalign.models.families import FAMILIES, model_config  # noqa: E402
from jaxalign.train.checkpoint import load_params, read_meta  # noqa: E402

def test_every_family_has_a_file():
    assert {CASES[case]["model_type"] for case, *_ in FILES.values()} == set(FAMILIES) == set(WRITTEN)
    assert {own for own, _ in WRITTEN.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_model_that_its_folder_is(name, tmp_path):
    config, path = files(tmp_path, name)
    found, generation, tokenizer, tensors = read_gguf(path)
    family = "llama" if config["model_type"] == "mistral" else config["model_type"]
    model, like = model_config(found), model_config(config | {"model_type": family})
    close = [a == b or np.isclose(a, b, rtol=1e-6) for a, b in zip(model.rope_scaling, like.rope_scaling, strict=True)]
    assert found["model_type"] == family and all(close) and model == dataclasses.replace(like, rope_scaling=model.rope_scaling)
    expected = Safetensors(tmp_path / "model")
    assert tensors.names == expected.names
    for each in expected.names:
        x, y = expected.read(each), tensors.read(each)
        assert tensors.shape(each) == x.shape == y.shape and y.dtype == np.float32
        if config["model_type"].startswith("gemma") and each.endswith("norm.weight"):
            np.testing.assert_allclose(y, x, rtol=0.0, atol=3e-7)  # it was added to one and taken off again
        else:
            np.testing.assert_array_equal(y, x)
    assert generation == {"eos_token_id": 1} and tokenizer.vocab_size == config["vocab_size"]


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "mixtral"])
def test_a_file_becomes_a_checkpoint(name, tmp_path):
    _, path = files(tmp_path, name)
    told = [import_model(source, tmp_path / to) for source, to in ((path, "file"), (tmp_path / "model", "folder"))]
    assert told[0]["parameters"] == told[1]["parameters"] and told[0]["family"] == told[1]["family"]
    params = []
    for to in ("file", "folder"):
        folder, meta = read_meta(tmp_path / to)
        model = ModelConfig(**meta["model"])
        params.append(jax.tree.leaves(load_params(folder, "policy", shapes_of(model, "policy")[0])))
    for ours, theirs in zip(*params, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.0, atol=3e-7 if name == "gemma3" else 0.0)
    models = [read_meta(tmp_path / to)[1]["model"] for to in ("file", "folder")]
    assert models[0] == models[1]


@pytest.mark.parametrize("name, layers, scalar", [("gemma2", 46, 4), ("gemma2", 42, 6), ("gemma3", 62, 4), ("gemma3", 48, 6)])
def test_the_largest_gemmas_scale_their_queries_by_the_width_of_a_head(name, layers, scalar, tmp_path):
    _, path = files(tmp_path, name, num_hidden_layers=layers)
    assert read_gguf(path)[0]["query_pre_attn_scalar"] == scalar


def test_where_a_turn_ends_is_among_the_ends(tmp_path):
    config = config_of("llama")
    write_model(tmp_path / "model", config)
    write_tokenizer(tmp_path / "model")
    path = write_gguf(tmp_path / "a.gguf", tmp_path / "model", config, more=lambda writer: writer.add_eot_token_id(7))
    assert read_gguf(path)[1] == {"eos_token_id": [1, 7]}


def test_a_factor_without_a_kind_of_scaling_is_linear(tmp_path):
    """As llama.cpp takes it; the second is the key of its first files."""
    for n, key in enumerate(("llama.rope.scaling.factor", "llama.rope.scale_linear")):
        config = config_of("llama")
        write_model(tmp_path / f"{n}", config)
        write_tokenizer(tmp_path / f"{n}")
        path = write_gguf(tmp_path / f"{n}.gguf", tmp_path / f"{n}", config, more=lambda w, key=key: w.add_float32(key, 4.0))
        assert read_gguf(path)[0]["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_experts_that_stand_one_by_one_are_read(tmp_path):
    """As in Mixtral's first files."""
    config = config_of("mixtral")
    write_model(tmp_path / "model", config)
    write_tokenizer(tmp_path / "model")
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, one_by_one=True)
    expected, tensors = Safetensors(tmp_path / "model"), read_gguf(path)[3]
    assert tensors.names == expected.names
    for name in expected.names:
        np.testing.assert_array_equal(tensors.read(name), expected.read(name))


@pytest.mark.parametrize("name, more, message", [
    ("llama", lambda w: (yarn(w), w.add_rope_scaling_attn_factors(1.2)), "stretched by 'yarn' with its own factors of attention"),
    ("llama", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE), "stretched by 'longrope'"),
    ("llama", lambda w: w.add_rope_dimension_count(2), "partial_rotary_factor=0.5 is not something .*whole heads"),
    ("phi3", lambda w: w.add_tensor("rope_factors_short.weight", np.ones(4, np.float32)), "its metadata lack '"),
    ("llama", lambda w: w.add_uint16("split.count", 3), "one of 3 parts of a model; join them with llama-gguf-split --merge"),
    ("mixtral", lambda w: w.add_expert_count(5), "blk.0.ffn_.*_exps.weight holds 4 experts, the metadata tell of 5"),
    ("mixtral", lambda w: w.add_expert_count(2**31), "holds 4 experts, the metadata tell of 2147483648"),
    ("qwen3", lambda w: w.add_head_count_kv(0), "qwen3.attention.head_count_kv=0 must be a whole number from 1"),
    ("phi3", lambda w: w.add_rope_dimension_count(0), "phi3.rope.dimension_count=0 must be a whole number from 1"),
    ("olmo2", lambda w: w.add_sliding_window(4), "OLMo with windows"),
])
def test_what_cannot_be_read_is_said(name, more, message, tmp_path):
    case, own, _ = FILES[name]
    config = config_of(case) | own
    write_model(tmp_path / "model", config)
    write_tokenizer(tmp_path / "model")
    path = write_gguf(tmp_path / "model.gguf", tmp_path / "model", config, more=more, leave_out=("expert_count", "head_count_kv"))
    with pytest.raises(ConfigError, match=f"model.gguf: .*{message}"):
        read_gguf(path)
