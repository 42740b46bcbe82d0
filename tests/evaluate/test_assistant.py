"""What an assistant is asked for reaches the engine that draws."""

import types

import numpy as np
import pytest
from tiny_models import documents, split

from jaxalign.evaluate.assistant import Assistant

PROMPTS = documents((3, 5), seed=5)


@pytest.fixture(scope="module")
def assistant():
    tokenizer = types.SimpleNamespace(stop_ids=(4,), pad_id=0, decode=lambda ids: "".join(chr(97 + i) for i in ids))
    return Assistant(*split(), tokenizer, max_new_tokens=8, batch_size=8)


def drawn(rollouts):
    return rollouts.tokens[rollouts.mask > 0]


def test_n_answers_to_each_prompt_stand_together(assistant):
    got = assistant.generate(PROMPTS, n=3)
    assert got.tokens.shape == (6, 8) and len({tuple(row) for row in got.tokens[:3].tolist()}) == 3
    greedy = assistant.generate(PROMPTS, n=3, temperature=0.0).tokens
    assert np.array_equal(greedy, assistant.generate(PROMPTS, temperature=0.0).tokens.repeat(3, axis=0))


def test_limits_stop_strings_and_forbidden_tokens(assistant):
    whole = assistant.generate(PROMPTS, temperature=0.0)
    assert assistant.generate(PROMPTS, max_new_tokens=2).tokens.shape == (2, 2)
    ids = whole.tokens[0, :int(whole.mask[0].sum())].tolist()
    assert len(ids) > 2
    stopped = assistant.generate(PROMPTS, temperature=0.0, stop_strings=(assistant.tokenizer.decode(ids[:2]),))
    assert stopped.reason[0] == "stop_string" and stopped.ids(0) == ids[:2]
    assert not np.isin(drawn(assistant.generate(PROMPTS, temperature=0.0, forbidden=tuple(ids))), ids).any()


@pytest.mark.parametrize("narrow", [dict(top_k=1), dict(top_p=1e-6), dict(min_p=1.0)])
def test_whatever_cuts_all_but_the_likeliest_draws_it(assistant, narrow):
    greedy = assistant.generate(PROMPTS, temperature=0.0)
    hot = assistant.generate(PROMPTS, temperature=5.0)
    assert np.array_equal(drawn(assistant.generate(PROMPTS, temperature=5.0, **narrow)), drawn(greedy))
    assert not np.array_equal(drawn(hot), drawn(greedy))
