"""t04: the assistant mask is silently all ones or all zeros, or guessed from ids (padding may equal end-of-turn)."""

import pathlib

import numpy as np
import pytest

from jaxalign.data.chat import Template, render
from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import DataError

MODEL = pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model"
TOKENIZER = Tokenizer.load(MODEL)
TALKS = [{"messages": [{"role": "user", "content": "fox " * i + "?"}, {"role": "assistant", "content": "river"}]}
         for i in range(1, 9)]


def padded_with_end_of_turn():
    """SmolLM2's case: one id both pads and ends a turn."""
    tokenizer = Tokenizer.load(MODEL)
    tokenizer.pad_id = tokenizer.end_id
    return tokenizer


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_t04_padding_that_equals_the_end_of_turn_changes_no_mask(packing):
    options = {"kind": "tokens", "batch_size": 8, "length": 40, "packing": packing, "repeat": False}
    source = {"records": TALKS, "shape": "messages"}
    for one, other in zip(batches(source, TOKENIZER, **options), batches(source, padded_with_end_of_turn(), **options)):
        for name in ("mask_BT", "segment_ids_BT", "positions_BT"):
            assert np.array_equal(one[name], other[name])
        assert other["mask_BT"].sum() > 0
        assert not other["mask_BT"][other["segment_ids_BT"] == 0].any()
        real = one["segment_ids_BT"] > 0
        assert np.array_equal(one["targets_BT"][real], other["targets_BT"][real])
        counted = (other["targets_BT"] == TOKENIZER.end_id) & (other["mask_BT"] > 0)
        assert counted.sum() == (one["targets_BT"][one["mask_BT"] > 0] == TOKENIZER.end_id).sum() > 0


def test_t04_the_same_words_count_only_where_the_assistant_says_them():
    words = {"content": "Paris fox"}
    ids, mask = render([{"role": "user", **words}, {"role": "assistant", **words}, {"role": "tool", **words},
                        {"role": "assistant", **words, "train": False}], TOKENIZER)
    text = TOKENIZER.encode("Paris fox")
    assert sum(mask) == len(text) + 1 and ids.count(text[0]) >= 4
    first = mask.index(1)
    assert ids[first:first + len(text)] == text and TOKENIZER.piece(ids[first - 1]) == "<|assistant|>"


class AllOnes(Template):
    def start(self, tokenizer):
        return []

    def turn(self, message, tokenizer):
        ids = tokenizer.encode(message["content"])
        return ids, [1] * len(ids)


@pytest.mark.parametrize("messages, template, got", [
    ([{"role": "user", "content": "fox"}], Template(), "zeros only"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}], Template(),
     "zeros only"),
    (TALKS[0]["messages"], AllOnes(), "ones only"),
])
def test_t04_a_row_with_no_target_or_nothing_but_targets_is_refused(messages, template, got):
    source = {"records": [{"messages": messages}], "shape": "messages"}
    with pytest.raises(DataError, match=got):
        batches(source, TOKENIZER, kind="tokens", batch_size=1, length=40, template=template)
    good = {"records": [{"messages": messages}, *TALKS], "shape": "messages"}
    skipped = batches(good, TOKENIZER, kind="tokens", batch_size=1, length=40, on_bad_row="skip",
                      template=template if got == "zeros only" else Template()).report
    assert len(skipped.bad) == (1 if got == "zeros only" else 0)
