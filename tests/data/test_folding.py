"""Rows packed for the forward pass: nothing lost, nothing twice, everything found again."""

import jax
import numpy as np
import pytest
from tiny_models import documents, logp, rows, split

from jaxalign.batches import BRANCH
from jaxalign.data.folding import fold, unfold

WRITTEN = documents([6, 3, 2, 9])


def folded(written, length, **options):
    batch = rows(written, length, **options)
    return batch, fold(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"], pad_id=5, rows=2)


@pytest.mark.parametrize("starts", [None, [4, 7, 8, 1], [2, 1, 0, 0]])
def test_every_token_stands_where_its_place_says(starts):
    batch, packed = folded(WRITTEN, 9, starts=starts, pad=5)
    tokens = np.asarray(unfold(packed["folded_tokens_MS"], packed["place_BU"]))
    targets = np.asarray(unfold(packed["folded_targets_MS"], packed["place_BU"]))
    positions = np.asarray(unfold(packed["folded_positions_MS"], packed["place_BU"]))
    for b, document in enumerate(WRITTEN):
        s = (starts or [0] * 4)[b]
        assert tokens[b, s:s + len(document)].tolist() == document
        assert targets[b, s:s + len(document) - 1].tolist() == document[1:]
        assert positions[b, s:s + len(document)].tolist() == list(range(len(document)))


def test_documents_share_rows_and_no_segment():
    _, packed = folded(WRITTEN, 9)
    segments = packed["folded_segment_ids_MS"]
    assert segments.shape == (2, 128) and (segments > 0).sum() == sum(map(len, WRITTEN))
    assert sorted(np.unique(segments[0])) == [0, 1, 2, 3, 4]  # all four in the first row, each for itself


def test_a_row_of_padding_and_a_batch_of_nothing():
    batch = rows(WRITTEN, 9, pad=5)
    batch["segment_ids_BT"][1] = 0
    packed = fold(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"], pad_id=5)
    assert packed["place_BU"][1].tolist() == [0] * 10 and packed["folded_tokens_MS"].shape == (4, 128)
    nothing = fold(batch["tokens_BT"], batch["targets_BT"], 0 * batch["segment_ids_BT"], pad_id=5)
    assert np.all(nothing["folded_segment_ids_MS"] == 0)


def test_rows_are_as_wide_as_the_longest_document_needs():
    _, packed = folded(documents([200, 3]), 220)
    assert packed["folded_tokens_MS"].shape == (2, 256)


@pytest.mark.parametrize(("least", "expected"), [(0, 4), (1, 4), (2, 2), (3, 3), (9, 9)])
def test_batches_that_fit_have_one_shape(least, expected):
    batch = rows(documents([100, 90]), 99)
    packed = fold(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"], pad_id=5, least=least)
    assert packed["folded_tokens_MS"].shape == (expected, 128)


def grouped(prompts, answers, length, uncounted=()):
    """Shifted rows of each prompt with each of its answers, only those counted."""
    written = [prompt + answer for prompt, group in zip(prompts, answers) for answer in group]
    batch = rows(written, length)
    for n, (prompt, _) in enumerate((p, a) for p, group in zip(prompts, answers) for a in group):
        batch["mask_BT"][n, :len(prompt) - 1] = 0.0
        if n in uncounted:
            batch["mask_BT"][n] = 0.0
    return written, batch


PROMPTS = documents([11, 1, 7], seed=1)
ANSWERS = [documents([2, 5, 1, 5], seed=2), documents([3, 4], seed=3), documents([60, 50, 40], seed=4)]


def shared(batch, **options):
    return fold(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"], pad_id=5, mask_BT=batch["mask_BT"], **options)


def test_answers_share_their_prompt_but_for_its_last_token():
    written, batch = grouped(PROMPTS, ANSWERS, 80, uncounted=[3])
    packed = shared(batch)
    tokens, targets, positions, segments = (np.asarray(unfold(packed[f"folded_{name}_MS"], packed["place_BU"]))
                                            for name in ("tokens", "targets", "positions", "segment_ids"))
    for b, document in enumerate(written):
        n = len(document)
        if b == 3:
            assert not packed["place_BU"][b].any()
            continue
        assert tokens[b, :n].tolist() == document and positions[b, :n].tolist() == list(range(n))
        assert targets[b, :n - 1].tolist() == document[1:]
    assert (packed["place_BU"][0, :10] == packed["place_BU"][1, :10]).all()
    assert len({*packed["place_BU"][:3, 10]}) == 3
    assert len({*segments[0, 10:12], *segments[1, 10:15]}) == 2 and segments[0, 9] == segments[0, 10] % BRANCH
    # Ten tokens once, an answer and one token before it thrice; prompts of one token share nothing; of the third's three
    # answers two fit into a row with their prompt.
    assert (packed["folded_segment_ids_MS"] > 0).sum() == 10 + (2 + 5 + 1 + 3) + (4 + 5) + (6 + 61 + 51) + (7 + 40)


def test_what_is_shared_changes_no_number_and_no_gradient():
    _, batch = grouped(PROMPTS, ANSWERS, 80, uncounted=[3])
    graphdef, params = split()
    weight = np.random.default_rng(0).normal(size=batch["mask_BT"].shape).astype(np.float32) * batch["mask_BT"]

    def value(params, packed):
        if packed is None:
            made = logp(graphdef, params, batch)
        else:
            made = unfold(logp(graphdef, params, packed), packed["place_BU"][:, :-1])
        return (made * weight).sum(), made * batch["mask_BT"]

    packed = shared(batch)
    packed |= {f"{name}_BT": packed[f"folded_{name}_MS"] for name in ("tokens", "targets", "positions", "segment_ids")}
    run = jax.jit(jax.value_and_grad(value, has_aux=True))
    (_, one), gradient_one = run(params, None)
    (_, other), gradient_other = run(params, packed)
    np.testing.assert_allclose(one, other, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), gradient_one, gradient_other)
