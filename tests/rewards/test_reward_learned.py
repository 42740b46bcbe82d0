"""A reward model's score as one reward among others, in GRPO."""

import jax
import numpy as np
import pytest
import tiny_stages

from jaxalign.data.chat import render
from jaxalign.errors import CheckpointError
from jaxalign.evaluate.preferences import ROWS, RewardModel
from jaxalign.rewards import REWARDS
from jaxalign.rewards.run import Rewards
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, train_stage


def asked(*questions):
    return [[{"role": "user", "content": question}] for question in questions]


def test_a_response_scores_as_the_conversation_that_it_ends():
    last = RewardModel.load(tiny_stages.trained("reward"))
    mean = RewardModel(last.graphdef, last.params, last.tokenizer, "mean")  # reads the mask too
    conversations, responses = asked("1+1?", "2+1?", "3+1?"), ["2", "I do not know.", "no " * 40]
    scores, means = (model.score_responses(conversations, responses) for model in (last, mean))
    assert len({*scores.tolist(), *means.tolist()}) == 6
    for messages, response, score, of_all in zip(conversations, responses, scores, means):
        ids, mask = render([*messages, {"role": "assistant", "content": response}], last.tokenizer)
        batch = {"tokens_BT": [ids[:-1]], "targets_BT": [ids[1:]], "mask_BT": [mask[1:]],
                 "segment_ids_BT": [[1] * (len(ids) - 1)]}
        kinds = {"mask_BT": np.float32}
        batch = {name: np.asarray(rows, kinds.get(name, np.int32)) for name, rows in batch.items()}
        np.testing.assert_allclose(last.score(batch)[0], score, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mean.score(batch)[0], of_all, rtol=1e-5, atol=1e-6)
    # Whoever stands beside it, and however many.
    many = last.score_responses(conversations * ROWS, responses * ROWS)
    np.testing.assert_allclose(many, np.tile(scores, ROWS), rtol=1e-5, atol=1e-6)
    assert np.isfinite(last.score_responses(conversations[:1], [""])).all()
    assert last.score_responses([], []).shape == (0,)


def test_it_is_one_of_the_weighted_rewards_and_needs_no_answer():
    checkpoint = tiny_stages.trained("reward")
    rewards = Rewards([dict(name="numeric"), dict(name="learned", weight=0.5, checkpoint=checkpoint)], REWARDS,
                      {"load_reward_model": RewardModel.load})
    rows = [{"prompt": "1+1?", "answer": answer, "messages": asked("1+1?")[0]} for answer in ("2", None)]
    total, figures = rewards(rows, ["2", "2"], np.ones(2, bool), print)
    score = RewardModel.load(checkpoint).score_responses(asked("1+1?"), ["2"])[0]
    np.testing.assert_allclose(total, [1.0 + 0.5 * score, 0.5 * score], rtol=1e-6)
    assert figures["reward/learned"] == pytest.approx(float(score)) and figures["reward/learned/failed"] == 0


def test_grpo_trains_on_it_and_refuses_what_is_no_reward_model_at_the_start(tmp_path):
    learned = dict(name="learned", weight=0.1, checkpoint=tiny_stages.trained("reward"))
    train_stage(tiny_stages.config("grpo", rewards=[dict(name="numeric", weight=1.0), learned]), tmp_path / "run")
    lines = [row for row in tiny_stages.metrics(tmp_path / "run") if "loss" in row]
    assert all({"reward/numeric", "reward/learned", "reward/learned/failed"} <= set(row) for row in lines) and lines
    assert all(row["reward/learned/failed"] == 0 and row["reward/learned"] != 0 for row in lines)
    config = tiny_stages.config("grpo", rewards=[dict(learned, checkpoint=tiny_stages.trained("sft"))])
    with pytest.raises(CheckpointError, match="expected a reward model"):
        STAGES["grpo"](config, tmp_path / "other", make_mesh(devices=jax.devices()[:1]))


def test_a_reward_that_fails_on_every_row_does_not_stop_grpo_and_is_in_every_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_failing_rewards.py").write_text("def broken(prompt, response, answer):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "my_failing_rewards:broken"
    summary = train_stage(tiny_stages.config("grpo", rewards=[dict(name=name), dict(name="numeric")]), tmp_path / "run")
    assert summary["steps"] == 4
    assert all(row[f"reward/{name}/failed"] == 8 for row in tiny_stages.metrics(tmp_path / "run") if "loss" in row)
    shown = capsys.readouterr().out
    assert "ZeroDivisionError: division by zero" in shown and "failed on all 8 rows" in shown
    assert f"reward/{name}/failed 8" in shown
