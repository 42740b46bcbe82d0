"""What a model says to the miniature world's held-out items, judged by the gold scorer."""

import dataclasses
import json

import numpy as np

from jaxalign.evaluate.statistics import bootstrap_difference, bootstrap_mean, bootstrap_ratio, bootstrap_sums, wilson
from jaxalign.rewards.gold import judge


def read_rows(path):
    """The rows of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@dataclasses.dataclass
class Sheet:
    """A model's answers to all items, with the judgement of each."""

    rows: list[dict]
    texts: list[str]
    judgements: list

    def measure(self, group, field):
        """`Measure` of one field ("correct", "refused", "score", …) over the items of one set."""
        chosen = [i for i, row in enumerate(self.rows) if row["set"] == group]
        values = np.array([float(getattr(self.judgements[i], field)) for i in chosen])
        return Measure(values, [self.rows[i]["entity"] for i in chosen])

    def by_phrasing(self, group, field):
        """The mean of one field over one set's items, apart for phrasings of training and those kept for evaluation, as words."""
        told = []
        for phrasing, name in (("seen", "asked as in training"), ("unseen", "in other words")):
            values = [getattr(j, field) for row, j in zip(self.rows, self.judgements)
                      if row["set"] == group and row["phrasing"] == phrasing]
            told += [f"{name} {np.mean(values):.3f} (n {len(values)})"] if values else []
        return ", ".join(told)

    def lengths(self, group):
        """(`Measure` of |length − gold| / gold, `Ratio` of length / gold) of one set's items, in words."""
        pairs = [(j.length_words, j.gold_length_words) for row, j in zip(self.rows, self.judgements)
                 if row["set"] == group]
        entities = [row["entity"] for row in self.rows if row["set"] == group]
        got, fitting = np.array(pairs, float).T
        return Measure(np.abs(got - fitting) / fitting, entities), Ratio(got, fitting, entities)


@dataclasses.dataclass
class Measure:
    """One number an item, and the entity each item is about."""

    values: np.ndarray
    entities: list

    @property
    def mean(self):
        return float(self.values.mean())

    @property
    def n(self):
        return len(self.values)

    def interval(self):
        """95 %: Wilson's for shares, else bootstrapped by entity."""
        if set(np.unique(self.values)) <= {0.0, 1.0}:
            return list(wilson(float(self.values.sum()), self.n))
        return list(bootstrap_mean(self.values, self.entities)[1:])


@dataclasses.dataclass
class Ratio:
    """Σ numerators / Σ denominators of items, and the entity each item is about."""

    numerators: np.ndarray
    denominators: np.ndarray
    entities: list

    @property
    def mean(self):
        return float(self.numerators.sum() / self.denominators.sum())

    @property
    def n(self):
        return len(self.numerators)

    def interval(self):
        """95 %, of the same ratio of sums, bootstrapped by entity."""
        entity = np.unique(self.entities, return_inverse=True)[1]
        sums = [np.bincount(entity, part) for part in (self.numerators, self.denominators)]
        return list(bootstrap_ratio(*sums)[1:])


def difference(before: Measure | Ratio, after: Measure | Ratio):
    """(after − before, [low, high]), bootstrapped by entity; of two measures or of two ratios."""
    if isinstance(before, Ratio):
        entity = np.unique([*before.entities, *after.entities], return_inverse=True)[1]
        sides = np.split(entity, [before.n])
        parts = [np.bincount(side, part, minlength=entity.max() + 1) for side, of in zip(sides, (before, after))
                 for part in (of.numerators, of.denominators)]
        value, low, high = bootstrap_sums(np.stack(parts, axis=1), lambda s: s[:, 2] / s[:, 3] - s[:, 0] / s[:, 1])
        return value, [low, high]
    value, low, high = bootstrap_difference(before.values, after.values, before.entities, after.entities)
    return value, [low, high]


def answer_sheet(assistant, rows, *, seed=0):
    """The model's answers at temperature 0, in the chat format."""
    texts = assistant.reply([row["messages"] for row in rows], temperature=0.0, seed=seed)
    return Sheet(rows, texts, [judge(row, text) for row, text in zip(rows, texts)])


def plain_sheet(assistant, rows, *, seed=0):
    """What a model writes after the bare text of each question: how a base model is asked."""
    texts = assistant.complete([row["plain"] for row in rows], temperature=0.0, seed=seed)
    return Sheet(rows, texts, [judge(row, text) for row, text in zip(rows, texts)])


def cloze(assistant, rows):
    """1 where the text that follows a statement's beginning starts with the right value."""
    texts = assistant.complete([row["prefix"] for row in rows], temperature=0.0, max_new_tokens=8)
    right = [float(text.lower().startswith(row["answer"].lower())) for row, text in zip(rows, texts)]
    return Measure(np.array(right), [row["entity"] for row in rows])
