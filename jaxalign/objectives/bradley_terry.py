"""Reward models from preferences: pairs (Bradley–Terry) and K-way rankings (Plackett–Luce, all pairs)."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ConfigError
from jaxalign.objectives.reduce import Loss, Term, counted

# Plackett–Luce with ties goes through every subset of the answers: 4095 of 12.
MOST_ANSWERS = 12


def bradley_terry(
    chosen_score_B, rejected_score_B, margin_B, weight_B=None, *, margin_scale=0.0, centre=0.0
) -> Loss:
    """Negative log-likelihood of preferring y⁺ to y⁻ (InstructGPT, arXiv:2203.02155, eq. 1 with K = 2), with a margin
    (Llama 2, arXiv:2307.09288, eq. 2) and a regulariser that keeps scores centred (Eisenstein et al. 2023,
    arXiv:2312.09244).

        ℓ = −log σ(r⁺ − r⁻ − margin_scale · m)   +   centre · (r⁺ + r⁻)²

    Args:
      chosen_score_B: r⁺, the preferred answer's score. Trained.
      rejected_score_B: r⁻. Trained.
      margin_B: m ≥ 0, how much better the preferred answer is; 0 if unknown. No gradient.
      weight_B: 1 where the pair counts, else 0; every pair counts if None. No gradient.
      margin_scale: score units per unit of margin; 0 leaves the margin out.
      centre: coefficient ≥ 0; the likelihood fixes only differences, this fixes the level.

    Returns:
      Terms `preference` and `centre`, per pair. Metrics `accuracy` (r⁺ > r⁻; a draw counts half), `margin` (r⁺ − r⁻)
      and `score` (the pair's mean).
    """
    weight_B = jnp.ones_like(chosen_score_B) if weight_B is None else weight_B
    chosen_B, rejected_B = counted(chosen_score_B, weight_B), counted(rejected_score_B, weight_B)
    margin_B = jax.lax.stop_gradient(counted(margin_B, weight_B))
    difference_B = chosen_B - rejected_B
    terms = {
        "preference": Term(-jax.nn.log_sigmoid(difference_B - margin_scale * margin_B), weight_B),
        "centre": Term(jnp.square(chosen_B + rejected_B), weight_B, coefficient=centre),
    }
    metrics = {
        "accuracy": Term(wins(difference_B), weight_B),
        "margin": Term(difference_B, weight_B),
        "score": Term(0.5 * (chosen_B + rejected_B), weight_B),
    }
    return Loss(terms, metrics)


def pairwise_ranking(score_BR, ranks_BR, answer_mask_BR, *, centre=0.0) -> Loss:
    """InstructGPT's loss over all pairs of a ranking (Ouyang et al. 2022, arXiv:2203.02155, eq. 1), at choice centred.

        ℓ(prompt) = −1/#pairs · Σ_{w ranked above l} log σ(r_w − r_l)   +   centre · (2 · mean r)²

    A tied pair is left out, so #pairs is C(K, 2) only without ties; every prompt with a pair weighs the same.

    Args:
      score_BR: scores. Trained.
      ranks_BR: 0 the best; equal ranks are a tie.
      answer_mask_BR: 1 where there is an answer.
      centre: coefficient ≥ 0 of `centring`.

    Returns:
      Term `preference`, [B, R, R], entry (w, l) weighted 1/#pairs where w is ranked above l; if centre > 0 term
      `centre`, per prompt. Metrics `accuracy` and `margin`, each the mean over prompts of the mean over pairs.
    """
    score_BR, above_BRR = counted(score_BR, answer_mask_BR), _above(ranks_BR, answer_mask_BR)
    difference_BRR = score_BR[:, :, None] - score_BR[:, None, :]
    weight_BRR = above_BRR / jnp.maximum(jnp.sum(above_BRR, axis=(1, 2), keepdims=True), 1.0)
    terms = {"preference": Term(-jax.nn.log_sigmoid(difference_BRR), weight_BRR)}
    if centre:
        terms["centre"] = centring(score_BR, answer_mask_BR, centre)
    metrics = {"accuracy": Term(wins(difference_BRR), weight_BRR), "margin": Term(difference_BRR, weight_BRR)}
    return Loss(terms, metrics)


def plackett_luce(score_BR, ranks_BR, answer_mask_BR, *, centre=0.0) -> Loss:
    """Negative log-likelihood of a whole ranking (Plackett 1975; Luce 1959), ties included, at choice centred.

        ℓ(order) = −Σₖ [ r_{order(k)} − log Σ_{j ≥ k} exp r_{order(j)} ]        the best answer first
        ℓ(ranks) = mean of ℓ(order) over the orders that `ranks` allows   +   centre · (2 · mean r)²

    With ties the loss is the mean of the negative log-likelihoods, not the negative log of the mean likelihood. The
    former is what breaking ties at random costs on average; it stays convex in the scores, and it draws tied answers
    together, as "equally good" should. The latter is constant for a tie of two: it would read a tie as "not compared".

    The mean is exact. Inside a tie of n answers every subset U of size k is as likely as any other to be what is left
    when n − k have been placed, so the mean over n! orders is a sum over subsets

        ℓ = −Σᵢ rᵢ + Σ_U 1/C(n, |U|) · log Σ_{j ∈ U or j ranked below U} exp rⱼ.

    A prompt's loss is not divided by its number of answers: a longer ranking is more evidence.

    Args:
      score_BR: scores, R at most 12. Trained.
      ranks_BR: 0 the best; equal ranks are a tie.
      answer_mask_BR: 1 where there is an answer.
      centre: coefficient ≥ 0 of `centring`.

    Returns:
      Term `preference` and, if centre > 0, `centre`, per prompt; weight 1 with two answers or more. Metrics `accuracy`
      and `margin` over pairs, as `pairwise_ranking`.

    Raises:
      ConfigError: more than 12 answers.
    """
    R = score_BR.shape[1]
    if R > MOST_ANSWERS:
        raise ConfigError(f"plackett_luce takes at most {MOST_ANSWERS} answers, got {R}; use pairwise_ranking")
    present_BR = answer_mask_BR > 0
    score_BR = counted(score_BR, answer_mask_BR)
    member_SR, inverse_binomial = _subsets(R)

    # The subsets of one tie: all present, all of one rank.
    member_BSR = jnp.broadcast_to(member_SR, (score_BR.shape[0], *member_SR.shape))
    rank_BSR = jnp.broadcast_to(ranks_BR[:, None, :], member_BSR.shape)
    big = jnp.iinfo(jnp.int32).max
    lowest_BS = jnp.min(jnp.where(member_BSR, rank_BSR, big), axis=2)
    highest_BS = jnp.max(jnp.where(member_BSR, rank_BSR, -big), axis=2)
    all_present_BS = jnp.all(~member_BSR | present_BR[:, None, :], axis=2)
    valid_BS = all_present_BS & (lowest_BS == highest_BS)

    tied_BSR = (rank_BSR == lowest_BS[:, :, None]) & present_BR[:, None, :]
    below_BSR = (rank_BSR > lowest_BS[:, :, None]) & present_BR[:, None, :]
    tied_BS = jnp.sum(tied_BSR, axis=2)
    size_S = jnp.sum(member_SR, axis=1)
    factor_BS = jnp.where(valid_BS, inverse_binomial[tied_BS, jnp.broadcast_to(size_S, tied_BS.shape)], 0.0)

    # A non-empty subset leaves at least one finite entry, so subsets that do not count are finite too, and so is their
    # gradient.
    left_BSR = member_BSR | below_BSR
    left_score_BSR = jnp.where(left_BSR, score_BR[:, None, :], -jnp.inf)
    log_sum_BS = jax.nn.logsumexp(left_score_BSR, axis=2)
    value_B = jnp.sum(factor_BS * log_sum_BS, axis=1) - jnp.sum(score_BR, axis=1)
    weight_B = (jnp.sum(present_BR, axis=1) >= 2).astype(jnp.float32)
    terms = {"preference": Term(value_B, weight_B)}
    if centre:
        terms["centre"] = centring(score_BR, answer_mask_BR, centre)
    return Loss(terms, pairwise_ranking(score_BR, ranks_BR, answer_mask_BR).metrics)


def centring(score_BR, answer_mask_BR, coefficient) -> Term:
    """Keeps scores centred, whose differences alone the likelihood fixes (Eisenstein et al. 2023, arXiv:2312.09244).

        (2/K · Σₖ rₖ)²        K = 2: (r⁺ + r⁻)², as printed

    Args: as in `plackett_luce`. Returns: a term per prompt; weight 1 with two answers or more.
    """
    size_B = jnp.sum(answer_mask_BR > 0, axis=1)
    mean_B = jnp.sum(counted(score_BR, answer_mask_BR), axis=1) / jnp.maximum(size_B, 1)
    return Term(jnp.square(2.0 * mean_B), (size_B >= 2).astype(jnp.float32), coefficient)


def wins(difference):
    """1 where the difference is positive, ½ where it is 0: the expected score of guessing at a draw."""
    return 0.5 * (1.0 + jnp.sign(difference))


def _above(ranks_BR, answer_mask_BR):
    """[B, R, R]: 1 where both answers exist and the first is ranked above the second."""
    present_BRR = (answer_mask_BR[:, :, None] > 0) & (answer_mask_BR[:, None, :] > 0)
    return (present_BRR & (ranks_BR[:, :, None] < ranks_BR[:, None, :])).astype(jnp.float32)


def _subsets(R):
    """Every non-empty subset of R answers as rows of booleans, and 1/C(n, k) as a table."""
    member_SR = np.array(list(itertools.product([False, True], repeat=R))[1:])
    inverse = np.array([[1.0 / max(math.comb(n, k), 1) for k in range(R + 1)] for n in range(R + 1)], np.float32)
    return jnp.asarray(member_SR), jnp.asarray(inverse)
