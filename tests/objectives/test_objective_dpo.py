import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.errors import ConfigError
from jaxalign.objectives import dpo as objective
from jaxalign.objectives.reduce import reduce

dpo = jax.jit(objective, static_argnames=("beta", "smoothing"))
RNG = np.random.default_rng(3)
LOGPS = (-20.0 + 5.0 * RNG.normal(size=(4, 16))).astype(np.float32)


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2)])
def test_float64_reference(beta, smoothing):
    chosen, rejected, chosen_ref, rejected_ref = LOGPS.astype(np.float64)
    h = beta * ((chosen - chosen_ref) - (rejected - rejected_ref))
    expected = np.mean((1 - smoothing) * np.log1p(np.exp(-h)) + smoothing * np.log1p(np.exp(h)))
    loss = dpo(*LOGPS, beta=beta, smoothing=smoothing)
    np.testing.assert_allclose(reduce(loss.terms)[0], expected, rtol=1e-5)
    means = reduce(loss.metrics)[1]
    np.testing.assert_allclose(means["accuracy"], np.mean(h > 0), rtol=1e-5)
    np.testing.assert_allclose(means["margin"], np.mean(h), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(means["chosen_reward"], beta * np.mean(chosen - chosen_ref), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(means["rejected_reward"], beta * np.mean(rejected - rejected_ref), rtol=1e-5, atol=1e-6)


def test_gradient_as_printed():
    """Section 4 of the paper: ∇ℓ = −β · σ(r⁻ − r⁺) · [∇log π(y⁺) − ∇log π(y⁻)]."""
    beta = 0.3
    loss = lambda *x: jnp.sum(dpo(*x, beta=beta).terms["preference"].value)  # noqa: E731
    gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*LOGPS)
    chosen, rejected, chosen_ref, rejected_ref = LOGPS.astype(np.float64)
    expected = -beta / (1 + np.exp(beta * ((chosen - chosen_ref) - (rejected - rejected_ref))))
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[1], -expected, rtol=1e-5)
    assert np.all(gradient[2] == 0) and np.all(gradient[3] == 0)


def test_untrained_policy_costs_log_two():
    loss, means = reduce(dpo(LOGPS[0], LOGPS[1], LOGPS[0], LOGPS[1], beta=0.1).terms)
    np.testing.assert_allclose(loss, np.log(2.0), rtol=1e-6)


def test_extreme_margins_stay_finite():
    far = np.array([-1e4, 0.0], np.float32)
    other, ref = np.array([0.0, -1e4], np.float32), np.zeros(2, np.float32)
    loss = lambda x: reduce(dpo(x, other, ref, ref, beta=1.0).terms)[0]  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(far)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_agrees_with_optax(smoothing):
    """Preferring is a logistic classification of the margin: label 1, smoothed."""
    margin = 0.1 * ((LOGPS[0] - LOGPS[2]) - (LOGPS[1] - LOGPS[3]))
    expected = optax.sigmoid_binary_cross_entropy(margin, jnp.full_like(margin, 1 - smoothing))
    got = dpo(*LOGPS, beta=0.1, smoothing=smoothing).terms["preference"].value
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_likelihood_of_the_chosen_answer():
    """The added term of arXiv:2404.19733, eq. 1: per token of each chosen answer, and none where the pair does not count."""
    weight, length = np.array([1.0] * 12 + [0.0] * 4), np.arange(1.0, 17.0)
    terms = objective(*LOGPS, weight, length, beta=0.1, nll_coefficient=0.5).terms
    expected = np.mean(-0.5 * LOGPS[0, :12].astype(np.float64) / length[:12])
    np.testing.assert_allclose(reduce({"nll": terms["nll"]})[0], expected, rtol=1e-5)
    assert "nll" not in objective(*LOGPS, weight, length, beta=0.1).terms
    with pytest.raises(ConfigError, match="nll_coefficient=0.5 needs chosen_length_B"):
        objective(*LOGPS, beta=0.1, nll_coefficient=0.5)
