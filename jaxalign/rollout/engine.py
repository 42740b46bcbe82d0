"""The sampler that stages and the command line use: any number of ragged prompts in, responses out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ConfigError
from jaxalign.rollout.sampling import Settings, generate

SMALLEST = 8  # rows: a smaller batch is hardly faster


@dataclasses.dataclass
class Rollouts:
    """Responses to N requests, in the order asked; numpy, padded on the right to the longest allowed."""

    tokens: np.ndarray  # (N, max_new_tokens) int32
    mask: np.ndarray  # float32: 1 for drawn tokens, the stop token included
    logp: np.ndarray  # under the model itself
    sampler_logp: np.ndarray  # under the distribution that drew the tokens
    finished: np.ndarray  # (N,) bool: a stop token was drawn

    def ids(self, n):
        """The drawn tokens of request n, without the stop token."""
        length = int(self.mask[n].sum()) - int(self.finished[n])
        return self.tokens[n, :length].tolist()


class Sampler:
    """Batches ragged prompts into a few fixed shapes, so that a handful of compilations serve any work.

    Responses are drawn in rounds of `segment` tokens. Those that have not ended go on together in the next round, their
    tokens so far read anew: a batch never waits long for its longest row.

    Args:
      graphdef: of a `Transformer`.
      stop_ids: ids that end a response.
      max_new_tokens: the longest response.
      batch_size: the most rows decoded together; few rows make a batch of a quarter of that, and so on; a batch is
        filled up with copies.
      bucket: prompts are padded to a multiple of this.
      segment: tokens a round; 0 draws each response in one.
      place: puts an array with one row a request where the work runs.
      devices: that share the rows of a batch evenly.
    """

    def __init__(self, graphdef, *, stop_ids, max_new_tokens, batch_size=128, bucket=32, segment=16, pad_id=0, place=None,
                 devices=1):
        self.batch_size, self.bucket, self.max_new_tokens, self.pad_id = batch_size, bucket, max_new_tokens, pad_id
        self.devices = devices
        rounds = -(-max_new_tokens // segment) if segment else 1
        self.segment = -(-max_new_tokens // rounds)
        self._place = place or jnp.asarray
        self._generate = _compiled(graphdef, tuple(stop_ids), self.segment, pad_id)

    def __call__(self, params, prompts, keys, settings=Settings()):
        """Args:
          params: `nnx.State` of the model.
          prompts: list of lists of ids.
          keys: typed keys, one a prompt: the response is a function of the prompt and its key.
          settings: how tokens are drawn.
        """
        if not prompts or min(map(len, prompts)) == 0:
            raise ConfigError("every prompt needs at least one token; got an empty prompt or none at all")
        N, width = len(prompts), -(-self.max_new_tokens // self.segment) * self.segment
        out = Rollouts(np.full((N, width), self.pad_id, np.int32), *(np.zeros((N, width), np.float32) for _ in range(3)),
                       np.zeros((N,), bool))
        key_data = np.asarray(jax.random.key_data(keys))
        prompts = [list(prompt) for prompt in prompts]
        for first in range(0, width, self.segment):
            left = np.flatnonzero(~out.finished)
            # Rows of like length share a batch, so that a long prompt pads few others.
            order = sorted(left.tolist(), key=lambda i: len(prompts[i]))
            pending = []
            while order:
                size = self._batch(len(order))
                rows, order = order[:size], order[size:]
                pending.append((rows, self._launch(params, prompts, key_data, rows, size, settings, first)))
            for rows, responses in pending:
                *columns, finished = [np.asarray(a)[:len(rows)] for a in responses]
                for array, column in zip((out.tokens, out.mask, out.logp, out.sampler_logp), columns):
                    array[rows, first:first + self.segment] = column
                out.finished[rows] = finished
                for row, drawn, kept in zip(rows, *columns[:2]):
                    prompts[row] += drawn[kept > 0].tolist()
        return _cut(out, self.max_new_tokens)

    def _batch(self, rows):
        """The smallest size that holds the rows, or the largest there is."""
        size = self.batch_size
        while size % (4 * self.devices) == 0 and size // 4 >= max(rows, SMALLEST):
            size //= 4
        return size

    def _launch(self, params, prompts, key_data, rows, size, settings, first):
        filled = rows + [rows[-1]] * (size - len(rows))
        width = -(-max(len(prompts[i]) for i in rows) // self.bucket) * self.bucket
        tokens = np.full((size, width), self.pad_id, np.int32)
        for j, i in enumerate(filled):
            tokens[j, width - len(prompts[i]):] = prompts[i]
        lengths = np.asarray([len(prompts[i]) for i in filled], np.int32)
        keys = jax.random.wrap_key_data(self._place(key_data[filled]))
        return self._generate(params, self._place(tokens), self._place(lengths), keys, Settings(
            jnp.float32(settings.temperature), jnp.int32(settings.top_k), jnp.float32(settings.top_p)), jnp.int32(first))


def _cut(out, length):
    """The first `length` tokens; an end that was drawn after them was not drawn."""
    ended = out.mask.sum(1) <= length
    arrays = (array[:, :length] for array in (out.tokens, out.mask, out.logp, out.sampler_logp))
    return Rollouts(*arrays, out.finished & ended)


@functools.lru_cache(maxsize=8)
def _compiled(graphdef, stop_ids, max_new_tokens, pad_id):
    # Cached on the model's shape: the stages of a pipeline share one compilation.
    run = functools.partial(generate, graphdef, stop_ids=stop_ids, max_new_tokens=max_new_tokens, pad_id=pad_id)
    return jax.jit(run)
