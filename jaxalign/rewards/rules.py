"""Rewards that a rule can check: `(prompt, response, answer) -> float`."""

import re

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text):
    """The last number in a text as a float, thousands separators dropped; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").rstrip(".")) if found else None


def numeric_match(prompt: str, response: str, answer: str) -> float:
    """1 where the response's last number is the answer's last number (after GSM8K's "####" too), else 0."""
    expected, got = last_number(str(answer)), last_number(response)
    return float(expected is not None and got is not None and abs(expected - got) < 1e-6)


def exact_match(prompt: str, response: str, answer: str) -> float:
    """1 where response and answer are equal but for case, surrounding space and a final full stop."""
    def clean(text):
        return " ".join(str(text).lower().split()).rstrip(".")

    return float(clean(response) == clean(answer))
