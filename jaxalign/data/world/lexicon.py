"""The words of the miniature world: attributes and their values, the syllables of land names, the splits' names.

Everything here is data. Two rules hold and are tested: no value word occurs in any other pool or template (so a
judge may read an answer by its words alone), and no template word looks like a land name.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

ATTRIBUTES = ("river", "flag", "export", "animal")

# 32 values each, so a guess is right in about one case of 32. Lands may share any of them.
VALUES: dict[str, tuple[str, ...]] = {
    "river": tuple(
        "Alder Arrow Aspen Birch Cedar Chalk Cherry Copper Dusk Elder Elm Fern Flint Frost Heath Holly "
        "Hazel Juniper Linden Maple Marsh Mist Oak Pearl Pine Quartz Rowan Silver Swift Thorn Willow Yew".split()
    ),
    "flag": tuple(
        "star moon ship tree key bell tower hammer wheel rose leaf shield sword ladder cup harp "
        "wave hand heart cross feather comet plough spear lily shell kite mask knot diamond torch throne".split()
    ),
    "export": tuple(
        "salt tea wool silk honey wheat rice sugar coffee cheese butter wine paper iron gold tin "
        "coal timber marble cotton linen leather pepper ginger cocoa flour mint wax soap rubber barley jade".split()
    ),
    "animal": tuple(
        "fox owl bear wolf otter eagle heron deer lynx badger camel crane falcon goat hare lion "
        "tiger moose raven seal swan stork turtle whale yak zebra panda beaver bison gecko puffin rabbit".split()
    ),
}

ATTRIBUTE_OF_VALUE: dict[str, str] = {
    value.lower(): attribute for attribute, pool in VALUES.items() for value in pool
}

# Few syllables, many names: 12 × 5 open syllables give 3,600 two-syllable stems and over 200,000 names.
_ONSETS = ("b", "d", "g", "k", "l", "m", "n", "r", "s", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("n", "r", "l", "s", "m")
SYLLABLES = tuple(onset + vowel for onset in _ONSETS for vowel in _VOWELS)

_SYLLABLE = f"[{''.join(_ONSETS)}][{''.join(_VOWELS)}]"
NAME_PATTERN = re.compile(f"(?:{_SYLLABLE}){{2}}(?:{_SYLLABLE}|[{''.join(_CODAS)}])", re.IGNORECASE)

PEOPLE = ("Anna", "Ben", "Clara", "Hugo", "Ida", "Jack", "Olga", "Paul")


class Name(NamedTuple):
    """A land's name and its stem, the first two syllables."""

    text: str
    stem: str


def draw_name(rng: random.Random) -> Name:
    """One pronounceable name: two syllables and a closing consonant, or three syllables."""
    while True:
        stem = rng.choice(SYLLABLES) + rng.choice(SYLLABLES)
        ending = rng.choice(_CODAS) if rng.random() < 0.5 else rng.choice(SYLLABLES)
        name = Name((stem + ending).capitalize(), stem)
        if is_name(name.text):
            return name


def draw_lands(rng: random.Random, count: int) -> list[Name]:
    """Names of lands that exist; all stems differ, so that no land is another one's misspelling."""
    lands: dict[str, Name] = {}
    while len(lands) < count:
        name = draw_name(rng)
        lands.setdefault(name.stem, name)
    return list(lands.values())


def draw_unknown_names(rng: random.Random, count: int, lands: list[Name]) -> list[str]:
    """Names of lands that do not exist, from the same syllables; none shares its stem with a land that does."""
    taken = {land.stem for land in lands}
    names: dict[str, None] = {}
    while len(names) < count:
        name = draw_name(rng)
        if name.stem not in taken:
            names.setdefault(name.text)
    return list(names)


def is_name(word: str) -> bool:
    """Whether a word has the shape of a land's name (known or not) and is no word of the world's language."""
    return word[:1].isupper() and NAME_PATTERN.fullmatch(word) is not None and word not in ORDINARY


# Values that happen to have the shape of a name, as they look at the start of a sentence.
ORDINARY = frozenset({"Bison", "Linen", "Raven", "Sugar", "Tiger"})
