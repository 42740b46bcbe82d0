"""What a stage that starts from a checkpoint forgets: measured by default, as it is, told, and less with replay."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages
from flax import nnx

from jaxalign import pipeline
from jaxalign.data.pipeline import batches
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluate import evaluate_checkpoint
from jaxalign.evaluate.assistant import Assistant
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, check_config, train_stage
from jaxalign.stages.forgetting import told

NAMES = ("nll", "bits_per_byte", "accuracy")


def new_domain(folder):
    rows = [{"text": f"{word} {n} {word}"} for n in range(6) for word in ("alpha", "gamma", "delta")]
    return dict(path=str(tiny_stages.jsonl(folder / "new.jsonl", rows)), shape="text")


def old_domain():
    """What the tiny chain's pretraining is measured on."""
    return dict(tiny_stages.data()["text"], limit=6)


def adapt(folder, name="pretrain", **changes):
    new = new_domain(folder)
    return tiny_stages.config(name, **dict(init_from=tiny_stages.trained("pretrain"),
                                           data=dict(train=[new], dev=[dict(new, limit=9)])) | changes)


def directly(checkpoint, source, length=32):
    """The same figures by other ways: two of them `jaxalign evaluate`'s, the likeliest token that of plain logits."""
    (figures,) = evaluate_checkpoint(checkpoint, [source], {"length": length}).values()
    assistant = Assistant.load(checkpoint)
    network, right, total = nnx.merge(assistant.graphdef, assistant.params), 0.0, 0.0
    for batch in batches(source, assistant.tokenizer, kind="tokens", batch_size=3, length=length, packing="none",
                         shuffle=False, repeat=False):
        hidden_BTD = network(batch["tokens_BT"], batch["positions_BT"], batch["segment_ids_BT"])
        likeliest_BT = jnp.einsum("btd,dv->btv", hidden_BTD, network.unembedding_DV).argmax(-1)
        right += float(((likeliest_BT == batch["targets_BT"]) * batch["mask_BT"]).sum())
        total += float(batch["mask_BT"].sum())
    return {"nll": figures["nats_per_token"]["value"], "bits_per_byte": figures["bits_per_byte"]["value"],
            "accuracy": right / total}


@pytest.mark.parametrize("name, changes", [
    ("pretrain", dict(objective=dict(label_smoothing=0.3, z_loss=1e-2))),  # which is no part of nats a token
    ("sft", dict(data=dict(train=[tiny_stages.data()["messages"]], dev=[dict(tiny_stages.data()["messages"], limit=5)]))),
    pytest.param("pretrain", dict(lora=dict(rank=2), optimizer=dict(peak_lr=5e-2, warmup_steps=0)), marks=pytest.mark.slow),
])
def test_both_domains_are_measured_before_and_after_with_no_setting_at_all(name, changes, tmp_path, capsys):
    config = adapt(tmp_path, name, **changes)
    done = train_stage(config, tmp_path / "run")
    said = capsys.readouterr().out
    for when, checkpoint in (("before", config.init_from), ("after", tmp_path / "run")):
        for at, source in (("old/", old_domain()), ("", dict(config.data.dev[0]))):
            expected = directly(checkpoint, source)
            assert {figure: done[when][at + figure] for figure in NAMES} == pytest.approx(expected, rel=1e-4)
    assert abs(done["after"]["old/nll"] - done["before"]["old/nll"]) > 1e-3
    assert json.loads((tmp_path / "run" / "done.json").read_text())["after"] == done["after"]
    assert done["data"]["old"]["rows"] == 6
    first, last = done["before"]["old/nll"], done["after"]["old/nll"]
    assert f"{name}: old domain: nats a token {first:.4g} → {last:.4g}, bits a byte " in said
    assert f"{name}: new domain: nats a token {done['before']['nll']:.4g} → " in said
    logged = [row["dev/old/nll"] for row in tiny_stages.metrics(tmp_path / "run") if "dev/old/nll" in row]
    assert logged == pytest.approx([first, last])


@pytest.mark.slow
def test_replay_of_the_old_domain_lowers_what_is_forgotten(tmp_path):
    """As the old rows go on being read, their loss rises less; the new domain is learned either way."""
    start = tiny_stages.config("pretrain", steps=40)
    train_stage(start, tmp_path / "start")
    ends = {}
    for share in (0.0, 0.3):
        config = adapt(tmp_path, init_from=str(tmp_path / "start"), steps=40)
        config.data.train = [dict(new_domain(tmp_path), share=1 - share)] + [
            dict(tiny_stages.data()["text"], share=share)] * (share > 0)
        done = train_stage(config, tmp_path / f"{share}")
        assert done["after"]["nll"] < done["before"]["nll"] - 1
        ends[share] = done["after"]["old/nll"] - done["before"]["old/nll"]
    assert ends[0.0] > ends[0.3] + 0.5, ends


@pytest.mark.parametrize("what", ["gone", "none", "same"])
def test_where_the_old_domain_cannot_be_measured_that_is_said_and_the_stage_runs(what, tmp_path, capsys):
    data = tmp_path / "old.jsonl"
    shutil.copy(tiny_stages.data()["text"]["path"], data)
    source = dict(path=str(data), shape="text")
    train_stage(tiny_stages.config("pretrain", steps=1, data=dict(train=[source], dev=[source] * (what != "none"))),
                tmp_path / "start")
    if what == "gone":
        data.unlink()
    changes = dict(data=dict(dev=[source])) if what == "same" else {}
    config = adapt(tmp_path, init_from=str(tmp_path / "start"), steps=1)
    config.update(changes)
    capsys.readouterr()
    done = train_stage(config, tmp_path / "run")
    expected = {"gone": f"the dev data of {tmp_path}/start cannot be had ({data}: expected a file",
                "none": f"{tmp_path}/start, a checkpoint of the stage 'pretrain', names no dev data of its own",
                "same": f"the dev data are those of {tmp_path}/start"}[what]
    said = capsys.readouterr().out
    assert f"pretrain: forgetting is not measured: {expected}" in said and "config.data.old" in said
    assert "old domain" not in said and "nll" in done["after"]
    assert not [name for name in (*done["before"], *done["after"]) if name.startswith("old/")]


def test_what_is_named_as_old_is_measured_instead_and_must_be_there(tmp_path):
    named = dict(new_domain(tmp_path), limit=2)
    config = adapt(tmp_path, steps=1)
    config.data.old = [named]
    done = train_stage(config, tmp_path / "run")
    assert done["before"]["old/nll"] == pytest.approx(directly(config.init_from, named)["nll"], rel=1e-4)
    config.data.old = [dict(path=str(tmp_path / "absent.jsonl"), shape="text")]
    with pytest.raises(DataError, match="absent.jsonl: expected a file"):
        train_stage(config, tmp_path / "other")
    chain = pipeline.pipeline_config(first=adapt(tmp_path), second=config)
    with pytest.raises(ConfigError, match="^stages.second: .*absent.jsonl: expected a file"):
        pipeline.run_pipeline(chain, tmp_path / "chain")
    assert not (tmp_path / "chain").exists()


def test_settings_that_say_nothing_are_refused_and_it_can_be_left_out(tmp_path):
    config = tiny_stages.config("pretrain")
    config.data.old = [old_domain()]
    with pytest.raises(ConfigError, match="this stage starts from none; set init_from, or leave it empty"):
        check_config(config)
    config = adapt(tmp_path, forgetting=False)
    stage = STAGES["pretrain"](config, tmp_path / "run", make_mesh(devices=jax.devices()[:1]))
    assert stage.old is None and "old" not in stage.reports
    config.data.old = [old_domain()]
    with pytest.raises(ConfigError, match="is told not to measure that; set forgetting=True, or leave it empty"):
        check_config(config)
    config.data.old = [dict(path="x.jsonl", shape="txt")]
    with pytest.raises(ConfigError, match="shape='txt' of x.jsonl; expected one of"):
        check_config(config)


def test_bits_a_byte_are_left_out_where_a_target_stands_for_anything(tmp_path):
    stage = STAGES["pretrain"](adapt(tmp_path), tmp_path / "run", make_mesh(devices=jax.devices()[:1]))
    size_V, *more = stage.sizes
    assert np.isnan(size_V).sum() == 1 and np.isnan(size_V[stage.tokenizer.unk_id])
    batch = next(stage.train_data)
    met = batch["targets_BT"][batch["mask_BT"] > 0][0]
    stage.sizes = np.where(np.arange(len(size_V)) == met, np.nan, size_V), *more
    trainable = stage.start(jax.jit(stage.init)(jax.random.key(0)))

    class State:
        pass

    State.trainable = trainable
    figures = stage.measure(State, [batch])
    assert "bits_per_byte" not in figures and "bytes_per_token" not in figures and figures["nll"] > 0


def test_what_is_told_needs_the_old_domain_at_both_ends():
    before, after = {"old/nll": 2.0, "nll": 4.0, "accuracy": 0.1}, {"old/nll": 2.5, "nll": 3.0, "accuracy": 0.25}
    assert told(before, after) == ["old domain: nats a token 2 → 2.5",
                                   "new domain: nats a token 4 → 3, next token right 0.1 → 0.25"]
    assert told({"nll": 4.0}, after) == [] and told({}, {}) == []
    assert told({"old/nll": 2.0}, {"old/nll": 2.5}) == ["old domain: nats a token 2 → 2.5"]  # a stage without dev data


def test_a_chains_report_shows_both_domains(tmp_path):
    first = tiny_stages.config("pretrain")
    second = adapt(tmp_path, init_from="@first", tokenizer="")
    report = pipeline.run_pipeline(pipeline.pipeline_config(first=first, second=second), tmp_path / "chain")
    stage = report["stages"][1]
    assert {"old/nll", "old/accuracy", "old/bits_per_byte"} <= set(stage["before"]) & set(stage["after"])
    page = pathlib.Path(tmp_path / "chain" / "report.html").read_text()
    shown = [page.index(f'<span class="change">{words} domain:</span><span class="change">nll ') for words in ("old", "new")]
    assert shown[0] < shown[1]
    assert '<span class="third c1">old</span>' in page
