import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.objectives.logprobs import sequence_logp, token_statistics

B, T, D, V = 2, 13, 8, 31
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, T, D)).astype(np.float32)
UNEMBED = RNG.normal(size=(D, V)).astype(np.float32)
jitted = jax.jit(token_statistics, static_argnames=("chunk", "temperature", "softcap"))
TARGETS = RNG.integers(0, V, (B, T)).astype(np.int32)


def reference(hidden, temperature=1.0, softcap=None):
    logits = hidden.astype(np.float64) @ UNEMBED.astype(np.float64)
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    logits = logits / temperature
    logz = np.log(np.sum(np.exp(logits), axis=-1))
    logp = logits - logz[..., None]
    target = np.take_along_axis(logp, TARGETS[..., None], axis=-1)[..., 0]
    return target, -np.sum(np.exp(logp) * logp, axis=-1), logz, logp.mean(axis=-1), logp.argmax(-1) == TARGETS


@pytest.mark.parametrize("chunk", [1, 5, 100])  # 13 does not divide by 5
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "softcap": 5.0}])
def test_float64_reference(chunk, options):
    stats = jitted(HIDDEN, UNEMBED, TARGETS, chunk=chunk, **options)
    assert 0 < stats.top_BT.sum() < B * T
    for got, expected in zip(stats, reference(HIDDEN, **options), strict=True):
        assert got.shape == (B, T) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def gradients():
    def loss(hidden, unembed, chunk):
        s = token_statistics(hidden, unembed, TARGETS, chunk=chunk)
        return jnp.sum(s.logp_BT + 0.3 * s.entropy_BT + 0.1 * s.logz_BT**2 + 0.2 * s.mean_logp_BT)

    return {chunk: jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(HIDDEN, UNEMBED, chunk) for chunk in (5, T)}


def test_chunked_gradient_is_the_whole_gradient(gradients):
    for chunked, whole in zip(gradients[5], gradients[T]):
        np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-5)


def test_gradient_against_finite_differences_in_float64(gradients):
    direction, step = RNG.normal(size=HIDDEN.shape), 1e-5

    def loss(hidden):
        logp, entropy, logz, mean, _ = reference(hidden)
        return np.sum(logp + 0.3 * entropy + 0.1 * logz**2 + 0.2 * mean)

    slope = (loss(HIDDEN + step * direction) - loss(HIDDEN - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradients[5][0] * direction), slope, rtol=1e-4)


def test_temporary_memory_stays_below_the_full_logits():
    """The issue's bound: forward and backward together need less than B·T·V·4 bytes."""
    b, t, d, v = 4, 128, 16, 4096
    args = jnp.zeros((b, t, d)), jnp.zeros((d, v)), jnp.zeros((b, t), jnp.int32)

    def loss(hidden, unembed, targets, chunk):
        s = token_statistics(hidden, unembed, targets, chunk=chunk)
        return jnp.mean(-s.logp_BT - 0.01 * s.entropy_BT + 1e-4 * s.logz_BT**2 - 0.1 * s.mean_logp_BT)

    def temporary(chunk):
        gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=3)
        return gradient.lower(*args, chunk).compile().memory_analysis().temp_size_in_bytes

    full = b * t * v * 4
    assert temporary(16) < 0.7 * full
    assert temporary(t) > full  # so that the measure is known to see the logits


def test_bfloat16_hidden_states_keep_float32_statistics():
    hidden = jnp.asarray(HIDDEN, jnp.bfloat16)

    def total(unembed):
        stats = token_statistics(hidden, unembed, TARGETS, chunk=5)
        return jnp.sum(stats.logp_BT), stats

    gradient, stats = jax.jit(jax.grad(total, has_aux=True))(UNEMBED)
    assert all(x.dtype == jnp.float32 for x in stats) and gradient.dtype == jnp.float32
    np.testing.assert_allclose(stats.logp_BT, reference(HIDDEN)[0], atol=0.1)


def test_large_logits_do_not_overflow():
    stats = jitted(1000.0 * HIDDEN, UNEMBED, TARGETS, chunk=5)
    assert all(np.all(np.isfinite(x)) for x in stats)


def test_forbidden_tokens_have_finite_entropy():
    logits = jnp.asarray([[[0.0, 0.0, -1e30]]])
    onto_logits = lambda h: token_statistics(h, jnp.eye(3), jnp.zeros((1, 1), jnp.int32), chunk=1)  # noqa: E731
    stats = jax.jit(onto_logits)(logits)
    np.testing.assert_allclose(stats.logp_BT, -np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(stats.entropy_BT, np.log(2.0), rtol=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda h: onto_logits(h).logp_BT.sum()))(logits)))


def test_agrees_with_optax():
    logits = HIDDEN @ UNEMBED
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, TARGETS)
    np.testing.assert_allclose(-jitted(HIDDEN, UNEMBED, TARGETS, chunk=5).logp_BT, expected, rtol=1e-5, atol=1e-5)


def test_sequence_logp_sums_counted_tokens_only():
    logp = np.array([[-1.0, -2.0, np.nan], [-3.0, -np.inf, -5.0]], np.float32)
    mask = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], np.float32)
    np.testing.assert_allclose(sequence_logp(logp, mask), [-3.0, -8.0])
