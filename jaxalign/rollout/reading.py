"""Keys and values of prompts: which are read together, and what of them is kept until it is wanted."""

import numpy as np

from jaxalign.rollout.prompts import WIDTH, packed

AHEAD = 2048  # tokens that are read at a time where so many wait: many rows at once take less than a few at a time


class Reader:
    """Reads each text once, packed with others, the next that wait among them.

    Args:
      read: (tokens_MS, positions_MS, segment_ids_MS) → keys and values (`Transformer.keys_values`).
      texts: tuples of ids, no two the same; below they go by their number.
      bucket, pad_id: as of `prompts.packed`.
    """

    def __init__(self, read, texts, bucket, pad_id):
        self.read, self.texts, self.bucket, self.pad_id = read, texts, bucket, pad_id
        self.kept = {}  # {text: (what it was read with, its place there)}

    def __call__(self, wanted, waiting, end, window):
        """Where the cache gets prompts from.

        Args:
          wanted: {text: the slots that want it}.
          waiting: texts that will be wanted, the next one first; all others are forgotten.
          end, window: the prompts' last tokens go before slot `end` of a ring of so many (`models/cache.py`).
        Returns:
          [(keys and values, slots, source_RW)], the last two as `cache.inserted` takes them, as lists. Of an empty text there
          is nothing.
        """
        wanted = {text: slots for text, slots in wanted.items() if self.texts[text]}
        if numbers := self._unread(wanted, waiting):
            for tokens, positions, segments, places in packed([self.texts[i] for i in numbers], self.bucket, self.pad_id):
                read = self.read(tokens, positions, segments)
                self.kept |= {numbers[i]: (read, place) for i, place in places.items()}
        found = {}
        for text, its_slots in wanted.items():
            read, place = self.kept[text]
            size, source = len(self.texts[text]), np.zeros(window, np.int32)
            source[(end - size + np.arange(size)) % window] = place + np.arange(size)
            _, slots, sources = found.setdefault(id(read), (read, [], []))
            slots += its_slots
            sources += [source] * len(its_slots)
        self.kept = {text: read for text, read in self.kept.items() if text in waiting}
        return list(found.values())

    def _unread(self, wanted, waiting):
        """What has to be read now and, where there is any, what waits and neither widens the rows nor is too much."""
        chosen = [text for text in wanted if text not in self.kept]
        sizes = [len(self.texts[text]) for text in chosen]
        room, widest = AHEAD - sum(sizes), max([WIDTH, *sizes])
        for text in waiting if chosen else ():
            size = len(self.texts[text])
            if size == 0 or size > widest or text in wanted or text in self.kept:
                continue
            room -= size
            if room < 0:
                break
            chosen.append(text)
        return chosen
