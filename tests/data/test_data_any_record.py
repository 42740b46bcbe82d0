"""Whatever a record holds, it becomes rows or one clear error: every part of a good one is lost or replaced in turn."""

import copy

import pytest

from jaxalign.data.pipeline import batches
from jaxalign.data.shapes import SHAPES
from jaxalign.errors import DataError


def turn(role, content):
    return {"role": role, "content": content}


ASKED = [turn("user", "q"), turn("assistant", "a")]
GOOD = {
    "text": [{"text": "hello"}],
    "messages": [{"messages": [turn("system", "s"), *ASKED], "tools": [{"name": "f"}]},
                 {"messages": [turn("user", [{"type": "text", "text": "q"}]),
                               {"role": "assistant", "content": None, "tool_calls": [{"f": 1}]}]}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "c"},
                                    {"from": "observation", "value": "o"}, {"from": "gpt", "value": "a"}],
                  "system": "s", "tools": "[]"}],
    "alpaca": [{"instruction": "i", "input": "x", "output": "o", "system": "s"}],
    "prompt_response": [{"prompt": "i", "response": "o"}],
    "pairs": [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
              {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1},
              {"chosen": ASKED, "rejected": [*ASKED[:1], turn("assistant", "b")], "chosen_score": 1,
               "rejected_score": 0}],
    "rankings": [{"prompt": "p", "answers": ["a", "b", "c"], "ranks": [0, 1, 1]},
                 {"messages": ASKED[:1], "answers": [turn("assistant", "b"), [turn("assistant", "c")]],
                  "scores": [1, 2.5]}],
    "unpaired": [{"prompt": "p", "completion": "a", "label": True},
                 {"messages": ASKED, "label": 1}],
    "oasst_trees": [{"prompt": {"role": "prompter", "text": "q", "replies": [
        {"role": "assistant", "text": "a", "rank": 0, "replies": []},
        {"role": "assistant", "text": "b", "rank": 1, "replies": [{"role": "prompter", "text": "z"}]}]}}],
    "finegrained_qa": [{"question": "q", "passages": [["title", "one", "two"]], "preference": [0, 1, 2, 1, 1, 0]}
                       | {f"prediction {i}": str(i) for i in (1, 2, 3, 4)}],
    "prompts": [{"prompt": "p", "answer": 3}, {"messages": ASKED[:1]},
                {"instruction": "p", "input": "", "answer": "x"}],
    "gsm8k": [{"question": "q", "answer": "w #### 3"}],
    "mbpp": [{"text": "t", "test_list": ["assert f() == 1"], "test_setup_code": "x = 1"}],
    "svamp": [{"Body": "b", "Question": "q", "Answer": 3.0}],
}
LOST = object()
INSTEAD = [LOST, None, -1, float("nan"), True, "", "\n\nHuman:", [], {}, [None], [{}], {"role": []}, [1, 2]]


def kinds(shape):
    if shape in ("prompts", "gsm8k", "svamp", "mbpp"):
        return ["prompts"]
    if shape == "unpaired":
        return ["unpaired", "prompts", "tokens"]
    ranked = ("pairs", "rankings", "oasst_trees", "finegrained_qa")
    return ["rankings", "pairs", "prompts", "tokens"] if shape in ranked else ["tokens"]


def places(value, at=()):
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def changed(record, at, instead):
    if not at:
        return instead
    record = copy.deepcopy(record)
    holder = record
    for key in at[:-1]:
        holder = holder[key]
    if instead is LOST:
        del holder[at[-1]]
    else:
        holder[at[-1]] = instead
    return record


@pytest.mark.parametrize("shape", SHAPES)
def test_any_record_is_rows_or_a_data_error(tokenizer, shape):
    seen = 0
    for good in GOOD[shape]:
        records = [changed(good, at, instead) for at in places(good) for instead in INSTEAD
                   if at or instead is not LOST]
        for kind in kinds(shape):
            # Skipped, each is reported under its own number, whatever the reason.
            source = {"records": [good, *records], "shape": shape}
            made = batches(source, tokenizer, kind=kind, batch_size=1, length=64, repeat=False, on_bad_row="skip")
            assert {bad["line"] for bad in made.report.bad} <= set(range(2, len(records) + 2))
            assert made.report.rows > 0 and made.report.bad
            seen += len(records)
            # And the first of them stops a run that does not skip.
            with pytest.raises(DataError, match=r"^records:\d+: expected "):
                batches(source, tokenizer, kind=kind, batch_size=1, length=64, repeat=False)
    assert seen > 15
