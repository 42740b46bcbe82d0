"""A chain of stages that do nothing but say that they ran: what is run, what is skipped, what the report keeps."""

import json
import shutil

import pytest
import tiny_stages
import tiny_world

from jaxalign import pipeline
from jaxalign.data.world import write_world
from jaxalign.errors import ConfigError
from jaxalign.pipeline import pipeline_config, run_pipeline
from jaxalign.stages import STAGES, default_config

DONE = {"seconds": 1.0, "steps": 0, "tokens": 0, "before": {}, "after": {}, "checkpoint": ""}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs world → tokenizer → pretrain with changes to the last; returns (stages that ran, report)."""
    ran = []

    def train_stage(config, folder):
        ran.append(folder.name)
        if config.stage == "world":
            (folder / "pretrain.train.jsonl").write_text('{"text": "a"}\n')
        if config.stage == "tokenizer":
            shutil.copy(tiny_stages.TOKENIZER, folder / "tokenizer.model")
        done = DONE | {"name": folder.name, "stage": config.stage}
        (folder / "done.json").write_text(json.dumps(done))
        return done

    monkeypatch.setattr(pipeline, "train_stage", train_stage)

    def call(tokenizer=None, **changes):
        tokens, pretrain = default_config("tokenizer"), default_config("pretrain")
        text = dict(train=[dict(path="@world/pretrain.train.jsonl", shape="text")])
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


def stage(name, **changes):
    config = default_config(name)
    config.update(changes)
    return config


def source(path, shape="prompts"):
    return dict(data=dict(train=[dict(path=str(path), shape=shape)]))


def chain(tmp_path, **changes):
    """World to GRPO; changes to any of the stages."""
    rows = tiny_stages.jsonl(tmp_path / "chat.jsonl", [{"prompt": "1+1?", "response": "2"}])
    stages = dict(
        world=stage("world"), tokenizer=stage("tokenizer", **source("@world/tokenizer.train.jsonl", "text")),
        sft=stage("sft", tokenizer="@tokenizer/tokenizer.model", **source(rows, "prompt_response")),
        candidates=stage("candidates", init_from="@sft", **source("@world/align.train.jsonl")),
        reward=stage("reward", init_from="@sft", **source("@candidates/rankings.*.jsonl", "rankings")),
        ppo=stage("ppo", init_from="@sft", reward_model="@reward", **source("@world/align.train.jsonl")),
        grpo=stage("grpo", init_from="@ppo", rewards=[dict(name="numeric")], **source("@world/grpo.train.jsonl")))
    for name, change in changes.items():
        stages[name].update(change)
    return pipeline_config(**stages)


@pytest.mark.parametrize(("changes", "expected"), [
    (dict(reward=dict(objective=dict(name="cross_entropy"))), "stages.reward: cross_entropy asks for logp_BT .*can give"),
    (dict(grpo=dict(batch_size=7)), "stages.grpo: batch_size=7 must divide"),
    (dict(grpo=dict(rewards=[dict(name="numeric", margin=1)])), "stages.grpo: numeric_match has no option 'margin'"),
    (dict(grpo=dict(rewards=[])), "stages.grpo: config.rewards is empty"),
    (dict(ppo=dict(whitening="all")), "stages.ppo: ppo: config.whitening='all' must be one of"),
    (dict(candidates=dict(choice="best")), "stages.candidates: candidates: config.choice='best' must be one of"),
    (dict(grpo=source("nowhere.jsonl")), "stages.grpo: nowhere.jsonl: expected a file.* got nothing there"),
    (dict(grpo=source("@world/grpo.trian.jsonl")), "grpo: config.data.train.0..path='@world/grpo.trian.jsonl'"),
    (dict(reward=source("@candidates/rankings.csv", "rankings")), "'candidates' .candidates. writes rankings.train"),
    (dict(grpo=dict(init_from="@candidates")), "grpo: config.init_from='@candidates': expected a checkpoint, 'cand"),
    (dict(grpo=dict(init_from="nowhere")), "stages.grpo: .*nowhere: no checkpoint found"),
    (dict(ppo=dict(reward_model="@sft")), "ppo: config.reward_model='@sft': expected a reward model, 'sft' is"),
    (dict(sft=dict(tokenizer="@world/tokenizer.model")), "stages.sft: config.tokenizer='@world/tokenizer.model': the"),
    (dict(sft=dict(tokenizer="nowhere.model")), "stages.sft: nowhere.model"),
])
def test_what_is_wrong_with_a_late_stage_is_said_before_the_first(tmp_path, monkeypatch, changes, expected):
    monkeypatch.setattr(pipeline, "train_stage", None)
    with pytest.raises(ConfigError, match=expected):
        run_pipeline(chain(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_row_of_a_file_that_is_there_has_to_be_of_the_kind_that_its_stage_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "train_stage",
                        lambda config, folder: DONE | {"name": folder.name, "stage": config.stage})
    assert len(run_pipeline(chain(tmp_path), tmp_path / "whole")["stages"]) == 7
    rows = tiny_stages.jsonl(tmp_path / "rows.jsonl", [{"prompt": "1+1?"}, {"prompt": "1+1?", "answers": ["2", "3"],
                                                                          "ranks": [0, 1]}])
    given = source(rows, "rankings")
    with pytest.raises(ConfigError, match="stages.reward: .*rows.jsonl:1: expected .*answers"):
        run_pipeline(chain(tmp_path, reward=given), tmp_path / "run")
    given["data"]["on_bad_row"] = "skip"
    run_pipeline(chain(tmp_path, reward=given), tmp_path / "run")
    given["data"]["train"][0]["shape"] = "prompts"
    with pytest.raises(ConfigError, match="stages.reward: .*one usable row, got none, 2 bad ones.*answers to compare"):
        run_pipeline(chain(tmp_path, reward=given), tmp_path / "again")


def test_the_world_writes_the_files_that_it_says(tmp_path):
    write_world(tmp_path, 0, num_entities=24, num_unknown=60, **tiny_world.TINY_WORLD)
    assert {path.name for path in tmp_path.glob("*.jsonl")} == set(STAGES["world"].writes)
