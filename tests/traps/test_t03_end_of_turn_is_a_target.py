"""t03: the stop token lies outside the loss mask, and the model never learns to stop."""

import pathlib

import numpy as np
import pytest

from jaxalign.data.chat import render
from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model")
TALKS = [{"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "It is fox."},
                       {"role": "user", "content": "And?"}, {"role": "function_call", "content": "call"},
                       {"role": "tool", "content": "river"}, {"role": "assistant", "content": "Paris."}]}
         for i in range(12)]
RANKED = [{"prompt": f"What is {i}?", "answers": ["fox", "river", "Paris"], "ranks": [0, 1, 2]} for i in range(4)]


def test_t03_the_end_of_every_assistant_turn_is_in_the_mask():
    ids, mask = render(TALKS[0]["messages"], TOKENIZER)
    ends = [m for i, m in zip(ids, mask) if i == TOKENIZER.end_id]
    assert ends == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_t03_it_stays_there_in_batches(packing):
    source = {"records": TALKS, "shape": "messages"}
    ends = 0
    for batch in batches(source, TOKENIZER, kind="tokens", batch_size=4, length=256, packing=packing, repeat=False):
        at_end = (batch["targets_BT"] == TOKENIZER.end_id) & (batch["segment_ids_BT"] > 0)
        ends += int(batch["mask_BT"][at_end].sum())
        assert at_end.sum() == 2 * batch["mask_BT"][at_end].sum()
    assert ends == 3 * len(TALKS)


@pytest.mark.parametrize("kind", ["pairs", "rankings"])
def test_t03_it_is_the_last_token_of_every_compared_answer(kind):
    batch = next(batches({"records": RANKED, "shape": "rankings"}, TOKENIZER, kind=kind, batch_size=4, length=64))
    rows = batch["targets_BRT"].reshape(-1, 64), batch["mask_BRT"].reshape(-1, 64)
    for targets, mask in zip(*rows):
        assert targets[np.flatnonzero(mask)[-1]] == TOKENIZER.end_id


def test_t03_a_model_trained_on_the_batches_stops():
    """A table of which token follows which, counted with the loss mask alone, as maximum likelihood has it."""
    counts = np.zeros((TOKENIZER.vocab_size, TOKENIZER.vocab_size))
    for batch in batches({"records": TALKS, "shape": "messages"}, TOKENIZER, kind="tokens", batch_size=4, length=256,
                         repeat=False):
        np.add.at(counts, (batch["tokens_BT"], batch["targets_BT"]), batch["mask_BT"])
    token, said = TOKENIZER.encode("Paris.")[-1], []
    while token != TOKENIZER.end_id and len(said) < 20:
        assert counts[token].sum() > 0, "the model has never learned what follows here"
        token = int(counts[token].argmax())
        said.append(token)
    assert said[-1] == TOKENIZER.end_id
