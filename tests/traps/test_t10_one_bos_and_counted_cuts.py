"""t10: double BOS or EOS; the truncation mode is ignored."""

import pathlib

import numpy as np
import pytest

from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import DataError

TOKENIZER = Tokenizer.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model")
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
SPELLED = "<s>fox</s>"  # a text that already spells the special tokens
KINDS = {
    "text": ("tokens", {"text": SPELLED}),
    "messages": ("tokens", {"messages": [{"role": "user", "content": SPELLED},
                                         {"role": "assistant", "content": SPELLED},
                                         {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    "pairs": ("pairs", {"prompt": SPELLED, "chosen": SPELLED, "rejected": "river"}),
    "rankings": ("rankings", {"prompt": SPELLED, "answers": [SPELLED, "river"], "ranks": [0, 1]}),
    "prompts": ("prompts", {"prompt": SPELLED}),
}


@pytest.mark.parametrize("shape", KINDS)
def test_t10_exactly_one_of_each(shape):
    kind, record = KINDS[shape]
    batch = next(batches({"records": [record], "shape": shape}, TOKENIZER, kind=kind, batch_size=1, length=128,
                         repeat=False))
    tokens = batch.get("tokens_BT", batch.get("tokens_BRT", batch.get("tokens_BP"))).reshape(-1, 128)
    targets = batch.get("targets_BT", batch.get("targets_BRT", tokens)).reshape(-1, 128)
    for row, target in zip(tokens, targets):
        assert (row == BOS).sum() == 1 and row[np.argmax(row != TOKENIZER.pad_id)] == BOS
        # </s> ends a document, once; a conversation has an end of turn instead, one a turn
        assert (target == EOS).sum() == (shape == "text") and (row == EOS).sum() == 0
        if kind != "prompts":
            assert (target == TOKENIZER.end_id).sum() == {"text": 0, "messages": 4}.get(shape, 2)


CHAT = {"prompt": "start fox " * 4, "answer": "river end " * 4}
IDS = len(TOKENIZER.encode(CHAT["prompt"])) + len(TOKENIZER.encode(CHAT["answer"])) + 5


@pytest.mark.parametrize("side", ["right", "left"])
def test_t10_what_is_cut_is_on_the_side_asked_for_and_counted(side):
    length = IDS - 6  # the row reads one id fewer than it spans, so five are cut
    source = {"records": [CHAT, {"prompt": "a", "answer": "b"}], "shape": "prompt_response"}
    iterator = batches(source, TOKENIZER, kind="tokens", batch_size=2, length=length, truncate=side, packing="none",
                       shuffle=False)
    batch = next(iterator)
    row = [*batch["tokens_BT"][0].tolist(), int(batch["targets_BT"][0, -1])]
    whole = [BOS, TOKENIZER.chat_ids["<|user|>"], *TOKENIZER.encode(CHAT["prompt"]), TOKENIZER.end_id,
             TOKENIZER.chat_ids["<|assistant|>"], *TOKENIZER.encode(CHAT["answer"]), TOKENIZER.end_id]
    assert len(whole) == IDS and row == (whole[:-5] if side == "right" else [BOS, *whole[6:]])
    assert iterator.report.truncated == {"left": 0, "right": 0, side: 1} and iterator.report.cut_tokens == 5
    assert "truncated" in iterator.report.summary() and "(5 tokens cut)" in iterator.report.summary()


def test_t10_no_cut_is_made_where_none_is_allowed():
    with pytest.raises(DataError, match=rf"records:1: expected at most {IDS - 5} tokens, got {IDS}"):
        batches({"records": [CHAT], "shape": "prompt_response"}, TOKENIZER, kind="tokens", batch_size=1,
                length=IDS - 6, truncate="error")
    whole = batches({"records": [CHAT], "shape": "prompt_response"}, TOKENIZER, kind="tokens", batch_size=1,
                    length=IDS - 1, truncate="error")
    assert whole.report.cut_tokens == 0 and "truncated" not in whole.report.summary()
