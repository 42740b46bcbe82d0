"""The quickstart's own config at a tiny size: every stage runs, hands over, and the report says what was measured."""

import json
import pathlib
import socket

import pytest

from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.pipeline import run_pipeline
from jaxalign.train.checkpoint import read_meta
from module_at import module_at
from tiny_world import TINY_WORLD

ROOT = pathlib.Path(__file__).resolve().parents[2]

TINY = {
    "world": dict(num_entities=24, num_unknown=60, sizes=TINY_WORLD),
    "tokenizer": dict(vocab_size=400),
    "pretrain": dict(steps=6, model=dict(width=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=64)),
    "sft": dict(steps=4),
    "scratch": dict(steps=2, model=dict(width=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=64)),
    "candidates": dict(samples_per_prompt=6, max_new_tokens=12, batch_size=32),
    "reward": dict(steps=2, batch_size=8, length=96),
    "ppo": dict(steps=2, batch_size=8, prompts_per_rollout=8, max_new_tokens=12),
    "dpo": dict(steps=2, batch_size=8, length=96),
    "grpo": dict(steps=2, batch_size=16, prompts_per_rollout=4, samples_per_prompt=4, max_new_tokens=12),
    "claims": dict(max_new_tokens=12, batch_size=32, limit=6, kl_prompts=8),
}


def quickstart(**changes):
    config = module_at(ROOT / "configs" / "quickstart.py").get_config()
    for name, tiny in TINY.items():
        for key, value in (tiny | changes.get(name, {})).items():
            with config.stages[name].unlocked():
                if isinstance(value, dict):
                    config.stages[name][key].update(value)
                else:
                    config.stages[name][key] = value
        if name not in ("world", "tokenizer", "claims"):
            config.stages[name].mesh.update(data=1)
            if "model" in config.stages[name]:
                config.stages[name].model.unroll = 1  # so little runs that compiling it takes longer
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run on a machine that has no network, as Python sees it."""
    workdir = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
            patch.setattr(owner, name, unreachable)
        return run_pipeline(quickstart(), workdir), workdir


ASKED = []  # what was to be reached


def unreachable(*address):
    ASKED.append(address)
    raise OSError(101, f"Network is unreachable: {address}")


def test_every_stage_runs_and_hands_over(finished):
    report, workdir = finished
    assert [stage["name"] for stage in report["stages"]] == list(quickstart().chain)
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    trained = {stage["name"]: stage for stage in report["stages"] if stage["steps"]}
    assert set(trained) == {"pretrain", "sft", "scratch", "reward", "ppo", "dpo", "grpo"}
    assert all(stage["tokens"] > 0 for stage in trained.values())
    assert trained["sft"]["before"]["cross_entropy"] != trained["sft"]["after"]["cross_entropy"]
    _, meta = read_meta(workdir / "grpo")
    assert [step["stage"] for step in meta["lineage"]] == ["pretrain", "sft", "ppo", "grpo"]


def test_no_network_is_asked_for(finished):
    assert not ASKED


def test_the_report_holds_what_the_schema_names(finished):
    report, workdir = finished
    assert json.loads((workdir / "report.json").read_text()) == report
    for claim in report["claims"]:
        assert {"name", "value", "baseline", "target", "n", "ci95", "holds"} <= set(claim)
        assert claim["ci95"][0] <= claim["ci95"][1] and claim["n"] > 0
    assert len(report["claims"]) >= 30
    for stage in report["stages"]:
        assert {"name", "seconds", "steps", "tokens", "before", "after", "checkpoint"} <= set(stage)
    assert report["seed"] == 0 and "cpu" in report["device"]
    assert report["peak_rss_gib"] > 0 and report["wall_seconds"] > 0 and report["versions"]["jax"]
    page = (workdir / "report.html").read_text()
    assert all(name in page for name in ("pretrain", "grpo", "holds"))
    answers = [json.loads(line) for line in (workdir / "answers.jsonl").read_text().splitlines()]
    assert {"day zero", "base", "scratch", "sft", "ppo", "dpo", "grpo"} == set(answers[0]["answers"])


def test_finished_stages_are_skipped_and_a_changed_config_is_refused(finished, monkeypatch):
    report, workdir = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/done.json")}
    again = run_pipeline(quickstart(), workdir)
    assert again["claims"] == report["claims"]
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/done.json")} == before
    # From another folder, and where the run was moved, too.
    monkeypatch.chdir(workdir.parent)
    assert run_pipeline(quickstart(), pathlib.Path(workdir.name))["claims"] == report["claims"]
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/done.json")} == before
    with pytest.raises(ConfigError, match="sft.*steps: 4 → 5"):
        run_pipeline(quickstart(sft=dict(steps=5)), workdir)


def test_the_result_talks(finished):
    _, workdir = finished
    assistant = Assistant.load(workdir / "grpo", max_new_tokens=8, batch_size=4)
    replies = assistant.reply([[{"role": "user", "content": "What is 12+34?"}]] * 2, temperature=1.0, seed=1)
    assert len(replies) == 2 and all(isinstance(text, str) for text in replies)


def test_a_reference_to_a_later_stage_is_refused_before_anything_runs(tmp_path):
    config = quickstart(sft=dict(init_from="@ppo"))
    with pytest.raises(ConfigError, match="no earlier stage 'ppo'"):
        run_pipeline(config, tmp_path / "never")
    assert not (tmp_path / "never").exists()
