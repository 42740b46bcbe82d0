"""Mathematical equality of answers, judged by math-verify."""

from jaxalign.errors import ConfigError, get_extra
from jaxalign.rewards.rules import final_answer


class MathEquivalence:
    r"""1 where math-verify finds the response's answer equal to the expected one, else 0: 1/2 = 0.5 = \frac{2}{4}.

    The response is read as math-verify reads it: a `\boxed{…}` first, then other LaTeX, then plain numbers; of one that
    marks its answer in another way (`final_answer`) that part only. What it finds nothing in is wrong; an expected
    answer that it cannot read is a fault of the row and raises.

    Needs the extra `math`. Its own timeouts are off, as they share the alarm signal with ours (`deadline.py`).
    """

    def __init__(self):
        try:
            import math_verify  # here, as only this reward needs the extra
            from math_verify import grader, parser
        except ImportError as error:
            raise ConfigError(f'reward "math": needs the package math-verify; {get_extra("math")}') from error
        # It warns that whoever turns its timeouts off must have others. There are others.
        parser.TIMEOUT_WARNING_SHOWN = grader.TIMEOUT_WARNING_SHOWN = True
        self._parse, self._verify = math_verify.parse, math_verify.verify

    def __call__(self, response, answer):
        marked = final_answer(answer)
        # Inside a box all of it is read as one expression; a bare x^2 would be searched for numbers.
        expected = self._parse(rf"\boxed{{{answer if marked is None else marked}}}", parsing_timeout=None)
        if not expected:
            raise ValueError(f"math-verify cannot read the expected answer {answer!r}")
        said = final_answer(response)
        got = self._parse(response if said is None or r"\boxed" in response else said, parsing_timeout=None)
        return float(self._verify(expected, got, timeout_seconds=None))
