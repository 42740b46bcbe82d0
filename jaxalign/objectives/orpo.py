"""Odds-ratio preference optimisation: supervised learning and preference in one loss, without a reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.objectives.bradley_terry import wins
from jaxalign.objectives.reduce import Loss, Term, counted

# log P of a token-wise certain answer is 0 and its odds infinite: no closer to 0 than float32 can tell P from 1.
NEAREST_TO_CERTAIN = -1e-7


def orpo(
    chosen_logp_B, rejected_logp_B, chosen_length_B, rejected_length_B, weight_B=None, *, odds_coefficient
) -> Loss:
    """The chosen answer's likelihood, and the log-odds ratio of the two (Hong et al. 2024, arXiv:2403.07691, eq. 6, 7).

        log P(y) = 1/|y| · log π(y|x)        odds(y) = P(y) / (1 − P(y))
        ℓ        = −log P(y⁺) − λ · log σ(log (odds(y⁺) / odds(y⁻)))

    Both parts are means over pairs, as printed (an expectation over pairs); the likelihood is of the answer's tokens.

    Args:
      chosen_logp_B: log π(y⁺|x) in nats, summed over the answer's tokens. Trained.
      rejected_logp_B: log π(y⁻|x). Trained.
      chosen_length_B: |y⁺|, its tokens. No gradient.
      rejected_length_B: |y⁻|. No gradient.
      weight_B: 1 where the pair counts, else 0; every pair counts if None. No gradient.
      odds_coefficient: λ ≥ 0; the paper's are 0.1 to 1.

    Returns:
      Terms `nll` (−log P(y⁺)) and `preference`, per pair. Metrics `accuracy` (P(y⁺) > P(y⁻); a draw counts half) and
      `margin` (the log-odds ratio).
    """
    weight_B = jnp.ones_like(chosen_logp_B) if weight_B is None else weight_B
    chosen_B, rejected_B = (
        counted(logp_B, weight_B) / jnp.maximum(counted(length_B, weight_B), 1.0)
        for logp_B, length_B in ((chosen_logp_B, jax.lax.stop_gradient(chosen_length_B)),
                                 (rejected_logp_B, jax.lax.stop_gradient(rejected_length_B)))
    )
    margin_B = _log_odds(chosen_B) - _log_odds(rejected_B)
    terms = {
        "nll": Term(-chosen_B, weight_B),
        "preference": Term(-jax.nn.log_sigmoid(margin_B), weight_B, odds_coefficient),
    }
    return Loss(terms, {"accuracy": Term(wins(margin_B), weight_B), "margin": Term(margin_B, weight_B)})


def _log_odds(logp):
    """log P − log(1 − P), from log P < 0."""
    logp = jnp.minimum(logp, NEAREST_TO_CERTAIN)
    # 1 − exp(x) by the form that keeps its digits: expm1 near 0, log1p far from it; each only where it is used.
    near = logp > -0.6931472
    small = jnp.log(-jnp.expm1(jnp.where(near, logp, -0.5)))
    large = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, logp)))
    return logp - jnp.where(near, small, large)
