"""GRPO's family as a stage: every row launches, dynamic sampling fills its groups, long answers cost."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_stages

from jaxalign import config as configs
from jaxalign.batches import check
from jaxalign.errors import ConfigError
from jaxalign.experience.rows import Drawn, chosen
from jaxalign.experience.shaping import overlong_punishment
from jaxalign.objectives import OBJECTIVES
from jaxalign.rollout.engine import Rollouts
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, default_config, train_stage
from jaxalign.stages.grpo import GRPO_FAMILY
from jaxalign.train.checkpoint import load_params, read_meta


@dataclasses.dataclass
class State:
    trainable: dict
    step: int
    key: jax.Array


def config(row=None, **changes):
    made = tiny_stages.config("grpo")
    made.update(GRPO_FAMILY[row] if row else {})
    made.update(changes)
    return made


def stage_of(tmp_path, **changes):
    return STAGES["grpo"](config(**changes), tmp_path, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize("row", GRPO_FAMILY)
def test_a_row_of_the_family_is_a_whole_config(row, tmp_path):
    made = default_config("grpo")
    before = configs.to_json(made)
    made.update(GRPO_FAMILY[row])
    configs.check(made, default_config("grpo"))
    names = STAGES["grpo"].names(None)
    check(OBJECTIVES["grpo"], names, {k: v for k, v in made.objective.items() if k != "name"})
    assert before != configs.to_json(made)


@pytest.mark.parametrize("row", [row if row in ("dapo", "rloo") else pytest.param(row, marks=pytest.mark.slow)
                                 for row in GRPO_FAMILY])
def test_a_row_of_the_family_trains(row, tmp_path):
    batch_size = 8 if row == "rloo" else 4  # one step a rollout, or two
    summary = train_stage(config(row, steps=2, batch_size=batch_size), tmp_path)
    rows = tiny_stages.metrics(tmp_path)
    assert summary["steps"] == 2 and all(np.isfinite(row["loss"]) for row in rows)
    assert ("clip_fraction" in rows[0]) == (row != "rloo")
    if row == "dapo":
        assert rows[0]["rollouts"] == 5 and rows[0]["groups_lacking"] == 4  # no tiny response is right


def test_the_sampler_correction_sees_the_samplers_own_log_probabilities(tmp_path):
    made = config(steps=1, batch_size=8)
    made.objective.update(sampler_correction="product")
    train_stage(made, tmp_path)
    row, = tiny_stages.metrics(tmp_path)
    assert row["sampler_weight"] == pytest.approx(1.0, abs=1e-4)  # float32 on both sides


class Scripted:
    """Stands for the sampler and the rewards: per rollout and group, what each response earns."""

    def __init__(self, stage, monkeypatch, rewards, finished=True):
        self.stage, self.rewards, self.keys = stage, [np.asarray(r, np.float32) for r in rewards], []
        self.finished = finished
        monkeypatch.setattr(stage, "sampler", self.sample)
        monkeypatch.setattr(stage, "rewards", self.reward)

    def sample(self, policy, prompts, keys, settings):
        self.keys.append(np.asarray(jax.random.key_data(keys)))
        n, number = len(prompts), len(self.keys)
        tokens = np.full((n, 6), 10 + number, np.int32)
        mask = np.ones((n, 6), np.float32)
        return Rollouts(tokens, mask, -mask, -mask, np.full(n, "stop" if self.finished else "length"))

    def reward(self, rows, responses):
        earned = self.rewards[len(self.keys) - 1]
        return earned.ravel(), {"reward/scripted": float(earned.mean())}


def collected(tmp_path, monkeypatch, rewards, **changes):
    stage = stage_of(tmp_path, **changes)
    script = Scripted(stage, monkeypatch, rewards, **({"finished": False} if changes.get("unfinished_reward") else {}))
    state = State({"policy": None}, 3, jax.random.key(5))
    return script, *stage.collect(state)


TELLS, RIGHT, WRONG = [1, 0], [1, 1], [0, 0]


def test_groups_of_equal_rewards_are_replaced_from_further_rollouts(tmp_path, monkeypatch):
    rewards = [[TELLS, RIGHT, WRONG, TELLS], [WRONG, WRONG, RIGHT, WRONG], [RIGHT, TELLS, TELLS, TELLS]]
    script, drawn, figures = collected(tmp_path, monkeypatch, rewards, dynamic_sampling=5)
    assert len(script.keys) == 3  # and no more than it takes
    assert drawn.reward_B.tolist() == TELLS * 4 and drawn.counts_B.tolist() == [1.0] * 8
    # The first rollout's groups 0 and 3, the third's 1 and 2.
    assert drawn.rollouts.tokens[:, 0].tolist() == [11] * 4 + [13] * 4
    assert all(drawn.prompts[n] == drawn.prompts[n + 1] and drawn.rows[n] is drawn.rows[n + 1] for n in (0, 2, 4, 6))
    assert figures == {"reward/scripted": pytest.approx(np.mean(rewards)), "spread": pytest.approx(5 / 12),
                       "drawn_tokens": 3 * 8 * 6, "length": 6, "truncated": 0, "rollouts": 3, "groups_equal": 7,
                       "groups_lacking": 0}
    assert len({key.tobytes() for key in np.concatenate(script.keys)}) == 24  # no draw is repeated


def test_when_the_rollouts_are_used_up_what_is_lacking_counts_in_nothing(tmp_path, monkeypatch):
    rewards = [[RIGHT, TELLS, WRONG, RIGHT], [RIGHT, RIGHT, TELLS, RIGHT]]
    script, drawn, figures = collected(tmp_path, monkeypatch, rewards, dynamic_sampling=1)
    assert len(script.keys) == 2 and (figures["groups_lacking"], figures["groups_equal"]) == (2, 6)
    assert drawn.counts_B.tolist() == [1, 1, 1, 1, 0, 0, 0, 0] and drawn.reward_B[:4].tolist() == TELLS * 2


def test_without_dynamic_sampling_one_rollout_is_taken_as_it_is(tmp_path, monkeypatch):
    script, drawn, figures = collected(tmp_path, monkeypatch, [[RIGHT, RIGHT, WRONG, TELLS]])
    assert len(script.keys) == 1 and drawn.reward_B.tolist() == RIGHT * 2 + WRONG + TELLS
    assert np.all(drawn.counts_B == 1) and "rollouts" not in figures
    np.testing.assert_array_equal(
        script.keys[0], jax.random.key_data(jax.random.split(jax.random.fold_in(jax.random.key(5), 3), 8)))


def test_what_a_cut_response_earns_decides_whether_a_group_tells_anything(tmp_path, monkeypatch):
    _, _, figures = collected(tmp_path, monkeypatch, [[TELLS] * 4] * 2, dynamic_sampling=1, unfinished_reward=-1.0)
    assert figures["groups_equal"] == 8  # all are cut, and all earn −1


def test_groups_that_nobody_rewards_stay(tmp_path, monkeypatch):
    """Their KL keeps what the policy knew; they are no failure to be replaced."""
    kept = stage_of(tmp_path, reward_kinds=["other"], dynamic_sampling=2)
    script = Scripted(kept, monkeypatch, [[WRONG] * 4] * 3)
    drawn, figures = kept.collect(State({"policy": None}, 0, jax.random.key(0)))
    assert len(script.keys) == 1 and np.all(drawn.counts_B == 1) and figures["groups_equal"] == 0


@pytest.mark.parametrize("family", GRPO_FAMILY)
def test_what_nobody_rewards_has_no_advantage_however_it_ends(family, tmp_path):
    """Not for its length, not for being cut, and not by the batch's scale; where nothing scales them, KL in the reward acts."""
    stage = stage_of(tmp_path, unfinished_reward=-1.0, row=family, samples_per_prompt=2)
    stage.config.overlong_share = 0.5
    trainable = stage.start(jax.jit(stage.init)(jax.random.key(0)))
    frozen = {"reference": jax.tree.map(lambda x: 1.1 * x, trainable["policy"])}
    rows = {f"{name}_BT": np.ones((4, 8), np.int32) for name in ("tokens", "targets", "segment_ids")}
    rows["positions_BT"] = np.tile(np.arange(8, dtype=np.int32), (4, 1))
    mask = (np.arange(8) < np.array([[6], [5], [6], [2]])).astype(np.float32)
    rows |= {"mask_BT": mask, "sampler_logp_BT": -mask, "finished_B": np.array([1, 0, 0, 1], np.float32),
             "reward_B": np.array([1, 0, 0, 0], np.float32), "scored_B": np.array([1, 1, 0, 0], np.float32)}
    targets = jax.jit(stage.targets)
    made, _ = targets(trainable, frozen, rows)
    alone, _ = targets(trainable, frozen, rows | {"finished_B": np.array([1, 0, 1, 1], np.float32)})
    np.testing.assert_array_equal(made["advantage_BT"], alone["advantage_BT"])
    assert made["reward_B"][2:].tolist() == [0, 0]
    np.testing.assert_array_equal(np.asarray(made["advantage_BT"])[0] != 0, mask[0] > 0)
    acts = stage.config.kl_coefficient > 0 and stage.config.advantage_scale == "none"
    assert np.any(made["advantage_BT"][2:]) == acts


def test_responses_left_out_are_in_no_mask(tmp_path, monkeypatch):
    stage = stage_of(tmp_path, dynamic_sampling=1, advantage_scale="none", batch_size=8)
    Scripted(stage, monkeypatch, [[TELLS, WRONG, WRONG, WRONG]] * 2)
    trainable = stage.start(jax.jit(stage.init)(jax.random.key(0)))
    (batch,), figures = stage.next_batches(State(trainable, 0, jax.random.key(1)))
    assert sorted(batch["mask_BT"].sum(1).tolist()) == [0] * 4 + [6] * 4
    advantage = batch["advantage_BT"].max(1) + batch["advantage_BT"].min(1)
    assert sorted(advantage[batch["mask_BT"].any(1)].tolist()) == [-0.5, -0.5, 0.5, 0.5]
    assert not advantage[~batch["mask_BT"].any(1)].any() and abs(figures["objective/kl"]) < 1e-4


def test_chosen_responses_come_from_their_own_draw():
    def draw(number):
        rollouts = Rollouts(*(np.full((3, 2), 10 * number + k) + np.arange(3)[:, None] for k in range(4)),
                            np.where(np.arange(3) == number, "stop", "length"))
        return Drawn([f"row {number} {n}" for n in range(3)], [[number, n] for n in range(3)], rollouts,
                     np.arange(3.0) + 3 * number, np.ones(3, np.float32))

    got = chosen([draw(0), draw(1)], [4, 0, 5])
    assert got.rows == ["row 1 1", "row 0 0", "row 1 2"] and got.prompts == [[1, 1], [0, 0], [1, 2]]
    assert got.reward_B.tolist() == [4, 0, 5] and got.rollouts.tokens[:, 0].tolist() == [11, 0, 12]
    assert got.rollouts.sampler_logp[:, 0].tolist() == [14, 3, 15]
    assert got.rollouts.finished.tolist() == [True, True, False]


def test_overlong_punishment_is_eq_13():
    """arXiv:2503.14476: L = 20480 and C = 4096, as in the paper."""
    length = np.array([1, 16384, 16385, 18432, 20480, 20481])
    got = jax.jit(lambda n: overlong_punishment(n, budget=20480, share=0.2))(length)
    np.testing.assert_allclose(got, [0, 0, -1 / 4096, -0.5, -1, -1], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(overlong_punishment(length, budget=20480, share=0.0), np.zeros(6))


def test_a_long_answer_costs_in_the_reward_and_the_kl_of_the_reward_is_its_own_setting(tmp_path):
    rows = {f"{name}_BT": np.ones((4, 8), np.int32) for name in ("tokens", "targets", "segment_ids")}
    rows["positions_BT"] = np.tile(np.arange(8, dtype=np.int32), (4, 1))
    mask = (np.arange(8) < np.array([[6], [5], [4], [2]])).astype(np.float32)
    rows |= {"mask_BT": mask, "sampler_logp_BT": -mask, "finished_B": np.ones(4, np.float32),
             "reward_B": np.ones(4, np.float32), "scored_B": np.ones(4, np.float32)}
    made = {}
    for name, changes in {"plain": {}, "long": dict(overlong_share=0.5), "kl": dict(kl_coefficient=2.0)}.items():
        stage = stage_of(tmp_path, advantage_scale="none", **changes)
        trainable = stage.start(jax.jit(stage.init)(jax.random.key(0)))
        frozen = {"reference": jax.tree.map(lambda x: 1.1 * x, trainable["policy"])}
        made[name] = {k: np.asarray(v) for k, v in jax.jit(stage.targets)(trainable, frozen, rows)[0].items()}
    assert made["plain"]["reward_B"].tolist() == [1] * 4 and not made["plain"]["advantage_BT"].any()
    np.testing.assert_allclose(made["long"]["reward_B"], [0, 1 / 3, 2 / 3, 1], rtol=1e-5)  # the last three of six
    cost = 2.0 * ((made["kl"]["old_logp_BT"] - made["kl"]["ref_logp_BT"]) * mask).sum(1)
    expected = -(cost.reshape(2, 2) - cost.reshape(2, 2).mean(1, keepdims=True)).ravel()
    np.testing.assert_allclose(made["kl"]["advantage_BT"], expected[:, None] * mask, rtol=1e-4, atol=1e-5)
    assert made["plain"]["budget_B"].tolist() == [6] * 4


def test_where_no_coefficient_needs_it_the_reference_is_for_the_figures_alone(tmp_path):
    ends = {}
    for measured in (True, False):
        made = config("dr_grpo", measure_kl=measured, init_from=tiny_stages.ends_its_turns(),
                      rewards=[dict(name="length", most=8, least=4, unit="characters")],
                      optimizer=dict(peak_lr=0.2, eps=1.0, warmup_steps=0, schedule="constant"))  # no step as large as any of what is rounded
        train_stage(made, tmp_path / str(measured))
        lines = tiny_stages.metrics(tmp_path / str(measured))
        assert all(measured == (name in line) for line in lines for name in ("objective/kl", "kl"))
        stage = STAGES["grpo"](made, tmp_path / "again", make_mesh(devices=jax.devices()[:1]))
        begun, ends[measured] = (load_params(read_meta(path)[0], "policy", stage.network.abstract)
                                 for path in (made.init_from, tmp_path / str(measured)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ends[True], ends[False])
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (begun, ends[True])))) > 1e-3
    for needed in (dict(kl_coefficient=0.1), dict(objective={"kl_coefficient": 0.1})):
        stage = stage_of(tmp_path, row="dr_grpo", measure_kl=False, **needed)
        stage.start(jax.jit(stage.init)(jax.random.key(0)))
        assert stage.refers and "reference" in stage.frozen


def test_an_objective_of_another_make_has_a_reference_if_it_names_one(tmp_path, monkeypatch):
    (tmp_path / "my_rl.py").write_text("from jaxalign.objectives.reduce import Loss, Term\n"
                                       "def plain(logp_BT, mask_BT): return Loss({'a': Term(logp_BT, mask_BT)}, {})\n"
                                       "def near(logp_BT, mask_BT, ref_logp_BT=None, *, beta=0.1): return plain(logp_BT, mask_BT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, refers in (("plain", False), ("near", True)):
        stage = stage_of(tmp_path / name, objective=dict(name=f"my_rl:{name}"), measure_kl=False)
        assert stage.refers == refers


@pytest.mark.parametrize("changes, words", [(dict(dynamic_sampling=-1), "dynamic_sampling=-1 must be 0 or more"),
                                            (dict(overlong_share=1.5), "overlong_share=1.5 must be a share")])
def test_settings_out_of_range_are_refused(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        stage_of(tmp_path, **changes)
