"""t08, the data's side: in a packed row each document has its own segment and positions; no target crosses a border."""

import pathlib

import numpy as np

from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model")
TEXTS = [f"fox {i} " + "river " * (i % 9) for i in range(60)]


def documents(packing):
    """(inputs, targets, mask) of every segment, after checking that positions count from 0 within it."""
    found, most = [], 0
    for batch in batches({"records": [{"text": t} for t in TEXTS], "shape": "text"}, TOKENIZER, kind="tokens",
                         batch_size=4, length=96, packing=packing, repeat=False):
        for row in range(4):
            segments = batch["segment_ids_BT"][row]
            assert (np.diff(segments[segments > 0]) >= 0).all() and set(segments[segments > 0]) == set(
                range(1, segments.max() + 1))
            for segment in range(1, segments.max() + 1):
                at = np.flatnonzero(segments == segment)
                assert np.array_equal(at, np.arange(at[0], at[0] + len(at)))
                assert np.array_equal(batch["positions_BT"][row, at], np.arange(len(at)))
                found.append(tuple(tuple(batch[f"{n}_BT"][row, at].tolist()) for n in ("tokens", "targets", "mask")))
            most = max(most, segments.max())
    return sorted(found), most


def test_t08_packed_rows_hold_the_documents_of_unpacked_rows_and_nothing_across_their_borders():
    packed, together = documents("best_fit")
    unpacked, alone = documents("none")
    assert packed == unpacked and together > 3 and alone == 1
    for tokens, targets, _ in packed:
        assert tokens[1:] == targets[:-1]
        assert tokens[0] == TOKENIZER.bos_id and targets[-1] == TOKENIZER.eos_id
        assert TOKENIZER.bos_id not in targets  # a target across a border would be the next document's first token
