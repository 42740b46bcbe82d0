"""Whether a model's answers are the right ones."""

import collections
import re

from jaxalign.evaluate.statistics import bootstrap_mean, wilson
from jaxalign.rewards.code import UnitTests
from jaxalign.rewards.rules import exact_match, is_number, last_number, numeric_match


def match_answers(assistant, rows, *, seed=0):
    """How prompts are answered against what their `answer` says, in the chat format.

    An answer that is a number is compared as one: a response that works it out is right, and never the same text.

    Args:
      assistant: an `Assistant`, which answers at temperature 0, or a `BestOf`.
      rows: `Prompt`s with an answer.
    Returns:
      {"exact_match", "word_f1", "numeric_match", "answers_ended"}, each {"value", "n", "ci95"}, without those of n = 0.
      The first two are over the answers that are more than a number, numeric match over those that hold one; the last
      counts answers that ended by themselves: one that ran out of `max_new_tokens` is not numerically right. Intervals
      are Wilson's, of `word_f1` bootstrapped.
    """
    texts, ended = assistant.answers([row.messages for row in rows], seed=seed)
    asked = [row.messages[-1]["content"] for row in rows]
    worded = [(prompt, text, row.answer) for prompt, text, row in zip(asked, texts, rows)
              if not is_number(row.answer)]
    exact = [exact_match(*each) for each in worded]
    numeric = [end and numeric_match(prompt, text, row.answer) for prompt, text, row, end
               in zip(asked, texts, rows, ended) if last_number(row.answer) is not None]
    figures = {"exact_match": share(exact), "word_f1": _mean([word_f1(text, answer) for _, text, answer in worded]),
               "numeric_match": share(numeric), "answers_ended": share(ended)}
    return {name: figure for name, figure in figures.items() if figure["n"]}


def word_f1(response, answer):
    """Harmonic mean of precision and recall of the answer's words (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1;
    articles count here, as nothing is known of the language)."""
    said, wanted = (collections.Counter(re.findall(r"\w+", text.lower())) for text in (response, answer))
    common = (said & wanted).total()
    return 2.0 * common / (said.total() + wanted.total()) if common else 0.0


def pass_tests(assistant, rows, *, seed=0):
    """{"tests_passed"}: the share of programs that pass all tests of their row, run as `rewards.code` says.

    Args: as `match_answers`; the answer is a row's tests, as the shape `mbpp` gives them.
    """
    judge = UnitTests()
    texts, _ = assistant.answers([row.messages for row in rows], seed=seed)
    return {"tests_passed": share(judge(texts, [row.answer for row in rows]))}


def _mean(values):
    value, *interval = bootstrap_mean(values) if values else (0.0, 0.0, 0.0)
    return {"value": value, "n": len(values), "ci95": tuple(interval)}


def share(values):
    """A share of true values as {"value", "n", "ci95"}."""
    count, n = float(sum(values)), len(values)
    return {"value": count / max(n, 1), "n": n, "ci95": wilson(count, n)}
