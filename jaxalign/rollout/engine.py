"""Continuous batching: any number of ragged prompts in, responses out, over a fixed set of slots."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from jaxalign.errors import ConfigError
from jaxalign.models.cache import chosen, empty_cache, filled, inserted, resized
from jaxalign.models.transformer import group_sizes
from jaxalign.rollout.decode import Rows, decode_chunk, read_prompts
from jaxalign.rollout.precision import PRECISIONS, lowered
from jaxalign.rollout.prompts import in_turn, repeated, round_up
from jaxalign.rollout.reading import Reader
from jaxalign.rollout.sampling import Settings
from jaxalign.sharding import make_mesh, put_batch

LOOK = 8  # steps at most before stop strings are looked for
STOPS = 4  # stop tokens that a program is made for; more make another one
FEWEST = 8  # slots: fewer are hardly faster
REFILL = 8  # slots are given away when one in so many is free: prompts are read faster together


@dataclasses.dataclass
class Rollouts:
    """Responses to N requests, in the order asked; numpy, padded on the right to the longest allowed."""

    tokens: np.ndarray  # (N, max_new_tokens) int32
    mask: np.ndarray  # float32: 1 for drawn tokens, the stop token included
    logp: np.ndarray  # under the model itself
    sampler_logp: np.ndarray  # under the distribution that drew the tokens
    reason: np.ndarray  # (N,) str: "stop" (a stop token), "stop_string", "length" (cut by the limit)

    @property
    def finished(self):
        """(N,) bool: the response ended by itself."""
        return self.reason != "length"

    def ids(self, n):
        """The drawn tokens of request n, without the stop token."""
        return self.tokens[n, :int(self.mask[n].sum()) - int(self.reason[n] == "stop")].tolist()


class Sampler:
    """Serves requests from a few compiled programs, however ragged the work.

    A slot whose response has ended is given to the next request while the others go on. Prompts are read packed, equal
    ones once; tokens are drawn in chunks, and only between chunks does the host look at them. A response depends on
    its prompt, its key and its settings, not on its neighbours or the slots.

    Args:
      graphdef: of a `Transformer`.
      stop_ids: ids that end a response; the one drawn is part of it.
      max_new_tokens: the longest response.
      slots: the most rows decoded together; few requests take a quarter of them, and so on.
      bucket: the cache holds one, 1.5, 2, 3, 4, 6, … times this many tokens a row, as few as do.
      chunk: the most steps between two looks; enough free slots, or a stop string to look for, end it sooner.
      stop_strings, decode: texts that end a response, looked for in `decode(ids)` of what was drawn; the token that
        completes one is the last.
      forbidden: ids that are never drawn.
      precision: of the weights that draw, a name in `precision.PRECISIONS`; log-probabilities are of that model.
      mesh: whose `data` and `fsdp` axes share the slots evenly; None: one device.
    """

    def __init__(self, graphdef, *, stop_ids, max_new_tokens, slots=128, bucket=64, chunk=32, pad_id=0,
                 stop_strings=(), decode=None, forbidden=(), precision="model", mesh=None):
        if stop_strings and decode is None:
            raise ConfigError(f"stop_strings={tuple(stop_strings)} need decode, a function from a list of ids to text")
        self.slots, self.bucket, self.chunk, self.pad_id = slots, bucket, chunk, pad_id
        self.max_new_tokens, self.stop_ids = max_new_tokens, tuple(stop_ids)
        self.mesh = mesh or make_mesh(1)
        self.devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if slots % self.devices:
            raise ConfigError(f"slots={slots} must divide by the mesh's data × fsdp = {self.devices}; "
                              f"use {round_up(slots, self.devices)}")
        self.stop_strings, self.decode, self.forbidden = tuple(stop_strings), decode, tuple(forbidden)
        if precision not in PRECISIONS:
            raise ConfigError(f"a sampler's precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        self.graphdef, self.precision = graphdef, precision

    def __call__(self, params, prompts, keys, settings=Settings(), max_new_tokens=None, n=1, tell=None) -> Rollouts:
        """Args:
          params: `nnx.State` of the model.
          prompts: list of lists of ids.
          keys: typed keys, one a prompt.
          settings: how tokens are drawn; fields may be arrays with one number a prompt.
          max_new_tokens: a limit for each prompt, at most the sampler's; None: the sampler's for all.
          n: responses a prompt, those of one prompt one after the other; where it is above 1, response j draws with
            fold_in(key, j).
          tell: called between chunks with (responses that have ended, tokens drawn).
        """
        if n < 1:
            raise ConfigError(f"n={n} responses a prompt must be 1 or more")
        if n > 1:
            prompts, keys, settings, max_new_tokens = repeated(n, prompts, keys, settings, max_new_tokens)
        if not prompts or min(map(len, prompts)) == 0:
            raise ConfigError("every prompt needs at least one token; got an empty prompt or none at all")
        N = len(prompts)
        limits = np.full(N, self.max_new_tokens) if max_new_tokens is None else np.asarray(max_new_tokens)
        if limits.shape != (N,) or limits.min() < 1 or limits.max() > self.max_new_tokens:
            raise ConfigError(f"max_new_tokens must be {N} numbers from 1 to {self.max_new_tokens}; got {max_new_tokens}")
        nnx.merge(self.graphdef, params).config.need_places(
            max(len(prompt) + limit for prompt, limit in zip(prompts, limits)), "a prompt with its max_new_tokens",
            "shorten the prompt, or ask for fewer tokens")
        graphdef, params = lowered(self.graphdef, params, self.precision)
        with jax.set_mesh(self.mesh):
            return _Run(self, graphdef, params, [list(p) for p in prompts], keys, settings, limits).finish(tell)

    def _size(self, requests):
        """The smallest number of slots for so many requests, or the largest there is."""
        size = self.slots
        while size % (4 * self.devices) == 0 and size // 4 >= max(requests, FEWEST):
            size //= 4
        return size


class _Run:
    """One call's state on the host: which request each slot serves."""

    def __init__(self, sampler, graphdef, params, prompts, keys, settings, limits):
        self.s, self.params, self.prompts, self.limits = sampler, params, prompts, limits
        self.programs = _programs(graphdef, sampler.chunk, sampler.pad_id)
        N, width = len(prompts), sampler.max_new_tokens
        self.keys = np.asarray(jax.random.key_data(keys))
        self.settings = [np.broadcast_to(np.asarray(x, t), (N,)) for x, t in zip(
            settings, (np.float32, np.int32, np.float32, np.float32))]
        self.out = Rollouts(np.full((N, width), sampler.pad_id, np.int32), *(np.zeros((N, width), np.float32) for _ in "123"),
                            np.full(N, "length", "U11"))
        texts = [tuple(prompt[:-1]) for prompt in prompts]  # what is read of a prompt
        self.queue = in_turn(texts, limits)
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self.text = [numbers[text] for text in texts]  # of each request, its number in the reader
        self.reader = Reader(functools.partial(self.programs["read"], params), list(numbers), sampler.bucket, sampler.pad_id)
        # No row ever has more in the cache.
        self.longest = max(len(prompt) - 1 + int(limit) for prompt, limit in zip(prompts, limits))
        self.request = np.full(sampler._size(N), -1)  # of each slot, −1 for none
        self.drawn = np.zeros(N, np.int64)
        self.window, self.end, self.cache = 0, 0, None

    def finish(self, tell):
        while self.queue or (self.request >= 0).any():
            self._refill()
            self._shrink()
            self._fit()
            self._decode()
            if tell:
                tell(len(self.prompts) - len(self.queue) - int((self.request >= 0).sum()), int(self.drawn.sum()))
        return self.out

    def _lengths(self, requests):
        """Tokens in the cache: all but the last."""
        return np.array([len(self.prompts[n]) - 1 for n in requests], int) + self.drawn[requests]

    def _refill(self):
        free, live = np.flatnonzero(self.request < 0), int((self.request >= 0).sum())
        if not self.queue or (live and len(free) * REFILL < len(self.request)):
            return
        slots = free[:len(self.queue)]
        requests = np.array([self.queue.pop() for _ in slots])
        self.request[slots] = requests
        if self.cache is None:
            self.window = self._window()
            self.end = int(self._lengths(requests).max()) % self.window  # prompts in the first slots, see `cache.parts`
        else:
            self._fit()
        wanted = {}
        for slot, n in zip(slots, requests):
            wanted.setdefault(self.text[n], []).append(slot)
        waiting = dict.fromkeys(self.text[n] for n in reversed(self.queue))
        for read in self.reader(wanted, waiting, self.end, self.window):
            self._insert(*read)
        if self.cache is None:
            self._empty()

    def _empty(self):
        self.cache = self.programs["empty"](self.params, len(self.request), self.window)

    def _insert(self, read, slots, sources):
        """Into all slots or a quarter of them, so that two shapes serve."""
        B = len(self.request)
        if self.cache is None and len(slots) * 4 > B:
            source_BW = np.zeros((B, self.window), np.int32)
            source_BW[slots] = sources
            self.cache = self.programs["fill"](read, source_BW)
            return
        if self.cache is None:
            self._empty()
        R = B if len(slots) * 4 > B else max(B // 4, 1)
        pad = R - len(slots)
        slots = np.append(np.asarray(slots, np.int32), np.full(pad, B, np.int32))
        self.cache = self.programs["insert"](self.cache, read, slots, np.pad(sources, ((0, pad), (0, 0))))

    def _window(self):
        """The smallest that holds every live row after the next chunk; one for good where that is small."""
        whole = round_up(self.longest, max(self.s.bucket // 4, 1))
        if whole * 2 <= self.s.bucket * 3:
            return whole
        need = int(self._lengths(self.request[self.request >= 0]).max()) + self._steps()
        window = self.s.bucket
        while window < need:
            window *= 2
        return min(window * 3 // 4 if self.s.bucket <= window * 3 // 4 >= need else window, whole)

    def _steps(self):
        """The most that the next chunk makes."""
        live = self.request[self.request >= 0]
        most = min(self.s.chunk, LOOK) if self.s.stop_strings else self.s.chunk
        return min(most, int((self.limits[live] - self.drawn[live]).max()))

    def _fewest(self):
        """With fewer live rows than these there is something to do: slots to be refilled, or rows to be left out."""
        size = len(self.request)
        if self.queue:
            return size + 1 - -(-size // REFILL)
        return size // 4 + 1 if self.s._size(size // 4) < size else 1

    def _fit(self):
        """Widens the cache where it must, and narrows it where half of it is enough."""
        window = self._window()
        if not self.window // 2 < window <= self.window:
            self.cache = self.programs["resize"](self.cache, np.int32(self.end), window)
            self.window, self.end = window, min(self.window, window) % window

    def _shrink(self):
        live = np.flatnonzero(self.request >= 0)
        size = self.s._size(len(live))
        if self.queue or size >= len(self.request):
            return
        rest = np.flatnonzero(self.request < 0)[:size - len(live)]
        rows = np.concatenate([live, rest]).astype(np.int32)
        self.cache, self.request = self.programs["choose"](self.cache, rows), self.request[rows]

    def _decode(self):
        live = self.request >= 0
        n = np.maximum(self.request, 0)
        last = [self.out.tokens[i, self.drawn[i] - 1] if self.drawn[i] else self.prompts[i][-1] for i in n]
        left = np.where(live, self.limits[n] - self.drawn[n], 0)
        put = functools.partial(put_batch, mesh=self.s.mesh)
        length = np.where(live, self._lengths(n), 0)
        last, length, drawn, left = (put(np.asarray(x, np.int32)) for x in (last, length, self.drawn[n], left))
        rows = Rows(last, length, drawn, left, jax.random.wrap_key_data(put(self.keys[n])),
                    Settings(*(put(x[n]) for x in self.settings)))
        # As many for all callers, so that they share programs.
        stop_ids = np.asarray(self.s.stop_ids + (-1,) * (STOPS - len(self.s.stop_ids)), np.int32)
        self.cache, drawn, made = self.programs["decode"](
            self.params, self.cache, np.int32(self.end), rows, np.int32(self._steps()), np.int32(self._fewest()),
            stop_ids, self._forbidden())
        self.end = (self.end + int(made)) % self.window
        token, mask, logp, sampler_logp = map(np.asarray, drawn)
        for slot in np.flatnonzero(live):
            i, count = self.request[slot], int(mask[slot].sum())
            before, after = self.drawn[i], self.drawn[i] + count
            for array, new in zip((self.out.tokens, self.out.mask, self.out.logp, self.out.sampler_logp),
                                  (token, mask, logp, sampler_logp)):
                array[i, before:after] = new[slot, :count]
            self.drawn[i] = after
            stopped = token[slot, count - 1] in self.s.stop_ids
            if stopped:
                self.out.reason[i] = "stop"
            if self.s.stop_strings:
                stopped |= self._cut_at_string(i)
            if stopped or after == self.limits[i]:
                self.request[slot] = -1

    def _forbidden(self):
        if not self.s.forbidden:
            return None
        size = self.params["embed"].get_value().shape[0]
        return np.isin(np.arange(size), self.s.forbidden)

    def _cut_at_string(self, i):
        """Ends response i with the token that completes a stop string, if one stands in it."""
        ids = self.out.tokens[i, :self.drawn[i]].tolist()
        if not any(text in self.s.decode(ids) for text in self.s.stop_strings):
            return False
        count = next(k for k in range(1, len(ids) + 1)
                     if any(text in self.s.decode(ids[:k]) for text in self.s.stop_strings))
        if count == len(ids) and self.out.reason[i] == "stop":
            return True
        self.out.reason[i] = "stop_string"
        self.out.tokens[i, count:] = self.s.pad_id
        for array in (self.out.mask, self.out.logp, self.out.sampler_logp):
            array[i, count:] = 0.0
        return True


@functools.lru_cache(maxsize=8)
def _programs(graphdef, steps, pad_id):
    """The compiled parts, cached on the model's shape: the stages of a pipeline share them."""

    def make(params, rows, window):
        config = nnx.merge(graphdef, params).config
        return empty_cache(config, group_sizes(config), rows, window)

    decode = functools.partial(decode_chunk, graphdef, steps=steps, pad_id=pad_id)
    return {
        "empty": jax.jit(make, static_argnums=(1, 2)),
        "read": jax.jit(functools.partial(read_prompts, graphdef)),
        "fill": jax.jit(filled),
        "insert": jax.jit(inserted, donate_argnums=0),
        "resize": jax.jit(resized, static_argnums=2),
        "choose": jax.jit(chosen),
        "decode": jax.jit(decode, donate_argnums=1),
    }
