"""t16: nearly all rows are cut, or all rewards are equal, and nothing says so."""

import io

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from jaxalign.rewards.run import Rewards
from jaxalign.stages.grpo import GRPO
from jaxalign.stages.rl import PolicyStage
from jaxalign.train.metrics import MetricsWriter


def test_t16_share_of_cut_rows_stands_in_every_line_and_warns_near_one(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=200)
    with MetricsWriter(tmp_path, name="grpo", total_steps=3, seconds_between_lines=0, console=console) as writer:
        for step, share in enumerate((0.1, 0.97, 0.98), 1):
            writer.write(step, {"loss": 0.0, "truncated": share}, tokens=1)
    lines = out.getvalue().splitlines()
    assert sum("truncated" in line for line in lines) == 3
    assert [line for line in lines if "WARNING" in line and "97%" in line]


def test_t16_equal_rewards_warn_once_until_they_differ_again():
    stage, said = object.__new__(GRPO), []
    stage.config = ConfigDict(dict(reward_kinds=[], samples_per_prompt=2))
    stage.warn = said.append
    stage.reward = Rewards([dict(name="longer")], {"longer": lambda response: float(len(response))})
    rows = [{"prompt": "", "answer": "1"}] * 4
    assert stage.rewards(rows, ["a", "bb", "c", "c"])[1]["spread"] == 0.5 and not said
    total, figures = stage.rewards(rows, ["a", "a", "bb", "bb"])
    assert figures["spread"] == 0 and len(said) == 1 and "nothing to learn" in said[0]
    np.testing.assert_array_equal(total, [1, 1, 2, 2])
    stage.rewards(rows, ["a", "a", "b", "b"])
    assert len(said) == 1
    stage.rewards(rows, ["a", "bb", "b", "b"])
    stage.rewards(rows, ["a", "a", "b", "b"])
    assert len(said) == 2


def test_t16_a_rollout_without_one_end_warns_in_every_rl_stage_when_it_sets_in():
    stage, said = object.__new__(PolicyStage), []
    stage.config, stage.warn = ConfigDict(dict(max_new_tokens=7)), said.append
    for finished, lines in [([0, 1], 0), ([0, 0], 1), ([0, 0], 1), ([1, 0], 1), ([0, 0], 2)]:
        stage._watch_ends(np.array(finished, bool))
        assert len(said) == lines
    assert "all 2 responses were cut at max_new_tokens=7" in said[0]
