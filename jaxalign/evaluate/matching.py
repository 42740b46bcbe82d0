"""Whether a model's answers are the right ones."""

from jaxalign.evaluate.statistics import wilson
from jaxalign.rewards.code import UnitTests
from jaxalign.rewards.rules import exact_match, last_number, numeric_match


def match_answers(assistant, rows, *, seed=0):
    """Shares of prompts that are answered as their `answer` says, in the chat format.

    Args:
      assistant: an `Assistant`, which answers at temperature 0, or a `BestOf`.
      rows: `Prompt`s with an answer.
    Returns:
      {"exact_match", "numeric_match", "answers_ended"}, each {"value", "n", "ci95"}, Wilson's intervals. The second is
      over the prompts whose answer holds a number; the third counts answers that ended by themselves: an answer that
      ran out of `max_new_tokens` is not numerically right.
    """
    texts, ended = assistant.answers([row.messages for row in rows], seed=seed)
    asked = [row.messages[-1]["content"] for row in rows]
    exact = [exact_match(*each) for each in zip(asked, texts, (row.answer for row in rows))]
    numeric = [end and numeric_match(prompt, text, row.answer) for prompt, text, row, end
               in zip(asked, texts, rows, ended) if last_number(row.answer) is not None]
    figures = {"exact_match": share(exact), "numeric_match": share(numeric), "answers_ended": share(ended)}
    return {name: figure for name, figure in figures.items() if figure["n"]}


def pass_tests(assistant, rows, *, seed=0):
    """{"tests_passed"}: the share of programs that pass all tests of their row, run as `rewards.code` says.

    Args: as `match_answers`; the answer is a row's tests, as the shape `mbpp` gives them.
    """
    judge = UnitTests()
    texts, _ = assistant.answers([row.messages for row in rows], seed=seed)
    return {"tests_passed": share(judge(texts, [row.answer for row in rows]))}


def share(values):
    """A share of true values as {"value", "n", "ci95"}."""
    count, n = float(sum(values)), len(values)
    return {"value": count / max(n, 1), "n": n, "ci95": wilson(count, n)}
