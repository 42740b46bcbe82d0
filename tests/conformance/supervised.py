"""Cross-entropy, and the per-token statistics that every other objective begins with."""

from __future__ import annotations

import functools

import torch
import trl
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

import ragged
import trainers
from comparison import Row, in_jax, in_torch
from jaxalign.objectives import cross_entropy
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.objectives.reduce import reduce

IGNORED = -100  # the label that torch leaves out
CHUNK = 5  # shorter than every draw's rows, so that the chunks are glued together


def sft(draw, *, theirs, label_smoothing=0.0, softcap=None):
    """Cross-entropy over the answers' tokens, gaps left out; gradients to hidden states and output embedding."""
    rows = ragged.rows(draw, 6, gaps=True)
    trained = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}

    def ours(hidden_BSD, unembed_DV):
        stats = token_statistics(hidden_BSD[:, :-1], unembed_DV, rows.targets_BT, chunk=CHUNK, softcap=softcap)
        loss = cross_entropy(
            stats.logp_BT, stats.logz_BT, stats.mean_logp_BT, rows.mask_BT, label_smoothing=label_smoothing
        )
        return reduce(loss.terms)[0]

    batch = {
        "input_ids": trainers.tensor(rows.ids_BS),
        "attention_mask": trainers.tensor(rows.attention_BS),
        "labels": trainers.tensor(rows.ids_BS).masked_fill(trainers.tensor(rows.mask_BS) == 0, IGNORED),
    }
    return in_jax(ours, **trained), in_torch(functools.partial(theirs, batch, label_smoothing, softcap), **trained)


def of_trl(batch, label_smoothing, softcap, hidden_BSD, unembed_DV):
    trainer = _trainer(label_smoothing, softcap)
    trainers.tell(trainer.model, hidden_BSD, unembed_DV)
    return trainer.compute_loss(trainer.model, dict(batch))


def of_transformers(batch, label_smoothing, softcap, hidden_BSD, unembed_DV):
    return ForCausalLMLoss(hidden_BSD @ unembed_DV, batch["labels"], ragged.VOCABULARY)


@functools.cache
def _trainer(label_smoothing, softcap):
    model = trainers.language_model()
    model.config.final_logit_softcapping = softcap  # read by TRL's fused head, for the families that have it
    return trainers.make(
        trl.SFTTrainer, trl.SFTConfig, model, rows=[{"text": "w1 w2 w3"}],
        label_smoothing_factor=label_smoothing,
    )


def statistics(draw, *, temperature):
    """Log-probability and entropy from hidden states, in chunks, against those of whole logits."""
    rows = ragged.rows(draw, 4)
    trained = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}

    def ours(hidden_BSD, unembed_DV):
        stats = token_statistics(
            hidden_BSD[:, :-1], unembed_DV, rows.targets_BT, chunk=CHUNK, temperature=temperature
        )
        return {"logp": stats.logp_BT * rows.mask_BT, "entropy": stats.entropy_BT * rows.mask_BT}

    def theirs(hidden_BSD, unembed_DV):
        logits_BTV = (hidden_BSD @ unembed_DV)[:, :-1]
        mask_BT = trainers.tensor(rows.mask_BT)
        logp_BT = selective_log_softmax(logits_BTV, trainers.tensor(rows.targets_BT), temperature=temperature)
        return {"logp": logp_BT * mask_BT, "entropy": entropy_from_logits(logits_BTV / temperature) * mask_BT}

    return in_jax(ours, **trained), in_torch(theirs, **trained)


def z_loss(draw):
    """torch's log-sum-exp in float64, of all logits at once."""
    rows = ragged.rows(draw, 6, gaps=True)
    trained = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}

    def ours(hidden_BSD, unembed_DV):
        stats = token_statistics(hidden_BSD[:, :-1], unembed_DV, rows.targets_BT, chunk=CHUNK)
        loss = cross_entropy(stats.logp_BT, stats.logz_BT, stats.mean_logp_BT, rows.mask_BT, z_loss=1.0)
        return reduce({"z_loss": loss.terms["z_loss"]})[0]

    def theirs(hidden_BSD, unembed_DV):
        logz_BT = torch.logsumexp(hidden_BSD[:, :-1].double() @ unembed_DV.double(), dim=-1)
        return logz_BT[trainers.tensor(rows.mask_BT) > 0].square().mean()

    return in_jax(ours, **trained), in_torch(theirs, **trained)


ROWS = [
    Row("cross_entropy", "trl SFTTrainer", functools.partial(sft, theirs=of_trl)),
    Row("cross_entropy", "transformers ForCausalLMLoss", functools.partial(sft, theirs=of_transformers)),
    Row("cross_entropy: label_smoothing 0.1", "trl SFTTrainer, label_smoothing_factor 0.1",
        functools.partial(sft, theirs=of_trl, label_smoothing=0.1)),
    Row("cross_entropy: z_loss", "float64, PaLM (arXiv:2204.02311, section 5)", z_loss),
    Row("token_statistics: softcap 3", "trl SFTTrainer, final_logit_softcapping 3",
        functools.partial(sft, theirs=of_trl, softcap=3.0)),
    Row("token_statistics: logp, entropy", "trl selective_log_softmax, entropy_from_logits",
        functools.partial(statistics, temperature=1.0)),
    Row("token_statistics: temperature 0.7", "trl selective_log_softmax, entropy_from_logits",
        functools.partial(statistics, temperature=0.7)),
]
