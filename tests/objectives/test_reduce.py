import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.objectives.reduce import Loss, Term, as_loss, reduce, weight_sums

RNG = np.random.default_rng(0)
VALUE = RNG.normal(size=(6, 5)).astype(np.float32)
WEIGHT = (RNG.random((6, 5)) < 0.4).astype(np.float32) * RNG.random((6, 5)).astype(np.float32)


def test_weighted_means_with_coefficients():
    terms = {"a": Term(VALUE, WEIGHT), "b": Term(VALUE[:, 0], WEIGHT[:, 1], coefficient=0.3)}
    loss, means = jax.jit(reduce)(terms)
    a = np.average(VALUE.astype(np.float64), weights=WEIGHT)
    b = np.average(VALUE[:, 0].astype(np.float64), weights=WEIGHT[:, 1])
    np.testing.assert_allclose(means["a"], a, rtol=1e-5)
    np.testing.assert_allclose(means["b"], b, rtol=1e-5)
    np.testing.assert_allclose(loss, a + 0.3 * b, rtol=1e-5)


@pytest.mark.parametrize("cuts", [[3], [1, 3]])
def test_microbatches_with_the_whole_batchs_denominators_add_up(cuts):
    @jax.jit
    def gradient(value, weight, denominators):
        return jax.value_and_grad(lambda v: reduce({"a": Term(v, weight)}, denominators)[0])(value)

    denominators = weight_sums({"a": Term(VALUE, WEIGHT)})
    loss, whole = gradient(VALUE, WEIGHT, denominators)
    parts = [gradient(v, w, denominators) for v, w in zip(np.split(VALUE, cuts), np.split(WEIGHT, cuts))]
    np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), whole, rtol=1e-5, atol=1e-7)
    # Ragged on purpose: each microbatch's own mean would not add up.
    assert len({float(w.sum()) for w in np.split(WEIGHT, cuts)}) > 1


def test_nan_under_weight_zero_reaches_neither_loss_nor_gradient():
    value = np.where(WEIGHT > 0, VALUE, np.nan)
    loss, gradient = jax.jit(jax.value_and_grad(lambda v: reduce({"a": Term(v, WEIGHT)})[0]))(value)
    np.testing.assert_allclose(loss, np.average(VALUE, weights=WEIGHT), rtol=1e-5)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[WEIGHT == 0] == 0)


def test_no_weight_at_all_is_zero():
    loss, gradient = jax.value_and_grad(lambda v: reduce({"a": Term(v, jnp.zeros_like(v))})[0])(VALUE)
    assert loss == 0 and np.all(gradient == 0)


def test_weights_and_denominators_have_no_gradient():
    gradient = jax.grad(lambda w, d: reduce({"a": Term(VALUE, w)}, {"a": d})[0], argnums=(0, 1))(WEIGHT, 3.0)
    assert np.all(gradient[0] == 0) and gradient[1] == 0


def test_bfloat16_values_are_summed_in_float32():
    ones = jnp.ones((4096,), jnp.bfloat16)  # bfloat16 cannot count beyond 256
    loss, _ = reduce({"a": Term(ones, ones)}, {"a": jnp.float32(1.0)})
    assert loss == 4096 and loss.dtype == jnp.float32


@pytest.mark.parametrize(
    "result, names",
    [
        (Loss({"x": Term(VALUE, WEIGHT)}, {}), ["x"]),
        (Term(VALUE, WEIGHT), ["loss"]),
        ((VALUE, WEIGHT), ["loss"]),
        (({"x": Term(VALUE, WEIGHT), "y": (VALUE, WEIGHT)}, {"m": (VALUE, WEIGHT)}), ["x", "y"]),
    ],
)
def test_as_loss_accepts(result, names):
    loss = as_loss(result)
    assert list(loss.terms) == names and all(isinstance(t, Term) for t in (loss.terms | loss.metrics).values())


@pytest.mark.parametrize(
    "result, words",
    [
        (jnp.float32(1.0), "leave out the mean or sum and return \\(value, weight\\)"),
        (None, "got NoneType"),
        ({"x": Term(VALUE, WEIGHT)}, "got dict"),
        ((VALUE, 1.0), "got \\(an array of shape \\(6, 5\\), float\\)"),
        ((VALUE, WEIGHT[0]), "value \\(6, 5\\), weight \\(5,\\)"),
        (({"x": VALUE}, {}), "term 'x'"),
        (({"x": (VALUE, WEIGHT)}, {"m": 3.0}), "metric 'm'"),
        (({}, {}), "at least one term"),
    ],
)
def test_as_loss_refuses(result, words):
    with pytest.raises(ConfigError, match=words):
        as_loss(result)


def test_terms_travel_through_jit_with_a_traced_coefficient():
    term = jax.jit(lambda v, c: Term(v, jnp.ones_like(v), c))(VALUE, 0.25)
    np.testing.assert_allclose(reduce({"a": term})[0], 0.25 * VALUE.mean(dtype=np.float64), rtol=1e-5)
