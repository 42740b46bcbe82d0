"""The scorers of reasoning-gym on rows as a file holds them."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import ConfigError
from jaxalign.rewards import REWARDS
from jaxalign.rewards.reasoning import ReasoningScore, create, pack, unpack
from jaxalign.rewards.run import Rewards
from jaxalign.stages import default_config, train_stage
from jaxalign.stages.reasoning import APART, problems

installed = pytest.mark.skipif(not importlib.util.find_spec("reasoning_gym"), reason="needs the extra `reasoning`")
quiet = pytest.mark.filterwarnings("ignore")
# Among them: tuples and integer keys in what is stored, scorers that read their options, and one without an answer.
TASKS = {"chain_sum": dict(min_terms=2, max_terms=3), "arc_1d": {}, "graph_color": {}, "knights_knaves": {},
         "sudoku": {}, "polynomial_equations": {},
         "decimal_arithmetic": dict(min_num_decimal_places=1, max_num_decimal_places=2),
         "arc_agi": {}, "puzzle24": dict(max_value=6), "propositional_logic": {}, "countdown": {}}


def test_what_is_packed_comes_back_equal():
    value = {"a": (1, (2.5, [None, True]), "é"), "b": {1: ("x",), (0, 1): {}},
             "c": {"__tuple__": [1], "d": "__pairs__"}}
    text = pack(value)
    assert isinstance(text, str) and unpack(text) == value
    assert isinstance(unpack(text)["a"], tuple) and isinstance(unpack(text)["a"][1][1], list)


@installed
@quiet
@pytest.mark.parametrize("task", TASKS)
def test_a_row_scores_as_its_entry_does(task):
    options = TASKS[task]
    dataset = create(task, seed=3 * APART, size=3, **options)
    rows = [json.loads(json.dumps(row)) for row in problems(task, 3, 3, options)]
    partial, full = ReasoningScore(credit="partial"), ReasoningScore()
    right = 0
    for entry, row in zip(dataset, rows):
        for said in (str(entry["answer"]), "1", f"{entry['answer']}0", "8 + 8 + 8 * 1", "no"):
            try:
                expected = dataset.score_answer(said, entry)
            except Exception as error:
                with pytest.raises(type(error)):
                    partial(said, row)
                continue
            assert partial(said, row) == expected
            assert full(said, row) == float(expected == 1.0)
            right += expected == 1.0
    assert right >= 3 or rows[0]["answer"] is None


@installed
@quiet
def test_a_score_counts_as_right_only_at_one():
    row, = problems("chain_sum", 0, 1, {})
    hedged = f"{row['answer']} or {int(row['answer']) + 1}"
    assert 0 < ReasoningScore(credit="partial")(hedged, row) < 1 and ReasoningScore()(hedged, row) == 0.0
    assert ReasoningScore()(f" {row['answer']}\n", row) == 1.0
    assert ReasoningScore()(rf"Well, \boxed{{{row['answer']}}}, I think.", row) == 1.0
    assert ReasoningScore()(f"<answer>{row['answer']}</answer>", row) == 1.0
    with pytest.raises(ConfigError, match="credit='half'"):
        ReasoningScore(credit="half")


@installed
@quiet
def test_a_row_of_another_source_is_counted_as_failed_and_says_how_to_leave_it_out():
    rows = [*problems("chain_sum", 0, 1, {}), {"prompt": "Hello", "answer": "Hi"}]
    said = []
    total, figures = Rewards([dict(name="reasoning_gym")], REWARDS)(rows, [rows[0]["answer"], "Hi"], np.ones(2, bool),
                                                                    said.append)
    assert total.tolist() == [1.0, 0.0] and figures["reward/reasoning_gym/failed"] == 1.0
    assert len(said) == 1 and "config.reward_kinds" in said[0]


def test_without_the_extra_it_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[reasoning\]'"):
        Rewards([dict(name="reasoning_gym")], REWARDS)


@installed
@quiet
def test_what_the_stage_writes_is_what_the_reward_reads(tmp_path):
    config = default_config("reasoning")
    config.update(dict(task="countdown", sft=0, train=6, dev=4))
    train_stage(config, tmp_path)
    assert (tmp_path / "sft.jsonl").read_text() == ""
    tokenizer = Tokenizer.load(str(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model"))
    source = {"path": str(tmp_path / "train.jsonl"), "shape": "prompts"}
    rows = next(iter(batches(source, tokenizer, kind="prompts", batch_size=4, length=64)))["rows"]
    said = [row["answer"] for row in rows]
    total, figures = Rewards([dict(name="reasoning_gym")], REWARDS)(rows, said, np.ones(4, bool), print)
    assert total.tolist() == [1.0] * 4 and figures["reward/reasoning_gym/failed"] == 0
    config.update(dict(task="rubiks_cube", sft=2))
    with pytest.raises(ConfigError, match="rubiks_cube has no answers to imitate, only a verifier; set sft=0"):
        train_stage(config, tmp_path)
