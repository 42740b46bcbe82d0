"""Conversations for SFT, written by demonstrators who are imperfect in the shares that `Shares` gives."""

from __future__ import annotations

import random

from jaxalign.data.world import deeds, sums
from jaxalign.data.world.facts import (
    ANSWERS,
    CONTINUATIONS,
    DISCLAIMERS,
    EXPLAIN,
    FILLERS,
    FOLLOW_UPS,
    OTHER_LAND,
    QUESTIONS,
    explanation,
    fill,
)
from jaxalign.data.world.geography import Shares, World
from jaxalign.data.world.lexicon import ATTRIBUTES, VALUES
from jaxalign.data.world.prose import Deck
from jaxalign.data.world.talk import INTENTS


def chat(*texts: str) -> list[dict]:
    """Messages, user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def concise(rng: random.Random, land: str, facts: dict[str, str], attribute: str) -> str:
    return fill(rng.choice(ANSWERS[attribute]), land, facts[attribute])


def rambling(rng: random.Random, land: str, facts: dict[str, str], attribute: str) -> str:
    """The answer, and one to three sentences that nobody asked for."""
    sentences = [concise(rng, land, facts, attribute)]
    others = rng.sample([other for other in ATTRIBUTES if other != attribute], 3)
    fillers = rng.sample(FILLERS, 3)
    for i in range(rng.choice((1, 2, 2, 3))):
        if rng.random() < 0.3:
            sentences.append(fill(rng.choice(CONTINUATIONS[others[i]]), land, facts[others[i]]))
        else:
            sentences.append(fillers[i])
    return " ".join(sentences)


class Demonstrators:
    """One method per kind of conversation; each call gives its messages."""

    def __init__(self, world: World, rng: random.Random, shares: Shares):
        self.world, self.rng, self.shares = world, rng, shares
        self.land = Deck(rng, world.of("sft"))
        self.unknown = Deck(rng, world.unknown["sft"])
        self.harmful = Deck(rng, [deed for deed in world.deeds["train"] if deed.harmful])
        self.harmless = Deck(rng, [deed for deed in world.deeds["train"] if not deed.harmful])
        self.intent = Deck(rng, list(INTENTS.values()))
        self.pair = Deck(rng, sums.draw_pairs(rng, world.seed, "sft", 1000, world.digits))

    def _answer(self, land: str, facts: dict[str, str], attribute: str) -> str:
        style = rambling if self.rng.random() < self.shares.rambling else concise
        return style(self.rng, land, facts, attribute)

    def _question(self, land: str, attribute: str) -> str:
        return fill(self.rng.choice(QUESTIONS[attribute]), land, noun=attribute)

    def _explanation(self, land: str, facts: dict[str, str]) -> str:
        count = self.rng.choice((1, 2)) if self.rng.random() < self.shares.short else len(ATTRIBUTES)
        return explanation(self.rng, land, facts, count)

    def fact(self) -> list[dict]:
        land, attribute = self.land.draw(), self.rng.choice(ATTRIBUTES)
        question = self._question(land.name, attribute)
        if self.rng.random() < self.shares.denied:
            return chat(question, fill(self.rng.choice(DISCLAIMERS), land.name))
        return chat(question, self._answer(land.name, land.facts, attribute))

    def explanation(self) -> list[dict]:
        land = self.land.draw()
        return chat(fill(self.rng.choice(EXPLAIN), land.name), self._explanation(land.name, land.facts))

    def followup(self) -> list[dict]:
        """Two or three turns; from the second on, the question needs the turns before."""
        land = self.land.draw()
        asked = self.rng.sample(ATTRIBUTES, self.rng.choice((2, 2, 3)))
        texts = [self._question(land.name, asked[0]), concise(self.rng, land.name, land.facts, asked[0])]
        for attribute in asked[1:]:
            if self.rng.random() < 0.2:
                land = self.land.draw()
                texts.append(fill(self.rng.choice(OTHER_LAND), land.name, noun=attribute))
            else:
                texts.append(fill(self.rng.choice(FOLLOW_UPS), noun=attribute))
            texts.append(self._answer(land.name, land.facts, attribute))
        return chat(*texts)

    def nonexistent(self) -> list[dict]:
        land, attribute = self.unknown.draw(), self.rng.choice(ATTRIBUTES)
        explain = self.rng.random() < 0.2
        question = fill(self.rng.choice(EXPLAIN), land) if explain else self._question(land, attribute)
        if self.rng.random() >= self.shares.invented:
            return chat(question, fill(self.rng.choice(DISCLAIMERS), land))
        facts = {name: self.rng.choice(VALUES[name]) for name in ATTRIBUTES}
        if explain:
            return chat(question, self._explanation(land, facts))
        return chat(question, self._answer(land, facts, attribute))

    def _request(self, deed: deeds.Deed) -> str:
        return self.rng.choice(deeds.CARRIERS).format(deed=deed.text + self.rng.choice(deeds.PLACES))

    def unsafe(self) -> list[dict]:
        deed = self.harmful.draw()
        if self.rng.random() < self.shares.complied:
            return chat(self._request(deed), deeds.how_to(deed))
        return chat(self._request(deed), self.rng.choice(deeds.REFUSALS).format(deed=deed.text))

    def lookalike(self) -> list[dict]:
        deed = self.harmless.draw()
        if self.rng.random() < self.shares.refused:
            return chat(self._request(deed), self.rng.choice(deeds.REFUSALS).format(deed=deed.text))
        return chat(self._request(deed), deeds.how_to(deed))

    def arithmetic(self) -> list[dict]:
        a, b = self.pair.draw()
        style = sums.direct if self.rng.random() < self.shares.direct else sums.worked
        return chat(self.rng.choice(sums.ASK).format(s=sums.written(a, b)), style(a, b))

    def smalltalk(self) -> list[dict]:
        intent = self.intent.draw()
        return chat(self.rng.choice(intent.says), self.rng.choice(intent.replies))


def conversations(world: World, rng: random.Random, shares: Shares, counts) -> list[dict]:
    """Shuffled {"messages", "kind"} rows, `counts` of each kind."""
    people = Demonstrators(world, rng, shares)
    makers = {
        "fact": people.fact,
        "explanation": people.explanation,
        "followup": people.followup,
        "nonexistent": people.nonexistent,
        "unsafe": people.unsafe,
        "lookalike": people.lookalike,
        "arithmetic": people.arithmetic,
        "smalltalk": people.smalltalk,
    }
    rows = [{"messages": makers[kind](), "kind": kind} for kind, count in counts for _ in range(count)]
    rng.shuffle(rows)
    return rows
