"""Every data shape, from a record as published to rows."""

import json
import math
import pathlib
import re

import pytest

from jaxalign.data import preferences
from jaxalign.data.intake import as_chat, as_prompt, check_sources, read_rows, texts_of
from jaxalign.data.rows import Chat, Prompt, Ranking, Text, Unpaired, pairs_of
from jaxalign.data.shapes import FIELDS, SHAPES
from jaxalign.errors import ConfigError, DataError


def rows(shape, *records, **source):
    return list(read_rows(check_sources({"records": list(records), "shape": shape, **source})[0]))


def said(messages):
    return [(m["role"], m["content"]) for m in messages]


def test_text():
    row, = rows("text", {"text": "once"})
    assert isinstance(row, Text) and row.text == "once" and row.line == 1


@pytest.mark.parametrize("shape, record, expected", [
    ("messages", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
     [("user", "a"), ("assistant", "b")]),
    ("messages", {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]},
                               {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]},
     [("system", "a"), ("function_call", '[{"name": "f"}]')]),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, [("user", "a"), ("assistant", "b")]),
    ("alpaca", {"instruction": "a", "input": "i", "response": "b"}, [("user", "a\n\ni"), ("assistant", "b")]),
    ("prompt_response", {"prompt": "a", "response": "b"}, [("user", "a"), ("assistant", "b")]),
    ("prompt_response", {"question": "a", "answer": "b", "system": "s"},
     [("system", "s"), ("user", "a"), ("assistant", "b")]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f"},
                                    {"from": "observation", "value": "o"}, {"from": "gpt", "value": "b"}],
                  "system": "s", "tools": '[{"name": "f"}]'},
     [("system", 's\n\nTools:\n[{"name": "f"}]'), ("user", "a"), ("function_call", "f"), ("observation", "o"),
      ("assistant", "b")]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"},
     [("user", "a"), ("assistant", "b")]),
])
def test_conversations(shape, record, expected):
    row, = rows(shape, record)
    assert isinstance(row, Chat) and said(row.messages) == expected


def test_turns_that_are_no_targets_keep_their_flag():
    row, = rows("messages", {"messages": [{"role": "user", "content": "a"},
                                          {"role": "assistant", "content": "b", "weight": 0},
                                          {"role": "assistant", "content": "c", "train": True}]})
    assert [m.get("train", True) for m in row.messages] == [True, False, True]


@pytest.mark.parametrize("record, prompt, chosen, rejected, margin", [
    ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
      "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"},
     [("user", "a"), ("assistant", "b"), ("user", "c")], [("assistant", "d")], [("assistant", "e")], 0),
    ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",  # they part before the last turn
      "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: z"},
     [("user", "a")], [("assistant", "b"), ("user", "c"), ("assistant", "d")],
     [("assistant", "x"), ("user", "y"), ("assistant", "z")], 0),
    ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "d"},
      "rejected": {"from": "gpt", "value": "e"}, "chosen_score": 4, "rejected_score": 1.5},
     [("user", "a")], [("assistant", "d")], [("assistant", "e")], 2.5),
    ({"instruction": "a", "input": "i", "output": "d", "chosen": "d", "rejected": "e", "margin": 3},
     [("user", "a\n\ni")], [("assistant", "d")], [("assistant", "e")], 3),
    ({"prompt": "a", "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "d"}],
      "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "e"}]},
     [("user", "a")], [("assistant", "d")], [("assistant", "e")], 0),
    ({"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "d"}],
      "rejected": [{"role": "assistant", "content": "e"}]},
     [("user", "a")], [("assistant", "d")], [("assistant", "e")], 0),
])
def test_pairs(record, prompt, chosen, rejected, margin):
    row, = rows("pairs", record)
    assert said(row.messages) == prompt
    assert [said(a) for a in row.answers] == [chosen, rejected]
    assert pairs_of(row) == [(0, 1, margin)] and row.ranks == [0, 1]


def test_rankings_from_ranks_or_scores():
    row, = rows("rankings", {"prompt": "q", "answers": ["a", "b", "c"], "ranks": [5, 2, 5]})
    assert row.ranks == [1, 0, 1] and said(row.messages) == [("user", "q")]
    assert pairs_of(row) == [(1, 0, 1.0), (1, 2, 1.0)]
    row, = rows("rankings", {"messages": [{"role": "user", "content": "q"}], "answers": ["a", "b"],
                             "scores": [0.5, 0.75]})
    assert row.ranks == [1, 0]


@pytest.mark.parametrize("record, fields, prompt, liked", [
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True}, {},
     [("user", "q")], True),
    ({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"},
                   {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": 0}, {},
     [("user", "p"), ("assistant", "b"), ("user", "q")], False),
    ({"prompt": "q", "completion": "a", "label": False}, {}, [("user", "q")], False),
    ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}], "thumb": 1},
     {"label": "thumb"}, [("user", "q")], True),
])
def test_unpaired(record, fields, prompt, liked):
    row, = rows("unpaired", record, fields=fields)
    assert isinstance(row, Unpaired) and row.desirable is liked
    assert said(row.messages) == prompt and said(row.answer) == [("assistant", "a")]


def test_oasst_trees_give_a_row_for_every_ranked_prompt():
    def node(role, text, rank=None, *replies):
        return {"role": role, "text": text, "rank": rank, "replies": list(replies)}

    tree = node("prompter", "q", None, node("assistant", "a", 1), node("assistant", "unranked"), node(
        "assistant", "b", 0, node("prompter", "q2", None, node("assistant", "c", 0), node("assistant", "d", 1))))
    first, second = rows("oasst_trees", {"prompt": tree})
    assert said(first.messages) == [("user", "q")] and first.ranks == [1, 0] and len(first.answers) == 2
    assert said(second.messages) == [("user", "q"), ("assistant", "b"), ("user", "q2")] and second.ranks == [0, 1]


def test_finegrained_qa_keeps_the_judged_pairs():
    record = {"question": "q?", "passages": [["Title", "One.", "Two."]], "preference": [0, 2, 1, 0, 1, 1],
              **{f"prediction {i}": str(i) for i in (1, 2, 3, 4)}}
    row, = rows("finegrained_qa", record)
    assert row.messages[0]["content"] == "One. Two.\n\nq?"
    assert pairs_of(row) == [(2, 0, 1.0), (0, 3, 1.0), (1, 3, 1.0), (2, 3, 1.0)]
    assert row.ranks == [2, 1, 0, 3]  # won: 1.5, 2, 2.5, 0
    row, = rows("finegrained_qa", record, fields={"passages": None})
    assert row.messages[0]["content"] == "q?"


@pytest.mark.parametrize("shape, record, prompt, answer", [
    ("prompts", {"prompt": "q", "answer": "a"}, "q", "a"),
    ("prompts", {"messages": [{"role": "user", "content": "q"}], "answer": 7.0}, "q", "7"),
    ("prompts", {"prompt": "q"}, "q", None),
    ("gsm8k", {"question": "q", "answer": "2+3 = <<2+3=5>>5\n#### 5"}, "q", "5"),
    ("svamp", {"Body": "Dan had $ 3 left", "Question": "How much?", "Answer": 4.0}, "Dan had $ 3 left. How much?", "4"),
])
def test_prompts_with_an_answer(shape, record, prompt, answer):
    row, = rows(shape, record)
    assert isinstance(row, Prompt) and said(row.messages) == [("user", prompt)] and row.answer == answer
    assert row.record == record


@pytest.mark.parametrize("shape, record, expected", [
    ("text", {"text": " "}, "non-empty text"),
    ("text", {"body": "x"}, "field 'text'"),
    ("text", {"text": 5}, "as str, got int"),
    ("alpaca", {"instruction": "a"}, "field 'output' or 'response'"),
    ("alpaca", {"instruction": " ", "output": "b"}, "non-empty prompt"),
    ("messages", {"messages": [{"role": "user"}]}, "'content' or 'value'"),
    ("messages", {"messages": ["hi"]}, "turn 0 as an object"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}], "tools": "{"}, "tools as JSON"),
    ("pairs", {"chosen": "a", "rejected": "a", "prompt": "q"}, "that differ"),
    ("pairs", {"chosen": "a", "rejected": " ", "prompt": "q"}, "'rejected' ending in a non-empty"),
    ("pairs", {"chosen": "a", "rejected": ["b"], "prompt": "q"}, "of one kind"),
    ("rankings", {"prompt": "q", "answers": ["a", "b"], "ranks": [1]}, "as many ranks"),
    ("rankings", {"prompt": "q", "answers": ["a"], "ranks": [1]}, "two or more answers"),
    ("rankings", {"prompt": "q", "answers": ["a", "b"], "ranks": ["x", 1]}, "as numbers"),
    ("oasst_trees", {"prompt": {"role": "prompter", "text": "q", "replies": []}}, "ranked replies"),
    ("finegrained_qa", {"question": "q", **{f"prediction {i}": "p" for i in (1, 2, 3, 4)}, "preference": [1]}, "six"),
    ("unpaired", {"prompt": "q", "completion": "a"}, "'label' as true or false, got None"),
    ("unpaired", {"prompt": "q", "completion": "a", "label": "up"}, "'label' as true or false"),
    ("unpaired", {"prompt": "q", "completion": " ", "label": True}, "'completion' ending in a non-empty"),
    ("unpaired", {"messages": [{"role": "assistant", "content": "a"}], "label": True}, "a prompt before the answer"),
    ("gsm8k", {"question": "q", "answer": "5"}, "####"),
    ("prompts", {"prompt": "  "}, "non-empty prompt"),
])
def test_a_wrong_record_says_what_was_expected(shape, record, expected):
    with pytest.raises(DataError, match=expected) as caught:
        rows(shape, record)
    assert caught.value.line == 1


def test_fields_can_be_renamed():
    row, = rows("alpaca", {"task": "a", "reply": "b"}, fields={"instruction": "task", "output": "reply"})
    assert said(row.messages) == [("user", "a"), ("assistant", "b")]
    row, = rows("messages", {"messages": [{"role": "Customer", "content": "a"}]},
                fields={"roles": {"Customer": "user"}})
    assert said(row.messages) == [("user", "a")]


def test_sources_are_checked_by_name():
    for source, expected in [({"path": "x", "shape": "alpacca"}, "did you mean 'alpaca'"),
                             ({"path": "x", "shape": "text", "wieght": 1}, "did you mean 'weight'"),
                             ({"shape": "text"}, "either 'path' or 'records'"),
                             ([1], "a data source is a dict such as .* got int 1"),
                             ({"path": 3, "shape": "text"}, "path=3; expected a path"),
                             ({"path": "x", "shape": "text", "limit": "x"}, "x: limit='x'; expected a whole number"),
                             ({"path": "x", "shape": "text", "limit": 0}, "limit=0; expected 1 or more"),
                             ({"path": "x", "shape": "text", "weight": math.nan}, "weight=nan; expected a number, 0"),
                             ({"path": "x", "shape": "text", "share": -1}, "share=-1; expected a number, 0 or above"),
                             ({"path": "x", "shape": "text", "holdout": 2}, "expected a share between 0 and 1"),
                             ({"path": "x", "shape": "text", "where": "kind"}, "where='kind'; expected a dict"),
                             ({"path": "x", "shape": "text", "fields": {"promt": "q"}}, "did you mean 'prompt'"),
                             ({"path": "x", "shape": "text", "fields": {"roles": "user"}}, "a dict of names")]:
        with pytest.raises(ConfigError, match=expected):
            check_sources(source)
    assert set(SHAPES) >= {"text", "messages", "alpaca", "prompt_response", "sharegpt", "pairs", "rankings", "prompts"}


def test_every_field_that_a_reader_picks_can_be_named():
    folder = pathlib.Path(preferences.__file__).parent
    code = "".join((folder / name).read_text() for name in ("shapes.py", "preferences.py", "turns.py"))
    picked = set(re.findall(r'pick\(record, fields, "(\w+)"', code)) | set(re.findall(r'fields.get\("(\w+)"', code))
    assert picked <= set(FIELDS) and len(picked) > 15


def test_rows_stand_in_for_the_kinds_that_need_less():
    ranking, = rows("rankings", {"prompt": "q", "answers": ["a", "b"], "ranks": [1, 0]})
    assert said(as_chat(ranking).messages) == [("user", "q"), ("assistant", "b")]
    assert isinstance(ranking, Ranking) and as_prompt(ranking).answer is None
    chat, = rows("alpaca", {"instruction": "q", "output": "a"})
    assert said(as_prompt(chat).messages) == [("user", "q")] and as_prompt(chat).answer == "a"
    with pytest.raises(DataError, match="an answer to learn"):
        as_chat(as_prompt(chat))
    up, down = rows("unpaired", *({"prompt": "q", "completion": "a", "label": label} for label in (True, False)))
    assert said(as_chat(up).messages) == [("user", "q"), ("assistant", "a")]
    assert said(as_prompt(down).messages) == [("user", "q")] and as_prompt(down).answer is None
    with pytest.raises(DataError, match="an answer worth learning, got one that was not liked"):
        as_chat(down)


def test_literal_end_markers_are_taken_off():
    row, = rows("prompt_response", {"prompt": "q", "answer": "Hawaii###eos_token###"}, strip_end="###eos_token###")
    assert row.messages[-1]["content"] == "Hawaii"
    assert list(texts_of({"records": [{"prompt": "q", "answer": "a"}], "shape": "prompt_response"})) == ["q", "a"]
    row, = rows("unpaired", {"prompt": "q", "completion": "a<eos>", "label": True}, strip_end="<eos>")
    assert said(row.answer) == [("assistant", "a")]
    source = {"records": [{"prompt": "q", "completion": "a", "label": 1}], "shape": "unpaired"}
    assert list(texts_of(source)) == ["q", "a"]


def test_mbpp_shows_one_test_and_keeps_them_all():
    tests = ["assert f(1) == 2", "assert f(2) == 3"]
    record = {"text": "Add one.", "code": "def f(n): return n + 1", "test_list": tests, "test_setup_code": "x = 1"}
    row, = rows("mbpp", record)
    assert said(row.messages) == [("user", "Add one.\n\nYour program must pass this test:\n\nassert f(1) == 2")]
    assert json.loads(row.answer) == {"tests": tests, "setup": "x = 1"} and row.record == record
    row, = rows("mbpp", {key: record[key] for key in ("text", "test_list")})
    assert json.loads(row.answer)["setup"] == ""
    for wrong in ({"test_list": []}, {"test_list": [1]}, {"text": " "}):
        with pytest.raises(DataError, match="a task and its tests as texts"):
            rows("mbpp", record | wrong)
