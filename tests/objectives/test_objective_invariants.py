"""What holds for every objective in the table: jit, padding, gradients, microbatches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxalign.batches import VOCABULARY, bind, signature
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.reduce import as_loss, reduce, weight_sums

OPTIONS = {
    "cross_entropy": {"z_loss": 0.01, "label_smoothing": 0.1},
    "bradley_terry": {"margin_scale": 0.5, "centre": 0.1},
    "plackett_luce": {"centre": 0.1},
    "pairwise_ranking": {"centre": 0.1},
    "dpo": {"beta": 0.2, "smoothing": 0.1, "nll_coefficient": 0.5},
    "ipo": {"beta": 0.2},
    "kto": {"beta": 0.3, "desirable_weight": 1.2},
    "orpo": {"odds_coefficient": 0.3},
    "simpo": {"beta": 2.0, "target_margin": 0.5},
    "ppo": {"value_coefficient": 0.5, "entropy_coefficient": 0.01},
    "grpo": {"kl_coefficient": 0.1},
}
SIZE = {"B": 6, "T": 5, "R": 4}
COUNTS = ("mask_BT", "answer_mask_BR", "weight_B")


def batch(name):
    """Random arrays for every argument of an objective; ragged masks, one row of them empty."""
    rng = np.random.default_rng(8)
    arrays = {}
    for argument in signature(OBJECTIVES[name])[0]:
        shape = [SIZE[letter] for letter in argument.split("_")[-1]]
        x = rng.normal(size=shape).astype(np.float32)
        if argument in COUNTS:
            x = (rng.random(shape) < 0.7).astype(np.float32)
            x[2] = 0.0
        if argument == "ranks_BR":
            x = rng.integers(0, 3, shape).astype(np.int32)
        arrays[argument] = x
    return arrays


def trained(name):
    return [a for a in signature(OBJECTIVES[name])[0] if "gradient flows" in VOCABULARY[a]]


def run(name):
    """(loss, metrics), and the gradient by every float argument; `denominators` from outside if given."""

    def loss_of(floats, integers, denominators):
        loss = as_loss(bind(OBJECTIVES[name], floats | integers, OPTIONS[name]))
        return reduce(loss.terms, denominators)[0], (reduce(loss.metrics)[1], weight_sums(loss.terms))

    def call(arrays, denominators=None):
        floats = {k: v for k, v in arrays.items() if v.dtype == np.float32}
        integers = {k: v for k, v in arrays.items() if k not in floats}
        return jax.value_and_grad(loss_of, has_aux=True)(floats, integers, denominators)

    return call


@pytest.fixture(scope="module", params=sorted(OBJECTIVES))
def case(request):
    arrays = batch(request.param)
    call = jax.jit(run(request.param))
    return request.param, arrays, call, call(arrays)


def test_every_objective_has_a_case_and_speaks_the_vocabulary():
    assert set(OPTIONS) == set(OBJECTIVES)
    for function in OBJECTIVES.values():
        assert set(signature(function)[0]) <= set(VOCABULARY)


class WithAndWithoutJit(chex.TestCase):
    """Every objective, jitted and op by op: the same loss, metrics and gradient."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*sorted(OBJECTIVES))
    def test_every_objective_runs(self, name):
        arrays = batch(name)
        (loss, (metrics, _)), gradient = self.variant(run(name))(arrays)
        expected = reduce(bind(OBJECTIVES[name], arrays, OPTIONS[name]).terms)[0]
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
        chex.assert_tree_all_finite((loss, metrics, gradient))
        chex.assert_trees_all_equal_shapes(gradient, {k: arrays[k] for k in gradient})


def test_gradient_flows_where_the_vocabulary_says_and_nowhere_else(case):
    name, _, _, (_, gradient) = case
    for argument, g in gradient.items():
        assert np.any(g != 0) == (argument in trained(name)), argument


def test_what_does_not_count_changes_nothing(case):
    """NaN wherever the mask is 0, and more of it at the end: the same loss, metrics and gradient."""
    name, arrays, call, ((loss, (metrics, _)), gradient) = case
    mask_name = next(a for a in arrays if a in COUNTS)
    mask = arrays[mask_name]

    def dirty(argument, x):
        # Ranks are integers: an absent answer's rank is any large one.
        junk = np.int32(77) if x.dtype == np.int32 else np.float32(np.nan)
        if argument != mask_name and x.shape == mask.shape:
            x = np.where(mask > 0, x, junk)
        grow = [(0, 2)] + [(0, 3)] * (x.ndim - 1)
        return np.pad(x, grow, constant_values=0 if argument in COUNTS else junk)

    (dirty_loss, (dirty_metrics, _)), dirty_gradient = call({a: dirty(a, x) for a, x in arrays.items()})
    np.testing.assert_allclose(dirty_loss, loss, rtol=1e-5, atol=1e-6)
    for key in metrics:
        np.testing.assert_allclose(dirty_metrics[key], metrics[key], rtol=1e-5, atol=1e-6)
    for argument in trained(name):
        g = np.array(dirty_gradient[argument])
        inside = tuple(slice(0, n) for n in gradient[argument].shape)
        np.testing.assert_allclose(g[inside], gradient[argument], rtol=1e-4, atol=1e-6)
        g[inside] = 0
        assert np.all(g == 0), argument


def test_ragged_microbatches_add_up_to_the_whole(case):
    """With the whole batch's denominators, known before the first microbatch."""
    name, arrays, call, ((loss, (_, denominators)), gradient) = case
    parts = [call({a: x[rows] for a, x in arrays.items()}, denominators) for rows in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), loss, rtol=1e-5, atol=1e-6)
    for argument in trained(name):
        together = np.concatenate([part[1][argument] for part in parts])
        np.testing.assert_allclose(together, gradient[argument], rtol=1e-4, atol=1e-7)


def test_weights_depend_on_masks_alone(case):
    name, arrays, _, _ = case
    other = arrays | {a: arrays[a] + 1.0 for a in trained(name)}

    def weights(arrays):
        return {k: t.weight for k, t in as_loss(bind(OBJECTIVES[name], arrays, OPTIONS[name])).terms.items()}

    for a, b in zip(jax.tree.leaves(jax.jit(weights)(arrays)), jax.tree.leaves(jax.jit(weights)(other))):
        np.testing.assert_array_equal(a, b)


def test_an_empty_batch_is_zero_and_finite(case):
    name, arrays, call, _ = case
    empty = arrays | {a: np.zeros_like(x) for a, x in arrays.items() if a in COUNTS}
    (loss, _), gradient = call(empty)
    assert loss == 0 and all(np.all(g == 0) for g in jax.tree.leaves(gradient))


def test_ratios_at_padding_may_overflow():
    """exp(99) is infinite in float32; at padding it must not turn the gradient into NaN."""
    for name in ("ppo", "grpo"):
        arrays = batch(name)
        arrays["old_logp_BT"] = np.where(arrays["mask_BT"] > 0, arrays["old_logp_BT"], np.float32(-999.0))
        assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(jax.jit(run(name))(arrays)[1]))
