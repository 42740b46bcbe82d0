"""The learned reward: one score for a document, read off a `ScalarModel`; and that score as one of several rewards."""

import jax.numpy as jnp

from jaxalign.data.folding import unfold
from jaxalign.models.heads import score_at_end, unshifted
from jaxalign.objectives.logprobs import token_statistics

POOLINGS = ("last", "mean", "likelihood")
LOGITS_AT_ONCE = 2**23


def score_rows(model, batch, pooling="last"):
    """One score for the one document in each row of a shifted batch, (B,).

        last:        head(h_T)
        mean:        (1/|y|) · Σ_{t ∈ y} head(hₜ)
        likelihood:  (1/|y|) · Σ_{t ∈ y} head(hₜ) + gate(hₜ) · log p(xₜ | x₁…xₜ₋₁)

    hₜ is the hidden state once token t is written. "last" is InstructGPT's choice (arXiv:2203.02155, section 3.5). A
    false statement looks like a true one: what tells them apart for a language model is what it would have said itself,
    so the third lets the head weigh each token's log-probability under the backbone. Both of its parts are trained.

    Args:
      model: a `ScalarModel`.
      batch: tokens_BT, targets_BT, segment_ids_BT, mask_BT (1 where the target belongs to what is judged, y), and what
        `fold` made of them, if it did.
      pooling: one of `POOLINGS`.
    """
    return score_and_likelihood(model, batch, pooling)[0]


def score_and_likelihood(model, batch, pooling):
    """(`score_rows`, log p of each target under the backbone, (B, T); None unless the pooling computes it)."""
    tokens, segments_BU = unshifted(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"])
    folded = "place_BU" in batch
    if folded:
        tokens, positions, segments = (batch[f"folded_{name}_MS"] for name in ("tokens", "positions", "segment_ids"))
    else:  # padding too has a place that the model knows: what it reads there would spoil the row
        segments, inside_BU = segments_BU, segments_BU > 0
        positions = jnp.where(inside_BU, jnp.arange(inside_BU.shape[1])[None] - jnp.argmax(inside_BU, axis=1)[:, None], 0)

    def placed(x):
        return unfold(x, batch["place_BU"]) if folded else x

    hidden = model.backbone(tokens, positions, segments, key=batch.get("dropout_key"))
    score, logp_BT = model.head(hidden.astype(jnp.float32))[..., 0], None
    if pooling == "likelihood":
        unembed_DV = model.backbone.unembedding_DV
        chunk = max(1, LOGITS_AT_ONCE // (len(tokens) * unembed_DV.shape[1]))
        logp = token_statistics(hidden[:, :-1], unembed_DV, tokens[:, 1:], chunk=chunk,
                                softcap=model.backbone.softcap).logp_BT
        # Nothing predicts a row's first token; a document's first is never judged.
        score += model.gate(hidden.astype(jnp.float32))[..., 0] * jnp.pad(logp, ((0, 0), (1, 0)))
        logp_BT = placed(jnp.pad(logp, ((0, 0), (0, 1))))[:, :-1]
    score_BU = placed(score)
    if pooling == "last":
        return score_at_end(score_BU, segments_BU), logp_BT
    judged_BU = jnp.pad(batch["mask_BT"], ((0, 0), (1, 0)))
    return jnp.sum(score_BU * judged_BU, axis=1) / jnp.maximum(jnp.sum(judged_BU, axis=1), 1.0), logp_BT


class LearnedReward:
    """The score that a reward model gives the response.

    The model reads the text, with the tokenizer it was trained with, which need not be the policy's. Its scores have a
    scale of their own: `weight` is what makes them fit with the other rewards, and `failed` should be a bad score.

    Args:
      load_reward_model: from the stage: checkpoint → an object with `score_responses(conversations, responses)`. This
        floor does not read checkpoints.
      checkpoint: workdir of a reward stage, or one of its checkpoints.
    """

    def __init__(self, load_reward_model, *, checkpoint):
        self.model = load_reward_model(checkpoint)

    def __call__(self, conversations, responses):
        return self.model.score_responses(conversations, responses)
