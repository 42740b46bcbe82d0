"""Rules on text: what is read as the answer, as a number, and the shape and length of a response."""

import json

import pytest

from jaxalign.errors import ConfigError
from jaxalign.rewards.rules import (FormatMatch, LengthWithin, exact_match, final_answer, last_number, numeric_match)


@pytest.mark.parametrize("text, expected", [
    ("5", 5), ("It is 5.", 5), ("2.50 each", 2.5), (".5", 0.5), ("-3", -3), ("−7", -7), ("$-5", -5),
    ("$1,000,000 now", 1e6),
    ("1,234.5", 1234.5), ("1,2,3", 3), ("16-7", 7), ("(4)-2", 2), ("3 - -2", -2), ("1e5", 1e5), ("6.02e23", 6.02e23),
    ("none", None), ("", None), ("A: 18", 18), ("50%", 50)])
def test_the_last_number(text, expected):
    assert last_number(text) == expected


@pytest.mark.parametrize("text, expected", [
    (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"), ("2+3=5\n#### 5\nThanks", "5"), ("#### 1 #### 2", "2"),
    (r"\boxed{1}, no: \boxed{2}", "2"), (r"\boxed{1} <answer> 4 </answer>", "4"),
    (r"<answer>4</answer> \boxed {1}", "1"),
    (r"\boxed{1", None), (r"\boxed{1} \boxed{2", "1"), (r"\fbox{3}", "3"), ("nothing", None), ("####", "")])
def test_what_is_marked_as_the_answer(text, expected):
    assert final_answer(text) == expected


@pytest.mark.parametrize("response, answer, right", [
    ("It makes 18.", "18", 1), ("It makes 18 of 20.", "18", 0), ("#### 18\nof 20", "18", 1),
    (r"\boxed{18} of 20", "18", 1),
    (r"18, so \boxed{20}", "18", 0), ("1,234", "1234.0", 1), ("18", "9 + 9 = 18\n#### 18", 1), ("", "18", 0),
    ("18", "", 0),
    (r"\boxed{eighteen} 18", "18", 0), ("18.0000001", "18", 1), ("18.001", "18", 0)])
def test_numbers_that_agree(response, answer, right):
    assert numeric_match("", response, answer) == right


@pytest.mark.parametrize("response, answer, right", [
    ("Paris", " paris. ", 1), ("It is Paris", "Paris", 0), (r"It is \boxed{Paris}", "Paris", 1),
    ("A\n#### Paris", "Paris", 1),
    ("<answer>New  York</answer>", "new york", 1), (r"\boxed{Rome} Paris", "Paris", 0)])
def test_texts_that_agree(response, answer, right):
    assert exact_match("", response, answer) == right


def test_a_format_is_of_the_whole_response():
    thinks = FormatMatch(pattern=r"<think>.*</think>\s*<answer>.*</answer>")
    assert thinks("\n<think>a\nb</think>\n<answer>4</answer> ") == 1.0
    assert thinks("Well: <think>a</think><answer>4</answer>") == thinks("<think>a</think>") == 0.0
    for pattern in ("(", 5):
        with pytest.raises(ConfigError, match="is no regular expression"):
            FormatMatch(pattern=pattern)


def test_length_costs_outside_its_bounds_only():
    short = LengthWithin(most=4, least=2)
    assert [short(" ".join("a" * n)) for n in range(11)] == [
        -1.0, -0.5, 0, 0, 0, -0.25, -0.5, -0.75, -1.0, -1.0, -1.0]
    assert LengthWithin(most=3, unit="characters")("abcd") == pytest.approx(-1 / 3)
    for wrong in (dict(most=0), dict(most=2, least=3), dict(most=2, least=-1), dict(most=2, unit="tokens")):
        with pytest.raises(ConfigError, match="length: "):
            LengthWithin(**wrong)


def test_answers_of_gsm8k_are_numbers(shared_data):
    """Each of the 7473 published answers is read, by its own reader, and no other number stands behind the mark."""
    from jaxalign.data.intake import check_sources, read_rows

    rows = [row for part in ("train", "dev") for row in read_rows(check_sources(
        {"path": shared_data / "verifiable" / f"gsm8k.{part}.jsonl", "shape": "gsm8k"})[0])]
    assert len(rows) == 7473
    for row in rows:
        assert last_number(row.answer) == float(row.answer.replace(",", ""))
        assert numeric_match("", row.record["answer"], row.answer) == 1.0


PUBLISHED_RIGHT = {"6b_finetuning": 286, "6b_verification": 515, "175b_finetuning": 458, "175b_verification": 742}


@pytest.mark.parametrize("model", PUBLISHED_RIGHT)
def test_gsm8k_solutions_of_models_are_judged_as_published(shared_data, model):
    """1319 solutions of each of four models, right and wrong ones: every verdict is the published label."""
    path = shared_data / "verifiable" / "gsm8k_example_model_solutions.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    labels = [bool(record[model]["is_correct"]) for record in records]
    judged = [numeric_match("", record[model]["solution"], record["ground_truth"]) == 1.0 for record in records]
    other = [number for number, (label, verdict) in enumerate(zip(labels, judged), 1) if label != verdict]
    assert len(records) == 1319 and sum(labels) == PUBLISHED_RIGHT[model]
    assert not other, f"agreement {1 - len(other) / len(labels):.4f}; other verdicts in lines {other[:5]}"
