"""The GRPO family: a policy from rollouts and their advantages."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import trl

import ragged
import trainers
from comparison import Row, in_jax, in_torch
from jaxalign.batches import bind
from jaxalign.experience.shaping import group_targets
from jaxalign.objectives import grpo
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.objectives.reduce import as_loss, reduce

GROUP_SIZE = 4
ROLLOUT = 3 * GROUP_SIZE
BUDGET = 16  # more than any answer's length
CHUNK = 5
TEMPERATURE = 0.8


def rollout(draw, *, ours, theirs, targets, reward_kl=0.0, equal_rewards=False, on_policy=False):
    """A loss of rollouts, from the hidden states, the output embedding and the rewards on.

    Args:
      ours: an objective with its options bound; its arguments are found by their names.
      theirs: a trainer of TRL's, as `() -> trainer`.
      targets: of `group_targets`, its options besides the group's size.
      reward_kl: what a token costs, times log π_old − log π_ref.
      equal_rewards: every reward is the same and no advantage is left, so that the loss is its KL term.
      on_policy: the first step of a rollout, and of it the gradients alone: one side's value may be of the ratio, the
        other's of the log-probability.
    """
    rows = ragged.rows(draw, ROLLOUT, left=True, gaps=not on_policy)  # TRL's RLOO, on policy here, has no tools
    trained = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}
    old = trained if on_policy else {name: ragged.near(draw, x, 0.1) for name, x in trained.items()}
    reference = {name: ragged.near(draw, x, 0.3) for name, x in trained.items()}
    reward_B = (np.zeros(ROLLOUT) if equal_rewards else draw.normal(size=ROLLOUT)).astype(np.float32)
    old_logp_BT, ref_logp_BT = _logp(rows, **old), _logp(rows, **reference)
    sampler_logp_BT = ragged.near(draw, np.asarray(old_logp_BT), 0.2)

    def of_ours(hidden_BSD, unembed_DV):
        mask_BT = jnp.asarray(rows.mask_BT)
        have = {
            "logp_BT": _logp(rows, hidden_BSD, unembed_DV),
            "old_logp_BT": old_logp_BT,
            "ref_logp_BT": ref_logp_BT,
            "sampler_logp_BT": jnp.asarray(sampler_logp_BT),
            "mask_BT": mask_BT,
            "budget_B": jnp.full(ROLLOUT, BUDGET, jnp.float32),
            **group_targets(jnp.asarray(reward_B), mask_BT, reward_kl * (old_logp_BT - ref_logp_BT),
                            group_size=GROUP_SIZE, **targets),
        }
        return reduce(as_loss(bind(ours, have, {})).terms)[0]

    def of_theirs(hidden_BSD, unembed_DV):
        trainer = theirs()
        batch = played(trainer, rows, reward_B, old, reference, sampler_logp_BT)
        trainers.tell(trainer.model, hidden_BSD, unembed_DV)
        return trainer.compute_loss(trainer.model, batch)

    sides = in_jax(of_ours, **trained), in_torch(of_theirs, **trained)
    return tuple({name: x for name, x in side.items() if not (on_policy and name == "value")} for side in sides)


def _logp(rows, hidden_BSD, unembed_DV):
    return token_statistics(
        jnp.asarray(hidden_BSD)[:, :-1], jnp.asarray(unembed_DV), rows.targets_BT, chunk=CHUNK, temperature=TEMPERATURE
    ).logp_BT


def played(trainer, rows, reward_B, policy, reference, sampler_logp_BT):
    """A trainer's rollout, had it drawn these rows under this policy; the tokens in gaps were a tool's.

    Rewards, masks, advantages and the log-probabilities of the drawing policy and the reference are then TRL's own.
    """
    prompts, answers, written, sampled = [], [], [], []
    for ids_S, there_S, mask_S, logp_T in zip(
        rows.ids_BS, rows.attention_BS > 0, rows.mask_BS, sampler_logp_BT, strict=True
    ):
        prompt_S, answer_S = there_S[: rows.width], there_S[rows.width :]
        prompts.append(ids_S[: rows.width][prompt_S].tolist())
        answers.append(ids_S[rows.width :][answer_S].tolist())
        written.append(mask_S[rows.width :][answer_S].astype(int).tolist())
        sampled.append(logp_T[rows.width - 1 :][answer_S].tolist())
    if isinstance(trainer, trl.GRPOTrainer):
        drawn = {"prompt_ids": prompts, "completion_ids": answers, "env_mask": written,
                 "logprobs": sampled if trainer.use_vllm else None}
        trainer.rollout_func = lambda *_: dict(drawn)
    else:  # RLOO's has no such door: the two steps that tokenize and sample are replaced
        trainer._tokenize_prompts = lambda *_: (prompts, None, {})
        trainer._generate_single_turn = lambda *_: answers
    for model, told in ((trainer.model, policy), (trainer.ref_model, reference)):
        if model is not None:
            trainers.tell(model, *(trainers.tensor(x) for x in told.values()))
    return trainer._generate_and_score_completions([{"prompt": "w3", "reward": float(r)} for r in reward_B])


def given_reward(prompts, reward, **_):
    """TRL hands a data set's columns to the reward function: here the reward is one of them."""
    return reward


@functools.cache
def trl_grpo(**options):
    # Two iterations a rollout, so that the policy of the rollout is remembered as the old one.
    options = dict(num_iterations=2, scale_rewards="none", use_bias_correction_kl=False) | options
    return _trainer(trl.GRPOTrainer, trl.GRPOConfig, **options)


@functools.cache
def trl_sampled_elsewhere(**options):
    """As `trl_grpo`, told after it was made that a vLLM it has none of draws, for the correction that comes with it."""
    trainer = trl_grpo.__wrapped__(**options)
    trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    return trainer


@functools.cache
def trl_rloo(**options):
    return _trainer(trl.RLOOTrainer, trl.RLOOConfig, **dict(beta=0.0, normalize_advantages=False) | options)


def _trainer(trainer_class, config_class, **options):
    return trainers.make(
        trainer_class, config_class, trainers.language_model(), rows=[{"prompt": "w3"}] * ROLLOUT,
        more={"reward_funcs": given_reward}, temperature=TEMPERATURE, max_completion_length=BUDGET,
        num_generations=GROUP_SIZE, per_device_train_batch_size=ROLLOUT, **options,
    )


def _of_trl(check, against, ours, theirs, **options):
    options = dict(targets=dict(scale="none")) | options
    return Row(check, f"trl {against}", functools.partial(rollout, ours=ours, theirs=theirs, **options))


PART = functools.partial
OURS, THEIRS = PART(grpo, kl_coefficient=0.0), PART(trl_grpo, beta=0.0)

ROWS = [
    _of_trl("grpo", "GRPOTrainer, loss_type grpo",
            OURS, PART(THEIRS, loss_type="grpo")),
    _of_trl("grpo: KL 0.1", "GRPOTrainer, loss_type grpo, beta 0.1",
            PART(OURS, kl_coefficient=0.1), PART(THEIRS, loss_type="grpo", beta=0.1)),
    _of_trl("grpo: the KL term alone", "GRPOTrainer, equal rewards, beta 1",
            PART(OURS, kl_coefficient=1.0), PART(THEIRS, loss_type="grpo", beta=1.0), equal_rewards=True),
    _of_trl("grpo: by token, KL 0.1", "GRPOTrainer, loss_type bnpo, beta 0.1",
            PART(OURS, aggregation="token", kl_coefficient=0.1), PART(THEIRS, loss_type="bnpo", beta=0.1)),
    _of_trl("grpo: by token, clip_high 0.28 (DAPO)", "GRPOTrainer, loss_type dapo, epsilon_high 0.28",
            PART(OURS, aggregation="token", clip_high=0.28), PART(THEIRS, loss_type="dapo", epsilon_high=0.28)),
    _of_trl("grpo: by budget (Dr. GRPO)", "GRPOTrainer, loss_type dr_grpo",
            PART(OURS, aggregation="budget"), PART(THEIRS, loss_type="dr_grpo")),
    _of_trl("grpo: gspo", "GRPOTrainer, importance_sampling_level sequence, epsilon 0.05, 0.08",
            PART(OURS, surrogate="gspo", clip_low=0.05, clip_high=0.08),
            PART(THEIRS, loss_type="grpo", importance_sampling_level="sequence", epsilon=0.05, epsilon_high=0.08)),
    _of_trl("grpo: cispo, by token", "GRPOTrainer, loss_type cispo, epsilon_high 1.2",
            PART(OURS, surrogate="cispo", clip_low=1.0, clip_high=0.2, aggregation="token"),
            PART(THEIRS, loss_type="cispo", epsilon_high=1.2)),
    _of_trl("grpo: reinforce, by sum (RLOO)", "RLOOTrainer, a rollout's first step",
            PART(OURS, surrogate="reinforce", aggregation="sum"), trl_rloo,
            targets=dict(baseline="others", scale="none"), on_policy=True),
    _of_trl("grpo: reinforce, by sum (RLOO), KL in the reward 0.1", "RLOOTrainer, a rollout's first step, beta 0.1",
            PART(OURS, surrogate="reinforce", aggregation="sum"), PART(trl_rloo, beta=0.1),
            targets=dict(baseline="others", scale="none"), reward_kl=0.1, on_policy=True),
    _of_trl("grpo: sampler_correction token, KL 0.1", "GRPOTrainer, token_truncate at 1.1, beta 0.1",
            PART(OURS, sampler_correction="token", sampler_cap=1.1, kl_coefficient=0.1),
            PART(trl_sampled_elsewhere, loss_type="grpo", beta=0.1, vllm_importance_sampling_mode="token_truncate",
                 vllm_importance_sampling_clip_max=1.1)),
    _of_trl("grpo: sampler_correction product", "GRPOTrainer, sequence_truncate at 1.1",
            PART(OURS, sampler_correction="product", sampler_cap=1.1),
            PART(trl_sampled_elsewhere, loss_type="grpo", beta=0.0, vllm_importance_sampling_mode="sequence_truncate",
                 vllm_importance_sampling_clip_max=1.1)),
]
