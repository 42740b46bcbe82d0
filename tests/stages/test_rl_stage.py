"""What the stages that draw their samples show and say of themselves."""

import re

import pytest
import tiny_stages

from jaxalign.stages import train_stage


@pytest.mark.parametrize("name, figure", [("ppo", "score"), ("grpo", "reward/numeric")])
def test_the_first_response_is_shown_with_its_mask_and_the_first_and_last_rollout_measure_the_stage(
        name, figure, tmp_path, capsys):
    config = tiny_stages.config(name, preview=True, steps=4, epochs=1)
    done = train_stage(config, tmp_path / "run")
    rows = re.findall(r"^<s><\|user\|>.*<\|assistant\|>⟦(.*)⟧\n(\d+) of \d+ positions count", capsys.readouterr().out,
                      re.MULTILINE)
    assert len(rows) == 1 and 1 <= int(rows[0][1]) <= config.max_new_tokens  # of two rollouts the first
    assert done["before"].keys() == done["after"].keys() >= {figure, "objective/kl", "truncated", "length"}
    assert done["before"]["objective/kl"] == pytest.approx(0, abs=1e-6) and done["before"] != done["after"]
