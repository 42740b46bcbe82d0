"""Random ragged rows: every length differs, and whatever stands outside a row's tokens is garbage."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

VOCABULARY = 29
WIDTH = 8
SMALLEST_ID = 3  # below stand padding, end and unknown


class Rows(NamedTuple):
    """B rows of prompt and answer in S positions. Position s reads ids_BS[s] and predicts ids_BS[s + 1]."""

    ids_BS: np.ndarray
    attention_BS: np.ndarray  # 1 where there is a token
    mask_BS: np.ndarray  # 1 where the token is scored: the answer's, and of them only what the policy wrote
    prompt_length_B: np.ndarray
    answer_length_B: np.ndarray
    width: int  # of the widest prompt: where every answer begins, if prompts are padded on the left

    @property
    def targets_BT(self):
        return self.ids_BS[:, 1:]

    @property
    def mask_BT(self):
        return self.mask_BS[:, 1:].astype(np.float32)

    def only(self, at) -> Rows:
        """Some of the rows, in this order."""
        return Rows(*(x[at] for x in self[:-1]), self.width)


def rows(draw, B, *, left=False, gaps=False) -> Rows:
    """Rows as a trainer gets them.

    Which row has which lengths is drawn; the lengths that there are stay the same, so that shapes do and JAX compiles
    once.

    Args:
      draw: `numpy.random.Generator`.
      B: rows.
      left: prompts padded on the left, so that all answers begin at one position, as rollouts are batched.
      gaps: some tokens inside answers, a tool's words, are not scored.
    """
    prompt_length_B, answer_length_B = (draw.permutation(np.arange(B) % count) + 2 for count in (4, 9))
    width, longest = int(prompt_length_B.max()), int(answer_length_B.max())
    if left:
        start_B, end = width - prompt_length_B, width + longest
    else:
        start_B, end = np.zeros(B, int), width + longest + 1  # padding in every row
    s = np.arange(end)[None, :]
    answer_B1 = (start_B + prompt_length_B)[:, None]
    stop_B1 = answer_B1 + answer_length_B[:, None]
    attention_BS = ((s >= start_B[:, None]) & (s < stop_B1)).astype(np.int64)
    mask_BS = ((s >= answer_B1) & (s < stop_B1)).astype(np.int64)
    if gaps:
        # Never an answer's first token, so that every row keeps one.
        mask_BS = mask_BS * ((draw.random(mask_BS.shape) > 0.25) | (s == answer_B1))
    ids_BS = draw.integers(SMALLEST_ID, VOCABULARY, attention_BS.shape)
    return Rows(ids_BS, attention_BS, mask_BS, prompt_length_B, answer_length_B, width)


def hidden(draw, rows: Rows):
    """Last hidden states, large where no token is predicted that counts."""
    x_BSD = draw.normal(size=(*rows.ids_BS.shape, WIDTH))
    predicts_BS = np.concatenate([rows.mask_BS[:, 1:], np.zeros_like(rows.mask_BS[:, :1])], axis=1)
    return (x_BSD * np.where(predicts_BS[..., None] > 0, 1.0, 10.0)).astype(np.float32)


def unembed(draw):
    """Of such a size that the logits' standard deviation is 2."""
    return (2.0 / WIDTH**0.5 * draw.normal(size=(WIDTH, VOCABULARY))).astype(np.float32)


def near(draw, x, distance):
    """Another model's: the same up to noise of this size."""
    return (x + distance * draw.normal(size=x.shape)).astype(np.float32)


def padded(draw, x_BT, mask_BT, garbage=3.0):
    """The same with garbage where mask is 0."""
    return np.where(mask_BT > 0, x_BT, garbage * draw.normal(size=x_BT.shape)).astype(np.float32)
