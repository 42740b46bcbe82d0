"""The language model of one that sees pictures: in both layouts of files, with a config that leaves out what is usual."""

import json

import numpy as np
import pytest
from published_models import config_of, weight, write_model
from published_tokenizer import write_tokenizer

from jaxalign.cli import main
from jaxalign.errors import ConfigError
from jaxalign.exchange.importing import open_published
from jaxalign.exchange.safetensors import Safetensors, write
from jaxalign.models.families import model_config
from jaxalign.train.checkpoint import read_meta

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
LAYOUTS = {"until 4": ("language_model.model.", "language_model.lm_head.", ""), "since 5": ("model.language_model.", "lm_head.", "model.")}
KINDS = {"gemma3": "gemma3", "mistral3": "mistral"}


def seeing(folder, kind, layout):
    """Writes a model that sees beside its language model; returns the latter's config."""
    config = config_of(KINDS[kind]) | {"torch_dtype": "float32"}
    write_model(folder / "alone", config)
    write_tokenizer(folder / "alone")
    write_tokenizer(folder)
    body, head, rest = LAYOUTS[layout]
    files, tensors = Safetensors(folder / "alone"), {}
    for name in files.names:
        before, _, after = name.partition(".")
        tensors[{"model": body, "lm_head": head}[before] + after] = files.read(name)
    for name in (f"{rest}vision_tower.vision_model.post_layernorm.weight", f"{rest}multi_modal_projector.norm.weight"):
        tensors[name] = weight(name, (8,))
    write(folder, {name: (x.dtype, x.shape) for name, x in tensors.items()}, tensors.get)
    inside = {key: value for key, value in config.items() if key not in ("torch_dtype", "bos_token_id", "eos_token_id", "architectures")}
    outside = {"model_type": kind, "architectures": ["SeesForConditionalGeneration"], "torch_dtype": "float32", "bos_token_id": 0,
               "eos_token_id": 1, "vision_config": {"hidden_size": 8}}
    (folder / "config.json").write_text(json.dumps(outside | {"text_config": inside}))
    return config


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_is_imported_and_exported_alone(kind, layout, tmp_path):
    config = seeing(tmp_path / "model", kind, layout)
    for source, to in (("model", "run"), ("model/alone", "expected")):
        assert main(["import", f"--from={tmp_path / source}", f"--to={tmp_path / to}"]) == 0
    metas = [read_meta(tmp_path / name)[1] for name in ("run", "expected")]
    assert metas[0]["model"] == metas[1]["model"] and metas[0]["published"]["stop_ids"] == [1]
    assert main(["export", f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == config["architectures"] and written["model_type"] == config["model_type"]
    before, after = Safetensors(tmp_path / "model" / "alone"), Safetensors(tmp_path / "out")
    assert before.names == after.names
    assert all(np.array_equal(before.read(name), after.read(name)) for name in before.names)


def test_what_the_larger_gemmas_leave_out_of_their_config_is_known():
    """As google/gemma-3-4b-it's text_config."""
    written = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
               "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    model = model_config(written)
    assert (model.vocab_size, model.num_heads, model.num_kv_heads, model.head_dim) == (262_208, 8, 4, 256)
    assert model.tied_embeddings and model.layer_kinds[:6] == ("window",) * 5 + ("full",) and model.window == 1024
    assert (model.rope_theta, model.window_rope_theta, model.query_scale) == (1e6, 1e4, 1 / 16)
    assert (model.attention_softcap, model.logit_softcap, model.norm_eps) == (0.0, 0.0, 1e-6)


@pytest.mark.parametrize("change, message", [
    ({"text_config": 5}, "text_config=5; expected the config of the language model"),
    ({"text_config": {"model_type": "seer"}}, "model_type='seer' is no family that jaxalign knows"),
    ({"quantization_config": {"quant_method": "gptq"}}, "weights are quantised"),
])
def test_what_is_no_language_model_is_said(change, message, tmp_path):
    seeing(tmp_path, "gemma3", "until 4")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=f"config.json: .*{message}"):
        open_published(tmp_path)
        model_config(open_published(tmp_path).config)
