"""Objectives: pure functions of arrays that return unreduced terms with their weights. One file, one line here."""

from jaxalign.objectives.bradley_terry import bradley_terry, pairwise_ranking, plackett_luce
from jaxalign.objectives.cross_entropy import cross_entropy
from jaxalign.objectives.dpo import dpo
from jaxalign.objectives.grpo import grpo
from jaxalign.objectives.ipo import ipo
from jaxalign.objectives.kto import kto
from jaxalign.objectives.orpo import orpo
from jaxalign.objectives.ppo import ppo
from jaxalign.objectives.simpo import simpo

OBJECTIVES = {
    "cross_entropy": cross_entropy,
    "bradley_terry": bradley_terry,
    "plackett_luce": plackett_luce,
    "pairwise_ranking": pairwise_ranking,
    "dpo": dpo,
    "ipo": ipo,
    "kto": kto,
    "orpo": orpo,
    "simpo": simpo,
    "ppo": ppo,
    "grpo": grpo,
}
