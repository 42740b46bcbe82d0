"""Prompts and what was drawn after them, as training rows."""

import dataclasses

import numpy as np

from jaxalign.rollout.engine import Rollouts


@dataclasses.dataclass
class Drawn:
    """Responses with what they earned, in the order of their prompts, a prompt's next to each other."""

    rows: list  # what was asked, a record of the data each
    prompts: list  # ids
    rollouts: Rollouts
    reward_B: np.ndarray
    counts_B: np.ndarray  # float32: 0 leaves a response out of the objective


def chosen(draws, indices):
    """One `Drawn` of several: of all their responses, counted on from one to the next, those at `indices`."""

    def take(name):
        lists = [getattr(drawn, name) for drawn in draws]
        return [item for items in lists for item in items]

    columns = zip(*(vars(drawn.rollouts).values() for drawn in draws))
    rollouts = Rollouts(*(np.concatenate(column)[indices] for column in columns))
    rows, prompts = ([take(name)[n] for n in indices] for name in ("rows", "prompts"))
    return Drawn(rows, prompts, rollouts, *(np.asarray(take(name))[indices] for name in ("reward_B", "counts_B")))


def response_rows(prompts, rollouts, length, pad_id, tail=()):
    """One row for each prompt with its response, shifted and padded on the right.

    Args:
      prompts: N lists of ids.
      rollouts: `Rollouts` of N responses.
      length: positions a row, at least every prompt plus its response and `tail` minus 1.
      tail: ids that stand behind a response that has ended; no targets.

    Returns:
      tokens_BT, targets_BT, positions_BT, segment_ids_BT, mask_BT (1 where the target was drawn by the policy), and
      sampler_logp_BT and rollout_logp_BT at the same places.
    """
    N = len(prompts)
    batch = {"tokens_BT": np.full((N, length), pad_id, np.int32), "targets_BT": np.full((N, length), pad_id, np.int32),
             "positions_BT": np.zeros((N, length), np.int32), "segment_ids_BT": np.zeros((N, length), np.int32)}
    batch |= {name: np.zeros((N, length), np.float32) for name in ("mask_BT", "sampler_logp_BT", "rollout_logp_BT")}
    for n, prompt in enumerate(prompts):
        drawn = int(rollouts.mask[n].sum())
        more = tail if rollouts.finished[n] else ()
        ids = np.concatenate([np.asarray(prompt, np.int32), rollouts.tokens[n, :drawn], np.asarray(more, np.int32)])
        size, first = len(ids) - 1, len(prompt) - 1  # the target at position `first` is the first drawn token
        batch["tokens_BT"][n, :size], batch["targets_BT"][n, :size] = ids[:-1], ids[1:]
        batch["positions_BT"][n, :size], batch["segment_ids_BT"][n, :size] = np.arange(size), 1
        batch["mask_BT"][n, first:first + drawn] = 1.0
        batch["sampler_logp_BT"][n, first:first + drawn] = rollouts.sampler_logp[n, :drawn]
        batch["rollout_logp_BT"][n, first:first + drawn] = rollouts.logp[n, :drawn]
    return batch


def minibatches(batch, *, batch_size, epochs, seed):
    """`epochs` passes over a batch in parts of `batch_size` rows, each pass in an order of its own."""
    N = len(batch["mask_BT"])
    parts = []
    for epoch in range(epochs):
        order = np.random.default_rng([*seed, epoch]).permutation(N)
        for start in range(0, N, batch_size):
            rows = order[start:start + batch_size]
            parts.append({name: value[rows] for name, value in batch.items()})
    return parts
