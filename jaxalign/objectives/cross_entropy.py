"""Next-token cross-entropy: pretraining and supervised fine-tuning."""

from __future__ import annotations

import jax.numpy as jnp

from jaxalign.objectives.reduce import Loss, Term, counted


def cross_entropy(logp_BT, logz_BT, mean_logp_BT, mask_BT, *, z_loss=0.0, label_smoothing=0.0) -> Loss:
    """Cross-entropy of the next token, with label smoothing (Szegedy et al. 2015, arXiv:1512.00567, section 7) and
    z-loss (PaLM, arXiv:2204.02311, section 5).

        ℓ = −(1 − ε) · log p(target) − ε · (1/V) · Σᵥ log p(v)   +   z_loss · (log Z)²

    Args:
      logp_BT: log-probability of the target in nats. Trained.
      logz_BT: log-normaliser log Z of the logits in nats. Trained, if z_loss > 0.
      mean_logp_BT: log-probability averaged over the vocabulary, in nats. Trained, if label_smoothing > 0.
      mask_BT: 1 where the target counts, else 0; for SFT only the assistant's tokens. Fractions weigh tokens.
      z_loss: coefficient ≥ 0; PaLM used 1e-4.
      label_smoothing: ε in [0, 1).

    Returns:
      Terms `cross_entropy` and `z_loss`, per token. Metric `nll`: −log p(target) in nats, without smoothing; its
      exponential is the perplexity.
    """
    logp_BT, logz_BT, mean_logp_BT = (counted(x, mask_BT) for x in (logp_BT, logz_BT, mean_logp_BT))
    smoothed_BT = -(1.0 - label_smoothing) * logp_BT - label_smoothing * mean_logp_BT
    terms = {
        "cross_entropy": Term(smoothed_BT, mask_BT),
        "z_loss": Term(jnp.square(logz_BT), mask_BT, coefficient=z_loss),
    }
    return Loss(terms, {"nll": Term(-logp_BT, mask_BT)})
