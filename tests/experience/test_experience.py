"""From rollouts to training rows, and from scores to advantages."""

import jax
import numpy as np
import pytest

from jaxalign.experience.rows import minibatches, response_rows
from jaxalign.experience.shaping import group_targets, ppo_targets
from jaxalign.rollout.engine import Rollouts

RNG = np.random.default_rng(0)


def rollouts():
    mask = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
    return Rollouts(np.array([[11, 12, 13], [14, 0, 0]], np.int32), mask, -np.arange(6.0).reshape(2, 3) * mask,
                    -np.arange(10.0, 16.0).reshape(2, 3) * mask, np.array(["length", "stop"]))


def test_rows_are_shifted_and_count_what_was_drawn():
    batch = response_rows([[2, 3], [2, 3, 4, 5]], rollouts(), 6, pad_id=0)
    assert batch["tokens_BT"].tolist() == [[2, 3, 11, 12, 0, 0], [2, 3, 4, 5, 0, 0]]
    assert batch["targets_BT"].tolist() == [[3, 11, 12, 13, 0, 0], [3, 4, 5, 14, 0, 0]]
    assert batch["mask_BT"].tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert batch["segment_ids_BT"].tolist() == [[1, 1, 1, 1, 0, 0]] * 2
    assert batch["positions_BT"].tolist() == [[0, 1, 2, 3, 0, 0]] * 2
    assert batch["rollout_logp_BT"].tolist() == [[0, -0.0, -1, -2, 0, 0], [0, 0, 0, -3, 0, 0]]
    assert batch["sampler_logp_BT"].tolist() == [[0, -10, -11, -12, 0, 0], [0, 0, 0, -13, 0, 0]]


def test_every_row_is_seen_once_an_epoch_in_an_order_of_its_own():
    batch = {"mask_BT": np.ones((8, 2)), "id_B": np.arange(8)}
    parts = minibatches(batch, batch_size=4, epochs=2, seed=(1, 5))
    orders = [np.concatenate([part["id_B"] for part in parts[n:n + 2]]).tolist() for n in (0, 2)]
    assert len(parts) == 4 and sorted(orders[0]) == sorted(orders[1]) == list(range(8)) and orders[0] != orders[1]
    again = minibatches(batch, batch_size=4, epochs=2, seed=(1, 5))
    assert all(np.array_equal(a["id_B"], b["id_B"]) for a, b in zip(parts, again))
    assert not np.array_equal(minibatches(batch, batch_size=8, epochs=1, seed=(1, 6))[0]["id_B"], orders[0])


def test_ppo_targets_are_instructgpts_reward_through_gae_then_whitened():
    mask = np.array([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.float32)
    logp, ref, value = (RNG.normal(size=(2, 5)) for _ in range(3))
    score, beta, discount, decay = np.array([2.0, -1.0]), 0.3, 0.9, 0.8
    made = jax.jit(lambda *arrays: ppo_targets(*arrays, kl_coefficient=beta, discount=discount, gae_lambda=decay))(
        *(np.asarray(x, np.float32) for x in (score, logp, ref, value)), mask)
    advantage = np.zeros((2, 5))
    for row in range(2):
        counted = np.flatnonzero(mask[row])
        reward = -beta * (logp - ref)[row, counted]
        reward[-1] += score[row]
        following, carried = 0.0, 0.0
        for n in range(len(counted) - 1, -1, -1):
            at = counted[n]
            carried = reward[n] + discount * following - value[row, at] + discount * decay * carried
            advantage[row, at], following = carried, value[row, at]
    used = advantage[mask > 0]
    np.testing.assert_allclose(np.asarray(made["returns_BT"])[mask > 0], used + value[mask > 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(made["advantage_BT"])[mask > 0], (used - used.mean()) / used.std(), rtol=1e-4,
                               atol=1e-5)
    assert np.all(np.asarray(made["advantage_BT"])[mask == 0] == 0)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_responses_tokens_share_its_groups_advantage(scale):
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]], np.float32)
    made = group_targets(np.array([1.0, 0.0, 1.0, 1.0], np.float32), mask, group_size=2, scale=scale)["advantage_BT"]
    size = 1.0 if scale == "std" else 0.5
    np.testing.assert_allclose(made, mask * np.array([[size], [-size], [0], [0]]), atol=1e-6)
