"""PPO against a learned reward, with a critic started from the reward model, or against rewards that can be verified,
with a critic of its own; and a KL penalty to the start."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.experience.adaptive import SCALINGS, adapted_coefficient, merged_moments, scaled
from jaxalign.experience.figures import value_figures
from jaxalign.experience.shaping import WHITENINGS, ppo_targets
from jaxalign.models.heads import ScalarModel
from jaxalign.rewards.learned import score_rows
from jaxalign.stages.critic import CRITICS, ORIGINS
from jaxalign.stages.defaults import base_config
from jaxalign.stages.network import Network
from jaxalign.stages.rl import RL_DEFAULTS, PolicyStage, masked_mean
from jaxalign.stages.stage import BATCH_NAMES, STATISTICS
from jaxalign.train.checkpoint import read_reward_meta

MOMENTS = ("reward_count", "reward_mean", "reward_squares")  # of the scores so far, in `carried`


class PPO(PolicyStage):
    """Policy and critic are trained; reference policy and reward model are frozen. What is done of each detail that
    arXiv:2403.17031 lists: the table in `objectives/README.md`.

    The score of a response is that of `reward_model`, or the sum of the `rewards` that judge its text, of which a
    reward model can be one ("learned"). Rows of other `reward_kinds`, and those that lack the answer which all rewards need,
    score 0, however they end, and have no part in what scores are scaled by.
    """

    name = "ppo"

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        self.scorer = Network(ScalarModel, self.model_config, self.lora)
        self.critic = CRITICS[config.critic](self.model_config, self.lora)
        self.reward, self.pooling = (self.verifiers() if config.rewards else None), ""
        if config.reward_model:
            self._take_reward_model(config)
            self.tail = self.tokenizer.tail_ids
        if config.kl_control == "adaptive":
            self.carried["kl_coefficient"] = float(config.kl_coefficient)
        if config.reward_scaling != "none":
            self.carried |= dict.fromkeys(MOMENTS, 0.0)

    @classmethod
    def check(cls, config):
        _check(config)
        super().check(config)

    @staticmethod
    def defaults():
        return base_config(
            "ppo", **RL_DEFAULTS, reward_model="",  # or `rewards`
            critic="separate",  # one of stages/critic.CRITICS
            critic_from="reward",  # what a separate one starts as: the "reward" model, or "policy", under a fresh head
            critic_warmup=0,  # steps of the critic alone: it starts from a model of another quantity and is far off; weight
            # decay goes on
            kl_coefficient=0.05,
            kl_control="fixed",  # "adaptive": kl_coefficient is the first rollout's, then kl_target is steered to
            kl_target=6.0,  # nats a response
            kl_gain=0.1,  # how much of the relative error the coefficient takes over, a rollout
            reward_scaling="none",  # one of experience/adaptive.SCALINGS: by the moments of all scores so far
            reward_clip=0.0,  # the scaled score's largest size; 0: any
            unfinished_penalty=4.0,  # a response without an end scores so much less than the rollout's finished ones do
            whitening="advantages",  # one of experience/shaping.WHITENINGS
            discount=1.0, gae_lambda=0.95,
            objective=dict(name="ppo", clip=0.2, value_clip=0.2, value_coefficient=0.5, entropy_coefficient=0.0,
                           sampler_correction="none", sampler_cap=2.0))

    def init(self, key):
        policy, critic = jax.random.split(key)
        return super().init(policy) | {"critic": self.critic.init(critic)}

    def start(self, trainable):
        policy = super().start({"policy": trainable["policy"]})["policy"]
        reward = None
        if self.config.reward_model:
            reward, _ = self.load(self.scorer, self.config.reward_model, "reward")
            self.frozen |= {"reward": reward}
        whole = self.whole({"policy": policy}, self.frozen)["policy"]
        critic = self.critic.start(trainable["critic"], whole, reward, self.config.critic_from)
        return {"policy": policy, "critic": self.take_over("critic", self.critic.network, trainable["critic"], critic)}

    def rollout(self, state):
        batches, figures = super().rollout(state)
        warm_up = int(state.step) < self.config.critic_warmup
        if warm_up:
            # What a critic that is off by a constant calls an advantage is a matter of position: it teaches length.
            batches = [batch | {"advantage_BT": np.zeros_like(batch["advantage_BT"])} for batch in batches]
        if self.config.critic_warmup and self._wants_more():
            batches = [batch | {"held_B": np.full(len(batch["reward_B"]), np.float32(warm_up))} for batch in batches]
        return batches, figures

    def _wants_more(self):
        """Whether a policy without advantages has a gradient all the same: for its entropy, its critic, or by an objective of
        another make."""
        c = self.config
        return c.critic == "shared" or c.objective.name != "ppo" or c.objective.get("entropy_coefficient", 0) != 0

    def loss_of(self, trainable, frozen, batch):
        if "held_B" in batch:
            held = batch["held_B"][0] > 0
            policy = jax.tree.map(lambda x: jnp.where(held, jax.lax.stop_gradient(x), x), trainable["policy"])
            trainable = trainable | {"policy": policy}
        return super().loss_of(trainable, frozen, batch)

    def rewards(self, rows, responses):
        return super().rewards(rows, responses) if self.reward else (np.zeros(len(rows), np.float32), {})

    @classmethod
    def names(cls, objective):
        return {*BATCH_NAMES, *STATISTICS, "value_BT", "old_logp_BT", "ref_logp_BT", "sampler_logp_BT", "advantage_BT",
                "returns_BT", "old_value_BT", "reward_B"}

    def available(self, trainable, frozen, batch):
        # One pass of the policy serves its statistics and a shared critic.
        hidden = functools.cache(lambda: self.hidden(trainable["policy"], batch))
        statistics = functools.cache(
            lambda: self.read_off(hidden(), trainable["policy"], batch, self.config.temperature))
        made = {name: (lambda name=name: getattr(statistics(), name)) for name in STATISTICS}
        return dict(batch) | made | {"value_BT": lambda: self.critic.values(trainable["critic"], batch, hidden)}

    def targets(self, trainable, frozen, batch, carried=None):
        c, mask_BT = self.config, batch["mask_BT"]
        at_start = self.available(trainable, frozen, batch)
        old_BT, value_BT = at_start["logp_BT"](), at_start["value_BT"]()
        ref_BT = self.statistics(frozen["reference"], batch).logp_BT
        if self.reward:
            earned_B, learned = batch["reward_B"], {}
        else:
            earned_B = score_rows(self.scorer.merge(frozen["reward"]), batch, self.pooling)
            learned = {"reward/learned": earned_B.mean()}
        scored_B = batch["scored_B"]
        ended_B = batch["finished_B"] * scored_B
        shaped_B, moments = self.shaped(earned_B, ended_B, carried)
        shaped_B *= scored_B
        # Relative: where a reward model has its zero means nothing, so no fixed score would be a penalty for sure.
        usual = masked_mean(shaped_B, jnp.where(ended_B.sum() > 0, ended_B, scored_B))
        score_B = jnp.where(ended_B > 0, shaped_B, (usual - c.unfinished_penalty) * scored_B)
        made = ppo_targets(score_B, old_BT, ref_BT, value_BT, mask_BT, kl_coefficient=self.coefficient(carried),
                           discount=c.discount, gae_lambda=c.gae_lambda, whitening=c.whitening)
        made |= {"old_logp_BT": old_BT, "ref_logp_BT": ref_BT, "reward_B": score_B}
        kl_B = jnp.sum((old_BT - ref_BT) * mask_BT, axis=1)
        figures = {"score": score_B.mean(), "kl": kl_B.mean(), "score_std": score_B.std(),
                   "reward/unfinished_penalty": (score_B - shaped_B).mean()}
        return made, figures | learned | moments | self.sampler_figures(old_BT, batch)

    def shaped(self, earned_B, ended_B, carried):
        """(scores, scaled and clipped as the config says; the moments of the scores so far, by name).

        Only responses that came to their end count in the moments: what a reward model makes of half an answer is no
        score."""
        c = self.config
        moments = ()
        if c.reward_scaling != "none":
            moments = merged_moments([carried[name] for name in MOMENTS], earned_B, ended_B)
        shaped_B = scaled(earned_B, moments, scaling=c.reward_scaling)
        if c.reward_clip:
            shaped_B = jnp.clip(shaped_B, -c.reward_clip, c.reward_clip)
        return shaped_B, dict(zip(MOMENTS, moments))

    def _take_reward_model(self, config):
        folder, meta = read_reward_meta(config.reward_model)
        self.pooling = meta["pooling"]
        if meta["tokenizer"]["hash"] != self.tokenizer.hash:
            raise CheckpointError(f"{folder}: the reward model's tokenizer ({meta['tokenizer']['hash'][:12]}) is not the "
                                  f"policy's ({self.tokenizer.hash[:12]}): its scores would be of other text; train "
                                  "the reward model from the same tokenizer")

    def coefficient(self, carried):
        """β of this rollout."""
        return self.config.kl_coefficient if self.config.kl_control == "fixed" else carried["kl_coefficient"]

    def carry_on(self, batch, figures):
        c, coefficient = self.config, self.coefficient(self.carried)
        # What was cut has a penalty instead of a score, one score has no spread, and that all were cut is said elsewhere.
        score_B = batch["reward_B"][(batch["finished_B"] * batch["scored_B"]) > 0]
        self.watch_spread(
            len(score_B) > 1 and np.ptp(score_B) == 0,
            f"all {len(score_B)} finished responses score {score_B[:1].sum():g}, so there is nothing to learn from but the KL "
            f"penalty and to come to an end; look at the reward and at reward_clip={c.reward_clip:g}")
        made = super().carry_on(batch, figures) | value_figures(batch) | {
            "kl_coefficient": coefficient, "reward/kl_penalty": -coefficient * figures["kl"]}
        if c.reward_scaling != "none":
            self.carried |= {name: figures[name] for name in MOMENTS}
            count, mean, squares = (self.carried[name] for name in MOMENTS)
            made |= {"reward/running_mean": mean, "reward/running_std": math.sqrt(squares / max(count, 1.0))}
        if c.kl_control == "adaptive":
            self.carried["kl_coefficient"] = adapted_coefficient(coefficient, figures["kl"], target=c.kl_target,
                                                                 gain=c.kl_gain)
        return made


def _check(config):
    if not (config.reward_model or config.rewards):
        raise ConfigError("ppo: config.reward_model is empty; give the workdir of a reward stage, or in config.rewards "
                          "what judges the responses' text")
    if config.reward_model and config.rewards:
        raise ConfigError(f"ppo: config.reward_model={config.reward_model} and config.rewards both say what a response "
                          "scores; set one of them to empty: a reward model can be one of several rewards, "
                          'dict(name="learned", checkpoint=...)')
    if config.rewards and config.critic == "separate" and config.critic_from == "reward":
        raise ConfigError('ppo: config.critic_from="reward", but with config.rewards there is no reward model to start '
                          'the critic from; set config.critic_from="policy", or config.critic="shared"')
    for name, choices in (("critic", CRITICS), ("critic_from", ORIGINS), ("kl_control", ("fixed", "adaptive")),
                          ("reward_scaling", SCALINGS), ("whitening", WHITENINGS)):
        if config[name] not in choices:
            raise ConfigError(f"ppo: config.{name}={config[name]!r} must be one of {', '.join(choices)}")
    adaptive = config.kl_control == "adaptive"
    if adaptive and not (config.kl_coefficient > 0 and config.kl_target > 0 and config.kl_gain > 0):
        raise ConfigError(f'ppo: config.kl_control="adaptive" multiplies kl_coefficient={config.kl_coefficient} by a '
                          f"factor of kl_target={config.kl_target} and kl_gain={config.kl_gain}; all must be above 0")
