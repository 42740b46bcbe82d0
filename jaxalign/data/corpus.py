"""Tokenised data in memory, as flat arrays, and the assembly of any set of rows into a batch without Python loops."""

import numpy as np

ABSENT_RANK = 1_000_000  # the rank of an answer that is not there: worse than any


class Sequences:
    """Ragged sequences of ids with their masks, end to end: sequence i stands at ids[start[i] : start[i] + size[i]]."""

    def __init__(self):
        self._ids, self._masks, self._sizes = [], [], []

    def add(self, ids, mask):
        self._ids.append(np.asarray(ids, np.int32))
        self._masks.append(np.asarray(mask, np.uint8))
        self._sizes.append(len(ids))
        return len(self._sizes) - 1

    def freeze(self):
        self.ids = np.concatenate(self._ids) if self._ids else np.zeros(0, np.int32)
        self.mask = np.concatenate(self._masks) if self._masks else np.zeros(0, np.uint8)
        self.size = np.asarray(self._sizes, np.int64)
        self.start = np.cumsum(self.size) - self.size
        del self._ids, self._masks, self._sizes
        return self


def assemble(sequences, start, positions, row, column, segment, rows, length, pad_id):
    """Places pieces of sequences into `rows` × `length` arrays, shifted: target t is the next token of the same piece.

    Piece k takes `positions[k]` inputs from flat index `start[k]` on, so it reads one id more, as its last target.
    Its positions count from 0, its segment id is `segment[k]`; what no piece covers is padding with mask 0, segment 0.
    """
    total = int(positions.sum())
    inside = np.arange(total) - np.repeat(np.cumsum(positions) - positions, positions)
    source = np.repeat(start, positions) + inside
    place = np.repeat(row * length + column, positions) + inside
    batch = {"tokens": np.full(rows * length, pad_id, np.int32), "targets": np.full(rows * length, pad_id, np.int32),
             "mask": np.zeros(rows * length, np.float32), "positions": np.zeros(rows * length, np.int32),
             "segment_ids": np.zeros(rows * length, np.int32)}
    batch["tokens"][place] = sequences.ids[source]
    batch["targets"][place] = sequences.ids[source + 1]
    batch["mask"][place] = sequences.mask[source + 1]
    batch["positions"][place] = inside
    batch["segment_ids"][place] = np.repeat(segment, positions)
    return {name: array.reshape(rows, length) for name, array in batch.items()}


class TokenCorpus:
    """kind="tokens": each item is a piece of a document that fits a row."""

    def __init__(self, sequences, start, positions, length, pad_id):
        self.sequences, self.length, self.pad_id = sequences, length, pad_id
        self.start, self.positions = np.asarray(start, np.int64), np.asarray(positions, np.int64)

    def __len__(self):
        return len(self.start)

    def batch(self, items, row, rows, column=None):
        """`items`: pieces, sorted by row; `row`: which row of the batch each goes to; `column`: where in it."""
        column = np.zeros(len(items), np.int64) if column is None else column
        first = np.searchsorted(row, row)  # index of the first piece of the same row
        segment = np.arange(len(items)) - first + 1
        arrays = assemble(self.sequences, self.start[items], self.positions[items], row, column, segment, rows,
                          self.length, self.pad_id)
        return {f"{name}_BT": array for name, array in arrays.items()}


class RankingCorpus:
    """kind="rankings" and kind="pairs": each item is a set of sequences that share a prompt."""

    def __init__(self, sequences, members, ranks, margins, answers, length, pad_id, pairs):
        self.sequences, self.length, self.pad_id, self.pairs = sequences, length, pad_id, pairs
        self.member_R = np.full((len(members), answers), -1, np.int64)
        self.ranks_R = np.full((len(members), answers), ABSENT_RANK, np.int32)
        for i, (member, rank) in enumerate(zip(members, ranks)):
            self.member_R[i, :len(member)] = member
            self.ranks_R[i, :len(rank)] = rank
        self.margins = np.asarray(margins, np.float32)

    def __len__(self):
        return len(self.member_R)

    def batch(self, items, row, rows, column=None):
        answers = self.member_R.shape[1]
        member = np.full((rows, answers), -1, np.int64)
        member[row] = self.member_R[items]
        ranks = np.full((rows, answers), ABSENT_RANK, np.int32)
        ranks[row] = self.ranks_R[items]
        place = np.flatnonzero(member.ravel() >= 0)
        chosen = member.ravel()[place]
        arrays = assemble(self.sequences, self.sequences.start[chosen], self.sequences.size[chosen] - 1, place,
                          np.zeros(len(place), np.int64), np.ones(len(place), np.int64), rows * answers, self.length,
                          self.pad_id)
        batch = {f"{name}_BRT": a.reshape(rows, answers, self.length) for name, a in arrays.items()}
        batch["ranks_BR"] = ranks
        batch["answer_mask_BR"] = (member >= 0).astype(np.float32)
        batch["sequence_BR"] = member.astype(np.int32)
        if self.pairs:
            batch["margin_B"] = np.zeros(rows, np.float32)
            batch["margin_B"][row] = self.margins[items]
        return batch


    def lone(self, numbers, rows):
        """Sequences by number, one a row, in `rows` rows: an array each by name, without suffix."""
        place, none = np.arange(len(numbers)), np.zeros(len(numbers), np.int64)
        return assemble(self.sequences, self.sequences.start[numbers], self.sequences.size[numbers] - 1, place, none,
                        none + 1, rows, self.length, self.pad_id)


class UnpairedCorpus(RankingCorpus):
    """kind="unpaired": each item is an answer and, in second place and never counted, its prompt with another's
    answer."""

    def __init__(self, sequences, members, desirable, length, pad_id):
        none = [[]] * len(members)
        super().__init__(sequences, members, none, np.zeros(len(members)), 2, length, pad_id, pairs=False)
        self.desirable = np.asarray(desirable, np.float32)

    def batch(self, items, row, rows, column=None):
        batch = super().batch(items, row, rows, column)
        del batch["ranks_BR"]
        batch["answer_mask_BR"][:, 1] = 0.0
        batch["desirable_B"] = np.zeros(rows, np.float32)
        batch["desirable_B"][row] = self.desirable[items]
        return batch


class PromptCorpus:
    """kind="prompts": each item is a prompt that ends with the assistant's header, placed at the right of its row."""

    def __init__(self, sequences, records, length, pad_id):
        self.sequences, self.records, self.length, self.pad_id = sequences, records, length, pad_id

    def __len__(self):
        return len(self.records)

    def batch(self, items, row, rows, column=None):
        tokens = np.full((rows, self.length), self.pad_id, np.int32)
        sizes, records = np.zeros(rows, np.int32), [None] * rows
        for item, r in zip(items.tolist(), row.tolist()):
            start, size = self.sequences.start[item], self.sequences.size[item]
            tokens[r, self.length - size:] = self.sequences.ids[start:start + size]
            sizes[r], records[r] = size, self.records[item]
        return {"tokens_BP": tokens, "length_B": sizes, "rows": records}
