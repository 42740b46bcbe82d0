"""Which answers are the right ones: word for word, by their numbers, by their words."""

import pytest

from jaxalign.data.rows import Prompt
from jaxalign.evaluate.matching import match_answers, word_f1
from jaxalign.rewards.rules import is_number


def asked(*answers):
    return [Prompt("here", 1, [{"role": "user", "content": "What?"}], answer) for answer in answers]


def test_answers_are_compared_as_texts_and_as_numbers():
    rows = asked("the fox", "12", "#### 1200", "7", "8", "9")
    texts = ["The Fox.", "it is 12", "I say 1,200", "7.", r"so \boxed{8}", "9"]
    figures = match_answers(rows, texts, [True] * 5 + [False])
    assert {name: (figure["value"], figure["n"]) for name, figure in figures.items()} == {
        "exact_match": (3 / 6, 6), "word_f1": (1.0, 1), "numeric_match": (4 / 5, 5), "answers_ended": (5 / 6, 6)}


def test_what_no_answer_has_is_no_figure():
    assert set(match_answers(asked("the fox"), ["no"], [True])) == {"exact_match", "word_f1", "answers_ended"}
    assert set(match_answers(asked("7"), ["no"], [True])) == {"exact_match", "numeric_match", "answers_ended"}


@pytest.mark.parametrize(("response", "answer", "f1"), [
    ("The Fox is red.", "the fox, is red", 1.0), ("a fox", "the river", 0.0), ("", "the river", 0.0),
    ("red red fox", "red fox fox fox", 4 / 7)])  # 2 in common of 3 and 4: 2 · (2/3 · 2/4) / (2/3 + 2/4)
def test_the_f1_of_words(response, answer, f1):
    assert word_f1(response, answer) == pytest.approx(f1)


@pytest.mark.parametrize(("text", "number"), [
    ("42", True), (" -1,200.5. ", True), ("$3", True), ("40%", True), ("so it is\n#### 7", True), (r"\boxed{−8}", True),
    ("7 apples", False), ("29+16: 9+6=15, so 45.", False), ("1969 and 1970", False), ("", False), ("none", False)])
def test_which_answers_are_numbers(text, number):
    assert is_number(text) == number
