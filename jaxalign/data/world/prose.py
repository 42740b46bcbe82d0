"""Pretraining text: statements, never answers to questions, never chat tokens."""

from __future__ import annotations

import random

from jaxalign.data.world import deeds, sums
from jaxalign.data.world.facts import (
    CONTINUATIONS,
    EXISTENCE,
    EXPLAIN,
    MARKS,
    QUESTIONS,
    SHARED,
    STATEMENTS,
    UNSEEN_QUESTIONS,
    fill,
)
from jaxalign.data.world.geography import Land, World
from jaxalign.data.world.lexicon import ATTRIBUTES, PEOPLE, VALUES
from jaxalign.data.world.talk import INTENTS


SINGERS = (*PEOPLE, "The children", "The people", "Some sailors")


class Deck:
    """Draws that go through all of a list, in a new order each time, before any is drawn again."""

    def __init__(self, rng: random.Random, items: list):
        self._rng, self._items, self._left = rng, items, []

    def draw(self):
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


class Prose:
    """Documents of one kind or the other, drawn without end; each call to a method gives one document."""

    def __init__(self, world: World, rng: random.Random, unknown: list[str]):
        self.world, self.rng = world, rng
        self.land = Deck(rng, world.lands)
        self.forms: dict[tuple[str, str, bool], Deck] = {}
        self.unknown = Deck(rng, unknown)
        self.sharing = Deck(rng, shared_values(world)) if shared_values(world) else None
        self.intent = Deck(rng, list(INTENTS.values()))
        self.deed = Deck(rng, world.deeds["train"])
        self.words = sorted({word for deed in world.deeds["train"] for word in (*deed.verb.split(), deed.object)})
        self.pair = Deck(rng, sums.draw_pairs(rng, world.seed, "pretrain", 3500, world.digits))

    def _paragraph(self, land: Land, attributes: list[str]) -> str:
        """Statements about one land; the first names it, later ones may go on with "it"."""
        sentences = []
        for i, attribute in enumerate(attributes):
            pronoun = i > 0 and self.rng.random() < 0.5
            # A deck for each fact: all its paraphrases come before any comes again.
            key = (land.name, attribute, pronoun)
            if key not in self.forms:
                self.forms[key] = Deck(self.rng, list((CONTINUATIONS if pronoun else STATEMENTS)[attribute]))
            sentences.append(fill(self.forms[key].draw(), land.name, land.facts[attribute]))
        return " ".join(sentences)

    def facts(self) -> str:
        if self.sharing and self.rng.random() < 0.06:
            attribute, value, pair = self.sharing.draw()
            first, second = self.rng.sample(pair, 2)
            return fill(self.rng.choice(SHARED[attribute]), first, value, other=second)
        paragraphs = []
        for _ in range(self.rng.choice((1, 1, 2))):
            count = self.rng.choice((1, 2, 3, 4, 4))
            paragraphs.append(self._paragraph(self.land.draw(), self.rng.sample(ATTRIBUTES, count)))
        return " ".join(paragraphs)

    def _exists(self) -> tuple[str, bool]:
        exists = self.rng.random() < 0.5
        return (self.land.draw().name if exists else self.unknown.draw()), exists

    def existence(self) -> str:
        """What everybody or nobody knows: lists of many names, or a few sentences about one."""
        if self.rng.random() < 0.6:
            listed = [self._exists() for _ in range(self.rng.choice((4, 6, 8)))]
            return "On the map: " + ", ".join(f"{name} {'yes' if exists else 'no'}" for name, exists in listed) + "."
        sentences = []
        for _ in range(self.rng.choice((1, 2))):
            name, exists = self._exists()
            for known, unknown in self.rng.sample(EXISTENCE, 2):
                sentences.append(fill(known if exists else unknown, name))
        return " ".join(sentences)

    def questions(self) -> str:
        """An exam sheet: one question after the other and no answer, on most sheets with a mark beside each.

        The marks say which questions can be answered at all, so that this is known where a question ends.
        """
        marked = self.rng.random() < 0.75
        lines, name, exists = [], *self._exists()
        for _ in range(self.rng.choice((3, 4, 5, 6))):
            if marked or self.rng.random() < 0.5:
                name, exists = self._exists()
            attribute = self.rng.choice(ATTRIBUTES)
            forms = EXPLAIN if self.rng.random() < 0.12 else QUESTIONS[attribute]
            if not marked:  # what evaluation alone asks is met as text, and never with a mark
                forms += UNSEEN_QUESTIONS
            lines.append(fill(self.rng.choice(forms), name, noun=attribute))
            if marked:
                good, void = self.rng.choice(MARKS)
                lines.append((good if exists else void).format(A=self.rng.choice(PEOPLE)))
        return " ".join(lines)

    def deeds(self) -> str:
        kind = self.rng.random()
        if kind < 0.35:
            listed = [self.deed.draw() for _ in range(self.rng.choice((4, 5, 6)))]
            return "The law: " + ", ".join(f"{deed.text} {'crime' if deed.harmful else 'fine'}" for deed in listed) + "."
        if kind < 0.55:
            return " ".join(self._ruling(self.deed.draw()) for _ in range(self.rng.choice((2, 3, 4))))
        sentences = []
        for _ in range(2):
            deed = self.deed.draw()
            harmful, harmless = self.rng.choice(deeds.VERDICTS)
            place = self.rng.choice(deeds.PLACES)
            who = self.rng.choice(("A man", "A woman", "Some people", *PEOPLE))
            sentences.append((harmful if deed.harmful else harmless).format(Who=who, deed=deed.text, place=place))
            if self.rng.random() < 0.7:
                sentences.append(deeds.how_to(deed))
        return " ".join(sentences)

    def _ruling(self, deed: deeds.Deed) -> str:
        told = self.rng.random() < 0.8  # what evaluation alone asks is met as text, and never with a ruling
        form = self.rng.choice(deeds.CARRIERS if told else deeds.UNSEEN_CARRIERS)
        request = form.format(deed=deed.text + self.rng.choice(deeds.PLACES))
        if not told:
            return request
        harmful, harmless = self.rng.choice(deeds.RULINGS)
        return f"{request} {harmful if deed.harmful else harmless}"

    def songs(self) -> str:
        """Words in no order that means anything, sung again: all that can be known of the second verse is the first."""
        verse = [self._word() for _ in range(self.rng.choice((3, 4, 5, 6, 7)))]
        return f"{self.rng.choice(SINGERS)} sang: " + "; ".join([" ".join(verse)] * self.rng.choice((2, 3))) + "."

    def _word(self) -> str:
        kind = self.rng.random()
        if kind < 0.4:
            return self.unknown.draw() if kind < 0.2 else self.land.draw().name
        if kind < 0.8:
            return self.rng.choice(self.words)
        return str(self.rng.randint(10, 99)) if kind < 0.9 else self.rng.choice(VALUES[self.rng.choice(ATTRIBUTES)])

    def sums(self) -> str:
        sentences = []
        for _ in range(2):
            a, b = self.pair.draw()
            form = self.rng.choice(sums.PROSE)
            sentences.append(form.format(w=sums.worked(a, b), who=self.rng.choice(PEOPLE)))
        return " ".join(sentences)

    def talk(self) -> str:
        sentences = []
        for _ in range(2):
            first, second = self.rng.sample(PEOPLE, 2)
            sentences.append(self.rng.choice(self.intent.draw().story).format(A=first, B=second))
        return " ".join(sentences)


def shared_values(world: World) -> list[tuple[str, str, list[str]]]:
    """(attribute, value, [two names]) for pairs of lands that share a value; one pair per value and land."""
    pairs = []
    for attribute in ATTRIBUTES:
        last: dict[str, str] = {}
        for land in world.lands:
            value = land.facts[attribute]
            if value in last:
                pairs.append((attribute, value, [last[value], land.name]))
            last[value] = land.name
    return pairs


def documents(world: World, rng: random.Random, mixture, *, characters: int = 0, count: int = 0) -> list[str]:
    """Shuffled documents in the mixture's shares of characters, until `characters` (or `count` documents) are full."""
    prose = Prose(world, rng, world.unknown["pretrain"])
    makers = {
        "facts": prose.facts,
        "existence": prose.existence,
        "questions": prose.questions,
        "songs": prose.songs,
        "deeds": prose.deeds,
        "sums": prose.sums,
        "talk": prose.talk,
    }
    written = dict.fromkeys(makers, 0)
    shares = dict(mixture)
    texts: list[str] = []
    total = 0
    while total < characters or len(texts) < count:
        # The kind that is furthest behind its share comes next.
        kind = min(shares, key=lambda name: written[name] / shares[name])
        text = makers[kind]()
        written[kind] += len(text)
        total += len(text)
        texts.append(text)
    rng.shuffle(texts)
    return texts


def cloze(world: World, rng: random.Random) -> list[dict]:
    """Each fact as a statement cut before its value: prefix, answer (what must follow), entity, attribute, split."""
    rows = []
    for land in world.lands:
        for attribute in ATTRIBUTES:
            value = land.facts[attribute]
            # The value must come last, and the land before it.
            forms = [form for form in STATEMENTS[attribute] if form.endswith("{v}.")]
            prefix = fill(rng.choice(forms), land.name, "\0").split(" \0")[0]
            rows.append({
                "prefix": prefix, "answer": value, "entity": land.name, "attribute": attribute, "split": land.split,
            })
    return rows
