"""The words of the miniature world: attributes and their values, the syllables of land names, the splits' names.

Everything here is data. Two rules hold and are tested: no value word occurs in any other pool or template (so a
judge may read an answer by its words alone), and no template word looks like a land name.
"""

from __future__ import annotations

import random

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

# A name is one of 72 first syllables with one of 120 second ones: few pieces, many names, and no piece tells which land
# it is, or whether there is one.
_ONSETS, _VOWELS, _CODAS = "bdgklmnrstvz", "aeiou", "nrlsm"
_OPEN = tuple(onset + vowel for onset in _ONSETS for vowel in _VOWELS)
FIRST = (
    *(each + _CODAS[i % 5] for i, each in enumerate(_OPEN)),
    *(each + _CODAS[1 + i % 4] for i, each in enumerate(_OPEN[::5])),
)
SECOND = (*_OPEN, *(each + "k" for each in _OPEN))
NAMES = frozenset((first + second).capitalize() for first in FIRST for second in SECOND)

PEOPLE = ("Anna", "Ben", "Clara", "Hugo", "Ida", "Jack", "Olga", "Paul")


def draw_names(rng: random.Random, count: int, taken=()) -> list[str]:
    """`count` different names, none of them `taken`."""
    return rng.sample(sorted(NAMES - set(taken)), count)


def is_name(word: str) -> bool:
    """Whether a word has the shape of a land's name, known or not."""
    return word in NAMES
