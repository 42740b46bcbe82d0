"""PPO against a learned reward, with a critic started from the reward model and a KL penalty to the start."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.data.folding import unfold
from jaxalign.experience.shaping import ppo_targets
from jaxalign.models.heads import ScalarModel
from jaxalign.rewards.learned import score_rows
from jaxalign.stages.defaults import base_config
from jaxalign.stages.rl import RL_DEFAULTS, PolicyStage, masked_mean
from jaxalign.stages.stage import BATCH_NAMES, STATISTICS, random_state, split_abstract
from jaxalign.train.checkpoint import read_reward_meta


class PPO(PolicyStage):
    """Policy and critic are trained; reference policy and reward model are frozen."""

    name = "ppo"

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        self.score_graph, self.score_abstract = split_abstract(ScalarModel, self.model_config)
        if not config.reward_model:
            raise ConfigError("ppo: config.reward_model is empty; give the workdir of a reward stage")
        folder, meta = read_reward_meta(config.reward_model)
        self.pooling = meta["pooling"]
        if meta["tokenizer"]["hash"] != self.tokenizer.hash:
            raise CheckpointError(f"{folder}: the reward model's tokenizer ({meta['tokenizer']['hash'][:12]}) is not the "
                                  f"policy's ({self.tokenizer.hash[:12]}): its scores would be of other text; train "
                                  "the reward model from the same tokenizer")

    @staticmethod
    def defaults():
        return base_config(
            "ppo", **RL_DEFAULTS, reward_model="", kl_coefficient=0.05, discount=1.0, gae_lambda=0.95,
            unfinished_penalty=4.0,  # a response without an end scores so much less than the rollout's finished ones do
            objective=dict(name="ppo", clip=0.2, value_clip=0.2, value_coefficient=0.5, entropy_coefficient=0.0,
                           sampler_correction="none", sampler_cap=2.0))

    def init(self, key):
        policy, critic = jax.random.split(key)
        return super().init(policy) | {"critic": random_state(ScalarModel, self.model_config, critic)}

    def start(self, trainable):
        policy = super().start({"policy": trainable["policy"]})["policy"]
        reward = self.load(self.config.reward_model, self.score_abstract, "reward")
        self.frozen |= {"reward": reward}
        return {"policy": policy, "critic": jax.tree.map(jnp.copy, reward)}

    def names(self):
        return {*BATCH_NAMES, *STATISTICS, "value_BT", "old_logp_BT", "ref_logp_BT", "sampler_logp_BT", "advantage_BT",
                "returns_BT", "old_value_BT", "reward_B"}

    def available(self, trainable, frozen, batch):
        made = super().available(trainable, frozen, batch)
        return made | {"value_BT": lambda: self.values(trainable["critic"], batch)}

    def values(self, critic, batch):
        """What the critic expects before each target is drawn."""
        model = nnx.merge(self.score_graph, critic)
        if "place_BU" not in batch:
            return model(batch["tokens_BT"], batch["positions_BT"], batch["segment_ids_BT"])
        value_MS = model(*(batch[f"folded_{name}_MS"] for name in ("tokens", "positions", "segment_ids")))
        return unfold(value_MS, batch["place_BU"][:, :-1])

    def targets(self, trainable, frozen, batch):
        c, mask_BT = self.config, batch["mask_BT"]
        old = self.statistics(trainable["policy"], batch)
        ref_BT = self.statistics(frozen["reference"], batch).logp_BT
        learned_B = score_rows(nnx.merge(self.score_graph, frozen["reward"]), batch, self.pooling)
        # Relative: where a reward model has its zero means nothing, so no fixed score would be a penalty for sure.
        ended_B = batch["finished_B"]
        usual = masked_mean(learned_B, jnp.where(ended_B.sum() > 0, ended_B, 1.0))
        score_B = jnp.where(ended_B > 0, learned_B, usual - c.unfinished_penalty)
        made = ppo_targets(score_B, old.logp_BT, ref_BT, self.values(trainable["critic"], batch), mask_BT,
                           kl_coefficient=c.kl_coefficient, discount=c.discount, gae_lambda=c.gae_lambda)
        made |= {"old_logp_BT": old.logp_BT, "ref_logp_BT": ref_BT, "reward_B": score_B}
        kl_B = jnp.sum((old.logp_BT - ref_BT) * mask_BT, axis=1)
        figures = {"score": score_B.mean(), "kl": kl_B.mean(), "score_std": score_B.std()}
        return made, figures | self.sampler_figures(old.logp_BT, batch)
