import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.objectives.cross_entropy import cross_entropy
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.objectives.reduce import reduce

B, T, V = 3, 6, 9
RNG = np.random.default_rng(1)
LOGITS = (3.0 * RNG.normal(size=(B, T, V))).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, T)).astype(np.int32)
MASK = (RNG.random((B, T)) < 0.6).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("z_loss", "label_smoothing"))
def of_logits(logits, **options):
    # The identity as output embedding: hidden states are the logits.
    stats = token_statistics(logits, jnp.eye(V), TARGETS, chunk=T)
    return cross_entropy(stats.logp_BT, stats.logz_BT, stats.mean_logp_BT, MASK, **options)


@pytest.mark.parametrize("z_loss, smoothing", [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-3, 0.2)])
def test_float64_reference(z_loss, smoothing):
    logits = LOGITS.astype(np.float64)
    logz = np.log(np.exp(logits).sum(-1))
    logp = logits - logz[..., None]
    soft = (1 - smoothing) * np.eye(V)[TARGETS] + smoothing / V  # arXiv:1512.00567, section 7: q'(k) with u = 1/K
    expected = np.sum(MASK * (-np.sum(soft * logp, -1) + z_loss * logz**2)) / MASK.sum()
    loss = of_logits(LOGITS, z_loss=z_loss, label_smoothing=smoothing)
    np.testing.assert_allclose(reduce(loss.terms)[0], expected, rtol=1e-5)
    nll = -np.take_along_axis(logp, TARGETS[..., None], -1)[..., 0]
    np.testing.assert_allclose(reduce(loss.metrics)[1]["nll"], np.sum(MASK * nll) / MASK.sum(), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_agrees_with_optax(smoothing):
    labels = optax.smooth_labels(jax.nn.one_hot(TARGETS, V), smoothing)
    expected = optax.softmax_cross_entropy(LOGITS, labels)
    got = of_logits(LOGITS, label_smoothing=smoothing).terms["cross_entropy"]
    np.testing.assert_allclose(got.value, np.where(MASK > 0, expected, 0), rtol=1e-5, atol=1e-5)


def test_gradient_raises_the_target_and_lowers_the_rest():
    gradient = jax.jit(jax.grad(lambda x: reduce(of_logits(x).terms)[0]))(LOGITS)
    hit = np.eye(V)[TARGETS] > 0
    counted = MASK[..., None] > 0
    assert np.all(gradient[hit & counted] < 0) and np.all(gradient[~hit & counted] > 0)
    assert np.all(np.asarray(gradient)[MASK == 0] == 0)


def test_z_loss_pulls_the_normaliser_towards_one():
    logz = jnp.asarray([[2.0, -2.0]])
    loss = lambda z: reduce(cross_entropy(-z, z, -z, jnp.ones_like(z), z_loss=1.0).terms)[1]["z_loss"]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(logz)
    assert gradient[0, 0] > 0 > gradient[0, 1]
