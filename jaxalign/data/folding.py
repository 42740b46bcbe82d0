"""Rows of one short document each, packed for the forward pass and taken apart again after it.

What ranks answers or draws them has a document a row, padded to the longest: often two positions in three are padding.
Everything that is per row (rewards, advantages, losses) stays so; only the transformer sees full rows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.packing import best_fit

WIDTH, ROWS = 128, 4  # rows are at least this wide; their number is a multiple, so that few shapes are compiled


def fold(tokens_BT, targets_BT, segment_ids_BT, pad_id, rows=ROWS, least=0):
    """Packs the documents of shifted rows, each whole: its first token to its last target.

    Args:
      tokens_BT, targets_BT, segment_ids_BT: numpy, one document a row anywhere in it, segment 0 for padding.
      rows: the number of packed rows is a multiple of this,
      least: or this where so many hold them: what most batches need is then one shape, compiled once.

    Returns:
      folded_tokens_MS, folded_targets_MS (the next token of the same document), folded_positions_MS,
      folded_segment_ids_MS, int32; place_BU, U = T + 1: where in M·S the token of each column stands. Column t of a row
      is its input t; the last target is in the column after the last input. Padding is at place 0, which is somebody's.
    """
    B, T = tokens_BT.shape
    inside = segment_ids_BT > 0
    size_B = np.where(inside.any(1), inside.sum(1) + 1, 0)
    first_B = inside.argmax(1)
    S = max(WIDTH, -(-(T + 1) // WIDTH) * WIDTH)
    real = np.flatnonzero(size_B)
    row, column, used = best_fit(size_B[real], S)
    M = least if used <= least > 0 else max(1, -(-used // rows)) * rows
    folded = {name: np.zeros((M, S), np.int32) for name in ("targets", "positions", "segment_ids")}
    folded["tokens"] = np.full((M, S), pad_id, np.int32)
    folded["targets"][:] = pad_id
    place_BU = np.zeros((B, T + 1), np.int32)
    documents = np.zeros(M, np.int32)
    for b, r, c in zip(real, row, column):
        n, s = size_B[b], first_B[b]
        ids = np.append(tokens_BT[b, s:s + n - 1], targets_BT[b, s + n - 2])
        documents[r] += 1
        folded["tokens"][r, c:c + n], folded["targets"][r, c:c + n - 1] = ids, ids[1:]
        folded["positions"][r, c:c + n], folded["segment_ids"][r, c:c + n] = np.arange(n), documents[r]
        place_BU[b, s:s + n] = r * S + c + np.arange(n)
    return {f"folded_{name}_MS": array for name, array in folded.items()} | {"place_BU": place_BU}


def unfold(x_MS, place_BU):
    """One number of every packed position, back in its row and column, (B, U)."""
    return jax.tree.map(lambda x: jnp.take(x.reshape(-1), place_BU, axis=0), x_MS)
