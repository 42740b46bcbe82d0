"""Rewards by name; what one is stands in `run.py`. To add one: a function, or a class, and a line below."""

from jaxalign.rewards.code import UnitTests
from jaxalign.rewards.equivalence import MathEquivalence
from jaxalign.rewards.gold import gold_score
from jaxalign.rewards.learned import LearnedReward
from jaxalign.rewards.reasoning import ReasoningScore
from jaxalign.rewards.rules import FormatMatch, LengthWithin, exact_match, numeric_match

REWARDS = {
    "exact": exact_match,
    "numeric": numeric_match,
    "math": MathEquivalence,
    "reasoning_gym": ReasoningScore,
    "format": FormatMatch,
    "length": LengthWithin,
    "learned": LearnedReward,
    "code": UnitTests,
    "gold": gold_score,
}
