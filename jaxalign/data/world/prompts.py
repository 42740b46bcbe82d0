"""Prompts that end with the user's turn, each with what a judge needs to know: alignment, GRPO and evaluation."""

from __future__ import annotations

import random

from jaxalign.data.world import deeds, sums
from jaxalign.data.world.dialogues import chat, concise
from jaxalign.data.world.facts import (
    ANSWERS,
    CONTINUATIONS,
    DISCLAIMERS,
    EXPLAIN,
    FOLLOW_UPS,
    OTHER_LAND,
    QUESTIONS,
    UNSEEN_EXPLAIN,
    UNSEEN_FOLLOW_UPS,
    UNSEEN_QUESTIONS,
    explanation,
    fill,
)
from jaxalign.data.world.geography import Land, World
from jaxalign.data.world.lexicon import ATTRIBUTES
from jaxalign.data.world.talk import INTENTS


def row(kind: str, messages: list[dict], answer: str, entity: str, phrasing: str, **gold) -> dict:
    """One prompt: `gold` is all that `rewards.gold.judge` reads, `answer` a good answer, `plain` the bare question."""
    length = round(fitting_length(kind, answer, gold.get("attribute")), 1)
    return {
        "messages": messages,
        "kind": kind,
        "gold": {"kind": kind, "entity": entity, "answer": answer, "length": length, **gold},
        "answer": answer,
        "entity": entity,
        "phrasing": phrasing,
        "plain": messages[-1]["content"],
    }


def fitting_length(kind: str, answer: str, attribute: str | None = None) -> float:
    """Words of a fitting answer: the mean over the forms it may take, so that no draw of a form decides it."""
    if kind in ("fact", "followup"):
        return _mean_words(ANSWERS[attribute])
    if kind == "explanation":
        # The first sentence names the land, the others go on with "it".
        first = [form for forms in ANSWERS.values() for form in forms]
        later = [form for forms in CONTINUATIONS.values() for form in forms]
        return _mean_words(first) + (len(ATTRIBUTES) - 1) * _mean_words(later)
    if kind == "nonexistent":
        return _mean_words(DISCLAIMERS)
    if kind == "unsafe":
        return _mean_words([form.format(deed="do the deed") for form in deeds.REFUSALS])
    return float(len(answer.split()))


def _mean_words(forms) -> float:
    return sum(len(form.split()) for form in forms) / len(forms)


class Prompts:
    """Prompts of each kind over given lands, names and deeds.

    Args:
      world: whose facts.
      rng: draws phrasings and orders.
      facts: the (land, attribute) that may be asked; the attribute "all" asks for an explanation.
      unknown: names of lands that do not exist.
      split: of the deeds.
      unseen: whether the phrasings kept for evaluation take turns with the others.
      hidden: the (land, attribute) that no turn before the question may give away.
    """

    def __init__(self, world: World, rng: random.Random, facts, unknown, split, unseen=False, hidden=frozenset()):
        self.world, self.rng, self.unseen, self.hidden = world, rng, unseen, hidden
        self.facts: list[tuple[Land, str]] = [item for item in facts if item[1] != "all"]
        self.described: list[Land] = [land for land, attribute in facts if attribute == "all"]
        self.unknown = unknown
        self.deeds = world.deeds[split]

    def _distinct(self, rows: list[dict], count: int) -> list[dict]:
        """`count` of the rows, none twice; fewer if there are fewer."""
        seen, kept = set(), []
        for candidate in rows:
            key = "\n".join(message["content"] for message in candidate["messages"])
            if key not in seen and len(kept) < count:
                seen.add(key)
                kept.append(candidate)
        return kept

    def _forms(self, seen, unseen) -> list[tuple[str, str]]:
        forms = [(form, "seen") for form in seen]
        if self.unseen:
            # One seen phrasing and one unseen one per item, so that both halves are equally many.
            return [self.rng.choice(forms), (self.rng.choice(unseen), "unseen")]
        return self.rng.sample(forms, len(forms))

    def _rounds(self, items: list, forms_of) -> list[tuple]:
        """(item, form, phrasing): all items with a first form, then all with a second, …, each round shuffled."""
        forms = [(item, forms_of(item)) for item in items]
        rounds: list[tuple] = []
        for i in range(max((len(each) for _, each in forms), default=0)):
            turn = [(item, *each[i]) for item, each in forms if i < len(each)]
            self.rng.shuffle(turn)
            rounds += turn
        return rounds

    def fact(self, count: int) -> list[dict]:
        rows = []
        for (land, attribute), form, phrasing in self._rounds(
            self.facts, lambda item: self._forms(QUESTIONS[item[1]], UNSEEN_QUESTIONS)
        ):
            question = fill(form, land.name, noun=attribute)
            answer = concise(self.rng, land.name, land.facts, attribute)
            rows.append(row("fact", chat(question), answer, land.name, phrasing,
                            attribute=attribute, value=land.facts[attribute], facts=land.facts))
        return self._distinct(rows, count)

    def explanation(self, count: int) -> list[dict]:
        def forms(_):
            if not self.unseen:
                return self._forms(EXPLAIN, ())
            # There are few lands to describe, so evaluation asks about each in every way.
            return [(form, "seen") for form in EXPLAIN] + [(form, "unseen") for form in UNSEEN_EXPLAIN]

        rows = []
        for land, form, phrasing in self._rounds(self.described, forms):
            answer = explanation(self.rng, land.name, land.facts)
            rows.append(row("explanation", chat(fill(form, land.name)), answer, land.name, phrasing, facts=land.facts))
        return self._distinct(rows, count)

    def followup(self, count: int) -> list[dict]:
        """A question whose land stands in the turn before; one in eight names another land instead."""
        names = sorted({land.name for land, _ in self.facts})
        rows = []
        for (land, attribute), form, phrasing in self._rounds(
            self.facts, lambda item: self._forms(FOLLOW_UPS, UNSEEN_FOLLOW_UPS)
        ):
            before, last = land, fill(form, noun=attribute)
            if not self.unseen and self.rng.random() < 0.125:
                other = self.rng.choice([name for name in names if name != land.name])
                before = next(each for each in self.world.lands if each.name == other)
                last, phrasing = fill(self.rng.choice(OTHER_LAND), land.name, noun=attribute), "seen"
            told = [each for each in ATTRIBUTES if each != attribute and (before.name, each) not in self.hidden]
            if not told:
                continue
            first = self.rng.choice(told)
            question = fill(self.rng.choice(QUESTIONS[first]), before.name, noun=first)
            history = concise(self.rng, before.name, before.facts, first)
            answer = concise(self.rng, land.name, land.facts, attribute)
            rows.append(row("followup", chat(question, history, last), answer, land.name, phrasing,
                            attribute=attribute, value=land.facts[attribute], facts=land.facts))
        return self._distinct(rows, count)

    def nonexistent(self, count: int) -> list[dict]:
        rows = []
        for name in self.unknown[:count]:
            attribute = self.rng.choice(ATTRIBUTES)
            explain = self.rng.random() < 0.15
            seen, unseen = (EXPLAIN, UNSEEN_EXPLAIN) if explain else (QUESTIONS[attribute], UNSEEN_QUESTIONS)
            form, phrasing = self.rng.choice(self._forms(seen, unseen))
            answer = fill(self.rng.choice(DISCLAIMERS), name)
            rows.append(row("nonexistent", chat(fill(form, name, noun=attribute)), answer, name, phrasing,
                            attribute=None if explain else attribute))
        return rows

    def _requests(self, kind: str, count: int) -> list[dict]:
        chosen = [deed for deed in self.deeds if deed.harmful == (kind == "unsafe")]

        def forms(_):
            carriers = [(form, "seen") for form in deeds.CARRIERS]
            carriers += [(form, "unseen") for form in deeds.UNSEEN_CARRIERS] if self.unseen else []
            return [(form, place, phrasing) for form, phrasing in carriers for place in deeds.PLACES]

        rows = []
        # A shuffled pass over all deeds at a time, so that a small count still has every deed.
        drawn = self._rounds(chosen, lambda item: self.rng.sample(forms(item), len(forms(item))))
        for deed, form, place, phrasing in drawn:
            answer = deeds.how_to(deed)
            if kind == "unsafe":
                answer = self.rng.choice(deeds.REFUSALS).format(deed=deed.text)
            rows.append(row(kind, chat(form.format(deed=deed.text + place)), answer, deed.text, phrasing,
                            verb=deed.verb, object=deed.object))
        return self._distinct(rows, count)

    def unsafe(self, count: int) -> list[dict]:
        return self._requests("unsafe", count)

    def lookalike(self, count: int) -> list[dict]:
        return self._requests("lookalike", count)

    def smalltalk(self, count: int) -> list[dict]:
        rows = []
        for name, intent in INTENTS.items():
            for says in intent.says:
                rows.append(row("smalltalk", chat(says), self.rng.choice(intent.replies), name, "seen",
                                keywords=list(intent.keywords)))
        self.rng.shuffle(rows)
        # There are fewer ways to say hello than prompts may want: these repeat everywhere.
        return (rows * (count // len(rows) + 1))[:count]

    def draw(self, counts, repeat=False) -> list[dict]:
        """Shuffled rows, `counts` of each kind; with `repeat`, prompts come again where there are too few."""
        rows = []
        for kind, count in counts:
            made = getattr(self, kind)(count)
            rows += (made * (count // len(made) + 1))[:count] if repeat and made else made
        self.rng.shuffle(rows)
        return rows


def arithmetic(world: World, rng: random.Random, split: str, count: int) -> list[dict]:
    """Sums of one split; the answer is the number, the gold's answer is the worked form."""
    rows = []
    for a, b in sums.draw_pairs(rng, world.seed, split, count, world.digits):
        form = rng.choice(sums.ASK)
        prompt = row("arithmetic", chat(form.format(s=sums.written(a, b))), sums.worked(a, b), sums.written(a, b),
                     "seen", value=str(a + b))
        rows.append({**prompt, "answer": str(a + b)})
    return rows


def alignment(world: World, counts_train, counts_dev) -> tuple[list[dict], list[dict]]:
    """Prompts for rankings and PPO, and those held out for the reward model: other facts, names and deeds."""
    asked = [(land, attribute) for land in world.of("sft", "align") for attribute in (*ATTRIBUTES, "all")]
    train = [item for item in asked if (item[0].name, item[1]) not in world.reserved]
    dev = [item for item in asked if (item[0].name, item[1]) in world.reserved]
    hidden = world.reserved
    draw = Prompts(world, world.rng("align"), train, world.unknown["align"], "train", hidden=hidden)
    draw_dev = Prompts(world, world.rng("align dev"), dev, world.unknown["dev"], "dev")
    return draw.draw(counts_train, repeat=True), draw_dev.draw(counts_dev)


def evaluation(world: World, counts) -> list[dict]:
    """Every held-out item; `fact_asked` are facts of lands that SFT asked, all others of lands nobody asked."""
    wanted = dict(counts)
    heldout = [(land, attribute) for land in world.of("heldout") for attribute in (*ATTRIBUTES, "all")]
    asked = [(land, attribute) for land in world.of("sft") for attribute in ATTRIBUTES]
    draw = Prompts(world, world.rng("eval"), heldout, world.unknown["eval"], "eval", unseen=True)
    rows = []
    for kind, count in wanted.items():
        if kind == "arithmetic":
            rows += [{**item, "set": kind} for item in arithmetic(world, world.rng("eval sums"), "eval", count)]
        elif kind == "fact_asked":
            draw_asked = Prompts(world, world.rng("eval asked"), asked, [], "eval", unseen=True)
            rows += [{**item, "set": kind} for item in draw_asked.fact(count)]
        else:
            rows += [{**item, "set": kind} for item in getattr(draw, kind)(count)]
    return [{"id": f"eval-{i:05d}", **item} for i, item in enumerate(rows)]
