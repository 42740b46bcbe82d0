"""The one place that divides: weighted terms in, a scalar loss out.

Objectives return *unreduced* values with weights. A term's denominator is the sum of its weights over the whole batch:
all microbatches, devices and hosts. Whoever accumulates gradients computes the denominators first, with `weight_sums`,
and passes them to every call of `reduce`; each microbatch's gradient is then already its share, and gradients only add.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One unreduced part of a loss, or one metric.

    Args:
      value: any shape; what is averaged. Trained through, where it is part of a loss.
      weight: same shape, ≥ 0; 0 leaves the entry out. It must depend on masks alone, never on the model's outputs,
        for denominators are summed before the first microbatch. No gradient.
      coefficient: multiplies the term's mean in the loss. Ignored for metrics.
    """

    value: jax.Array
    weight: jax.Array
    coefficient: Any = 1.0


class Loss(NamedTuple):
    """What an objective returns: named terms, summed into the loss, and named metrics, only averaged."""

    terms: dict[str, Term]
    metrics: dict[str, Term]


def counted(x, mask):
    """`x` where `mask` > 0, else 0, with no gradient there.

    Objectives apply this to their inputs before any `exp`, `log` or division: at padding a value may be anything, and a
    zero cotangent times an infinite slope would be NaN.
    """
    return jnp.where(mask > 0, x, jnp.zeros_like(x))


def as_loss(result) -> Loss:
    """Reads what an objective returned.

    Args:
      result: a `Loss`; a `Term`; `(value, weight)`; or `(terms, metrics)`, two dicts whose entries are `Term`s or
        `(value, weight)` pairs.

    Returns:
      A `Loss`; a lone term is named "loss".

    Raises:
      ConfigError: for anything else, such as a scalar that was already reduced, and where shapes differ.
    """
    if isinstance(result, Loss):
        terms, metrics = result
    elif isinstance(result, Term):
        terms, metrics = {"loss": result}, {}
    elif isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Mapping) for part in result):
        terms, metrics = result
    elif isinstance(result, tuple) and len(result) == 2 and all(_is_array(part) for part in result):
        terms, metrics = {"loss": Term(*result)}, {}
    else:
        raise ConfigError(
            "an objective must return unreduced values with their weights: (value, weight), a Term, "
            f"a Loss, or (terms, metrics) as two dicts; got {_describe(result)}"
            + ("; leave out the mean or sum and return (value, weight)" if _is_array(result) else "")
        )
    if not terms:
        raise ConfigError("an objective must return at least one term; got none")
    return Loss(
        {name: _as_term(f"term {name!r}", term) for name, term in terms.items()},
        {name: _as_term(f"metric {name!r}", term) for name, term in metrics.items()},
    )


def weight_sums(terms: Mapping[str, Term]) -> dict[str, jax.Array]:
    """The sum of each term's weights, float32; add these over microbatches to get the denominators of `reduce`."""
    return {name: jnp.sum(jnp.asarray(term.weight, jnp.float32)) for name, term in terms.items()}


def reduce(terms: Mapping[str, Term], denominators: Mapping[str, jax.Array] | None = None):
    """Weighted means, and their sum.

        loss = Σₖ coefficientₖ · Σ(valueₖ · weightₖ) / denominatorₖ

    Values whose weight is 0 are dropped before the product, so a NaN there reaches neither the loss nor the gradient
    with respect to that value. A term without any weight is 0, not NaN.

    Args:
      terms: name → `Term`.
      denominators: name → scalar, the weight sums over the whole batch; these terms' own weight sums if None.

    Returns:
      `(loss, means)`: a float32 scalar, and each term's mean (without its coefficient) by name. Where the terms are one
      microbatch of several, both are shares that add up to the whole batch's.
    """
    if denominators is None:
        denominators = weight_sums(terms)
    loss, means = jnp.zeros((), jnp.float32), {}
    for name, term in terms.items():
        weight = jax.lax.stop_gradient(jnp.asarray(term.weight, jnp.float32))
        total = jnp.sum(counted(jnp.asarray(term.value, jnp.float32), weight) * weight)
        # tiny, not 1: weights may be fractions whose sum is well below 1.
        denominator = jnp.maximum(jax.lax.stop_gradient(denominators[name]), jnp.finfo(jnp.float32).tiny)
        means[name] = total / denominator
        loss = loss + term.coefficient * means[name]
    return loss, means


def _as_term(name, term) -> Term:
    if isinstance(term, tuple) and len(term) == 2:
        term = Term(*term)
    if not isinstance(term, Term) or not (_is_array(term.value) and _is_array(term.weight)):
        raise ConfigError(f"{name} must be a Term or (value, weight), two arrays; got {_describe(term)}")
    if jnp.shape(term.value) != jnp.shape(term.weight):
        raise ConfigError(
            f"{name}: value and weight must have the same shape; got value {jnp.shape(term.value)}, "
            f"weight {jnp.shape(term.weight)}; broadcast the weight to the value's shape"
        )
    return term


def _is_array(x) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _describe(x) -> str:
    if isinstance(x, Term):
        return f"Term({_describe(x.value)}, {_describe(x.weight)})"
    if _is_array(x):
        return f"an array of shape {tuple(x.shape)}"
    if isinstance(x, tuple):
        return "(" + ", ".join(_describe(part) for part in x) + ")"
    return type(x).__name__
