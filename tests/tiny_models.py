"""Tiny models for tests: random parameters of a trained size, drawn once a process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxalign.models.heads import ScalarModel
from jaxalign.models.transformer import ModelConfig, Transformer, logits_of
from jaxalign.objectives.logprobs import token_statistics

CONFIG = ModelConfig(vocab_size=23, width=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20)
NAMES = ("tokens_BT", "positions_BT", "segment_ids_BT")


def abstract(config=CONFIG, cls=Transformer):
    return nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))))


@functools.cache
def split(config=CONFIG, cls=Transformer):
    """(graphdef, params), with embeddings and scales as after training, so that attention is far from uniform."""
    graphdef, _ = abstract(config, cls)
    make = jax.jit(lambda key: nnx.split(cls(config, rngs=nnx.Rngs(params=key)))[1])
    params = make(jax.random.key(0))
    rng = np.random.default_rng(0)
    backbone = params["backbone"] if cls is ScalarModel else params
    backbone["embed"].set_value(np.asarray(backbone["embed"][...]) * np.float32(30.0))
    for name in ("attention_norm", "mlp_norm"):
        scale = backbone["layers"][name]["scale"]
        scale.set_value(rng.uniform(0.5, 1.5, scale.shape).astype(np.float32))
    if cls is ScalarModel:
        for name in ("head", "gate"):
            kernel = params[name]["kernel"]
            kernel.set_value(rng.normal(size=kernel.shape).astype(np.float32))
    return graphdef, jax.tree.map(jnp.asarray, params)


def logits(graphdef, params, *inputs):
    model = nnx.merge(graphdef, params)
    return logits_of(model(*inputs), model.unembedding_DV)


def logp(graphdef, params, batch, chunk=10**6):
    """What the trainer makes of a batch: log-probability of each target."""
    model = nnx.merge(graphdef, params)
    hidden_BTD = model(*(batch[name] for name in NAMES))
    return token_statistics(hidden_BTD, model.unembedding_DV, batch["targets_BT"], chunk=chunk).logp_BT


def rows(documents, length, *, starts=None, packed=False, pad=0):
    """Shifted rows of documents (lists of ids), all targets counted.

    Args:
      starts: column at which each document begins, one document a row; 0 if None.
      packed: all documents one after the other in one row.
      pad: what stands in the padding: an id, or an array of a batch's shape.
    """
    B = 1 if packed else len(documents)
    starts = np.cumsum([0] + [len(d) - 1 for d in documents[:-1]]) if packed else starts or [0] * B
    batch = {name: np.zeros((B, length), np.int32) for name in (*NAMES, "targets_BT")}
    batch["tokens_BT"][:] = batch["targets_BT"][:] = pad
    batch["mask_BT"] = np.zeros((B, length), np.float32)
    for n, (document, start) in enumerate(zip(documents, starts)):
        row, at = 0 if packed else n, slice(start, start + len(document) - 1)
        batch["tokens_BT"][row, at], batch["targets_BT"][row, at] = document[:-1], document[1:]
        batch["positions_BT"][row, at] = np.arange(len(document) - 1)
        batch["segment_ids_BT"][row, at] = n + 1 if packed else 1
        batch["mask_BT"][row, at] = 1.0
    return batch


def documents(sizes, vocab=CONFIG.vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab, size).tolist() for size in sizes]
