"""Rewards by name. To add one: a function `(prompt, response, answer) -> float` and a line below."""

from jaxalign.rewards.gold import gold_score
from jaxalign.rewards.rules import exact_match, numeric_match

REWARDS = {"exact": exact_match, "gold": gold_score, "numeric": numeric_match}
