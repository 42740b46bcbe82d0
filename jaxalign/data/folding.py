"""Rows of one short document each, packed for the forward pass and taken apart again after it.

What ranks answers or draws them has a document a row, padded to the longest: often two positions in three are padding.
Everything that is per row (rewards, advantages, losses) stays so; only the transformer sees full rows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.batches import BRANCH
from jaxalign.data.packing import best_fit

WIDTH, ROWS = 128, 4  # rows are at least this wide; their number is a multiple, so that few shapes are compiled


def fold(tokens_BT, targets_BT, segment_ids_BT, pad_id, rows=ROWS, least=0, mask_BT=None):
    """Packs the documents of shifted rows, each whole: its first token to its last target.

    With `mask_BT`, documents that are equal up to their first counted target share what comes before it: a group's prompt
    is read once, an answer's positions see that prompt and their own answer. An answer begins with the prompt's last token,
    each with its own, for there its first target is predicted. Documents none of whose targets counts are left out.

    Args:
      tokens_BT, targets_BT, segment_ids_BT: numpy, one document a row anywhere in it, segment 0 for padding.
      rows: the number of packed rows is a multiple of this,
      least: or this where so many hold them: what most batches need is then one shape, compiled once.
      mask_BT: numpy, above 0 where a target counts in anything.

    Returns:
      folded_tokens_MS, folded_targets_MS (the next token of the same document), folded_positions_MS,
      folded_segment_ids_MS (with `BRANCH` times the answer's number, from 1, where it shares its prompt), int32;
      place_BU, U = T + 1: where in M·S the token of each column stands. Column t of a row
      is its input t; the last target is in the column after the last input. Padding is at place 0, which is somebody's.
    """
    B, T = tokens_BT.shape
    inside = segment_ids_BT > 0
    first_B, size_B = inside.argmax(1), np.where(inside.any(1), inside.sum(1) + 1, 0)
    ids_B = [np.append(tokens_BT[b, s:s + n - 1], targets_BT[b, s + n - 2]) for b, (s, n) in enumerate(zip(first_B, size_B))]
    S = max(WIDTH, -(-(T + 1) // WIDTH) * WIDTH)
    shared_B = np.zeros(B, int)
    if mask_BT is not None:
        counted = (mask_BT > 0) & inside
        size_B = np.where(counted.any(1), size_B, 0)
        shared_B = np.where(size_B, counted.argmax(1) - first_B, 0)
    groups = _groups(ids_B, size_B, shared_B, S)
    row, column, used = best_fit(np.array([size for size, _, _ in groups], int), S)
    M = least if used <= least > 0 else max(1, -(-used // rows)) * rows
    folded = {name: np.zeros((M, S), np.int32) for name in ("targets", "positions", "segment_ids")}
    folded["tokens"] = np.full((M, S), pad_id, np.int32)
    folded["targets"][:] = pad_id
    place_BU = np.zeros((B, T + 1), np.int32)
    documents = np.zeros(M, np.int32)

    def put(r, c, ids, start, segment):
        n = len(ids) - start
        folded["tokens"][r, c:c + n], folded["targets"][r, c:c + n - 1] = ids[start:], ids[start + 1:]
        folded["positions"][r, c:c + n], folded["segment_ids"][r, c:c + n] = start + np.arange(n), segment
        return n

    for (_, shared, members), r, c in zip(groups, row, column):
        documents[r] += 1
        trunk = r * S + c + np.arange(shared)
        if shared:
            put(r, c, ids_B[members[0]][:shared + 1], 0, documents[r])  # the last is overwritten by the first answer's own
            c += shared
        for number, b in enumerate(members, 1):
            s = first_B[b]
            n = put(r, c, ids_B[b], shared, documents[r] + (BRANCH * number if shared else 0))
            place_BU[b, s:s + size_B[b]] = np.append(trunk, r * S + c + np.arange(n))
            c += n
    return {f"folded_{name}_MS": array for name, array in folded.items()} | {"place_BU": place_BU}


def _groups(ids_B, size_B, shared_B, width):
    """[(positions taken, of them shared, rows)] of documents that stand together; none takes more than `width`."""
    alike, made = {}, []
    for b in np.flatnonzero(size_B):
        alike.setdefault(ids_B[b][:shared_B[b] + 1].tobytes() if shared_B[b] else b, []).append(b)
    for members in alike.values():
        shared = int(shared_B[members[0]]) if len(members) > 1 else 0
        part, taken = [], shared
        for b in members:
            more = int(size_B[b]) - shared
            if part and taken + more > width:
                made.append((taken, shared, part))
                part, taken = [], shared
            part, taken = [*part, b], taken + more
        made.append((taken, shared, part))
    return made


def unfold(x_MS, place_BU):
    """One number of every packed position, back in its row and column, (B, U)."""
    return jax.tree.map(lambda x: jnp.take(x.reshape(-1), place_BU, axis=0), x_MS)
