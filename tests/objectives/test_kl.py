import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.objectives.kl import KL_ESTIMATORS, k1, k2, k3

RNG = np.random.default_rng(4)
LOGITS = RNG.normal(size=(2, 7)).astype(np.float32)
P, Q = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True)


def expectation(estimator):
    """E over π = P, by writing out every outcome."""
    return np.sum(P * np.asarray(estimator(jnp.log(P), jnp.log(Q)), np.float64))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_unbiased_for_kl_from_policy_to_reference(name):
    np.testing.assert_allclose(expectation(KL_ESTIMATORS[name]), np.sum(P * np.log(P / Q)), rtol=1e-5)


def test_as_printed():
    r = Q / P  # Schulman's r = p(x)/q(x), x drawn from q: his q is the policy, his p the reference
    np.testing.assert_allclose(k1(jnp.log(P), jnp.log(Q)), -np.log(r), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(k2(jnp.log(P), jnp.log(Q)), 0.5 * np.log(r) ** 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(k3(jnp.log(P), jnp.log(Q)), (r - 1) - np.log(r), rtol=1e-5, atol=1e-6)


def test_k2_and_k3_are_never_negative_and_zero_for_equal_policies():
    logp = jnp.asarray(RNG.normal(size=1000) * 5, jnp.float32)
    other = jnp.asarray(RNG.normal(size=1000) * 5, jnp.float32)
    for name in ("k2", "k3"):
        assert np.all(KL_ESTIMATORS[name](logp, other) >= 0)
        assert np.all(KL_ESTIMATORS[name](logp, logp) == 0)


def test_k3_keeps_tiny_differences():
    u = 1e-3
    np.testing.assert_allclose(k3(jnp.float32(0.0), jnp.float32(u)), np.expm1(u) - u, rtol=1e-3)


@pytest.mark.parametrize("name, of", [("k1", lambda p: 0.0 * p.sum()), ("k2", "policy"), ("k3", "reference")])
def test_what_each_estimators_gradient_descends(name, of):
    """The slopes that the module's docstring claims, in expectation over fresh samples."""
    ref = jnp.log(jnp.asarray(Q, jnp.float32))

    def estimate(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(logp)) * KL_ESTIMATORS[name](logp, ref))

    def divergence(logits):
        logp = jax.nn.log_softmax(logits)
        if of == "policy":
            return jnp.sum(jnp.exp(logp) * (logp - ref))
        if of == "reference":
            return jnp.sum(jnp.exp(ref) * (ref - logp))
        return of(logits)

    got, expected = jax.jit(lambda x: (jax.grad(estimate)(x), jax.grad(divergence)(x)))(LOGITS[0])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
