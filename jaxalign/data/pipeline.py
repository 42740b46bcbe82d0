"""Sources → batches: a Grain iterator over data tokenised once, deterministic, seeded, resumable, sharded.

What a batch holds, B rows of T positions; every target is already the next token of the same document:

    tokens     tokens_BT, targets_BT, mask_BT, positions_BT (from 0 a document), segment_ids_BT (from 1; 0 padding)
    rankings   the same with R answers a row (tokens_BRT …), ranks_BR (0 best, equal = tie), answer_mask_BR
    pairs      the same with R = 2, the chosen answer first, and margin_B
    unpaired   the same with R = 2 but no ranks: an answer, and for KTO's reference point, with answer_mask_BR 0, its
               prompt with an answer to another one; desirable_B: 1 liked, 0 not

               (of these three also sequence_BR: the number of each answer among the corpus's sequences, −1 for none)
    prompts    tokens_BP padded on the left and ending with the assistant's header, length_B, and "rows": a list of
               {"messages", "prompt", "answer", "record", and the record's own fields}, None for a row of padding

The iterator and its state are Grain's interface; order, mixture and rows are planned here, an epoch at a time. Grain's
`shuffle`, `mix` and `repeat` take 13 to 19 µs of processor time an item, numpy 0.04 for the same; best-fit packing
wants all of an epoch at once; and a batch that is assembled whole takes 0.2 ms (`packing.py`), too little to prefetch.
"""

import hashlib

import grain
import numpy as np

from jaxalign.data import encode
from jaxalign.data.intake import KINDS, Intake, check_sources, read_rows
from jaxalign.data.packing import best_fit
from jaxalign.errors import CheckpointError, ConfigError, DataError


def batches(sources, tokenizer, *, kind, batch_size, length, packing="best_fit", seed=0, shuffle=True, repeat=True,
            truncate=None, on_bad_row="error", bad_rows_path=None, max_answers=None, template=None, process_index=0,
            process_count=1):
    """An iterator of numpy batches; the same arguments give the same batches, and its state resumes them.

    All data is read and tokenised here, once, and kept as int32 ids (5 bytes a token with its mask), so that a batch
    costs well under a millisecond and every bad row shows before the first step.

    Args:
      sources: one source or a list: {"path" (file, directory, glob, list) or "records" (list of dicts), "shape" (a
        name in SHAPES)} and optionally "weight" (passes over it per epoch, default 1.0; 0.5 takes the other half in the
        next epoch) or, for all sources, "share" (of the tokens); "fields" (field names), "split" ("train" or "dev", of
        which "holdout"=0.05 of the records), "where" (field values to match), "limit" (records), "documents" (plain
        text a "file", "line" or "paragraph"), "strip_end" (a literal end marker to take off).
      tokenizer: Tokenizer.
      kind: "tokens", "rankings", "pairs", "unpaired" or "prompts"; what each holds stands above. Shapes that hold more
        than a kind needs are accepted: rankings as pairs, as single answers or as conversations, conversations as
        prompts.
      batch_size: rows of the global batch, over all processes.
      length: positions a row (T), or for prompts the prompt's budget (P).
      packing: "best_fit" or "none"; only tokens are packed.
      seed, shuffle: the order, anew each epoch; unshuffled rows keep the order of their first document.
      repeat: go on for ever; otherwise one epoch, its last batch filled up with rows of zeros (mask 0, segment 0).
      truncate: "right", "left" (keeps <s>) or "error"; None is "left" for prompts and "right" otherwise. Counted in
        the report. Text documents are never cut but chunked.
      on_bad_row: "error" raises DataError at the first bad row; "skip" counts it, lists it in `bad_rows_path`.
      max_answers: the R of rankings; None is the most that any row has. The best ranked are kept.
      template: how a conversation is written (jaxalign/data/chat.py), None the tokenizer's own way; prompts refuse one
        that is not prefix-stable.
      process_index, process_count: this process's share of each global batch's rows.
    Returns:
      BatchIterator (a grain.DatasetIterator) with `report`, `rows_per_epoch` and `batches_per_epoch`.
    Raises:
      ConfigError, DataError.
    """
    sources, template = check_sources(sources), template or tokenizer.template
    _check(kind=(kind, tuple(KINDS)), packing=(packing, ("best_fit", "none")), truncate=(truncate,
           (None, "right", "left", "error")))
    if batch_size < 1 or length < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ConfigError(f"batch_size={batch_size} must be positive and divide by process_count={process_count} "
                          f"(process_index={process_index}), and length={length} be positive")
    intake = Intake(on_bad_row, bad_rows_path)
    corpus, origin = _tokenise(sources, tokenizer, intake, kind, length, truncate, template, max_answers)
    intake.close()
    if not len(corpus):
        bad = intake.report.bad
        raise DataError(", ".join(str(s.get("path", "records")) for s in sources), None, "at least one usable row",
                        f"none, {len(bad)} bad ones" if bad else "none at all",
                        f"the first: {bad[0]['error']}" if bad else "look at the files, `where`, `split` and `limit`")
    weights = _weights(sources, corpus, np.asarray(origin), intake.report)
    plan = _Plan(corpus, np.asarray(origin), weights, packed=kind == "tokens" and packing == "best_fit", length=length,
                 seed=seed, shuffle=shuffle)
    return BatchIterator(plan, intake.report, batch_size, repeat, process_index, process_count)


def _check(**choices):
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{name}={value!r}; expected one of {', '.join(map(repr, allowed))}")


def _tokenise(sources, tokenizer, intake, kind, length, truncate, template, max_answers):
    report = intake.report

    def rows():
        for number, source in enumerate(sources):
            bad, read = len(report.bad), 0
            for row in read_rows(source, intake):
                read += 1
                yield number, row
            report.sources.append({"path": str(source.get("path", "records")), "shape": source["shape"], "rows": read,
                                   "bad": len(report.bad) - bad})

    side = truncate or ("left" if kind == "prompts" else "right")
    options = {"length": length, "truncate": side, "template": template}
    if kind == "tokens":
        return encode.tokens(rows(), tokenizer, intake, **options)
    if kind == "prompts":
        return encode.prompts(rows(), tokenizer, intake, **options)
    if kind == "unpaired":
        return encode.unpaired(rows(), tokenizer, intake, **options)
    return encode.rankings(rows(), tokenizer, intake, **options, pairs=kind == "pairs", max_answers=max_answers)


def _weights(sources, corpus, origin, report):
    """Passes per epoch of each source; shares of tokens are scaled so that an epoch is as long as one pass over all."""
    shares = [s.get("share") for s in sources]
    positions = getattr(corpus, "positions", np.ones(len(corpus)))
    size = np.bincount(origin, weights=positions, minlength=len(sources))
    if any(s is not None for s in shares):
        if any(s is None for s in shares) or any("weight" in s for s in sources):
            raise ConfigError("give 'share' to every source of a mixture and 'weight' to none, or the reverse")
        total = sum(shares) or 1.0
        weights = [share / total * size.sum() / n if n else 0.0 for share, n in zip(shares, size)]
    else:
        weights = [float(s.get("weight", 1.0)) for s in sources]
    if min(weights) < 0 or sum(w * n for w, n in zip(weights, size)) <= 0:
        raise ConfigError(f"source weights {[float(w) for w in weights]}; expected none below 0, and one above it that "
                          "has rows")
    for entry, weight, n, source in zip(report.sources, weights, size, sources):
        entry.update(weight=weight, tokens=int(n))
        if not n and source.get("weight", source.get("share", 1)):
            raise DataError(entry["path"], None, "at least one usable row of every source of a mixture",
                            f"none, {entry['bad']} bad ones", "drop it, or look at its `where`, `split` and shape")
    return weights


class _Plan:
    """Which items stand in which row, epoch by epoch: a pure function of the seed and the epoch."""

    def __init__(self, corpus, origin, weights, *, packed, length, seed, shuffle):
        self.corpus, self.weights, self.packed, self.length = corpus, weights, packed, length
        self.seed, self.shuffle = seed, shuffle
        self.members = [np.flatnonzero(origin == s) for s in range(len(weights))]
        sequences = corpus.sequences
        digest = hashlib.blake2b(repr((weights, packed, length, seed, shuffle, len(corpus))).encode(), digest_size=8)
        digest.update(sequences.ids.tobytes())
        digest.update(sequences.mask.tobytes())
        self.fingerprint = digest.hexdigest()

    def _drawn(self, source, epoch):
        """The items of one source in this epoch: its share of an endless run of permutations, so none is favoured."""
        members, weight = self.members[source], self.weights[source]
        first, last = (round(e * weight * len(members)) for e in (epoch, epoch + 1))
        drawn = []
        while first < last:
            lap, offset = divmod(first, len(members))
            take = min(last - first, len(members) - offset)
            order = members if not self.shuffle else members[
                np.random.default_rng([self.seed, 1, source, lap]).permutation(len(members))]
            drawn.append(order[offset:offset + take])
            first += take
        return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)

    def epoch(self, epoch):
        """(items sorted by row, row of each, column of each, number of rows)."""
        items = np.concatenate([self._drawn(s, epoch) for s in range(len(self.members))])
        rng = np.random.default_rng([self.seed, 2, epoch])
        if self.shuffle:
            items = items[rng.permutation(len(items))]
        if not self.packed:
            return items, np.arange(len(items)), np.zeros(len(items), np.int64), len(items)
        row, column, rows = best_fit(self.corpus.positions[items], self.length)
        if self.shuffle:
            row = rng.permutation(rows)[row]
        else:
            first = np.full(rows, len(items))
            np.minimum.at(first, row, np.arange(len(items)))
            row = np.argsort(np.argsort(first))[row]
        order = np.lexsort((column, row))
        return items[order], row[order], column[order], rows


class BatchIterator(grain.DatasetIterator):
    """Batches of a plan. State: the epoch, the next global row of it, and the fingerprint of the data."""

    def __init__(self, plan, report, batch_size, repeat, process_index, process_count):
        super().__init__()
        self._plan, self._batch_size, self._repeat = plan, batch_size, repeat
        self._local = batch_size // process_count
        self._first = process_index * self._local
        self.report, self.corpus = report, plan.corpus
        self._load(0)
        self._row = 0
        self.rows_per_epoch = self._rows
        self.batches_per_epoch = -(-self._rows // batch_size)
        self._count(report)

    def _count(self, report):
        corpus, sequences = self._plan.corpus, self._plan.corpus.sequences
        report.sequences, report.batch_rows = len(sequences.size), self._rows
        if hasattr(corpus, "positions"):
            report.tokens = int(corpus.positions[self._items].sum())
            ends = np.concatenate([[0], np.cumsum(sequences.mask, dtype=np.int64)])
            start = corpus.start[self._items] + 1
            report.targets = int((ends[start + corpus.positions[self._items]] - ends[start]).sum())
            report.fill = report.tokens / (self._rows * corpus.length)
        else:
            report.tokens, report.targets = int(sequences.size.sum()), int(sequences.mask.sum())
            report.fill = report.tokens / max(1, len(sequences.size) * corpus.length)

    def _load(self, epoch):
        self._epoch = epoch
        self._items, self._item_row, self._column, self._rows = self._plan.epoch(epoch)

    def __next__(self):
        """The next batch; rows that an epoch's end leaves over are filled from the next epoch."""
        self._assert_not_closed()
        if not self._repeat and self._row >= self._rows:
            raise StopIteration
        wanted, parts, skipped = self._batch_size, [], 0
        while wanted:
            if self._row >= self._rows:
                if not self._repeat:
                    break
                self._load(self._epoch + 1)
                self._row = 0
                continue
            take = min(wanted, self._rows - self._row)
            low, high = np.searchsorted(self._item_row, [self._row, self._row + take])
            parts.append((self._items[low:high], self._item_row[low:high] - self._row + skipped,
                          self._column[low:high]))
            self._row, wanted, skipped = self._row + take, wanted - take, skipped + take
        items, row, column = (np.concatenate(a) for a in zip(*parts))
        low, high = np.searchsorted(row, [self._first, self._first + self._local])
        return self._plan.corpus.batch(items[low:high], row[low:high] - self._first, self._local, column[low:high])

    def get_state(self):
        return {"epoch": self._epoch, "row": self._row, "fingerprint": self._plan.fingerprint}

    def set_state(self, state):
        if state["fingerprint"] != self._plan.fingerprint:
            raise CheckpointError(f"the data iterator's state belongs to other data: expected fingerprint "
                                  f"{self._plan.fingerprint}, got {state['fingerprint']}; restore the sources, "
                                  f"tokenizer, length, packing and seed of the run, or start it anew")
        if state["epoch"] != self._epoch:
            self._load(state["epoch"])
        self._row = state["row"]
