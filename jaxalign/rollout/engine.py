"""The sampler that stages and the command line use: any number of ragged prompts in, responses out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import ConfigError
from jaxalign.rollout.sampling import Settings, generate


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

    Args:
      graphdef: of a `Transformer`.
      stop_ids: ids that end a response.
      max_new_tokens: the longest response.
      batch_size: rows decoded together; the last batch is filled up with copies.
      bucket: prompts are padded to a multiple of this.
      mesh: where to run; None for a single device.
    """

    def __init__(self, graphdef, *, stop_ids, max_new_tokens, batch_size=128, bucket=32, pad_id=0, place=None):
        self.batch_size, self.bucket, self.max_new_tokens, self.pad_id = batch_size, bucket, max_new_tokens, pad_id
        self._place = place or jnp.asarray
        self._generate = _compiled(graphdef, tuple(stop_ids), max_new_tokens, pad_id)

    def __call__(self, params, prompts, keys, settings=Settings()):
        """Args:
          params: `nnx.State` of the model.
          prompts: list of lists of ids.
          keys: typed keys, one a prompt: the response is a function of the prompt and its key.
          settings: how tokens are drawn.
        """
        if not prompts or min(map(len, prompts)) == 0:
            raise ConfigError("every prompt needs at least one token; got an empty prompt or none at all")
        # Rows of like length share a batch, so that a long prompt pads few others.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out = [None] * len(prompts)
        key_data = np.asarray(jax.random.key_data(keys))
        pending = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start:start + self.batch_size]
            pending.append((rows, self._launch(params, prompts, key_data, rows, settings)))
        for rows, responses in pending:
            arrays = [np.asarray(a) for a in responses]
            for j, row in enumerate(rows):
                out[row] = [a[j] for a in arrays]
        return Rollouts(*(np.stack(column) for column in zip(*out)))

    def _launch(self, params, prompts, key_data, rows, settings):
        filled = rows + [rows[-1]] * (self.batch_size - len(rows))
        width = -(-max(len(prompts[i]) for i in rows) // self.bucket) * self.bucket
        tokens = np.full((self.batch_size, width), self.pad_id, np.int32)
        for j, i in enumerate(filled):
            tokens[j, width - len(prompts[i]):] = prompts[i]
        lengths = np.asarray([len(prompts[i]) for i in filled], np.int32)
        keys = jax.random.wrap_key_data(self._place(key_data[filled]))
        return self._generate(params, self._place(tokens), self._place(lengths), keys, Settings(
            jnp.float32(settings.temperature), jnp.int32(settings.top_k), jnp.float32(settings.top_p)))


@functools.lru_cache(maxsize=8)
def _compiled(graphdef, stop_ids, max_new_tokens, pad_id):
    # Cached on the model's shape: the stages of a pipeline share one compilation.
    run = functools.partial(generate, graphdef, stop_ids=stop_ids, max_new_tokens=max_new_tokens, pad_id=pad_id)
    return jax.jit(run)
