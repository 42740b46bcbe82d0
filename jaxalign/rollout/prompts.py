"""Prompts before they are answered: in which order, how often, and packed into rows to be read together in few shapes."""

import functools

import jax
import numpy as np

from jaxalign.data.packing import best_fit
from jaxalign.rollout.sampling import Settings

ROWS = (1, 2, 4, 16)  # that are read together
WIDTH = 128  # positions of such a row, or as many as the longest prompt has


def packed(prompts, bucket, pad_id):
    """Yields (tokens_MS, positions_MS, segment_ids_MS, {prompt's index: place of its first token in M·S}).

    Args:
      prompts: lists of ids, none of them empty.
      bucket: the width of a single row's multiple, where the prompts fit into one.
    """
    sizes = np.array([len(prompt) for prompt in prompts])
    if sizes.sum() <= WIDTH:
        S, kinds = round_up(sizes.sum(), bucket), ROWS[:1]
    else:
        S, kinds = max(WIDTH, round_up(sizes.max(), WIDTH)), ROWS
    row, column, rows = best_fit(sizes, S)
    first = 0
    while first < rows:
        M = together(rows - first, kinds)
        tokens = np.full((M, S), pad_id, np.int32)
        positions, segments = np.zeros((M, S), np.int32), np.zeros((M, S), np.int32)
        places = {}
        for i in np.flatnonzero((row >= first) & (row < first + M)):
            r, at = row[i] - first, slice(column[i], column[i] + sizes[i])
            tokens[r, at], positions[r, at], segments[r, at] = prompts[i], np.arange(sizes[i]), i + 1
            places[i] = r * S + column[i]
        yield tokens, positions, segments, places
        first += M


def together(rows, kinds=ROWS):
    """How many rows to read next: as few as hold all, if three quarters of them are needed, else as many as there are."""
    whole = next((m for m in kinds if m >= rows), kinds[-1])
    return whole if rows * 4 >= whole * 3 else max(m for m in kinds if m <= rows)


def in_turn(texts, limits):
    """Indices of requests, the next one last: the longest responses first, so that few are left over at the end; else short
    prompts, for a narrow cache.

    Equal prompts stay together, for what was read of one is kept until the last has its slot.

    Args:
      texts: what is read of each prompt, hashable.
      limits: the most tokens of each response.
    """
    first, most = {}, {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
        most[text] = max(most.get(text, 0), int(limits[i]))
    return sorted(range(len(texts)), key=lambda i: (most[texts[i]], -len(texts[i]), first[texts[i]], limits[i]))


def repeated(n, prompts, keys, settings, limits):
    """The four, each request n times in a row; copy j draws with fold_in(key, j)."""
    keys = jax.vmap(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(n)))(keys).reshape(-1)
    settings = Settings(*(np.repeat(np.broadcast_to(x, len(prompts)), n) for x in settings))
    prompts = [prompt for prompt in prompts for _ in range(n)]
    return prompts, keys, settings, None if limits is None else np.repeat(limits, n)


def round_up(n, multiple):
    return int(-(-n // multiple) * multiple)
