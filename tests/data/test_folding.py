"""Rows packed for the forward pass: nothing lost, nothing twice, everything found again."""

import numpy as np
import pytest
from tiny_models import documents, rows

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
