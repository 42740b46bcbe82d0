"""Rewards that a rule can check: right answers, and the shape that a response should have."""

import math
import re

from jaxalign.errors import ConfigError

_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?"  # after a digit, a letter or a bracket it is a subtraction
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"  # a comma separates thousands, or else two numbers
    r"(?:[eE][-+]?\d+)?")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MARKED = re.compile(r"<answer>(.*?)</answer>|####((?:(?!####)[^\n])*)", re.DOTALL)


def final_answer(text):
    r"""What a text marks as its answer: the last of `\boxed{…}`, `<answer>…</answer>` and "#### …" to the end of its
    line, stripped; None where nothing is marked. A box that is never closed marks nothing."""
    found = [(match.start(), match[1] if match[1] is not None else match[2]) for match in _MARKED.finditer(text)]
    for match in _BOXED.finditer(text):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            found.append((match.start(), text[match.end():end - 1]))
    return max(found)[1].strip() if found else None


def last_number(text):
    """The last number in a text as a float, thousands separators dropped; None where there is none."""
    found = _NUMBER.findall(text.replace("−", "-"))
    return float(found[-1].replace(",", "")) if found else None


def is_number(text):
    """Whether a text, or what it marks as its answer, is a number alone, but for signs such as $ and a full stop."""
    return re.fullmatch(rf"[^\w.−-]*{_NUMBER.pattern}[^\w]*", _marked(text).strip().replace("−", "-")) is not None


def numeric_match(prompt: str, response: str, answer: str) -> float:
    r"""1 where the last numbers of response and answer are equal, else 0.

    Of a text that marks its final answer (`\boxed{…}`, `<answer>…</answer>`, GSM8K's "#### …") only that counts. A
    fraction is two numbers: for those, and for all that is not a number, there is `math`.
    """
    expected, got = (last_number(_marked(text)) for text in (str(answer), response))
    return float(expected is not None and got is not None and abs(expected - got) < 1e-6)


def exact_match(prompt: str, response: str, answer: str) -> float:
    """1 where response and answer are equal but for case, spaces and a final full stop; marked as in `numeric`."""
    def clean(text):
        return " ".join(_marked(text).lower().split()).rstrip(".")

    return float(clean(response) == clean(str(answer)))


def _marked(text):
    marked = final_answer(text)
    return text if marked is None else marked


class FormatMatch:
    r"""1 where the whole response, without the space around it, matches a regular expression, else 0.

    Args:
      pattern: in Python's syntax; "." stands for a line's end too. `<think>.*</think>\s*<answer>.*</answer>` is a
        common one. A search anywhere is ".*PATTERN.*".
    Raises:
      ConfigError: no regular expression.
    """

    def __init__(self, *, pattern):
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except (re.error, TypeError) as error:
            raise ConfigError(f"format: pattern={pattern!r} is no regular expression ({error})") from error

    def __call__(self, response):
        return float(self.pattern.fullmatch(response.strip()) is not None)


class LengthWithin:
    """Takes away what a response is too long or too short by, relative to the bound, 1 at most.

        r = 0                              least ≤ n ≤ most
        r = −min(1, (n − most) / most)     n > most
        r = −(least − n) / least           n < least

    n is the length of the text. Shaping by its tokens, up to the budget, is a setting of the stage and not here.

    Args:
      most, least: bounds, both allowed.
      unit: "words" (parted by space) or "characters".
    """

    def __init__(self, *, most, least=0, unit="words"):
        if unit not in ("words", "characters"):
            raise ConfigError(f"length: unit={unit!r}; expected 'words' or 'characters'")
        if not 0 <= least <= most or most < 1 or not math.isfinite(most):
            raise ConfigError(f"length: least={least}, most={most}; expected 0 ≤ least ≤ most, most at least 1")
        self.most, self.least, self.words = most, least, unit == "words"

    def __call__(self, response):
        n = len(response.split()) if self.words else len(response)
        if n < self.least:
            return -(self.least - n) / self.least
        return -min(1.0, max(0, n - self.most) / self.most)
