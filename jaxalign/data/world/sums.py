"""Sums of two numbers: worked digit by digit from the right, or given at once.

The worked form makes every step local: `47+85: 7+5=12, 4+8+1=13, so 132.` It says the sum again, adds two digits and
the carry just written in each step, and reads the result off the last digits. A small model learns these steps long before it can give the
sum at once. No blanks inside, since every digit and every blank is a token.
"""

from __future__ import annotations

import hashlib
import random

ASK = ("What is {s}?", "Please add {s}.", "How much is {s}?", "Work out {s}.")

PROSE = ("{w}", "We add: {w}", "{who} adds: {w}")

# Shares of all unordered pairs. A pair and its mirror image always fall into the same split.
SPLITS = (("pretrain", 0.50), ("sft", 0.17), ("rl", 0.23), ("eval", 0.10))


def split_of(seed: int, a: int, b: int) -> str:
    """The only split that may show a + b (or b + a)."""
    low, high = sorted((a, b))
    digest = hashlib.blake2b(f"{seed}/{low}+{high}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for name, share in SPLITS:
        if place < share:
            return name
        place -= share
    return SPLITS[-1][0]


def draw_pairs(rng: random.Random, seed: int, split: str, count: int, digits: int, distinct: bool = True):
    """`count` pairs (a, b) of numbers with `digits` digits from one split; distinct as long as there are enough."""
    low, high = 10 ** (digits - 1), 10**digits - 1
    if digits <= 2:
        every = [(a, b) for a in range(low, high + 1) for b in range(low, high + 1) if split_of(seed, a, b) == split]
        if distinct and count <= len(every):
            return rng.sample(every, count)
        return rng.choices(every, k=count)
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < count:
        pair = (rng.randint(low, high), rng.randint(low, high))
        if split_of(seed, *pair) == split:
            pairs.setdefault(pair)
    return list(pairs)


def written(a: int, b: int) -> str:
    return f"{a}+{b}"


def direct(a: int, b: int) -> str:
    """The sum at once, as a hasty demonstrator gives it."""
    return f"{a}+{b}={a + b}."


def worked(a: int, b: int) -> str:
    """The sum, its steps and the result, as pretraining text writes them."""
    steps, carry = [], 0
    width = max(len(str(a)), len(str(b)))
    for place in range(width):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        # The first step has no carry to add; later steps always name it, 0 as well, so that all look alike.
        steps.append(f"{x}+{y}={total}" if place == 0 else f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return f"{written(a, b)}: {', '.join(steps)}, so {a + b}."
