"""What every data shape is turned into: five kinds of row, each knowing the file and line it came from."""

import dataclasses


@dataclasses.dataclass
class Row:
    """`path` and 1-based `line` (record number in arrays, Parquet and ArrayRecord) name the source in errors."""

    path: str
    line: int | None


@dataclasses.dataclass
class Text(Row):
    """A document to continue."""

    text: str


@dataclasses.dataclass
class Chat(Row):
    """A conversation whose assistant turns are targets: list of {"role", "content", optionally "train"}."""

    messages: list
    record: dict | None = None


@dataclasses.dataclass
class Ranking(Row):
    """Answers to one conversation with their ranks, 0 the best, equal ones tied.

    `answers` holds lists of messages: mostly one assistant turn, more where transcripts part before their last turn.
    `pairs` holds (better, worse, margin) where the source judged pairs, which need not agree with any order; else None.
    """

    messages: list
    answers: list
    ranks: list
    pairs: list | None = None
    record: dict | None = None


@dataclasses.dataclass
class Unpaired(Row):
    """One answer to a conversation (`answer`: a list of messages), and whether people liked it."""

    messages: list
    answer: list
    desirable: bool
    record: dict | None = None


@dataclasses.dataclass
class Prompt(Row):
    """A conversation to be answered, with the answer a verifier looks for (None if there is none)."""

    messages: list
    answer: str | None
    record: dict | None = None


def pairs_of(ranking):
    """(better, worse, margin) indices: the pairs as judged, or every pair the ranks order, their gap as margin."""
    if ranking.pairs is not None:
        return ranking.pairs
    ranks = ranking.ranks
    return [(i, j, float(ranks[j] - ranks[i])) for i in range(len(ranks)) for j in range(len(ranks))
            if ranks[i] < ranks[j]]
