"""t15: truncated completions count in the numerator but not in the denominator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages

from jaxalign.experience.rows import response_rows
from jaxalign.objectives.grpo import grpo
from jaxalign.objectives.ppo import ppo
from jaxalign.objectives.reduce import reduce
from jaxalign.rollout.engine import Rollouts
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES

PROMPTS = [[2, 5, 9], [2, 5], [2, 5, 8, 9], [2]]
DRAWN = [4, 2, 4, 4]  # of at most 4 tokens; the second ends by itself, the third with its last token
FINISHED = np.array([False, True, True, False])


def batch():
    mask = (np.arange(4)[None] < np.array(DRAWN)[:, None]).astype(np.float32)
    rollouts = Rollouts(np.arange(10, 26, dtype=np.int32).reshape(4, 4) * mask.astype(np.int32), mask, -mask,
                        -2 * mask, np.where(FINISHED, "stop", "length"))
    return response_rows(PROMPTS, rollouts, 8, pad_id=0)


def test_t15_every_drawn_token_counts_once_whether_the_response_was_cut_or_not():
    made = batch()
    assert made["mask_BT"].sum(1).tolist() == DRAWN
    for row, (prompt, drawn) in enumerate(zip(PROMPTS, DRAWN)):
        counted = made["mask_BT"][row] > 0
        assert made["targets_BT"][row][counted].tolist() == list(range(10 + 4 * row, 10 + 4 * row + drawn))
        assert np.all(made["rollout_logp_BT"][row][counted] == -1) and np.all(made["sampler_logp_BT"][row][counted] == -2)


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
def test_t15_one_mask_serves_the_numerator_and_the_denominator(aggregation):
    mask = jnp.asarray(batch()["mask_BT"])
    ones = jnp.ones_like(mask)
    loss = grpo(ones, ones, 3.0 * ones, mask, ones, kl_coefficient=0.0, aggregation=aggregation)
    # Equal advantages everywhere must give exactly that, however many rows were cut.
    assert float(reduce(loss.terms)[1]["policy"]) == pytest.approx(-3.0, rel=1e-6)
    loss = ppo(ones, ones, 3.0 * ones, ones, ones, ones, ones, mask, value_coefficient=0.0, entropy_coefficient=0.0)
    assert float(reduce(loss.terms)[1]["policy"]) == pytest.approx(-3.0, rel=1e-6)


def test_t15_what_a_cut_response_is_worth_is_a_named_setting(tmp_path):
    config = tiny_stages.config("ppo", unfinished_penalty=7.5, kl_coefficient=0.0)
    stage = STAGES["ppo"](config, tmp_path, make_mesh(devices=jax.devices()[:1]))
    trainable = stage.start(jax.jit(stage.init)(jax.random.key(0)))
    rows = batch() | {"finished_B": FINISHED.astype(np.float32), "scored_B": np.ones(4, np.float32)}
    made, figures = jax.jit(stage.targets)(trainable, stage.frozen, rows)
    reward_B = np.asarray(made["reward_B"])
    np.testing.assert_allclose(reward_B[~FINISHED], reward_B[FINISHED].mean() - 7.5, rtol=1e-5)
    # Where none has an end, all are worth the same below what they would be.
    none, _ = jax.jit(stage.targets)(trainable, stage.frozen, rows | {"finished_B": np.zeros(4, np.float32)})
    assert np.ptp(np.asarray(none["reward_B"])) == 0
    assert float(figures["score"]) == pytest.approx(float(np.mean(made["reward_B"])), rel=1e-5)
    # Rows that were cut are learned from, in the whitening too.
    whitened = np.asarray(made["advantage_BT"])[rows["mask_BT"] > 0]
    assert whitened.mean() == pytest.approx(0.0, abs=1e-5) and whitened.std() == pytest.approx(1.0, abs=1e-4)


def test_t15_a_cut_response_earns_nothing_by_a_rule_and_stays_in_its_groups_mean(tmp_path):
    stage = STAGES["grpo"](tiny_stages.config("grpo", advantage_scale="none"), tmp_path,
                           make_mesh(devices=jax.devices()[:1]))
    trainable = stage.start(jax.jit(stage.init)(jax.random.key(0)))
    rows = batch() | {"finished_B": FINISHED.astype(np.float32), "reward_B": np.ones(4, np.float32),
                      "scored_B": np.ones(4, np.float32)}
    made, _ = jax.jit(stage.targets)(trainable, stage.frozen, rows)
    assert made["reward_B"].tolist() == [0.0, 1.0, 1.0, 0.0]
    advantage = np.asarray(made["advantage_BT"])
    for row, expected in enumerate([-0.5, 0.5, 0.5, -0.5]):  # groups of two
        np.testing.assert_allclose(advantage[row][rows["mask_BT"][row] > 0], expected)
