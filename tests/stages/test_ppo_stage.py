"""PPO as a stage: its critics, its scores, its coefficient, several steps a rollout and their end, what is logged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_stages

from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.objectives.reduce import reduce
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, default_config, train_stage
from jaxalign.stages.checks import check_stage
from jaxalign.train.checkpoint import load_params, read_meta


@dataclasses.dataclass
class State:
    trainable: dict
    step: int
    key: jax.Array


def stage_of(tmp_path, **changes):
    return STAGES["ppo"](tiny_stages.config("ppo", **changes), tmp_path, make_mesh(devices=jax.devices()[:1]))


def started(stage):
    return stage.start(jax.jit(stage.init)(jax.random.key(7)))


def rows(finished=(1, 1, 1, 1)):
    """Four responses of the policy's vocabulary, after prompts of their own length."""
    rng = np.random.default_rng(3)
    B, T = 4, 12
    first, last = np.array([[2], [4], [3], [1]]), np.array([[9], [6], [11], [4]])
    at = np.arange(T)[None]
    inside = (at < last).astype(np.int32)
    tokens = rng.integers(10, 300, (B, T + 1)).astype(np.int32)
    return {"tokens_BT": tokens[:, :-1] * inside, "targets_BT": tokens[:, 1:] * inside, "positions_BT": at * inside,
            "segment_ids_BT": inside, "mask_BT": ((at >= first) & (at < last)).astype(np.float32),
            "sampler_logp_BT": np.zeros((B, T), np.float32), "finished_B": np.array(finished, np.float32),
            "scored_B": np.ones(B, np.float32)}


# -- the critic -------------------------------------------------------------------------------------------------------


def test_while_the_critic_warms_up_nothing_is_an_advantage(tmp_path):
    stage = stage_of(tmp_path, critic_warmup=2)  # a rollout holds two steps
    trainable = started(stage)
    for step, still in ((0, True), (1, True), (2, False)):
        batches, _ = stage.next_batches(State(trainable, step, jax.random.key(1)))
        assert not any(batch["advantage_BT"].any() for batch in batches) == still
        # What the critic is to learn is there from the first.
        assert all(batch["returns_BT"].any() for batch in batches)


@pytest.mark.parametrize("changes", [dict(), dict(critic="shared", objective=dict(entropy_coefficient=0.1))])
def test_while_the_critic_warms_up_the_policy_stays_as_it_was(changes, tmp_path):
    """Whatever the objective wants of it, entropy or a trunk for the critic."""
    network = stage_of(tmp_path).network
    begun = load_params(read_meta(tiny_stages.trained("sft"))[0], "policy", network.abstract)
    train_stage(tiny_stages.config("ppo", steps=4, critic_warmup=4, checkpoint_every=1, keep=4, **changes), tmp_path / "warm")
    folder, meta = read_meta(tmp_path / "warm")
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, meta["policy"], network.abstract), begun)
    losses = [line["value"] for line in tiny_stages.metrics(tmp_path / "warm")]
    assert losses[0] != losses[2]  # the critic did learn
    train_stage(tiny_stages.config("ppo", steps=4, critic_warmup=2, **changes), tmp_path / "on")  # a rollout holds two steps
    folder, meta = read_meta(tmp_path / "on")
    moved = load_params(folder, meta["policy"], network.abstract)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), moved, begun)))


def test_a_separate_critic_may_start_as_the_policy_under_a_fresh_head(tmp_path):
    stage = stage_of(tmp_path, critic_from="policy")
    critic = started(stage)["critic"]
    policy = load_params(read_meta(tiny_stages.trained("sft"))[0], "policy", stage.network.abstract)
    jax.tree.map(np.testing.assert_array_equal, critic["backbone"], policy)
    assert not np.any(critic["head"]["kernel"][...])
    batch = rows()
    values = stage.available({"policy": policy, "critic": critic}, {}, batch)["value_BT"]()
    np.testing.assert_array_equal(values, np.zeros_like(batch["mask_BT"]))


def test_a_shared_critic_is_a_head_on_the_policys_own_hidden_states(tmp_path):
    stage = stage_of(tmp_path, critic="shared")
    trainable = started(stage)
    assert [leaf.shape for leaf in jax.tree.leaves(trainable["critic"])] == [(16, 1)]
    batch = rows()
    assert not np.any(stage.available(trainable, {}, batch)["value_BT"]())
    kernel = np.random.default_rng(0).normal(size=(16, 1)).astype(np.float32)
    trainable["critic"] = jax.tree.map(lambda _: jnp.asarray(kernel), trainable["critic"])
    hidden = np.asarray(stage.hidden(trainable["policy"], batch), np.float64)
    plain = stage.available(trainable, {}, batch)["value_BT"]()
    np.testing.assert_allclose(plain, (hidden @ kernel.astype(np.float64))[..., 0], rtol=1e-4, atol=1e-5)
    folded = stage.available(trainable, {}, stage.folded(batch))["value_BT"]()
    counted = batch["mask_BT"] > 0
    np.testing.assert_allclose(np.asarray(folded)[counted], np.asarray(plain)[counted], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_value_loss_reaches_the_policy_of_a_shared_critic_alone(critic, tmp_path):
    stage = stage_of(tmp_path, critic=critic)
    trainable = started(stage)
    trainable["critic"] = jax.tree.map(lambda x: x + 0.1, trainable["critic"])
    batch = rows()
    made, _ = jax.jit(stage.targets)(trainable, stage.frozen, batch)
    batch |= {name: np.asarray(x) for name, x in made.items()}

    def value_term(trainable):
        return reduce(stage.loss_fn(trainable, stage.frozen, batch, jax.random.key(0)).terms)[1]["value"]

    gradient = jax.jit(jax.grad(value_term))(trainable)
    moved = {name: any(np.any(leaf) for leaf in jax.tree.leaves(gradient[name])) for name in gradient}
    assert moved == {"policy": critic == "shared", "critic": True}


def test_a_policy_with_a_shared_critic_is_handed_on_as_any_other(tmp_path):
    train_stage(tiny_stages.config("ppo", critic="shared", steps=2, epochs=2), tmp_path / "ppo")
    names = {name.split("/")[0] + "/" + name.split("/")[1] for name in read_meta(tmp_path / "ppo")[1]["parameters"]}
    assert {name for name in names if name.startswith("critic")} == {"critic/head"}
    assert Assistant.load(tmp_path / "ppo", max_new_tokens=2).reply([[{"role": "user", "content": "1+1?"}]])
    following = tiny_stages.config("grpo", init_from=str(tmp_path / "ppo"), steps=1)
    assert train_stage(following, tmp_path / "grpo")["steps"] == 1


# -- the reward -------------------------------------------------------------------------------------------------------


def learned_scores(tmp_path, batch):
    """What the reward model says of each row, with nothing done to it."""
    stage = stage_of(tmp_path / "plain")
    trainable = started(stage)
    made, _ = jax.jit(stage.targets)(trainable, stage.frozen, batch | {"finished_B": np.ones(4, np.float32)})
    return np.asarray(made["reward_B"], np.float64)


@pytest.mark.parametrize(("scaling", "clip"), [("std", 0.27), ("normalise", 0.56)])  # amid the tiny model's scores
def test_scores_are_scaled_by_all_so_far_then_clipped_and_only_then_punished(scaling, clip, tmp_path):
    batch = rows(finished=(1, 1, 0, 1))
    learned = learned_scores(tmp_path, batch)
    before = np.array([0.5, -1.0, 2.0, 0.25, 1.0])  # scores of earlier rollouts
    stage = stage_of(tmp_path, reward_scaling=scaling, reward_clip=clip, unfinished_penalty=3.0)
    assert set(stage.carried.values()) == {0.0}
    stage.carried |= {"reward_count": 5.0, "reward_mean": before.mean(), "reward_squares": 5 * before.var()}
    made, figures = jax.jit(stage.targets)(started(stage), stage.frozen, batch, stage.carried)
    seen = np.concatenate([before, learned[[0, 1, 3]]])  # the third was cut: its score says nothing
    shaped = np.clip((learned - seen.mean() * (scaling == "normalise")) / seen.std(), -clip, clip)
    assert 0 < np.sum(np.abs(shaped[[0, 1, 3]]) == clip) < 3
    shaped[2] = shaped[[0, 1, 3]].mean() - 3.0
    np.testing.assert_allclose(made["reward_B"], shaped, rtol=1e-4, atol=1e-5)
    got = [float(figures[name]) for name in ("reward_count", "reward_mean", "reward_squares")]
    np.testing.assert_allclose(got, [8, seen.mean(), 8 * seen.var()], rtol=1e-4)
    assert float(figures["reward/learned"]) == pytest.approx(learned.mean(), rel=1e-5)


@pytest.mark.parametrize("whitening", ["advantages", "rewards", "both", "none"])
def test_the_stage_whitens_what_its_config_says(whitening, tmp_path):
    batch = rows()
    stage = stage_of(tmp_path, whitening=whitening, kl_coefficient=0.3)
    trainable = started(stage)
    frozen = stage.frozen | {"reference": jax.tree.map(lambda x: 1.2 * x, stage.frozen["reference"])}
    made = {name: np.asarray(x, np.float64) for name, x in jax.jit(stage.targets)(trainable, frozen, batch)[0].items()}
    counted = batch["mask_BT"] > 0
    reward = -0.3 * (made["old_logp_BT"] - made["ref_logp_BT"]) * counted
    for b in range(4):
        reward[b, np.flatnonzero(counted[b])[-1]] += made["reward_B"][b]
    if whitening in ("rewards", "both"):  # unit variance, the mean as it was
        mean, std = reward[counted].mean(), reward[counted].std()
        reward = np.where(counted, (reward - mean) / std + mean, 0.0)
    advantage = np.zeros_like(reward)
    for b in range(4):
        following = carried = 0.0
        for t in reversed(np.flatnonzero(counted[b])):
            carried = reward[b, t] + following - made["old_value_BT"][b, t] + 0.95 * carried
            advantage[b, t], following = carried, made["old_value_BT"][b, t]
    np.testing.assert_allclose(made["returns_BT"][counted], (advantage + made["old_value_BT"])[counted], rtol=1e-3,
                               atol=1e-4)
    if whitening in ("advantages", "both"):
        advantage = np.where(counted, (advantage - advantage[counted].mean()) / advantage[counted].std(), 0.0)
    np.testing.assert_allclose(made["advantage_BT"], advantage, rtol=1e-3, atol=1e-3)


def test_the_coefficient_of_each_rollout_follows_from_the_kl_of_the_one_before(tmp_path):
    train_stage(tiny_stages.config("ppo", steps=6, kl_control="adaptive", kl_coefficient=0.2, kl_target=0.5,
                                   kl_gain=0.4, optimizer=dict(peak_lr=3e-2)), tmp_path)
    lines = tiny_stages.metrics(tmp_path)[::2]  # two steps a rollout
    expected = 0.2
    for line in lines:
        assert line["kl_coefficient"] == pytest.approx(expected, rel=1e-6)
        assert line["reward/kl_penalty"] == pytest.approx(-expected * line["kl"], rel=1e-6, abs=1e-9)
        expected *= 1 + 0.4 * min(max(line["kl"] / 0.5 - 1, -0.2), 0.2)
    assert len({line["kl_coefficient"] for line in lines}) == 3


# -- rewards that can be verified -------------------------------------------------------------------------------------


def verified(name):
    return dict(reward_model="", rewards=[dict(name="format", weight=2.0, pattern=".*")], critic_from=name)


def test_a_reward_that_judges_the_text_is_the_score_and_rows_of_other_kinds_have_none(tmp_path):
    stage = stage_of(tmp_path, unfinished_penalty=0.5, **verified("policy"))
    trainable = started(stage)
    assert "reward" not in stage.frozen
    batch = rows(finished=(1, 1, 0, 1)) | {"reward_B": np.array([1.0, 0.0, 5.0, 2.0], np.float32)}
    made, figures = jax.jit(stage.targets)(trainable, stage.frozen, batch)
    np.testing.assert_allclose(made["reward_B"], [1.0, 0.0, 0.5, 2.0], rtol=1e-6)  # what was cut: 1.0 on average, − 0.5
    assert "reward/learned" not in figures and float(figures["score"]) == pytest.approx(0.875)
    one, figures = stage.rewards([{"prompt": "", "answer": "1", "kind": "sum"}], ["two"])
    assert one.tolist() == [2.0] and figures["reward/format"] == 1.0
    stage = stage_of(tmp_path, reward_kinds=["other"], **verified("policy"))
    assert stage.rewards([{"prompt": "", "answer": "1", "kind": "sum"}], ["two"])[0].tolist() == [0.0]


def test_rows_that_nobody_judges_score_nothing_and_scale_nothing(tmp_path):
    changes = dict(unfinished_penalty=0.5, reward_scaling="normalise", **verified("policy"))
    stage = stage_of(tmp_path, **changes)
    trainable, targets = started(stage), jax.jit(stage.targets)
    batch = rows(finished=(1, 1, 0, 0)) | {"reward_B": np.array([1.0, 3.0, 0.0, 0.0], np.float32),
                                           "scored_B": np.array([1, 1, 0, 0], np.float32)}
    made, figures = targets(trainable, stage.frozen, batch, stage.carried)
    np.testing.assert_allclose(made["reward_B"], [-1.0, 1.0, 0.0, 0.0], rtol=1e-6)  # (r − 2) / 1, and nothing for being cut
    assert (float(figures["reward_count"]), float(figures["reward_mean"])) == (2.0, 2.0)
    judged, _ = targets(trainable, stage.frozen, batch | {"scored_B": np.ones(4, np.float32)}, stage.carried)
    np.testing.assert_allclose(judged["reward_B"], [-1.0, 1.0, -0.5, -0.5], rtol=1e-6)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_ppo_trains_on_verified_rewards_with_a_critic_of_its_own(critic, tmp_path):
    train_stage(tiny_stages.config("ppo", critic=critic, steps=2, **verified("policy")), tmp_path)
    assert all(np.isfinite(line["loss"]) and "reward/format" in line for line in tiny_stages.metrics(tmp_path))


# -- several steps a rollout ------------------------------------------------------------------------------------------


def test_a_rollout_is_whitened_whole_and_then_gone_through_in_minibatches(tmp_path):
    stage = stage_of(tmp_path, epochs=2, prompts_per_rollout=4, samples_per_prompt=2, batch_size=4, fold=False)
    state = State(started(stage), 0, jax.random.key(1))
    batches, figures = stage.next_batches(state)
    assert len(batches) == 4 and all(len(batch["mask_BT"]) == 4 for batch in batches)
    for epoch in (batches[:2], batches[2:]):
        mask, advantage = (np.concatenate([batch[name] for batch in epoch]) for name in ("mask_BT", "advantage_BT"))
        counted = advantage[mask > 0]
        assert counted.mean() == pytest.approx(0, abs=1e-5) and counted.std() == pytest.approx(1, abs=1e-4)
        parts = [batch["advantage_BT"][batch["mask_BT"] > 0] for batch in epoch]
        assert all(max(abs(part.mean()), abs(part.std() - 1)) > 1e-3 for part in parts)  # neither is by itself
        assert len({row.tobytes() for batch in epoch for row in batch["returns_BT"]}) == 8
    assert figures["returns_std"] > 0


@pytest.mark.parametrize("name", ["ppo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_the_first_step_beyond_the_target_kl_is_the_rollouts_last(name, tmp_path, monkeypatch):
    changes = dict(epochs=3, target_kl=1e-10, steps=8, optimizer=dict(peak_lr=3e-2, warmup_steps=0, weight_decay=0.1))
    config = tiny_stages.config(name, **changes)
    rollouts, cls = [], STAGES[name]
    monkeypatch.setattr(cls, "collect", _counting(cls.collect, rollouts))
    assert train_stage(config, tmp_path / "stopped")["steps"] == 8
    lines = tiny_stages.metrics(tmp_path / "stopped")
    # The first step of a rollout has ratio 1; the second is beyond, and the other four of six are left out.
    assert rollouts == [0, 2, 4, 6]
    assert [line["updates_skipped"] for line in lines] == [0, 0, 4, 4, 8, 8, 12, 12]
    beyond = [line["approx_kl"] > 1e-10 for line in lines]
    assert beyond == [False, True] * 4
    rollouts.clear()
    train_stage(tiny_stages.config(name, **(changes | dict(target_kl=0.0))), tmp_path / "whole")
    assert rollouts == [0, 6] and "updates_skipped" not in tiny_stages.metrics(tmp_path / "whole")[0]


def _counting(collect, rollouts):
    @functools.wraps(collect)
    def counted(self, state):
        rollouts.append(int(state.step))
        return collect(self, state)
    return counted


def test_a_kl_that_is_no_number_stops_and_one_that_is_missing_is_an_error(tmp_path):
    stage = stage_of(tmp_path, target_kl=0.1)
    stage.left = 6
    assert not stage.enough({"approx_kl": 0.05}) and stage.enough({"approx_kl": float("nan")})
    assert stage.carried["updates_skipped"] == 4
    with pytest.raises(ConfigError, match="target_kl=0.1 needs an objective with a metric approx_kl, 'ppo' has: loss"):
        stage.enough({"loss": 1.0})


# -- what is logged ---------------------------------------------------------------------------------------------------


def test_every_line_has_the_figures_of_ppo_and_they_agree_with_each_other(tmp_path):
    train_stage(tiny_stages.config("ppo", steps=4, kl_coefficient=0.1, unfinished_penalty=2.0), tmp_path)
    for line in tiny_stages.metrics(tmp_path):
        assert {"objective/kl", "objective/entropy", "approx_kl", "clip_fraction", "value_clip_fraction", "ratio",
                "explained_variance", "returns_mean", "returns_std", "reward/learned", "reward/kl_penalty",
                "reward/unfinished_penalty", "kl_coefficient", "score", "score_std", "kl", "length",
                "drawn_tokens", "truncated", "entropy", "policy", "value", "sampler_kl"} <= set(line)
        assert line["objective/kl"] == pytest.approx(line["kl"], rel=1e-4, abs=1e-5)
        assert line["score"] == pytest.approx(line["reward/learned"] + line["reward/unfinished_penalty"], abs=1e-5)
        assert line["reward/kl_penalty"] == pytest.approx(-0.1 * line["kl"], rel=1e-5, abs=1e-7)
        assert line["explained_variance"] <= 1 and line["returns_std"] >= 0
        assert 0 <= line["value_clip_fraction"] <= 1 and line["objective/entropy"] > 0
        assert line["reward/unfinished_penalty"] == 0 or line["truncated"] > 0


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "words"), [
    (dict(critic="both"), "config.critic='both' must be one of separate, shared"),
    (dict(critic_from="sft"), "config.critic_from='sft' must be one of reward, policy"),
    (dict(kl_control="adaptve"), "config.kl_control='adaptve' must be one of fixed, adaptive"),
    (dict(reward_scaling="mean"), "config.reward_scaling='mean' must be one of none, std, normalise"),
    (dict(whitening="all"), "config.whitening='all' must be one of advantages, rewards, both, none"),
    (dict(kl_control="adaptive", kl_coefficient=0.0), "kl_coefficient=0.0 .* all must be above 0"),
    (dict(rewards=[dict(name="numeric")]), "reward_model=.* and config.rewards both say what a response scores"),
    (dict(rewards=[dict(name="numeric")], reward_model=""), 'critic_from="reward", but with config.rewards there'),
])
def test_choices_that_are_none_are_refused_with_those_there_are(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        stage_of(tmp_path, **changes)


@pytest.mark.parametrize("key", ["target_kl", "reward_clip"])
def test_numbers_below_the_least_are_refused_before_anything_is_read(key):
    config = default_config("ppo")
    config[key] = -0.5
    with pytest.raises(ConfigError, match=f"{key}=-0.5: expected 0 or more"):
        check_stage(config, default_config("ppo"))
