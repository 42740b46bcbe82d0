"""t16: nearly all rows are cut, or all rewards are equal, and nothing says so."""

import dataclasses
import io
import types

import jax
import numpy as np
import pytest
import tiny_stages
from ml_collections import ConfigDict
from rich.console import Console
from test_t11_sampler_is_trainer import at_rate_zero

from jaxalign.experience.rows import Drawn
from jaxalign.rewards import REWARDS
from jaxalign.rewards.run import Rewards
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES
from jaxalign.stages.grpo import GRPO
from jaxalign.stages.ppo import PPO
from jaxalign.stages.rl import PolicyStage
from jaxalign.train.metrics import MetricsWriter
from jaxalign.train.state import TrainState


def test_t16_share_of_cut_rows_stands_in_every_line_and_warns_near_one(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=200)
    with MetricsWriter(tmp_path, name="grpo", total_steps=4, seconds_between_lines=0, console=console) as writer:
        for step, share in enumerate((0.0, 0.1, 0.97, 0.98), 1):
            writer.write(step, {"loss": 0.0, "truncated": share}, tokens=1)
    lines = out.getvalue().splitlines()
    assert sum("truncated" in line for line in lines) == 4
    assert [line for line in lines if "WARNING" in line and "97%" in line]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_t16_every_line_of_a_run_that_draws_has_the_share_of_cut_responses(name):
    assert all(0 <= row["truncated"] <= 1 and row["length"] > 0 for row in at_rate_zero(name))


def test_t16_the_share_is_that_of_the_responses_that_were_cut(tmp_path):
    stage = STAGES["grpo"](tiny_stages.config("grpo"), tmp_path, make_mesh(devices=jax.devices()[:1]))
    trainable, sampler = stage.start(jax.jit(stage.init)(jax.random.key(0))), stage.sampler
    reason = np.array(["stop"] * 5 + ["length"] * 2 + ["stop"])
    stage.sampler = lambda *drawn: dataclasses.replace(sampler(*drawn), reason=reason)
    _, figures = stage.next_batches(TrainState(np.int32(0), trainable, (), jax.random.key(0)))
    assert figures["truncated"] == 0.25


def drawing(monkeypatch, said, group, kinds=()):
    """A function that gives GRPO a rollout of these rewards, kinds and ends, and returns its `spread`."""
    stage = object.__new__(GRPO)
    stage.config = ConfigDict(dict(reward_kinds=list(kinds), samples_per_prompt=group, unfinished_reward=0.0))
    stage.warn, stage.reward = said.append, Rewards([dict(name="numeric")], REWARDS)

    def spread(rewards, finished=None, kind="sum"):
        n = len(rewards)
        ends = types.SimpleNamespace(finished=np.ones(n, bool) if finished is None else np.array(finished, bool))
        rows = [{"prompt": "", "answer": "1", "kind": kind}] * n
        drawn = Drawn(rows, [[1]] * n, ends, np.array(rewards, np.float32), np.ones(n, np.float32))
        monkeypatch.setattr(PolicyStage, "draw", lambda self, state, key: (drawn, {"reward/numeric": 0.0}))
        return stage.draw(None, None)[1]["spread"]

    return spread


def test_t16_equal_rewards_warn_once_until_they_differ_again(monkeypatch):
    said = []
    spread = drawing(monkeypatch, said, 2)
    assert spread([1, 2, 1, 1]) == 0.5 and not said
    assert spread([1, 1, 2, 2]) == 0 and len(said) == 1 and "nothing to learn" in said[0]
    assert spread([1, 1, 0, 0]) == 0 and len(said) == 1
    assert spread([1, 2, 0, 0]) == 0.5 and spread([1, 1, 0, 0]) == 0 and len(said) == 2


def test_t16_what_counts_as_equal(monkeypatch):
    said = []
    assert np.float32([0.1] * 7).std() > 0  # so the deviation says nothing
    assert drawing(monkeypatch, said, 7)([0.1] * 14) == 0 and len(said) == 1
    spread = drawing(monkeypatch, said, 2, kinds=["sum"])
    # What was cut has not earned what was read in it.
    assert spread([1, 2, 3, 4]) == 1 and spread([1, 1, 3, 3], finished=[1, 0, 0, 1]) == 1 and len(said) == 1
    assert spread([1, 2, 3, 4], finished=[0, 0, 0, 0]) == 0 and len(said) == 2
    # A kind that no prompt has teaches nothing either.
    assert drawing(monkeypatch, said, 2, kinds=["sum"])([0, 0], kind="chat") == 0 and len(said) == 3


def test_t16_equal_scores_of_a_learned_reward_warn_in_ppo_when_they_set_in():
    stage, said = object.__new__(PPO), []
    stage.warn, stage.carried = said.append, {}
    stage.config = ConfigDict(dict(kl_control="fixed", kl_coefficient=0.1, reward_scaling="none", reward_clip=5.0))
    token = np.ones((3, 2), np.float32)
    rest = dict(mask_BT=token, returns_BT=token, old_value_BT=0 * token, old_logp_BT=-token, ref_logp_BT=-token)

    def rollout(scores, finished=(1, 1, 1), scored=(1, 1, 1)):
        n = len(scores)
        batch = {name: array[:n] for name, array in rest.items()}
        ends = {"finished_B": np.array(finished[:n], np.float32), "scored_B": np.array(scored[:n], np.float32)}
        stage.carry_on(batch | ends | {"reward_B": np.array(scores, np.float32)}, {"kl": 0.0})
        return len(said)

    assert rollout([5, 5, 4]) == 0 and rollout([5, 5, 5]) == 1 and rollout([2, 2, 2]) == 1
    assert "all 3 finished responses score 5, so there is nothing to learn from but the KL penalty" in said[0]
    assert "reward_clip=5" in said[0]
    assert rollout([1, 2, 3]) == 1 and rollout([1, 1, 1], finished=(0, 0, 0)) == 1 and rollout([1]) == 1
    assert rollout([5, 5, 5]) == 2 and rollout([1, 2, 3]) == 2
    # Neither what a cut response loses nor the 0 of a row that nobody judges is a spread.
    assert rollout([5, 5, 1], finished=(1, 1, 0)) == 3 and rollout([1, 2, 3]) == 3
    assert rollout([5, 5, 0], scored=(1, 1, 0)) == 4 and rollout([1, 2, 0], scored=(1, 1, 0)) == 4


def test_t16_a_rollout_without_one_end_warns_in_every_rl_stage_when_it_sets_in():
    stage, said = object.__new__(PolicyStage), []
    stage.config, stage.warn = ConfigDict(dict(max_new_tokens=7)), said.append
    for all_cut, lines in [(False, 0), (True, 1), (True, 1), (False, 1), (True, 2)]:
        stage._watch_ends(all_cut)
        assert len(said) == lines
    assert "all responses that were drawn were cut at max_new_tokens=7" in said[0]


def test_t16_the_share_is_of_all_that_were_drawn_whatever_becomes_of_them(tmp_path, monkeypatch):
    """Groups that were cut earn the same and are replaced: they must not vanish from the share too."""
    stage = STAGES["grpo"](tiny_stages.config("grpo", dynamic_sampling=1), tmp_path, make_mesh(devices=jax.devices()[:1]))
    trainable, sampler, said = stage.start(jax.jit(stage.init)(jax.random.key(0))), stage.sampler, []
    stage.warn, count = said.append, []

    def drawn(*args):
        made = sampler(*args)
        count.append(np.where(np.arange(len(made.reason)) < len(made.reason) * (1 - len(count) / 2), "length", "stop"))
        return dataclasses.replace(made, reason=count[-1])

    stage.sampler = drawn
    monkeypatch.setattr(stage, "rewards", lambda rows, responses: (np.zeros(len(rows), np.float32), {}))
    _, figures = stage.next_batches(TrainState(np.int32(0), trainable, (), jax.random.key(0)))
    assert len(count) == 2 and figures["truncated"] == np.mean([reason == "length" for reason in count]) == 0.75
    assert not any("were cut" in line for line in said)
