"""PPO and the GRPO family: a policy from rollouts and their advantages."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import rlax
import trl
from verl.trainer.ppo import core_algos as verl
from verl.workers.config import ActorConfig

import ragged
import trainers
from comparison import Row, in_jax, in_torch
from jaxalign.batches import bind
from jaxalign.experience.shaping import group_targets
from jaxalign.objectives import grpo, ppo
from jaxalign.objectives.kl import KL_ESTIMATORS
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.objectives.ppo import policy_loss, value_loss
from jaxalign.objectives.reduce import Term, as_loss, reduce

GROUP_SIZE = 4
ROWS_OF_ROLLOUT = 3 * GROUP_SIZE
BUDGET = 16  # more than any answer's length
CHUNK = 5
TEMPERATURE = 0.8


def rollout(draw, *, ours, theirs, targets, equal_rewards=False):
    """A loss of rollouts, from the hidden states, the output embedding and the rewards on.

    Args:
      ours: an objective with its options bound; its arguments are found by their names.
      theirs: a trainer of TRL's, as `() -> trainer`.
      targets: of `group_targets`, its options besides the group's size.
      equal_rewards: every reward is the same and no advantage is left, so that the loss is its KL term.
    """
    rows = ragged.rows(draw, ROWS_OF_ROLLOUT, left=True, gaps=True)
    trained = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}
    old = {name: ragged.near(draw, x, 0.1) for name, x in trained.items()}
    reference = {name: ragged.near(draw, x, 0.3) for name, x in trained.items()}
    reward_B = np.zeros(ROWS_OF_ROLLOUT) if equal_rewards else draw.normal(size=ROWS_OF_ROLLOUT)
    reward_B = reward_B.astype(np.float32)

    def of_ours(hidden_BSD, unembed_DV):
        have = {
            "logp_BT": _logp(rows, hidden_BSD, unembed_DV),
            "old_logp_BT": _logp(rows, **old),
            "ref_logp_BT": _logp(rows, **reference),
            "mask_BT": jnp.asarray(rows.mask_BT),
            "budget_B": jnp.full(ROWS_OF_ROLLOUT, BUDGET, jnp.float32),
            **group_targets(jnp.asarray(reward_B), jnp.asarray(rows.mask_BT), group_size=GROUP_SIZE, **targets),
        }
        return reduce(as_loss(bind(ours, have, {})).terms)[0]

    def of_theirs(hidden_BSD, unembed_DV):
        trainer = theirs()
        play(trainer, rows)
        trainers.tell(trainer.model, *(trainers.tensor(x) for x in old.values()))
        if trainer.ref_model is not None:
            trainers.tell(trainer.ref_model, *(trainers.tensor(x) for x in reference.values()))
        batch = trainer._generate_and_score_completions([{"prompt": "w3", "reward": float(r)} for r in reward_B])
        trainers.tell(trainer.model, hidden_BSD, unembed_DV)
        return trainer.compute_loss(trainer.model, batch)

    return in_jax(of_ours, **trained), in_torch(of_theirs, **trained)


def _logp(rows, hidden_BSD, unembed_DV):
    return token_statistics(
        jnp.asarray(hidden_BSD)[:, :-1], jnp.asarray(unembed_DV), rows.targets_BT, chunk=CHUNK, temperature=TEMPERATURE
    ).logp_BT


def play(trainer, rows):
    """Has the trainer's next rollout come out as these rows; the tokens in gaps as a tool's, not the policy's."""
    prompts, answers, written = [], [], []
    for ids_S, attention_S, mask_S in zip(rows.ids_BS, rows.attention_BS, rows.mask_BS, strict=True):
        prompt_S, answer_S = attention_S[: rows.width] > 0, attention_S[rows.width :] > 0
        prompts.append(ids_S[: rows.width][prompt_S].tolist())
        answers.append(ids_S[rows.width :][answer_S].tolist())
        written.append(mask_S[rows.width :][answer_S].astype(int).tolist())
    if isinstance(trainer, trl.GRPOTrainer):
        given = {"prompt_ids": prompts, "completion_ids": answers, "logprobs": None, "env_mask": written}
        trainer.rollout_func = lambda *_: dict(given)
    else:  # RLOO's has no such door: its two steps that would tokenize and sample are replaced
        trainer._tokenize_prompts = lambda *_: (prompts, None, {})
        trainer._generate_single_turn = lambda *_: answers


def given_reward(prompts, reward, **_):
    """TRL hands a data set's columns to the reward function: here the reward is one of them."""
    return reward


@functools.cache
def trl_grpo(**options):
    # Two iterations a rollout, so that the policy of the rollout is remembered as the old one.
    options = dict(num_iterations=2, scale_rewards="none", use_bias_correction_kl=False) | options
    return _trainer(trl.GRPOTrainer, trl.GRPOConfig, **options)


@functools.cache
def trl_rloo(**options):
    return _trainer(trl.RLOOTrainer, trl.RLOOConfig, **dict(beta=0.0, normalize_advantages=False) | options)


def _trainer(trainer_class, config_class, **options):
    return trainers.make(
        trainer_class, config_class, trainers.language_model(), rows=[{"prompt": "w3"}] * ROWS_OF_ROLLOUT,
        more={"reward_funcs": given_reward}, temperature=TEMPERATURE, max_completion_length=BUDGET,
        num_generations=GROUP_SIZE, per_device_train_batch_size=ROWS_OF_ROLLOUT, **options,
    )


class Tokens:
    """Per-token quantities of a rollout, garbage where the mask is 0."""

    def __init__(self, draw):
        rows = ragged.rows(draw, 6, gaps=True)
        self.mask_BT = rows.mask_BT
        logp_BT = -np.abs(2.0 * draw.normal(size=self.mask_BT.shape))
        self.logp_BT = ragged.padded(draw, logp_BT, self.mask_BT)
        self.old_logp_BT = ragged.padded(draw, logp_BT + 0.2 * draw.normal(size=logp_BT.shape), self.mask_BT)
        self.ref_logp_BT = ragged.padded(draw, logp_BT + 0.5 * draw.normal(size=logp_BT.shape), self.mask_BT)
        self.advantage_BT, self.value_BT, self.old_value_BT, self.returns_BT, self.reward_BT = (
            draw.normal(size=(5, *self.mask_BT.shape)).astype(np.float32)
        )
        self.entropy_BT = draw.uniform(0.0, 3.0, self.mask_BT.shape).astype(np.float32)

    def torch(self, name):
        return trainers.tensor(getattr(self, name))


def clipped(draw):
    """rlax takes one sequence without padding, and its mean: here that of all counted tokens."""
    tokens = Tokens(draw)
    kept = tokens.mask_BT > 0

    def ours(logp_BT):
        value_BT = policy_loss(logp_BT, tokens.old_logp_BT, tokens.advantage_BT, clip_low=0.2, clip_high=0.2)
        return reduce({"policy": Term(value_BT, jnp.asarray(tokens.mask_BT))})[0]

    def theirs(logp_BT):
        ratio_K = jnp.exp(logp_BT - tokens.old_logp_BT)[kept]
        return rlax.clipped_surrogate_pg_loss(ratio_K, jnp.asarray(tokens.advantage_BT[kept]), 0.2)

    return in_jax(ours, logp_BT=tokens.logp_BT), in_jax(theirs, logp_BT=tokens.logp_BT)


def whole_ppo(draw):
    """The three terms as verl's actor and critic add them up, with the critic's coefficient of ours."""
    tokens = Tokens(draw)
    trained = {"logp_BT": tokens.logp_BT, "value_BT": tokens.value_BT, "entropy_BT": tokens.entropy_BT}

    def ours(**trained):
        options = dict(clip=0.2, value_clip=0.3, value_coefficient=0.5, entropy_coefficient=0.01)
        return reduce(bind(ppo, {name: jnp.asarray(x) for name, x in vars(tokens).items()} | trained, options).terms)[0]

    def theirs(logp_BT, value_BT, entropy_BT):
        mask_BT = tokens.torch("mask_BT")
        policy, _ = verl.compute_policy_loss_vanilla(
            tokens.torch("old_logp_BT"), logp_BT, tokens.torch("advantage_BT"), mask_BT, "token-mean", _actor()
        )
        value, _ = verl.compute_value_loss(
            value_BT, tokens.torch("returns_BT"), tokens.torch("old_value_BT"), mask_BT, 0.3
        )
        return policy + 0.5 * value - 0.01 * verl.agg_loss(entropy_BT, mask_BT, "token-mean")

    return in_jax(ours, **trained), in_torch(theirs, **trained)


def _actor(**options):
    # verl also clips what a bad token may lose, by a ratio of 3: here by one that no token reaches.
    return ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, clip_ratio_c=1e6, **options)


def values(draw):
    tokens = Tokens(draw)

    def ours(value_BT):
        value_BT = value_loss(value_BT, tokens.old_value_BT, tokens.returns_BT, clip=0.3)
        return reduce({"value": Term(value_BT, jnp.asarray(tokens.mask_BT))})[0]

    def theirs(value_BT):
        return verl.compute_value_loss(
            value_BT, tokens.torch("returns_BT"), tokens.torch("old_value_BT"), tokens.torch("mask_BT"), 0.3
        )[0]

    return in_jax(ours, value_BT=tokens.value_BT), in_torch(theirs, value_BT=tokens.value_BT)


def of_verl(draw, *, ours, theirs, mode, **options):
    """A policy loss of verl's, over the same per-token quantities."""
    tokens = Tokens(draw)
    # One advantage a response, as the objectives that do without a critic have it.
    advantage_BT = np.broadcast_to(tokens.advantage_BT[:, :1], tokens.mask_BT.shape)

    def of_ours(logp_BT):
        have = {name: jnp.asarray(x) for name, x in vars(tokens).items()}
        have |= {"logp_BT": logp_BT, "advantage_BT": jnp.asarray(advantage_BT)}
        return reduce(as_loss(bind(ours, have, {})).terms)[0]

    def of_theirs(logp_BT):
        return theirs(
            tokens.torch("old_logp_BT"), logp_BT, trainers.tensor(advantage_BT), tokens.torch("mask_BT"), mode,
            _actor(**options),
        )[0]

    return in_jax(of_ours, logp_BT=tokens.logp_BT), in_torch(of_theirs, logp_BT=tokens.logp_BT)


def estimator(draw, *, name):
    tokens = Tokens(draw)

    def ours(logp_BT, ref_logp_BT):
        return reduce({"kl": Term(KL_ESTIMATORS[name](logp_BT, ref_logp_BT), jnp.asarray(tokens.mask_BT))})[0]

    def theirs(logp_BT, ref_logp_BT):
        return verl.agg_loss(verl.kl_penalty(logp_BT, ref_logp_BT, name), tokens.torch("mask_BT"), "token-mean")

    trained = {"logp_BT": tokens.logp_BT, "ref_logp_BT": tokens.ref_logp_BT}
    return in_jax(ours, **trained), in_torch(theirs, **trained)


def _of_trl(check, against, ours, theirs, **options):
    targets = dict(scale="none") | options.pop("targets", {})
    return Row(check, against, functools.partial(rollout, ours=ours, theirs=theirs, targets=targets, **options))


def _of_verl(check, against, ours, theirs, mode, **options):
    sides = functools.partial(of_verl, ours=ours, theirs=theirs, mode=mode, **options)
    return Row(check, f"verl {against}, {mode}", sides)


GRPO, PART = functools.partial(grpo, kl_coefficient=0.0), functools.partial

ROWS = [
    Row("policy_loss", "rlax clipped_surrogate_pg_loss", clipped),
    Row("value_loss", "verl compute_value_loss", values),
    Row("ppo", "verl compute_policy_loss_vanilla + 0.5 compute_value_loss − 0.01 entropy", whole_ppo),
    _of_trl("grpo", "trl GRPOTrainer, loss_type grpo",
            GRPO, PART(trl_grpo, loss_type="grpo", beta=0.0)),
    _of_trl("grpo: kl_coefficient 0.1", "trl GRPOTrainer, loss_type grpo, beta 0.1",
            PART(grpo, kl_coefficient=0.1), PART(trl_grpo, loss_type="grpo", beta=0.1)),
    _of_trl("grpo: the KL term alone", "trl GRPOTrainer, equal rewards, beta 1",
            PART(grpo, kl_coefficient=1.0), PART(trl_grpo, loss_type="grpo", beta=1.0), equal_rewards=True),
    _of_trl("grpo: aggregation token, kl_coefficient 0.1", "trl GRPOTrainer, loss_type bnpo, beta 0.1",
            PART(grpo, kl_coefficient=0.1, aggregation="token"), PART(trl_grpo, loss_type="bnpo", beta=0.1)),
    _of_trl("grpo: aggregation token, clip_high 0.28 (DAPO)", "trl GRPOTrainer, loss_type dapo, epsilon_high 0.28",
            PART(GRPO, aggregation="token", clip_high=0.28),
            PART(trl_grpo, loss_type="dapo", beta=0.0, epsilon_high=0.28)),
    _of_verl("grpo", "compute_policy_loss_vanilla", GRPO, verl.compute_policy_loss_vanilla, "seq-mean-token-mean"),
    *(Row(name, f"verl kl_penalty {name}", functools.partial(estimator, name=name)) for name in KL_ESTIMATORS),
]
