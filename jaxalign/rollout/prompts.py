"""Prompts packed into rows to be read together, in few shapes."""

import numpy as np

from jaxalign.data.packing import best_fit

ROWS = (1, 2, 4, 16)  # that are read together, the fewest that hold the prompts
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
        M = next((m for m in kinds if m >= rows - first), kinds[-1])
        tokens = np.full((M, S), pad_id, np.int32)
        positions, segments = np.zeros((M, S), np.int32), np.zeros((M, S), np.int32)
        places = {}
        for i in np.flatnonzero((row >= first) & (row < first + M)):
            r, at = row[i] - first, slice(column[i], column[i] + sizes[i])
            tokens[r, at], positions[r, at], segments[r, at] = prompts[i], np.arange(sizes[i]), i + 1
            places[i] = r * S + column[i]
        yield tokens, positions, segments, places
        first += M


def round_up(n, multiple):
    return int(-(-n // multiple) * multiple)
