"""t06: the mask is off by one, and the first answer token is lost."""

import pathlib

import numpy as np
import pytest

from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model")
ANSWERS = ["Paris.", "fox", "river by the hill", "19"]
HEADER = TOKENIZER.chat_ids["<|assistant|>"]


def check(tokens, targets, mask, segments):
    """At each header: its own target is the answer's first token and counts; the header itself, as target, does not."""
    headers = np.flatnonzero((tokens == HEADER) & (segments > 0))
    for at in headers:
        answer = [TOKENIZER.encode(a) for a in ANSWERS]
        assert mask[at] == 1 and targets[at] in {a[0] for a in answer}
        assert mask[at - 1] == 0 and targets[at - 1] == HEADER
        end = at + int(np.argmax(targets[at:] == TOKENIZER.end_id))
        assert mask[at:end + 1].all() and targets[at:end].tolist() in answer
        assert end + 1 == len(mask) or mask[end + 1] == 0
    return len(headers)


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_t06_the_first_answer_token_counts_and_the_last_prompt_token_does_not(packing):
    source = {"records": [{"prompt": f"q {i}", "answer": a} for i, a in enumerate(ANSWERS)], "shape": "prompt_response"}
    found = 0
    for batch in batches(source, TOKENIZER, kind="tokens", batch_size=2, length=64, packing=packing, repeat=False):
        for row in zip(*(batch[f"{n}_BT"] for n in ("tokens", "targets", "mask", "segment_ids"))):
            found += check(*row)
    assert found == len(ANSWERS)


@pytest.mark.parametrize("truncate, length", [("right", 64), ("left", 28)])
def test_t06_nor_in_rankings_nor_after_a_cut(truncate, length):
    source = {"records": [{"prompt": "fox " * 6, "answers": ANSWERS, "ranks": [0, 1, 2, 3]}], "shape": "rankings"}
    iterator = batches(source, TOKENIZER, kind="rankings", batch_size=1, length=length, truncate=truncate)
    batch = next(iterator)
    rows = zip(*(batch[f"{n}_BRT"][0] for n in ("tokens", "targets", "mask", "segment_ids")))
    assert sum(check(*row) for row in rows) == len(ANSWERS)
    assert bool(iterator.report.truncated["left"]) == (truncate == "left")
