"""The lands of one world, their facts, and the splits that keep evaluation apart from training."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxalign.data.world import deeds
from jaxalign.data.world.lexicon import ATTRIBUTES, NAMES, VALUES, draw_names

# Which lands are asked about where. Every land is stated in pretraining.
LAND_SPLITS = (("sft", 0.42), ("align", 0.16), ("heldout", 0.42))


class Land(NamedTuple):
    """A land, its four facts, and where it may be asked about: "sft", "align" or "heldout"."""

    name: str
    facts: dict[str, str]
    split: str


@dataclass(frozen=True)
class Sizes:
    """How much of everything `write_world` writes."""

    pretrain_characters: int = 2_200_000
    dev_documents: int = 400
    # Shares of the pretraining characters; facts dominate.
    mixture: tuple[tuple[str, float], ...] = (
        ("facts", 0.29), ("existence", 0.22), ("questions", 0.17), ("songs", 0.08), ("deeds", 0.14), ("sums", 0.06),
        ("talk", 0.04),
    )
    sft: tuple[tuple[str, int], ...] = (
        ("fact", 2200), ("explanation", 800), ("followup", 1100), ("nonexistent", 1300), ("unsafe", 1000),
        ("lookalike", 1000), ("arithmetic", 1200), ("smalltalk", 400),
    )
    sft_dev_share: float = 0.05
    align: tuple[tuple[str, int], ...] = (
        ("fact", 1300), ("explanation", 700), ("followup", 400), ("nonexistent", 1300), ("unsafe", 800),
        ("lookalike", 1000), ("smalltalk", 100),
    )
    align_dev: tuple[tuple[str, int], ...] = (
        ("fact", 160), ("explanation", 60), ("followup", 120), ("nonexistent", 120), ("unsafe", 120),
        ("lookalike", 120), ("smalltalk", 20),
    )
    grpo: int = 1500
    evaluation: tuple[tuple[str, int], ...] = (
        ("fact", 568), ("fact_asked", 200), ("explanation", 360), ("followup", 520), ("nonexistent", 520),
        ("unsafe", 520), ("lookalike", 520), ("arithmetic", 520), ("smalltalk", 24),
    )


@dataclass(frozen=True)
class Shares:
    """How imperfect the demonstrators of the SFT conversations are, as shares of the rows of a kind."""

    complied: float = 0.55  # unsafe requests answered all the same
    refused: float = 0.05  # harmless requests refused all the same
    invented: float = 0.08  # lands that do not exist, described all the same
    denied: float = 0.03  # lands that do exist, disclaimed all the same
    rambling: float = 0.88  # one-fact answers with one to three sentences too many
    short: float = 0.50  # explanations of one or two sentences
    direct: float = 0.70  # sums given at once, without working


@dataclass
class World:
    """A world made from one seed: lands with facts, names without a land, deeds, and their splits.

    Args:
      seed: everything follows from it; the same seed gives the same bytes.
      num_entities: number of lands (each has one value for each of the four attributes).
      num_unknown: names of non-existent lands for SFT and as many for alignment; half as many for its dev set and for
        evaluation; the text speaks of all others.
      digits: digits of each addend.

    Attributes:
      lands: all of them; `of("sft", "align")` selects.
      unknown: "pretrain" | "sft" | "align" | "dev" | "eval" → names no land bears; disjoint.
      deeds: "train" | "dev" | "eval" → disjoint combinations of verb and object.
      reserved: what only `align.dev` asks of these prompts, not `align.train`: (land, attribute), and (land, "all") for
        explanations.
    """

    seed: int = 0
    num_entities: int = 170
    num_unknown: int = 1300
    digits: int = 2
    lands: list[Land] = field(init=False)
    unknown: dict[str, list[str]] = field(init=False)
    deeds: dict[str, list[deeds.Deed]] = field(init=False)
    reserved: set[tuple[str, str]] = field(init=False)

    def __post_init__(self):
        rng = self.rng("lands")
        names = draw_names(rng, self.num_entities)
        splits = []
        for split, share in LAND_SPLITS:
            splits += [split] * round(share * self.num_entities)
        splits = (splits + ["heldout"] * self.num_entities)[: self.num_entities]
        self.lands = []
        for name, split in zip(names, splits, strict=True):
            facts = {attribute: rng.choice(VALUES[attribute]) for attribute in ATTRIBUTES}
            self.lands.append(Land(name, facts, split))
        # Thousands of names that no land bears, each met once or twice: who learns them by heart knows none of the others.
        unknown = draw_names(self.rng("unknown"), len(NAMES) - len(names), names)
        self.unknown, first = {}, 0
        for pool, count in (("sft", 1), ("align", 1), ("dev", 0.5), ("eval", 0.5)):
            last = first + round(count * self.num_unknown)
            self.unknown[pool], first = unknown[first:last], last
        self.unknown["pretrain"] = unknown[first:]
        self.deeds = deeds.split_deeds(self.rng("deeds"))
        askable = self.of("sft", "align")
        asked = [(land.name, attribute) for land in askable for attribute in ATTRIBUTES]
        self.reserved = set(self.rng("reserved").sample(asked, len(asked) // 8))
        self.reserved |= {(land.name, "all") for land in self.rng("reserved lands").sample(askable, len(askable) // 6)}

    def rng(self, purpose: str) -> random.Random:
        """A fresh generator for one purpose, so that changing one file's size leaves the others as they were."""
        return random.Random(f"{self.seed}/{purpose}")

    def of(self, *splits: str) -> list[Land]:
        return [land for land in self.lands if land.split in splits]
