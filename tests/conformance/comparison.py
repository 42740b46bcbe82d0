"""What a row of the conformance table is, and how far its two sides lie apart."""

from __future__ import annotations

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

TOLERANCE = 1e-5


class Skip(Exception):
    """Raised by a row's sides where something optional is not installed; says what to do."""


class Row(NamedTuple):
    """One comparison.

    Args:
      check: ours, its name first: "dpo", or "dpo: smoothing 0.1".
      against: theirs: the package and what of it runs.
      sides: of a seeded `numpy.random.Generator`; draws the inputs and returns `(ours, theirs)`, two dicts of arrays
        with the same names, and if need be a dict of further figures.
      tolerance: how far apart they may lie.
      draws: how often, where nothing is drawn; None is as often as asked.
    """

    check: str
    against: str
    sides: Callable
    tolerance: float = TOLERANCE
    draws: int | None = None

    @property
    def name(self) -> str:
        """What of ours is compared."""
        return self.check.partition(":")[0]


def measure(row: Row, seeds: int) -> dict:
    """The row as it stands in conformance.json, over `seeds` draws.

    It holds where no entry of any value or gradient is further away than the tolerance, and none of a gradient further
    than that share of its largest entry: of a mean over many tokens it is so small that the first alone says little.
    (A loss is a sum in which terms may cancel; what is left of them is no measure of their rounding.)
    """
    absolute, relative, further = 0.0, 0.0, {}
    for seed in range(row.draws or seeds):
        ours, theirs, *more = row.sides(np.random.default_rng(seed))
        for figures in more:
            further |= figures
        if ours.keys() != theirs.keys():
            raise AssertionError(f"{row.check}: the sides name {sorted(ours)} and {sorted(theirs)}")
        for name in ours:
            a, b = np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64)
            if a.shape != b.shape:
                raise AssertionError(f"{row.check}: {name} has shape {a.shape}, theirs {b.shape}")
            scale = np.max(np.abs(b))
            if scale == 0:
                raise AssertionError(f"{row.check}: theirs of {name} is 0 everywhere, so nothing is compared")
            difference = np.max(np.abs(a - b))
            # A NaN compares with nothing: as infinite it cannot pass for agreement.
            difference = difference if np.isfinite(difference) else np.inf
            absolute = max(absolute, difference)
            if a.ndim:
                relative = max(relative, difference / scale)
    return {
        "check": row.check,
        "against": row.against,
        "max_abs_error": float(absolute),
        "max_relative_error": float(relative),
        "tolerance": row.tolerance,
        "holds": bool(absolute <= row.tolerance and relative <= row.tolerance),
    } | further


def in_jax(function: Callable, **trained) -> dict:
    """What `function` gives for these arrays, and the gradient of it with respect to each of them.

    Args:
      function: takes the arrays by name; returns an array, or a dict of arrays.
      trained: name → numpy array.
    """
    trained = {name: jnp.asarray(x, jnp.float32) for name, x in trained.items()}

    def scalar(trained):
        values = _named(function(**trained))
        return sum(jnp.sum(x * _slope(x.shape)) for x in values.values()), values

    (_, values), gradients = jax.value_and_grad(scalar, has_aux=True)(trained)
    return _together(values, gradients)


def in_torch(function: Callable, **trained) -> dict:
    """As `in_jax`, of a function of torch tensors."""
    trained = {name: torch.tensor(x, dtype=torch.float32, requires_grad=True) for name, x in trained.items()}
    values = _named(function(**trained))
    sum((x * torch.from_numpy(_slope(x.shape))).sum() for x in values.values()).backward()
    return _together({name: x.detach() for name, x in values.items()}, {name: x.grad for name, x in trained.items()})


def _named(result) -> dict:
    return result if isinstance(result, dict) else {"value": result}


def _slope(shape):
    """Fixed weights under which an array's entries are summed before the gradient is taken; 1 for a scalar."""
    return np.cos(np.arange(int(np.prod(shape)), dtype=np.float32)).reshape(shape)


def _together(values, gradients):
    return {k: np.asarray(x) for k, x in values.items()} | {f"d/d {k}": np.asarray(x) for k, x in gradients.items()}
