"""t21: the reward or value head is read at the padding, not at the last real token."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, NAMES, documents, rows, split

from jaxalign.data.folding import fold
from jaxalign.models.heads import ScalarModel
from jaxalign.rewards.learned import POOLINGS, score_rows

WRITTEN = documents((8, 5, 2))
SCORED = ("tokens_BT", "targets_BT", "segment_ids_BT", "mask_BT")


@functools.cache
def functions():
    graphdef, params = split(CONFIG, ScalarModel)
    score = jax.jit(lambda pooling, batch: score_rows(nnx.merge(graphdef, params), batch, pooling), static_argnums=0)
    value = jax.jit(lambda *inputs: nnx.merge(graphdef, params)(*inputs))
    return score, value


@functools.cache
def expected():
    """For each document, unpadded: the head at every token."""
    return [np.asarray(functions()[1](np.array([document], np.int32)))[0] for document in WRITTEN]


PADDINGS = {
    "right": dict(length=11),
    "right, other ids": dict(length=11, pad=9),
    "more of it": dict(length=19),
    "left": dict(length=11, starts=[11 - 7, 11 - 4, 11 - 1], pad=9),
    "both sides": dict(length=11, starts=[2, 3, 5], pad=9),
}


@pytest.mark.parametrize("padding", PADDINGS)
def test_t21_a_score_is_read_at_the_last_token_of_the_whole_document(padding):
    batch = rows(WRITTEN, **PADDINGS[padding])
    got = functions()[0]("last", {name: batch[name] for name in SCORED})
    last = [values[-1] for values in expected()]
    np.testing.assert_allclose(got, last, rtol=1e-4, atol=1e-4)
    # The neighbours that a slip of one would read are well away.
    assert min(abs(values[-1] - values[-2]) for values in expected()) > 1e-2


@pytest.mark.parametrize("padding", PADDINGS)
def test_t21_a_mean_is_taken_over_the_answer_each_token_read_after_it_was_written(padding):
    batch = rows(WRITTEN, **PADDINGS[padding])
    for row in batch["mask_BT"]:
        row[np.flatnonzero(row)[:-2]] = 0  # the answer: the last two tokens, or the only one
    got = functions()[0]("mean", {name: batch[name] for name in SCORED})
    np.testing.assert_allclose(got, [values[1:][-2:].mean() for values in expected()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", PADDINGS)
def test_t21_a_likelihood_is_that_of_the_token_whose_gate_weighs_it(padding):
    batch = rows(WRITTEN, **PADDINGS[padding])
    for row in batch["mask_BT"]:
        row[np.flatnonzero(row)[:-2]] = 0
    got = functions()[0]("likelihood", {name: batch[name] for name in SCORED})
    graphdef, params = split(CONFIG, ScalarModel)
    wanted = []
    for document, values in zip(WRITTEN, expected()):
        model = nnx.merge(graphdef, params)
        hidden_TD = np.asarray(model.backbone(np.array([document], np.int32))[0], np.float64)
        logits_TV = hidden_TD @ np.asarray(model.backbone.unembedding_DV, np.float64)
        logp_T = [logits_TV[t - 1, document[t]] - np.log(np.exp(logits_TV[t - 1]).sum()) for t in range(1, len(document))]
        gate_T = hidden_TD[1:] @ np.asarray(model.gate.kernel[...], np.float64)[:, 0]
        wanted.append((values[1:] + gate_T * logp_T)[-2:].mean())
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_t21_rows_packed_for_the_forward_pass_have_the_same_scores(pooling):
    batch = rows(WRITTEN, **PADDINGS["left"])
    for row in batch["mask_BT"]:
        row[np.flatnonzero(row)[:-2]] = 0
    alone = {name: batch[name] for name in SCORED}
    packed = alone | fold(*(batch[name] for name in SCORED[:3]), pad_id=9)
    got, expected = (np.asarray(functions()[0](pooling, given)) for given in (packed, alone))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert min(abs(a - b) for n, a in enumerate(expected) for b in expected[:n]) > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
def test_t21_answers_that_share_their_prompt_have_the_same_scores(pooling):
    prompt, answers = documents((6,))[0], documents((3, 1, 5), seed=1)
    batch = rows([prompt + answer for answer in answers], length=14, starts=[2, 0, 4], pad=9)
    for row, answer in zip(batch["mask_BT"], answers):
        row[np.flatnonzero(row)[:-len(answer)]] = 0
    alone = {name: batch[name] for name in SCORED}
    packed = alone | fold(*(batch[name] for name in SCORED[:3]), pad_id=9, mask_BT=batch["mask_BT"])
    assert (packed["folded_segment_ids_MS"] > 0).sum() == 5 + 3 + sum(map(len, answers))
    got, expected = (np.asarray(functions()[0](pooling, given)) for given in (packed, alone))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert min(abs(a - b) for n, a in enumerate(expected) for b in expected[:n]) > 1e-2


@pytest.mark.parametrize("padding", PADDINGS)
def test_t21_a_value_is_read_before_each_target_is_drawn(padding):
    batch = rows(WRITTEN, **PADDINGS[padding])
    got = np.asarray(functions()[1](*(batch[name] for name in NAMES)))
    for row, values in enumerate(expected()):
        np.testing.assert_allclose(got[row][batch["mask_BT"][row] > 0], values[:-1], rtol=1e-4, atol=1e-4)


def test_t21_values_of_packed_documents_are_their_own():
    batch = rows(WRITTEN, 14, packed=True)
    got = np.asarray(functions()[1](*(batch[name] for name in NAMES)))[0]
    np.testing.assert_allclose(got[batch["segment_ids_BT"][0] > 0], np.concatenate([v[:-1] for v in expected()]),
                               rtol=1e-4, atol=1e-4)
