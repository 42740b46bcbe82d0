"""GRPO with rewards that can be verified: groups of responses to one prompt, no critic."""

import jax.numpy as jnp
import numpy as np

from jaxalign.evaluate.preferences import RewardModel
from jaxalign.experience.shaping import group_targets
from jaxalign.rewards import REWARDS
from jaxalign.rewards.run import Rewards
from jaxalign.stages.defaults import base_config
from jaxalign.stages.rl import RL_DEFAULTS, PolicyStage, masked_mean
from jaxalign.stages.stage import BATCH_NAMES, STATISTICS


class GRPO(PolicyStage):
    """The policy is trained; its frozen start is the reference.

    A prompt that is not among the `reward_kinds`, or that lacks the answer which every reward needs, gets reward 0 for
    all its responses, hence no advantage: only the KL term acts on it. Mixing such prompts in (`data.train` with
    several sources) keeps what the policy knew.
    """

    name = "grpo"
    spread = 1.0  # share of groups whose rewards differ, in the rollout before

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        self.reward = Rewards(config.rewards, REWARDS, {"load_reward_model": RewardModel.load})

    @staticmethod
    def defaults():
        return base_config(
            "grpo", **(RL_DEFAULTS | dict(prompts_per_rollout=16, samples_per_prompt=8, batch_size=128)),
            rewards=[],  # what an entry holds: rewards/run.py
            reward_kinds=[],  # only rows of these kinds are rewarded; empty: all
            advantage_scale="std",
            unfinished_reward=0.0,  # stands for the reward of a response that was cut: it has not answered
            objective=dict(name="grpo", clip_low=0.2, clip_high=0.2, kl_coefficient=0.02, kl_estimator="k3",
                           aggregation="sequence"))

    def names(self):
        return {*BATCH_NAMES, *STATISTICS, "old_logp_BT", "ref_logp_BT", "sampler_logp_BT", "advantage_BT", "reward_B"}

    def rewards(self, rows, responses):
        kinds = set(self.config.reward_kinds)
        counts = np.array([not kinds or row.get("kind") in kinds for row in rows])
        total, figures = self.reward(rows, responses, counts, self.warn)
        groups = total.reshape(-1, self.config.samples_per_prompt)
        figures["spread"] = float((groups.std(1) > 0).mean())
        # Said on the way down only: a run that stays there would bury its other lines.
        if figures["spread"] == 0 and self.spread > 0:
            self.warn("within every group all rewards are equal, so there is nothing to learn from; look at the responses, "
                      "the reward and the prompts' difficulty")
        self.spread = figures["spread"]
        return total, figures

    def targets(self, trainable, frozen, batch):
        old = self.statistics(trainable["policy"], batch)
        ref_BT = self.statistics(frozen["reference"], batch).logp_BT
        reward_B = jnp.where(batch["finished_B"] > 0, batch["reward_B"], self.config.unfinished_reward)
        made = group_targets(reward_B, batch["mask_BT"], group_size=self.config.samples_per_prompt,
                             scale=self.config.advantage_scale)
        made |= {"old_logp_BT": old.logp_BT, "ref_logp_BT": ref_BT, "reward_B": reward_B}
        kl_B = ((old.logp_BT - ref_BT) * batch["mask_BT"]).sum(1)
        figures = {"kl": kl_B.mean(), "entropy": masked_mean(old.entropy_BT, batch["mask_BT"])}
        return made, figures | self.sampler_figures(old.logp_BT, batch)
