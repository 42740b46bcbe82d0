"""Reward models: pairs and rankings."""

from __future__ import annotations

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import rax
import torch
import trl
from transformers.modeling_outputs import SequenceClassifierOutput

import trainers
from comparison import Row, in_jax, in_torch
from jaxalign.objectives import bradley_terry, pairwise_ranking, plackett_luce
from jaxalign.objectives.reduce import reduce

BEST = 100.0  # rax wants relevance, the higher the better


def pairs(draw, *, ours, margin=False, centre=0.0):
    """Scores of pairs, of which TRL gets only those that count, ours also some that do not.

    Args:
      ours: of chosen and rejected scores, margins, and 1 where the pair counts.
      margin: TRL gets the margins too.
      centre: TRL's center_rewards_coefficient.
    """
    count_B = np.array([1, 1, 0, 1, 1, 0, 1], np.float32)
    chosen_B, rejected_B = (2.0 * draw.normal(size=count_B.shape) for _ in range(2))
    margin_B = draw.uniform(0.0, 2.0, count_B.shape).astype(np.float32)
    kept = count_B > 0

    def of_ours(chosen_B, rejected_B):
        return reduce(ours(chosen_B, rejected_B, jnp.asarray(margin_B), jnp.asarray(count_B)).terms)[0]

    def theirs(chosen_B, rejected_B):
        scores = torch.cat([chosen_B[kept], rejected_B[kept]])[:, None]
        batch = {"attention_mask": torch.ones(len(scores), 1, dtype=torch.int64)}
        if margin:
            batch["margin"] = trainers.tensor(margin_B[kept])
        trainer = _trainer(centre or None)
        return trainer.compute_loss(lambda **inputs: SequenceClassifierOutput(logits=scores), batch)

    trained = {"chosen_B": chosen_B, "rejected_B": rejected_B}
    return in_jax(of_ours, **trained), in_torch(theirs, **trained)


def of_two(ranking):
    """An objective of rankings, given pairs as rankings of two answers, a pair that does not count as one of none."""

    def of_pairs(chosen_B, rejected_B, margin_B, count_B):
        ranks_BR = jnp.broadcast_to(jnp.array([1, 0]), (len(count_B), 2))
        mask_BR = jnp.broadcast_to(count_B[:, None], ranks_BR.shape)
        return ranking(jnp.stack([rejected_B, chosen_B], axis=1), ranks_BR, mask_BR)

    return of_pairs


@functools.cache
def _trainer(center_rewards_coefficient):
    return trainers.make(
        trl.RewardTrainer, trl.RewardConfig, trainers.reward_model(),
        center_rewards_coefficient=center_rewards_coefficient,
    )


def ranked(draw, *, ties):
    """Scores, ranks and mask of rankings of 2 to 5 answers, garbage where there is none."""
    answers_B = np.array([5, 2, 4, 3, 5])
    mask_BR = (np.arange(5)[None, :] < answers_B[:, None]).astype(np.float32)
    ranks_BR = np.stack([draw.permutation(5) for _ in answers_B]).astype(np.int32)
    if ties:
        ranks_BR = draw.integers(0, 3, ranks_BR.shape).astype(np.int32)
        ranks_BR[1, :2] = [1, 0]  # a pair that is not tied, or it would have no pair at all
    return 2.0 * draw.normal(size=mask_BR.shape), ranks_BR, mask_BR


def all_pairs(draw):
    """rax sums a ranking's pairs; ours is their mean, so that a longer ranking weighs no more."""
    score_BR, ranks_BR, mask_BR = ranked(draw, ties=True)

    def ours(score_BR):
        return reduce(pairwise_ranking(score_BR, ranks_BR, mask_BR).terms)[0]

    def theirs(score_BR):
        total = 0.0
        for score_R, ranks_R, mask_R in zip(score_BR, ranks_BR, mask_BR, strict=True):
            above_RR = (ranks_R[:, None] < ranks_R[None, :]) & (mask_R[:, None] * mask_R[None, :] > 0)
            summed = rax.pairwise_logistic_loss(score_R, BEST - ranks_R, where=mask_R > 0, reduce_fn=jnp.sum)
            total += summed / above_RR.sum()
        return total / len(ranks_BR)

    return in_jax(ours, score_BR=score_BR), in_jax(theirs, score_BR=score_BR)


def whole_ranking(draw, *, ties):
    """rax's ListMLE of every order that the ranks allow, averaged: one order where no ranks are equal."""
    score_BR, ranks_BR, mask_BR = ranked(draw, ties=ties)

    def ours(score_BR):
        return reduce(plackett_luce(score_BR, ranks_BR, mask_BR).terms)[0]

    def theirs(score_BR):
        total = 0.0
        for score_R, ranks_R, mask_R in zip(score_BR, ranks_BR, mask_BR, strict=True):
            orders = np.stack(list(_orders(ranks_R, mask_R)))
            scores_OR = jnp.broadcast_to(score_R, orders.shape)
            where_OR = np.broadcast_to(mask_R > 0, orders.shape)
            total += jnp.mean(rax.listmle_loss(scores_OR, BEST - orders, where=where_OR, reduce_fn=None))
        return total / len(ranks_BR)

    return in_jax(ours, score_BR=score_BR), in_jax(theirs, score_BR=score_BR)


def _orders(ranks_R, mask_R):
    """Ranks without ties, every way of breaking those there are."""
    there = np.flatnonzero(mask_R)
    groups = [[i for i in there if ranks_R[i] == rank] for rank in sorted(set(ranks_R[there]))]
    for choice in itertools.product(*(itertools.permutations(group) for group in groups)):
        order_R = np.zeros(len(ranks_R))
        order_R[[i for group in choice for i in group]] = np.arange(len(there))
        yield order_R


PART = functools.partial

ROWS = [
    Row("bradley_terry", "trl RewardTrainer", PART(pairs, ours=bradley_terry)),
    Row("bradley_terry: margin", "trl RewardTrainer, margin",
        PART(pairs, ours=PART(bradley_terry, margin_scale=1.0), margin=True)),
    Row("bradley_terry: margin, centre 0.01", "trl RewardTrainer, margin, center_rewards_coefficient 0.01",
        PART(pairs, ours=PART(bradley_terry, margin_scale=1.0, centre=0.01), margin=True, centre=0.01)),
    Row("plackett_luce: no ties", "rax listmle_loss", PART(whole_ranking, ties=False)),
    Row("plackett_luce: ties", "enumeration of the orders, rax listmle_loss of each", PART(whole_ranking, ties=True)),
    Row("plackett_luce: two answers, centre 0.01", "trl RewardTrainer, center_rewards_coefficient 0.01",
        PART(pairs, ours=of_two(PART(plackett_luce, centre=0.01)), centre=0.01)),
    Row("pairwise_ranking: ties", "rax pairwise_logistic_loss", all_pairs),
    Row("pairwise_ranking: two answers, centre 0.01", "trl RewardTrainer, center_rewards_coefficient 0.01",
        PART(pairs, ours=of_two(PART(pairwise_ranking, centre=0.01)), centre=0.01)),
]
