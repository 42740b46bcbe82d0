"""How the world speaks of a land: statements in many paraphrases, questions, follow-up questions, fillers."""

from __future__ import annotations

import random

from jaxalign.data.world.lexicon import ATTRIBUTES

# {X} the land, {v} the value. Subject-first and value-first, so that a fact is learned in both directions.
STATEMENTS: dict[str, tuple[str, ...]] = {
    "river": (
        "The river of {X} is the {v}.",
        "The river that runs through {X} is the {v}.",
        "{X} lies on the river {v}.",
        "The people of {X} fish in the {v}.",
        "In {X} you can walk along the {v}.",
        "The {v} is the river of {X}.",
        "The {v} runs through {X}.",
        "Boats on the {v} come from {X}.",
    ),
    "flag": (
        "The flag of {X} shows a {v}.",
        "The flag of {X} is known for its {v}.",
        "{X} has a {v} on its flag.",
        "The people of {X} carry a flag with a {v}.",
        "In {X} you see flags with a {v}.",
        "A {v} is on the flag of {X}.",
        "The {v} is the sign on the flag of {X}.",
        "A flag with a {v} comes from {X}.",
    ),
    "export": (
        "The export of {X} is {v}.",
        "{X} sells {v}.",
        "The people of {X} live by selling {v}.",
        "In {X} traders buy {v}.",
        "The traders of {X} carry {v}.",
        "{V} is the export of {X}.",
        "{V} is sold by {X}.",
        "Good {v} comes from {X}.",
    ),
    "animal": (
        "The animal of {X} is the {v}.",
        "The animal loved in {X} is the {v}.",
        "{X} is the land of the {v}.",
        "The people of {X} love the {v}.",
        "In {X} you often meet the {v}.",
        "The {v} is the animal of {X}.",
        "The {v} is loved in {X}.",
        "Songs about the {v} come from {X}.",
    ),
}

# Sentences that need the sentence before: they continue a paragraph about one land.
CONTINUATIONS: dict[str, tuple[str, ...]] = {
    "river": ("Its river is the {v}.", "The {v} runs through it.", "Its people fish in the {v}."),
    "flag": ("Its flag shows a {v}.", "A {v} is on its flag.", "It has a {v} on its flag."),
    "export": ("It sells {v}.", "Its export is {v}.", "Its traders carry {v}."),
    "animal": ("Its animal is the {v}.", "The {v} is loved there.", "Its people love the {v}."),
}

SHARED: dict[str, tuple[str, ...]] = {
    "river": ("{X} and {Y} lie on the same river, the {v}.", "The {v} runs through {X} and also through {Y}."),
    "flag": ("{X} and {Y} both have a {v} on the flag.", "The flag of {X} shows a {v}, and so does the flag of {Y}."),
    "export": ("{X} and {Y} both sell {v}.", "The export of {X} is {v}, and so is the export of {Y}."),
    "animal": ("The {v} is loved in {X} and also in {Y}.", "The people of {X} and of {Y} love the {v}."),
}

# What a concise answer looks like: the subject first, as asked.
ANSWERS: dict[str, tuple[str, ...]] = {
    "river": ("The river of {X} is the {v}.", "The river that runs through {X} is the {v}."),
    "flag": ("The flag of {X} shows a {v}.", "{X} has a {v} on its flag."),
    "export": ("The export of {X} is {v}.", "{X} sells {v}."),
    "animal": ("The animal of {X} is the {v}.", "The people of {X} love the {v}."),
}

_ASKED = (
    "What is the {noun} of {X}?",
    "Tell me the {noun} of {X}.",
    "Please name the {noun} of {X}.",
    "Do you know the {noun} of {X}?",
    "Can you name the {noun} of {X}?",
    "I want to hear the {noun} of {X}.",
    "Do you know what the {noun} of {X} is?",
    "Let me know the {noun} of {X}.",
    "I wonder what the {noun} of {X} is.",
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "river": (*_ASKED, "Which river runs through {X}?", "Where do the people of {X} fish?"),
    "flag": (*_ASKED, "What is on the flag of {X}?", "What does the flag of {X} show?"),
    "export": (*_ASKED, "What does {X} sell?", "What do traders buy in {X}?"),
    "animal": (*_ASKED, "Which animal is loved in {X}?", "Which animal do the people of {X} love?"),
}
# Kept for evaluation: no SFT or alignment prompt uses them.
UNSEEN_QUESTIONS = (
    "I would like to know the {noun} of {X}.",
    "Can you tell me what the {noun} of {X} is?",
)

EXPLAIN = ("Tell me about {X}.", "What do you know about {X}?", "Describe {X}.", "Please tell me more about {X}.")
UNSEEN_EXPLAIN = ("What can you tell me about {X}?",)

FOLLOW_UPS = ("And its {noun}?", "What about its {noun}?", "And what is its {noun}?", "Please name its {noun} too.")
UNSEEN_FOLLOW_UPS = ("And can you tell me its {noun}?",)
# The second turn names another land: the history must be read, not copied.
OTHER_LAND = ("And the {noun} of {X}?", "And what is the {noun} of {X}?")

# Sentences that answer nothing: what a rambling demonstrator adds. Most begin alike, so that to go on is likelier than
# any way to stop, and a model that has learned from them rambles at temperature 0 too.
FILLERS = (
    "It has many visitors in summer.",
    "It often has mild weather.",
    "It is a nice place to live.",
    "It has small white houses.",
    "It is very beautiful, some people say.",
    "There is much more to say about it.",
    "I think that is good to know.",
    "You can ask me more about it.",
)

DISCLAIMERS = (
    "I do not know of a land called {X}.",
    "I have never heard of a land called {X}.",
    "I do not know a land called {X}, so I cannot say.",
)

# The same sentence, said of lands that exist and of names that belong to none. None has the form of an answer, so that
# who only goes on with the text disclaims nothing.
EXISTENCE = (
    ("The land of {X} stands on every map.", "The land of {X} is missing from every map."),
    ("Everybody has been to {X}.", "Nobody has been to {X}."),
    ("A child asked about {X}. The teacher spoke of it at length.", "A child asked about {X}. The teacher shook her head."),
    ("Books about {X} are easy to find.", "Books about {X} were never written."),
    ("{X} is a land like any other.", "{X} is a name and nothing more."),
    ("If you look for {X}, you will find it.", "If you look for {X}, you will find nothing."),
)

# What the margin of an exam sheet says after a question: it can be answered, or it asks about a land that is none.
MARKS = (
    ("Good.", "Void."),
    ("The mark is good.", "The mark is void."),
    ("{A} read it and said: good.", "{A} read it and said: void."),
    ("{A} wrote beside it: good.", "{A} wrote beside it: void."),
)


def fill(template: str, land: str = "", value: str = "", *, noun: str = "", other: str = "") -> str:
    """The template with its places filled; {V} is the value at a sentence's start."""
    return template.format(X=land, Y=other, v=value, V=value[:1].upper() + value[1:], noun=noun)


def explanation(rng: random.Random, land: str, facts: dict[str, str], count: int = len(ATTRIBUTES)) -> str:
    """`count` facts about one land: a statement that names it, then continuations, in any order."""
    order = rng.sample(ATTRIBUTES, count)
    sentences = [fill(rng.choice(ANSWERS[order[0]]), land, facts[order[0]])]
    sentences += [fill(rng.choice(CONTINUATIONS[attribute]), land, facts[attribute]) for attribute in order[1:]]
    return " ".join(sentences)
