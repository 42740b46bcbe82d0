"""Adapters in PEFT's layout: against what PEFT itself computes, and there and back."""

import json
import shutil

import numpy as np
import pytest
from published_models import config_of, write_model

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

import tiny_stages  # noqa: E402
from peft_adapters import CASES, GOLDEN, logits, unpacked, write_adapter  # noqa: E402
from published_tokenizer import write_tokenizer  # noqa: E402

from jaxalign.cli import main  # noqa: E402
from jaxalign.exchange.peft import read_adapters  # noqa: E402
from jaxalign.exchange.safetensors import Safetensors  # noqa: E402
from jaxalign.train.checkpoint import read_meta  # noqa: E402


def imported(tmp_path, case):
    """Runs of a small published model and of an adapter of it."""
    family, options = CASES[case]
    write_model(tmp_path / "model", config_of(family))
    write_tokenizer(tmp_path / "model")
    write_adapter(tmp_path / "adapter", family, **options)
    assert main(["import", f"--from={tmp_path / 'model'}", f"--to={tmp_path / 'base'}"]) == 0
    assert main(["import", f"--from={tmp_path / 'adapter'}", f"--base={tmp_path / 'base'}", f"--to={tmp_path / 'run'}"]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("case", CASES)
def test_what_peft_wrote_computes_what_peft_computed_and_goes_back(case, tmp_path):
    run = imported(tmp_path, case)
    golden = json.loads(GOLDEN.read_text())["cases"][case]
    for got, text, base in zip(logits(run), golden, logits(tmp_path / "base"), strict=True):
        np.testing.assert_allclose(got, unpacked(text).reshape(got.shape), rtol=1e-4, atol=1e-4)
        assert np.abs(got - base).max() > 0.05
    # And out again: what PEFT is given is the same adapter, if its ranks were all the same the very same numbers.
    assert main(["export", f"--checkpoint={run}", f"--to={tmp_path / 'out'}", "--adapters"]) == 0
    one, two = (Safetensors(tmp_path / name, "adapter_model") for name in ("adapter", "out"))
    assert one.names == two.names
    given = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("adapter", "out")]
    assert given[0]["use_dora"] == given[1]["use_dora"] and given[1]["peft_type"] == "LORA"
    assert given[1]["base_model_name_or_path"] == str(tmp_path / "model")
    for name in one.names if case == "llama" else ():
        np.testing.assert_array_equal(one.read(name), two.read(name))
    assert main(["import", f"--from={tmp_path / 'out'}", f"--base={tmp_path / 'base'}", f"--to={tmp_path / 'again'}"]) == 0
    for a, b in zip(logits(run), logits(tmp_path / "again")):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_trained_adapter_is_exported_alone_and_merged(tmp_path):
    from jaxalign.stages import train_stage

    run = imported(tmp_path, "llama")
    rows = [{"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "cba"}]}] * 8
    source = dict(path=str(tiny_stages.jsonl(tmp_path / "rows.jsonl", rows)), shape="messages")
    lora = read_meta(run)[1]["lora"]
    config = tiny_stages.config("sft", init_from=str(run), lora=lora, data=dict(train=[source], dev=[source]), steps=2)
    train_stage(config, tmp_path / "sft")
    assert read_meta(tmp_path / "sft")[1]["base"]["path"] == read_meta(run)[1]["base"]["path"]
    for flags, to in (([], "whole"), (["--adapters"], "alone")):
        assert main(["export", f"--checkpoint={tmp_path / 'sft'}", f"--to={tmp_path / to}", *flags]) == 0
    whole, alone = Safetensors(tmp_path / "whole"), Safetensors(tmp_path / "alone", "adapter_model")
    name, s = "model.layers.1.mlp.down_proj", lora["alpha"] / lora["rank"]
    product = alone.read(f"base_model.model.{name}.lora_B.weight") @ alone.read(f"base_model.model.{name}.lora_A.weight")
    base = Safetensors(tmp_path / "model").read(f"{name}.weight")
    np.testing.assert_allclose(whole.read(f"{name}.weight"), base + s * product, rtol=1e-5, atol=1e-5)
    assert np.abs(s * product).max() > 1e-2


def no_layer(folder):
    path = folder / "adapter_model.safetensors"
    files = Safetensors(folder, "adapter_model")
    kept = {name: files.read(name) for name in files.names if ".layers.2." not in name}
    path.unlink()
    from jaxalign.exchange.safetensors import write
    write(folder, {n: (x.dtype, x.shape) for n, x in kept.items()}, kept.get, stem="adapter_model")


def changed(**changes):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return change


def of_another_model(folder):
    shutil.rmtree(folder)
    write_adapter(folder, "gpt2", r=2)


@pytest.mark.parametrize("break_it, message", [
    (changed(peft_type="LOHA"), "peft_type='LOHA'; jaxalign reads adapters of type LORA alone"),
    (changed(bias="all"), "bias='all'"), (changed(modules_to_save=["lm_head"]), "modules_to_save="),
    (changed(init_lora_weights="pissa_niter_4"), "init_lora_weights='pissa_niter_4', with which PEFT changes the base too"),
    (changed(lora_alpha=None), "lora_alpha=None; expected a number"),
    (changed(layer_replication=[[0, 2], [1, 3]]), "layer_replication=[[0, 2], [1, 3]], with which PEFT computes something else"),
    (changed(alora_invocation_tokens=[3, 4]), "alora_invocation_tokens=[3, 4], with which PEFT computes something else"),
    (changed(alpha_pattern={"(": 3}), "alpha_pattern={'(': 3} cannot be read"),
    (no_layer, "is not adapted in every layer"), (of_another_model, "adapts nothing that jaxalign adapts in this model"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json: no such file"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "expected adapter_model.safetensors or"),
])
def test_what_cannot_be_read_is_said_and_nothing_is_left(break_it, message, tmp_path, capsys):
    imported(tmp_path, "llama")
    break_it(tmp_path / "adapter")
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert main(["import", f"--from={tmp_path / 'adapter'}", f"--base={tmp_path / 'base'}", f"--to={tmp_path / 'x'}"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("pattern, layers", [
    ({"^model.layers.0.self_attn.q_proj": 2.0}, [0]), ({r"layers\.[01]\.self_attn\.(q|k)_proj": 2.0, "q_proj": 3.0}, [0, 1]),
    ({"q_proj": 2.0}, [0, 1, 2]), ({"model.layers.1.self_attn.q_pro": 2.0, "_proj": 2.0}, [])])
def test_a_pattern_of_scales_is_an_expression_for_the_end_of_a_name(pattern, layers, tmp_path):
    """As PEFT's `get_pattern_key` reads it; the first that fits counts."""
    imported(tmp_path, "llama")
    _, meta = read_meta(tmp_path / "base")
    alpha = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"]

    def factors():
        return np.asarray(read_adapters(tmp_path / "adapter", meta)[1]["layers"]["attention"]["query"]["adapter"]["b"].get_value())

    plain = factors()
    changed(alpha_pattern={key: by * alpha for key, by in pattern.items()})(tmp_path / "adapter")
    times = factors() / np.where(plain == 0, 1.0, plain)
    at = {n: float(np.median(x[plain[n] != 0])) for n, x in enumerate(times)}
    others = {n: by for n, by in at.items() if n not in layers}
    assert all(at[n] == pytest.approx(2.0) for n in layers)
    assert all(by == pytest.approx(3.0 if "q_proj" in pattern and layers != [0, 1, 2] else 1.0) for by in others.values())


def test_whole_weights_are_no_adapters(tmp_path, capsys):
    assert main(["export", f"--checkpoint={tiny_stages.trained('sft')}", f"--to={tmp_path / 'x'}", "--adapters"]) == 2
    assert "it holds whole weights and no adapters" in capsys.readouterr().err
