"""t05: the mask is lost in a refactor. A rendering with its mask, token by token, written down once."""

import json
import pathlib

import numpy as np
import pytest

from jaxalign.data.chat import render
from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOKENIZER = Tokenizer.load(GOLDEN / "chat_tokenizer.model")
EXPECTED = json.loads((GOLDEN / "chat_rendering.json").read_text(encoding="utf-8"))


def test_t05_the_rendering_is_the_golden_one():
    ids, mask = render(EXPECTED["messages"], TOKENIZER)
    assert [[TOKENIZER.piece(i), m] for i, m in zip(ids, mask)] == EXPECTED["rendering"]


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_t05_so_is_the_row_of_the_batch(packing):
    source = {"records": [{"messages": EXPECTED["messages"]}], "shape": "messages"}
    batch = next(batches(source, TOKENIZER, kind="tokens", batch_size=1, length=256, packing=packing, repeat=False))
    real = batch["segment_ids_BT"][0] > 0
    rows = [[TOKENIZER.piece(t), int(m)] for t, m in zip(batch["targets_BT"][0][real], batch["mask_BT"][0][real])]
    assert rows == EXPECTED["rendering"][1:]
    assert TOKENIZER.piece(batch["tokens_BT"][0, 0]) == EXPECTED["rendering"][0][0]
    assert np.array_equal(batch["positions_BT"][0][real], np.arange(len(rows)))
