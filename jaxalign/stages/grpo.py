"""GRPO and its family with rewards that can be verified: groups of responses to one prompt, no critic."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.batches import signature
from jaxalign.errors import ConfigError
from jaxalign.experience.rows import chosen
from jaxalign.experience.shaping import group_targets, overlong_punishment
from jaxalign.objectives.grpo import grpo
from jaxalign.stages.defaults import base_config
from jaxalign.stages.rl import RL_DEFAULTS, PolicyStage, masked_mean
from jaxalign.stages.stage import BATCH_NAMES, STATISTICS


class GRPO(PolicyStage):
    """The policy is trained; its frozen start is the reference. `GRPO_FAMILY` says which choices make which paper.

    A prompt that is not among the `reward_kinds`, or that lacks the answer which every reward needs, has responses of reward 0
    and no advantage, however long they are or cut: only the KL acts on it, the loss's, and the reward's where advantages
    are not scaled. Mixing such prompts in (`data.train` with several sources) keeps what the policy knew.
    """

    name = "grpo"

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        self.reward = self.verifiers()

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.dynamic_sampling < 0:
            raise ConfigError(f"grpo: config.dynamic_sampling={config.dynamic_sampling} must be 0 or more rollouts")
        if not 0.0 <= config.overlong_share <= 1.0:
            raise ConfigError(f"grpo: config.overlong_share={config.overlong_share} must be a share of max_new_tokens, "
                              "0 to 1")

    @staticmethod
    def defaults():
        return base_config(
            "grpo", **(RL_DEFAULTS | dict(prompts_per_rollout=16, samples_per_prompt=8, batch_size=128)),
            advantage_baseline="group", advantage_scale="std",  # see experience.shaping.group_targets
            kl_coefficient=0.0,  # of the penalty in the reward; the objective has its own, in the loss
            measure_kl=True,  # whether the start is kept and asked though both coefficients are 0: for the figures alone
            unfinished_reward=0.0,  # stands for the reward of a response that was cut: it has not answered
            overlong_share=0.0,  # the last share of max_new_tokens, in which a response loses up to 1; 0: none
            dynamic_sampling=0,  # the most rollouts a step to replace groups whose rewards are all equal; 0: they stay
            objective=dict(name="grpo", surrogate="clip", clip_low=0.2, clip_high=0.2, kl_coefficient=0.02,
                           kl_estimator="k3", aggregation="sequence", sampler_correction="none", sampler_cap=2.0))

    @classmethod
    def names(cls, objective):
        return {*BATCH_NAMES, *STATISTICS, "old_logp_BT", "ref_logp_BT", "sampler_logp_BT", "advantage_BT", "reward_B",
                "budget_B"}

    @property
    def refers(self):
        c = self.config
        asked = self.options["kl_coefficient"] if self.objective is grpo else "ref_logp_BT" in signature(self.objective)[0]
        return bool(c.measure_kl or c.kl_coefficient or asked)

    def draw(self, state, key):
        drawn, figures = super().draw(state, key)
        scored, differ = self._groups(drawn)
        spread = float(differ[scored].mean()) if scored.any() else 0.0
        self.watch_spread(spread == 0, "within every group all rewards are equal, so there is nothing to learn from; "
                                       "look at the responses, the reward and the prompts' difficulty")
        return drawn, figures | {"spread": spread}

    def _groups(self, drawn):
        """(which groups earn a reward at all, in which the rewards differ), what was cut having `unfinished_reward`."""
        G = self.config.samples_per_prompt
        reward = np.where(drawn.rollouts.finished, drawn.reward_B, self.config.unfinished_reward).reshape(-1, G)
        # The range, not the deviation: that of equal numbers can be above 0.
        return self.scored(drawn.rows).reshape(-1, G).any(1), np.ptp(reward, axis=1) > 0

    def collect(self, state):
        """With dynamic sampling (DAPO, arXiv:2503.14476, eq. 11), groups whose rewards are all equal are left out, and
        others drawn from further prompts in their stead, in at most `dynamic_sampling` more rollouts. What is lacking
        then stands in the batch but counts in nothing. Groups that are not rewarded at all stay as they are."""
        c = self.config
        key = jax.random.fold_in(state.key, state.step)
        draws, parts = map(list, zip(self.draw(state, key)))
        if not c.dynamic_sampling:
            return draws[0], parts[0]
        wanted = c.prompts_per_rollout
        kept, equal = self._telling(draws[0], first=True)
        while len(kept) < wanted and len(draws) <= c.dynamic_sampling:
            drawn, figures = self.draw(state, jax.random.fold_in(key, len(draws)))
            telling, others = self._telling(drawn)
            start = len(draws) * wanted
            kept, equal = kept + [start + g for g in telling], equal + [start + g for g in others]
            draws.append(drawn)
            parts.append(figures)
        groups = (kept + equal)[:wanted]
        G = c.samples_per_prompt
        drawn = chosen(draws, [g * G + n for g in groups for n in range(G)])
        drawn.counts_B *= np.repeat(np.arange(wanted) < len(kept), G)
        figures = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
        figures["drawn_tokens"] *= len(draws)  # all that were drawn, whatever becomes of them
        return drawn, figures | {"rollouts": len(draws), "groups_equal": len(equal), "groups_lacking": wanted - min(
            wanted, len(kept))}

    def _telling(self, drawn, first=False):
        """(groups to learn from, groups whose rewards are all equal), by number; unrewarded ones only of the first."""
        scored, differ = self._groups(drawn)
        return (np.flatnonzero(scored & differ | (first & ~scored)).tolist(), np.flatnonzero(scored & ~differ).tolist())

    def targets(self, trainable, frozen, batch, carried=None):
        c, mask_BT = self.config, batch["mask_BT"]
        old = self.statistics(trainable["policy"], batch)
        ref = {"ref_logp_BT": self.statistics(frozen["reference"], batch).logp_BT} if self.refers else {}
        reward_B = jnp.where(batch["finished_B"] > 0, batch["reward_B"], c.unfinished_reward)
        reward_B += overlong_punishment(mask_BT.sum(1), budget=c.max_new_tokens, share=c.overlong_share)
        reward_B *= batch["scored_B"]
        # On a scale of rewards nothing is said of rows that have none: what they differ by is KL, and would be blown up to 1.
        taking_part_BT = mask_BT if c.advantage_scale == "none" else mask_BT * batch["scored_B"][:, None]
        kl_BT = (old.logp_BT - ref.get("ref_logp_BT", old.logp_BT)) * mask_BT
        made = group_targets(reward_B, taking_part_BT, c.kl_coefficient * kl_BT, group_size=c.samples_per_prompt,
                             scale=c.advantage_scale, baseline=c.advantage_baseline)
        made |= ref | {"old_logp_BT": old.logp_BT, "reward_B": reward_B,
                       "budget_B": jnp.full_like(reward_B, c.max_new_tokens)}
        figures = {"entropy": masked_mean(old.entropy_BT, mask_BT)}
        return made, figures | self.sampler_figures(old.logp_BT, batch)


# Which choice makes which paper: `config.update(GRPO_FAMILY["dapo"])` on the stage's defaults. Advantage, surrogate and
# aggregation are the paper's; so are the clips, where it gives them. β has to fit the task: these are starting points.
GRPO_FAMILY = {
    # Shao et al. 2024, arXiv:2402.03300, eq. 3.
    "grpo": dict(advantage_baseline="group", advantage_scale="std",
                 objective=dict(surrogate="clip", clip_low=0.2, clip_high=0.2, aggregation="sequence",
                                kl_coefficient=0.04, kl_estimator="k3")),
    # Liu et al. 2025, arXiv:2503.20783.
    "dr_grpo": dict(advantage_baseline="group", advantage_scale="none",
                    objective=dict(surrogate="clip", clip_low=0.2, clip_high=0.2, aggregation="budget",
                                   kl_coefficient=0.0)),
    # Yu et al. 2025, arXiv:2503.14476, eq. 8 to 13.
    "dapo": dict(advantage_baseline="group", advantage_scale="std", overlong_share=0.2, dynamic_sampling=4,
                 objective=dict(surrogate="clip", clip_low=0.2, clip_high=0.28, aggregation="token",
                                kl_coefficient=0.0)),
    # Zheng et al. 2025, arXiv:2507.18071, eq. 5 to 7; clips of its section 5.1.
    "gspo": dict(advantage_baseline="group", advantage_scale="std",
                 objective=dict(surrogate="gspo", clip_low=3e-4, clip_high=4e-4, aggregation="sequence",
                                kl_coefficient=0.0)),
    # MiniMax-M1 2025, arXiv:2506.13585, eq. 4 and 5; the upper clip, which it does not give, as in ScaleRL,
    # arXiv:2510.13786: a weight of 5 at most.
    "cispo": dict(advantage_baseline="group", advantage_scale="std",
                  objective=dict(surrogate="cispo", clip_low=1.0, clip_high=4.0, aggregation="token",
                                 kl_coefficient=0.0)),
    # Ahmadian et al. 2024, arXiv:2402.14740: β in the reward, one step a rollout.
    "rloo": dict(advantage_baseline="others", advantage_scale="none", kl_coefficient=0.03,
                 objective=dict(surrogate="reinforce", aggregation="sum", kl_coefficient=0.0)),
    # Hu et al. 2025, arXiv:2501.03262: β in the reward, from each token on.
    "reinforce++": dict(advantage_baseline="none", advantage_scale="batch", kl_coefficient=0.01,
                        objective=dict(surrogate="clip", clip_low=0.2, clip_high=0.2, aggregation="token",
                                       kl_coefficient=0.0)),
    # The same, "with baseline": the KL in the loss, by k2.
    "reinforce++_baseline": dict(advantage_baseline="group", advantage_scale="batch",
                                 objective=dict(surrogate="clip", clip_low=0.2, clip_high=0.2, aggregation="token",
                                                kl_coefficient=0.01, kl_estimator="k2")),
}
