"""Identity preference optimisation: a squared loss on the policy's log-ratio margin, which does not run away."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.objectives.bradley_terry import wins
from jaxalign.objectives.reduce import Loss, Term, counted


def ipo(chosen_logp_B, rejected_logp_B, chosen_ref_B, rejected_ref_B, weight_B=None, *, beta) -> Loss:
    """Squared distance of the margin from what the regulariser asks for (Azar et al. 2023, arXiv:2310.12036, eq. 17).

        h = [log π(y⁺|x) − log π_ref(y⁺|x)] − [log π(y⁻|x) − log π_ref(y⁻|x)]
        ℓ = (h − 1 / (2β))²

    The paper's τ is called β here, as it is in the rest of the family. Log-probabilities are sums, as printed; some
    implementations take means over tokens.

    Args:
      chosen_logp_B: log π(y⁺|x) in nats, summed over the answer's tokens. Trained.
      rejected_logp_B: log π(y⁻|x). Trained.
      chosen_ref_B: log π_ref(y⁺|x) under the frozen reference. No gradient.
      rejected_ref_B: log π_ref(y⁻|x). No gradient.
      weight_B: 1 where the pair counts, else 0; every pair counts if None. No gradient.
      beta: β > 0; the margin is drawn to 1 / (2β) nats and no further.

    Returns:
      Term `preference`, per pair. Metrics `accuracy` (h > 0; a draw counts half), `margin` (h, in nats).
    """
    weight_B = jnp.ones_like(chosen_logp_B) if weight_B is None else weight_B
    chosen_B, rejected_B = counted(chosen_logp_B, weight_B), counted(rejected_logp_B, weight_B)
    chosen_ref_B, rejected_ref_B = (
        jax.lax.stop_gradient(counted(x, weight_B)) for x in (chosen_ref_B, rejected_ref_B)
    )
    margin_B = (chosen_B - chosen_ref_B) - (rejected_B - rejected_ref_B)
    terms = {"preference": Term(jnp.square(margin_B - 0.5 / beta), weight_B)}
    return Loss(terms, {"accuracy": Term(wins(margin_B), weight_B), "margin": Term(margin_B, weight_B)})
