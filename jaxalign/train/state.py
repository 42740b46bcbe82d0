"""What training changes: parameters, optimizer state, step. One pytree, made where it will live."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.sharding import shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    step: jax.Array  # int32: optimizer steps done
    trainable: Any
    optimizer_state: Any
    key: jax.Array  # typed key; step n draws from fold_in(key, n), so a resumed run repeats its draws


def fresh_state(init, optimizer):
    """key → `TrainState` before the first step. Pure; `jax.eval_shape` of it is what a state will be.

    Args:
      init: key → trainable tree of `nnx.State`s. Pure.
      optimizer: an optax transformation.
    """

    def make(key):
        init_key, run_key = jax.random.split(key)
        trainable = init(init_key)
        return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), run_key)

    return make


def create_state(init, optimizer, key, mesh):
    """A `fresh_state`, made sharded: no device ever holds what is not its own.

    Args:
      init, optimizer: of `fresh_state`.
      key: typed key.
      mesh: decides the shardings through the parameters' logical axes; optimizer moments follow their parameters.
    """
    make = fresh_state(init, optimizer)
    # Run once, and random number generators are long programs: on a CPU, LLVM would optimise them for seconds.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make, key), mesh), compiler_options=options)(key)
