"""The learned reward: one score for a document, read off a `ScalarModel`."""

import jax.numpy as jnp

from jaxalign.models.heads import score_at_end, unshifted
from jaxalign.objectives.logprobs import token_statistics

POOLINGS = ("last", "mean", "likelihood")
LOGITS_AT_ONCE = 2**23


def score_rows(model, tokens_BT, targets_BT, segment_ids_BT, mask_BT, pooling="last"):
    """One score for the one document in each row of a shifted batch, (B,).

        last:        head(h_T)
        mean:        (1/|y|) · Σ_{t ∈ y} head(hₜ)
        likelihood:  (1/|y|) · Σ_{t ∈ y} head(hₜ) + gate(hₜ) · log p(xₜ | x₁…xₜ₋₁)

    hₜ is the hidden state once token t is written. "last" is InstructGPT's choice (arXiv:2203.02155, section 3.5). A
    false statement looks like a true one: what tells them apart for a language model is what it would have said itself,
    so the third lets the head weigh each token's log-probability under the backbone. Both of its parts are trained.

    Args:
      model: a `ScalarModel`.
      mask_BT: 1 where the target belongs to what is judged, y.
      pooling: one of `POOLINGS`.
    """
    return score_and_likelihood(model, tokens_BT, targets_BT, segment_ids_BT, mask_BT, pooling)[0]


def score_and_likelihood(model, tokens_BT, targets_BT, segment_ids_BT, mask_BT, pooling):
    """(`score_rows`, log p of each target under the backbone, (B, T); None unless the pooling computes it)."""
    tokens, segments = unshifted(tokens_BT, targets_BT, segment_ids_BT)
    if pooling == "last":
        return score_at_end(model(tokens, segment_ids_BT=segments), segments), None
    judged_BT, logp_BT = jnp.pad(mask_BT, ((0, 0), (1, 0))), None
    if pooling == "mean":
        score_BT = model(tokens, segment_ids_BT=segments)
    else:
        hidden_BTD = model.backbone(tokens, segment_ids_BT=segments)
        unembed_DV = model.backbone.unembedding_DV
        chunk = max(1, LOGITS_AT_ONCE // (len(tokens) * unembed_DV.shape[1]))
        logp_BT = token_statistics(hidden_BTD[:, :-1], unembed_DV, tokens[:, 1:], chunk=chunk).logp_BT
        hidden_BTD = hidden_BTD.astype(jnp.float32)
        # Nothing predicts a row's first token; a document's first is never judged.
        score_BT = model.head(hidden_BTD)[..., 0] + model.gate(hidden_BTD)[..., 0] * jnp.pad(logp_BT, ((0, 0), (1, 0)))
    return jnp.sum(score_BT * judged_BT, axis=1) / jnp.maximum(jnp.sum(judged_BT, axis=1), 1.0), logp_BT
