"""Whether a model's answers are the right ones."""

import collections
import re

from jaxalign.evaluate.statistics import bootstrap_mean, wilson
from jaxalign.rewards.rules import exact_match, is_number, last_number, numeric_match


def match_answers(rows, texts, ended):
    """How prompts were answered against what their `answer` says.

    A number is compared as one too: a response that works it out is right, and the same text only where it marks it.

    Args:
      rows: `Prompt`s with an answer.
      texts, ended: what each was answered, and whether that ended by itself.
    Returns:
      {"exact_match", "word_f1", "numeric_match", "answers_ended"}, each {"value", "n", "ci95"}, without those of n = 0.
      The first is over all answers, F1 over those that are more than a number, numeric match over those that hold one;
      the last counts answers that ended by themselves: one that ran out of `max_new_tokens` matches neither exactly nor
      numerically. Intervals are Wilson's, of `word_f1` bootstrapped.
    """
    said = [(row.messages[-1]["content"], text, row.answer, end) for row, text, end in zip(rows, texts, ended)]
    exact = [end and exact_match(*each) for *each, end in said]
    numeric = [end and numeric_match(*each) for *each, end in said if last_number(each[-1]) is not None]
    f1 = [word_f1(text, answer) for _, text, answer, _ in said if not is_number(answer)]
    figures = {"exact_match": share(exact), "word_f1": _mean(f1), "numeric_match": share(numeric),
               "answers_ended": share(ended)}
    return {name: figure for name, figure in figures.items() if figure["n"]}


def word_f1(response, answer):
    """Harmonic mean of precision and recall of the answer's words (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1;
    articles count here, as nothing is known of the language)."""
    said, wanted = (collections.Counter(re.findall(r"\w+", text.lower())) for text in (response, answer))
    common = (said & wanted).total()
    return 2.0 * common / (said.total() + wanted.total()) if common else 0.0


def pass_tests(rows, texts, judge):
    """{"tests_passed"}: the share of programs that pass all tests of their row, run as `rewards.code` says.

    Args: as `match_answers`; the answer is a row's tests, as the shape `mbpp` gives them. `judge`: a `UnitTests`.
    """
    return {"tests_passed": share(judge(texts, [row.answer for row in rows]))}


def _mean(values):
    value, *interval = bootstrap_mean(values) if values else (0.0, 0.0, 0.0)
    return {"value": value, "n": len(values), "ci95": tuple(interval)}


def share(values):
    """A share of true values as {"value", "n", "ci95"}."""
    count, n = float(sum(values)), len(values)
    return {"value": count / max(n, 1), "n": n, "ci95": wilson(count, n)}
