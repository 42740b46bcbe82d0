"""The DPO family: a policy from pairs, or from answers that were each liked or not."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import torch
import trl
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import ragged
import trainers
from comparison import Row, in_jax, in_torch
from jaxalign.batches import bind
from jaxalign.objectives import dpo, ipo, kto, orpo, simpo
from jaxalign.objectives.kto import kto_reference_point
from jaxalign.objectives.logprobs import sequence_logp, token_statistics
from jaxalign.objectives.reduce import as_loss, reduce

SIDES = "chosen", "rejected"
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
        of_all = {
            "logp_B": _logp(rows, hidden_BSD, unembed_DV),
            "ref_B": _logp(rows, **reference),
            "length_B": jnp.asarray(rows.answer_length_B, jnp.float32),
        }
        have = {f"{side}_{name}": half for name, x in of_all.items() for side, half in zip(SIDES, jnp.split(x, 2))}
        return reduce(as_loss(bind(ours, have, {})).terms)[0]

    def of_theirs(hidden_BSD, unembed_DV):
        batches = np.arange(2 * PAIRS).reshape(2, -1, PAIRS // (PAIRS if one_by_one else 1)).swapaxes(0, 1)
        losses = []
        for pair in batches.reshape(len(batches), -1):
            held = tuple(trainers.tensor(x) for x in (reference["hidden_BSD"][pair], reference["unembed_DV"]))
            losses.append(theirs(rows.only(pair), (hidden_BSD[pair], unembed_DV), held))
        return sum(losses) / len(losses)

    return in_jax(of_ours, **trained), in_torch(of_theirs, **trained)


def _logp(rows, hidden_BSD, unembed_DV):
    stats = token_statistics(jnp.asarray(hidden_BSD)[:, :-1], jnp.asarray(unembed_DV), rows.targets_BT, chunk=CHUNK)
    return sequence_logp(stats.logp_BT, rows.mask_BT)


def mean_logp(objective):
    """The objective of log-probabilities that are means over an answer's tokens, where ours are their sums."""

    def of_means(
        chosen_logp_B, rejected_logp_B, chosen_ref_B, rejected_ref_B, chosen_length_B, rejected_length_B
    ):
        return objective(
            chosen_logp_B / chosen_length_B, rejected_logp_B / rejected_length_B, chosen_ref_B / chosen_length_B,
            rejected_ref_B / rejected_length_B,
        )

    return of_means


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


def trl_without_reference(rows, policy, reference, **options):
    """TRL's CPO or ORPO. ORPO's likelihood is of all that attention is on: here of the answer, as the paper has it."""
    trainer = _trainer_without_reference(**options)
    trainers.tell(trainer.model, *policy)
    ids_BS, mask_BS = trainers.tensor(rows.ids_BS), trainers.tensor(rows.mask_BS)
    of_all = {"input_ids": ids_BS, "attention_mask": mask_BS, "labels": ids_BS.masked_fill(mask_BS == 0, -100)}
    batch = {f"{side}_{name}": half for name, x in of_all.items() for side, half in zip(SIDES, x.chunk(2), strict=True)}
    return trainer.compute_loss(trainer.model, batch)


@functools.cache
def _trainer_without_reference(**options):
    kind = (CPOTrainer, CPOConfig) if "loss_type" in options else (ORPOTrainer, ORPOConfig)
    # Columns stay, as TRL asks for it there.
    return trainers.make(*kind, trainers.language_model(), remove_unused_columns=False, **options)


def log_ratios(draw, *, ours, spread=5.0, **options):
    """CPO is DPO without a reference: given log-ratios to one for its log-probabilities, it is DPO.

    It keeps what TRL's DPO has no longer, conservative smoothing, or has of means over tokens only, IPO.
    """
    trained = {name: -20.0 + spread * draw.normal(size=7) for name in ("chosen_logp_B", "rejected_logp_B")}
    references = [(-20.0 + spread * draw.normal(size=7)).astype(np.float32) for _ in range(2)]

    def of_ours(chosen_logp_B, rejected_logp_B):
        return reduce(ours(chosen_logp_B, rejected_logp_B, *map(jnp.asarray, references)).terms)[0]

    def of_theirs(chosen_logp_B, rejected_logp_B):
        chosen_ref_B, rejected_ref_B = map(trainers.tensor, references)
        trainer = _trainer_without_reference(beta=BETA, **options)
        losses_B, _, _ = trainer.cpo_loss(chosen_logp_B - chosen_ref_B, rejected_logp_B - rejected_ref_B)
        return losses_B.mean()

    return in_jax(of_ours, **trained), in_torch(of_theirs, **trained)


def single_answers(draw, *, desirable_weight=1.0, undesirable_weight=1.0, behind=False):
    """KTO, its reference point included: the same prompts' log-probabilities of other tokens.

    Noise enlarges logits, and the larger they are the less likely is a token at random. So the reference's noise takes
    the reference point above 0, and the policy's (behind) below, where it is cut off.
    """
    rows = ragged.rows(draw, 9)
    other = rows._replace(ids_BS=draw.permutation(rows.ids_BS))
    desirable_B = draw.permutation(np.arange(9) < 4)
    trained = {"hidden_BSD": ragged.hidden(draw, rows), "unembed_DV": ragged.unembed(draw)}
    reference = {name: ragged.near(draw, x, 0.3) for name, x in trained.items()}
    if behind:
        trained, reference = reference, trained
    weights = dict(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)

    def ours(hidden_BSD, unembed_DV):
        point_B = kto_reference_point(
            _logp(other, hidden_BSD, unembed_DV), _logp(other, **reference), jnp.ones(len(desirable_B))
        )
        have = _logp(rows, hidden_BSD, unembed_DV), _logp(rows, **reference), jnp.asarray(desirable_B, jnp.float32)
        return reduce(kto(*have, point_B, beta=BETA, **weights).terms)[0]

    def theirs(hidden_BSD, unembed_DV):
        trainer = _kto_trainer(**weights)
        trainers.tell(trainer.model, hidden_BSD, unembed_DV)
        trainers.tell(trainer.ref_model, *(trainers.tensor(x) for x in reference.values()))
        batch = {"label": torch.tensor(desirable_B)}
        for prefix, drawn in (("", rows), ("KL_", other)):
            batch[f"{prefix}input_ids"] = trainers.tensor(drawn.ids_BS)
            batch[f"{prefix}attention_mask"] = trainers.tensor(drawn.attention_BS)
            batch[f"{prefix}completion_mask"] = trainers.tensor(drawn.mask_BS)
        return trainer.compute_loss(trainer.model, batch)

    return in_jax(ours, **trained), in_torch(theirs, **trained)


@functools.cache
def _kto_trainer(**options):
    rows = [{"prompt": "w1 w2", "completion": " w3", "label": label} for label in (True, False)]
    return trainers.make(trl.KTOTrainer, trl.KTOConfig, trainers.language_model(), rows=rows, beta=BETA, **options)


def _of_pairs(check, against, ours, theirs, **options):
    return Row(check, against, functools.partial(pairs, ours=ours, theirs=theirs, **options))


PART = functools.partial

ROWS = [
    _of_pairs("dpo", "trl DPOTrainer, sigmoid",
              PART(dpo, beta=BETA), PART(trl_dpo, loss_type=("sigmoid",))),
    _of_pairs("dpo: nll_coefficient 0.5", "trl DPOTrainer, sigmoid + 0.5 sft",
              PART(dpo, beta=BETA, nll_coefficient=0.5),
              PART(trl_dpo, loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.5)), one_by_one=True),
    Row("dpo: smoothing 0.1", "trl CPOTrainer of log-ratios, sigmoid, label_smoothing 0.1",
        PART(log_ratios, ours=PART(dpo, beta=BETA, smoothing=0.1), loss_type="sigmoid", label_smoothing=0.1)),
    # Near one another: of losses in the hundreds, as squares would be, float32 keeps less than the tolerance.
    Row("ipo", "trl CPOTrainer of log-ratios, ipo",
        PART(log_ratios, ours=PART(ipo, beta=BETA), spread=1.0, loss_type="ipo")),
    _of_pairs("ipo: of means over tokens", "trl DPOTrainer, ipo",
              mean_logp(PART(ipo, beta=BETA)), PART(trl_dpo, loss_type=("ipo",))),
    Row("kto", "trl KTOTrainer", single_answers),
    Row("kto: reference point cut off at 0", "trl KTOTrainer", PART(single_answers, behind=True)),
    Row("kto: weights 1.5, 0.8", "trl KTOTrainer, the same weights",
        PART(single_answers, desirable_weight=1.5, undesirable_weight=0.8)),
    _of_pairs("orpo", "trl ORPOTrainer",
              PART(orpo, odds_coefficient=0.5), PART(trl_without_reference, beta=0.5), one_by_one=True),
    _of_pairs("simpo: target_margin 0.5", "trl CPOTrainer, simpo, simpo_gamma 0.5",
              PART(simpo, beta=2.0, target_margin=0.5),
              PART(trl_without_reference, loss_type="simpo", beta=2.0, simpo_gamma=0.5, cpo_alpha=0.0)),
]
