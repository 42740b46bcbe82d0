"""A checkpoint that can be talked to: text in, text out."""

import math

import jax
import numpy as np
from flax import nnx

from jaxalign.data.chat import render
from jaxalign.data.tokenizer import open_tokenizer
from jaxalign.errors import CheckpointError
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.rollout.engine import Sampler
from jaxalign.rollout.sampling import Settings
from jaxalign.sharding import make_mesh, replicated
from jaxalign.train.checkpoint import load_params, read_meta, unpack_tokenizer


class Assistant:
    """A language model with its tokenizer.

    Attributes: `tokenizer`, `graphdef`, `params`, `meta` (what its checkpoint says of it).
    """

    def __init__(self, graphdef, params, tokenizer, *, meta=None, max_new_tokens=64, batch_size=64, bucket=64):
        # Rows are independent, so every device takes its share of them.
        self.mesh = make_mesh(data=math.gcd(batch_size, jax.local_device_count()), devices=jax.local_devices())
        self.graphdef, self.tokenizer, self.meta = graphdef, tokenizer, meta or {}
        self.params = jax.device_put(params, replicated(self.mesh))
        self.max_new_tokens, self.batch_size, self.bucket = max_new_tokens, batch_size, bucket
        self._statistics = jax.jit(self._logp)

    @classmethod
    def load(cls, checkpoint, **options):
        """From a stage's workdir or one checkpoint's folder.

        Raises:
          CheckpointError: nothing there, damaged, or a reward model, whose backbone is a language model in
            shape only.
        """
        folder, meta = read_meta(checkpoint)
        if meta["policy"] == "reward/backbone":
            raise CheckpointError(f"{folder}: expected a language model, this is a reward model, which scores answers "
                                  "and writes none; name another stage's workdir, or measure it with jaxalign evaluate")
        config = ModelConfig(**meta["model"])
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
        return cls(graphdef, load_params(folder, meta["policy"], abstract), open_tokenizer(unpack_tokenizer(meta)),
                   meta=meta, **options)

    def generate(self, prompts, *, seed=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_new_tokens=None, n=1,
                 stop_strings=(), forbidden=(), tell=None):
        """`Rollouts` of lists of ids, `n` to each; a request draws from its own key, a function of `seed` and its place.
        Options: of `Sampler`."""
        more = self.meta.get("published", {}).get("stop_ids", ())  # which the model's publisher names
        sampler = Sampler(self.graphdef, stop_ids=tuple(dict.fromkeys((*self.tokenizer.stop_ids, *more))),
                          max_new_tokens=self.max_new_tokens if max_new_tokens is None else max_new_tokens,
                          slots=self.batch_size, bucket=self.bucket, pad_id=self.tokenizer.pad_id, mesh=self.mesh,
                          stop_strings=stop_strings, decode=self.tokenizer.decode, forbidden=forbidden)
        keys = jax.random.split(jax.random.key(seed), len(prompts))
        return sampler(self.params, prompts, keys, Settings(temperature, top_k, top_p, min_p), n=n, tell=tell)

    def reply(self, conversations, **options):
        """The assistant's next turn in each conversation (a list of messages), as text."""
        prompts = [render(m, self.tokenizer, add_generation_prompt=True)[0] for m in conversations]
        return self._texts(self.generate(prompts, **options))

    def answers(self, conversations, *, seed=0):
        """(text, whether it ended by itself) of the next turn in each conversation, at temperature 0: two lists."""
        prompts = [render(messages, self.tokenizer, add_generation_prompt=True)[0] for messages in conversations]
        rollouts = self.generate(prompts, seed=seed, temperature=0.0)
        return self._texts(rollouts), [bool(ended) for ended in rollouts.finished]

    def complete(self, texts, **options):
        """What the model writes after each text, as in pretraining: no chat."""
        prompts = [[*self.tokenizer.start_ids, *self.tokenizer.encode(text)] for text in texts]
        return self._texts(self.generate(prompts, **options))

    def logp(self, batch):
        """Log-probability of each target of a numpy batch of tokens, (B, T), nats."""
        return np.asarray(self._statistics(self.params, batch["tokens_BT"], batch["positions_BT"],
                                           batch["segment_ids_BT"], batch["targets_BT"]))

    def _logp(self, params, tokens_BT, positions_BT, segment_ids_BT, targets_BT):
        model = nnx.merge(self.graphdef, params)
        hidden_BTD = model(tokens_BT, positions_BT, segment_ids_BT)
        chunk = max(1, 2**24 // (hidden_BTD.shape[0] * self.tokenizer.vocab_size))
        return token_statistics(hidden_BTD, model.unembedding_DV, targets_BT, chunk=chunk,
                                softcap=model.softcap).logp_BT

    def _texts(self, rollouts):
        return [self.tokenizer.decode(rollouts.ids(n)).strip() for n in range(len(rollouts.finished))]
