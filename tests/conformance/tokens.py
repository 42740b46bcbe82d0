"""PPO's terms and the objectives' per-token forms, over log-probabilities as they are."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import rlax
from verl.trainer.ppo import core_algos as verl
from verl.workers.config import ActorConfig

import ragged
import trainers
from comparison import Row, in_jax, in_torch
from jaxalign.batches import bind
from jaxalign.objectives import grpo, ppo
from jaxalign.objectives.kl import KL_ESTIMATORS
from jaxalign.objectives.ppo import policy_loss, value_loss
from jaxalign.objectives.reduce import Term, as_loss, reduce


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


def _of_verl(check, against, ours, theirs, mode, **options):
    sides = functools.partial(of_verl, ours=ours, theirs=theirs, mode=mode, **options)
    return Row(check, f"verl {against}, {mode}", sides)


PART = functools.partial
OURS = PART(grpo, kl_coefficient=0.0)

ROWS = [
    Row("policy_loss", "rlax clipped_surrogate_pg_loss", clipped),
    Row("value_loss", "verl compute_value_loss", values),
    Row("ppo", "verl compute_policy_loss_vanilla + 0.5 compute_value_loss − 0.01 entropy", whole_ppo),
    _of_verl("grpo", "compute_policy_loss_vanilla",
             OURS, verl.compute_policy_loss_vanilla, "seq-mean-token-mean"),
    _of_verl("grpo: by sum", "compute_policy_loss_vanilla",
             PART(OURS, aggregation="sum"), verl.compute_policy_loss_vanilla, "seq-mean-token-sum"),
    _of_verl("grpo: gspo_token", "compute_policy_loss_gspo, clip 0.05, 0.08",
             PART(OURS, surrogate="gspo_token", clip_low=0.05, clip_high=0.08),
             verl.compute_policy_loss_gspo, "seq-mean-token-mean", clip_ratio_low=0.05, clip_ratio_high=0.08),
    _of_verl("grpo: cispo, by token", "compute_policy_loss_cispo, clip 0.2, 0.28",
             PART(OURS, surrogate="cispo", clip_high=0.28, aggregation="token"),
             verl.compute_policy_loss_cispo, "token-mean", clip_ratio_low=0.2, clip_ratio_high=0.28),
    *(Row(name, f"verl kl_penalty {name}", PART(estimator, name=name)) for name in KL_ESTIMATORS),
]
