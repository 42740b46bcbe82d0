"""A chain of stages that do nothing but say that they ran: what is run, what is skipped, what the report keeps."""

import json
import shutil

import pytest

from jaxalign import pipeline
from jaxalign.errors import ConfigError
from jaxalign.pipeline import pipeline_config, run_pipeline
from jaxalign.stages import default_config

DONE = {"seconds": 1.0, "steps": 0, "tokens": 0, "before": {}, "after": {}, "checkpoint": ""}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs world → tokenizer → pretrain with changes to the last; returns (stages that ran, report)."""
    ran = []

    def train_stage(config, folder):
        ran.append(folder.name)
        done = DONE | {"name": folder.name, "stage": config.stage}
        (folder / "done.json").write_text(json.dumps(done))
        return done

    monkeypatch.setattr(pipeline, "train_stage", train_stage)

    def call(tokenizer=None, **changes):
        tokens, pretrain = default_config("tokenizer"), default_config("pretrain")
        text = dict(train=[dict(path="@world/text.jsonl", shape="text")])
        tokens.update(dict(data=text) | (tokenizer or {}))
        pretrain.update(dict(tokenizer="@tokenizer/tokenizer.model", data=text) | changes)
        ran.clear()
        chain = pipeline_config(world=default_config("world"), tokenizer=tokens, pretrain=pretrain)
        return list(ran), run_pipeline(chain, tmp_path)

    call.ran, call.folder = ran, tmp_path
    return call


def test_what_only_watches_a_stage_makes_no_other_stage(run):
    run()
    assert run.ran == ["world", "tokenizer", "pretrain"]
    run(checkpoint_every=7, log_every=3, keep=2, preview=False)
    assert run.ran == []
    with pytest.raises(ConfigError, match="pretrain was made with another config .steps: 100 → 50"):
        run(steps=50, log_every=3)


def test_what_came_from_a_stage_that_is_made_anew_is_not_taken_for_its_child(run):
    run()
    shutil.rmtree(run.folder / "tokenizer")
    with pytest.raises(ConfigError, match="pretrain was made from an earlier tokenizer, which has to be made anew"):
        run(tokenizer=dict(vocab_size=512))
    assert run.ran == []
    shutil.rmtree(run.folder / "pretrain")
    run(tokenizer=dict(vocab_size=512))
    assert run.ran == ["tokenizer", "pretrain"]


def test_a_report_that_is_written_again_remembers_the_memory_that_was_needed(run):
    run()
    path = run.folder / "report.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"peak_rss_gib": 1e4}))
    assert run()[1]["peak_rss_gib"] == 1e4
    shutil.rmtree(run.folder)
    assert run()[1]["peak_rss_gib"] < 1e4


def test_a_run_that_was_stopped_before_its_first_checkpoint_may_change_its_config(run):
    run()
    (run.folder / "pretrain" / "done.json").unlink()
    (run.folder / "pretrain" / "checkpoints" / "40.orbax-checkpoint-tmp" / "meta").mkdir(parents=True)
    run(steps=50)
    assert run.ran == ["pretrain"]
    (run.folder / "pretrain" / "done.json").unlink()
    (run.folder / "pretrain" / "checkpoints" / "50" / "meta").mkdir(parents=True)
    with pytest.raises(ConfigError, match="was made with another config .steps: 50 → 60"):
        run(steps=60)
