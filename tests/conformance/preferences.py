"""The DPO family: a policy from preferences."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import trl
from trl.experimental.cpo import CPOConfig, CPOTrainer

import ragged
import trainers
from comparison import Row, in_jax, in_torch
from jaxalign.batches import bind
from jaxalign.objectives import dpo
from jaxalign.objectives.logprobs import sequence_logp, token_statistics
from jaxalign.objectives.reduce import as_loss, reduce

PAIRS = 5
CHUNK = 5
BETA = 0.1


def pairs(draw, *, ours, theirs, one_by_one=False):
    """A loss of pairs, from the hidden states and the output embedding on.

    Args:
      ours: an objective with its options bound; its arguments are found by their names.
      theirs: `(rows, policy, reference)` → loss; each of the two is hidden states and output embedding, and the rows
        are the chosen answers', then the rejected ones'.
      one_by_one: the mean of theirs over batches of one pair each, for what TRL takes over all the tokens of a batch.
    """
    rows = ragged.rows(draw, 2 * PAIRS)
    trained = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}
    reference = {name: ragged.near(draw, x, 0.3) for name, x in trained.items()}

    def of_ours(hidden_BSD, unembed_DV):
        have = {
            **dict(zip(("chosen_logp_B", "rejected_logp_B"), _logps(rows, hidden_BSD, unembed_DV), strict=True)),
            **dict(zip(("chosen_ref_B", "rejected_ref_B"), _logps(rows, **reference), strict=True)),
            "chosen_length_B": jnp.asarray(rows.answer_length_B[:PAIRS], jnp.float32),
            "rejected_length_B": jnp.asarray(rows.answer_length_B[PAIRS:], jnp.float32),
        }
        return reduce(as_loss(bind(ours, have, {})).terms)[0]

    def of_theirs(hidden_BSD, unembed_DV):
        batches = np.arange(2 * PAIRS).reshape(2, -1, PAIRS // (PAIRS if one_by_one else 1)).swapaxes(0, 1)
        losses = []
        for pair in batches.reshape(len(batches), -1):
            held = tuple(trainers.tensor(x) for x in (reference["hidden_BSD"][pair], reference["unembed_DV"]))
            losses.append(theirs(rows.only(pair), (hidden_BSD[pair], unembed_DV), held))
        return sum(losses) / len(losses)

    return in_jax(of_ours, **trained), in_torch(of_theirs, **trained)


def _logps(rows, hidden_BSD, unembed_DV):
    stats = token_statistics(jnp.asarray(hidden_BSD)[:, :-1], jnp.asarray(unembed_DV), rows.targets_BT, chunk=CHUNK)
    return jnp.split(sequence_logp(stats.logp_BT, rows.mask_BT), 2)


def trl_dpo(rows, policy, reference, **options):
    trainer = _dpo_trainer(**options)
    trainers.tell(trainer.model, *policy)
    trainers.tell(trainer.ref_model, *reference)
    batch = {"input_ids": rows.ids_BS, "attention_mask": rows.attention_BS, "completion_mask": rows.mask_BS}
    return trainer.compute_loss(trainer.model, {name: trainers.tensor(x) for name, x in batch.items()})


@functools.cache
def _dpo_trainer(**options):
    options = {name: list(x) if isinstance(x, tuple) else x for name, x in options.items()}
    return trainers.make(trl.DPOTrainer, trl.DPOConfig, trainers.language_model(), beta=BETA, **options)


def dpo_smoothed(draw):
    """TRL smooths labels no longer in its DPO, but in CPO, which is DPO without a reference.

    Given log-ratios to a reference in place of its log-probabilities, CPO's loss is conservative DPO.
    """
    trained = {name: -20.0 + 5.0 * draw.normal(size=7) for name in ("chosen_logp_B", "rejected_logp_B")}
    chosen_ref_B, rejected_ref_B = (-20.0 + 5.0 * draw.normal(size=7) for _ in range(2))

    def ours(chosen_logp_B, rejected_logp_B):
        refs = jnp.asarray(chosen_ref_B, jnp.float32), jnp.asarray(rejected_ref_B, jnp.float32)
        return reduce(dpo(chosen_logp_B, rejected_logp_B, *refs, beta=BETA, smoothing=0.1).terms)[0]

    def theirs(chosen_logp_B, rejected_logp_B):
        refs = trainers.tensor(chosen_ref_B), trainers.tensor(rejected_ref_B)
        losses_B, _, _ = _cpo_trainer(loss_type="sigmoid", label_smoothing=0.1, beta=BETA).cpo_loss(
            chosen_logp_B - refs[0], rejected_logp_B - refs[1]
        )
        return losses_B.mean()

    return in_jax(ours, **trained), in_torch(theirs, **trained)


@functools.cache
def _cpo_trainer(**options):
    # Columns stay, as TRL asks for it there.
    return trainers.make(CPOTrainer, CPOConfig, trainers.language_model(), remove_unused_columns=False, **options)


def _row(check, against, ours, theirs, **options):
    return Row(check, against, functools.partial(pairs, ours=ours, theirs=theirs, **options))


ROWS = [
    _row("dpo", "trl DPOTrainer.compute_loss, sigmoid", functools.partial(dpo, beta=BETA),
         functools.partial(trl_dpo, loss_type=("sigmoid",))),
    _row("dpo: nll_coefficient 0.5", "trl DPOTrainer.compute_loss, sigmoid + 0.5 sft",
         functools.partial(dpo, beta=BETA, nll_coefficient=0.5),
         functools.partial(trl_dpo, loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.5)), one_by_one=True),
    Row("dpo: smoothing 0.1", "trl CPOTrainer.cpo_loss of log-ratios, sigmoid, label_smoothing 0.1", dpo_smoothed),
]
