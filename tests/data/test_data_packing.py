"""Best-fit packing: nothing split, nothing lost, rows nearly full."""

import numpy as np
import pytest

from jaxalign.data.packing import best_fit, fill
from jaxalign.errors import DataError


@pytest.mark.parametrize("seed", range(5))
def test_every_document_lies_whole_in_its_row_and_none_overlap(seed):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.02, 500), 128)
    row, column, rows = best_fit(lengths, 128, rng.permutation(500))
    used = np.zeros((rows, 128), int)
    for length, r, c in zip(lengths, row, column):
        used[r, c:c + length] += 1
    assert used.max() == 1 and used.sum() == lengths.sum()
    assert np.all(np.diff(used, axis=1) <= 0)  # no hole before the padding
    assert fill(lengths, 128, rows) == pytest.approx(used.mean())


def test_the_tightest_row_is_taken():
    row, column, rows = best_fit([6, 7, 3, 4], 10)  # 7 and 6 open rows; 4 fits 6's exactly, 3 fits 7's exactly
    assert rows == 2 and row[0] == row[3] and row[1] == row[2]
    assert column.tolist() == [0, 0, 7, 6]


def test_it_is_no_worse_than_the_known_bound():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 101, 400)
    _, _, rows = best_fit(lengths, 100)
    assert rows <= 11 / 9 * np.ceil(lengths.sum() / 100) + 4


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(DataError, match="1 to 8 positions"):
        best_fit([3, 9], 8)
    assert best_fit([], 8)[2] == 0 and fill([], 8, 0) == 0.0
