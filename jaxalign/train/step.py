"""The one training step: gradients over microbatches, one division, one update."""

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import ConfigError
from jaxalign.objectives.reduce import as_loss, reduce, weight_sums
from jaxalign.train.optimizer import in_float32
from jaxalign.train.state import TrainState

ROUNDING = 0x5EED  # beside the step's other uses of its key, which count from 0


def make_train_step(loss_fn, optimizer, schedule, *, microbatches=1):
    """A pure, jittable `step(state, frozen, batch) -> (state, metrics)`.

    The denominators of all terms are the sums of their weights over the whole batch and are known before the first
    microbatch, so each microbatch's gradient is already its share and gradients only add: k microbatches give the
    gradient of the whole batch, whatever the number of tokens in each.

    Args:
      loss_fn: (trainable, frozen, batch, key) → `Loss` of unreduced terms. Weights depend on masks alone, so the
        first pass, which needs only them, compiles to a few sums.
      optimizer, schedule: of `make_optimizer`.
      microbatches: how many equal parts of the batch to run one after the other.
    """

    def totals(trainable, frozen, batch, key):
        loss = as_loss(loss_fn(trainable, frozen, batch, key))
        return weight_sums(loss.terms), weight_sums(loss.metrics)

    def share(trainable, frozen, batch, key, denominators):
        loss = as_loss(loss_fn(trainable, frozen, batch, key))
        value, means = reduce(loss.terms, denominators[0])
        return value, means | reduce(loss.metrics, denominators[1])[1]

    def gradient(*args):
        results, grads = jax.value_and_grad(share, has_aux=True)(*args)
        return results, in_float32(grads)

    def step(state: TrainState, frozen, batch):
        key = jax.random.fold_in(state.key, state.step)
        if microbatches == 1:
            denominators = totals(state.trainable, frozen, batch, key)
            (loss, metrics), grads = gradient(state.trainable, frozen, batch, key, denominators)
        else:
            parts = jax.tree.map(lambda x: _cut(x, microbatches), batch)
            keys = jax.random.split(key, microbatches)
            sums = jax.lax.map(lambda part: totals(state.trainable, frozen, *part), (parts, keys))
            denominators = jax.tree.map(lambda x: x.sum(0), sums)

            def add(total, part):
                (loss, metrics), grads = gradient(state.trainable, frozen, *part, denominators)
                return jax.tree.map(jnp.add, total, (loss, metrics, grads)), None

            shapes = jax.eval_shape(lambda: add_shapes(state, frozen, parts, keys, denominators))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (loss, metrics, grads), _ = jax.lax.scan(add, zeros, (parts, keys))
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.trainable)
        trainable = _moved(state.trainable, updates, jax.random.fold_in(key, ROUNDING))
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads), "lr": schedule(state.step)}
        return TrainState(state.step + 1, trainable, optimizer_state, state.key), metrics

    def add_shapes(state, frozen, parts, keys, denominators):
        first = jax.tree.map(lambda x: x[0], (parts, keys))
        (loss, metrics), grads = gradient(state.trainable, frozen, *first, denominators)
        return loss, metrics, grads

    return step


def _moved(trainable, updates, key):
    """θ + u. Of 16 bits it is rounded up or down by chance, so that it is right on average: to the nearest, a step of less
    than half of the last bit, as most are late in a run, would be none (Gupta et al. 2015, arXiv:1502.02551, section 3.1)."""
    leaves, structure = jax.tree.flatten(trainable)
    made = []
    for n, (x, u) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        moved = x.astype(jnp.float32) + u
        if x.dtype == jnp.bfloat16:
            # A bfloat16 is the first half of a float32: what is added to the other half carries as often as it is large.
            chance = jax.random.bits(jax.random.fold_in(key, n), x.shape, jnp.uint16).astype(jnp.uint32)
            bits = jax.lax.bitcast_convert_type(moved, jnp.uint32) + chance
            moved = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
        made.append(moved.astype(x.dtype))
    return jax.tree.unflatten(structure, made)


def _cut(x, k):
    """(B, …) → (k, B/k, …), every k-th row together: with B split over devices, no row changes its device."""
    B = x.shape[0]
    if B % k:
        raise ConfigError(f"batch_size={B} must divide into microbatches={k}")
    return x.reshape(B // k, k, *x.shape[1:]).swapaxes(0, 1)
