"""Sampling: the right distribution, the right log-probabilities, each row for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.rollout.sampling import LOWEST, Settings, draw, filtered_logits

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 12)).astype(np.float32) * 2.0
SETTINGS = [Settings(), Settings(temperature=0.5), Settings(top_k=3), Settings(top_p=0.7), Settings(2.0, 5, 0.8),
            Settings(top_k=1), Settings(top_p=1e-6), Settings(1.3, 50, 1.0), Settings(min_p=0.3), Settings(1.5, 9, 0.9, 0.2)]


def reference(logits, settings):
    """Probabilities to draw from, float64, as they are described: sort, cut, normalise."""
    p = np.exp(np.asarray(logits, np.float64) / settings.temperature)
    p /= p.sum()
    order = np.argsort(-p)[:settings.top_k or len(p)]
    kept, mass = [], 0.0
    for token in order:
        if p[token] < settings.min_p * p[order[0]]:
            break
        kept.append(token)
        mass += p[token] / p[order].sum()
        if mass >= settings.top_p:
            break
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(filtered_logits), jax.jit(draw)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_distribution_and_its_log_probabilities_are_those_described(compiled, settings):
    filtered, drawing = compiled
    traced = Settings(*map(jnp.asarray, settings))
    got = np.asarray(filtered(LOGITS, traced), np.float64)
    u = RNG.random(5).astype(np.float32)
    token, logp, sampler_logp = map(np.asarray, drawing(u, LOGITS, traced))
    for row in range(5):
        expected = reference(LOGITS[row], settings)
        assert np.array_equal(got[row] > LOWEST, expected > 0)
        p = np.exp(got[row] - got[row].max())
        np.testing.assert_allclose(p / p.sum(), expected, atol=1e-6)
        assert expected[token[row]] > 0
        assert sampler_logp[row] == pytest.approx(np.log(expected[token[row]]), abs=1e-5)
        # The model's own: temperature 1, nothing cut.
        assert logp[row] == pytest.approx(np.log(reference(LOGITS[row], Settings())[token[row]]), abs=1e-5)


def test_tied_logits_at_the_border_stay_together():
    kept = filtered_logits(jnp.asarray([[1.0, 1.0, 0.0]]), Settings(top_k=1))
    assert (np.asarray(kept) > LOWEST).sum() == 2


def test_temperature_zero_takes_the_likeliest():
    token, logp, sampler_logp = draw(jnp.full(5, 0.99), LOGITS, Settings(temperature=0.0))
    assert np.array_equal(token, LOGITS.argmax(1)) and np.all(np.asarray(sampler_logp) == 0)
    assert np.all(np.asarray(logp) < 0)


@pytest.mark.parametrize("settings", [Settings(), Settings(0.7, 6, 0.9)], ids=str)
def test_what_is_drawn_is_distributed_as_it_says(compiled, settings):
    n = 20_000
    u = jax.random.uniform(jax.random.key(3), (n,))
    token, _, _ = compiled[1](u, np.broadcast_to(LOGITS[0], (n, 12)), Settings(*map(jnp.asarray, settings)))
    p = reference(LOGITS[0], settings)
    counts = np.bincount(np.asarray(token), minlength=12)
    assert np.all(counts[p == 0] == 0)
    chi_square = (np.square(counts - n * p)[p > 0] / (n * p[p > 0])).sum()
    assert chi_square < 33  # 11 degrees of freedom: one seed in two thousand
    # The extremes of the uniform numbers stay within the vocabulary and its mass.
    edge, _, _ = compiled[1](jnp.asarray([0.0, 1.0 - 2**-24] * 2 + [0.5]), np.broadcast_to(LOGITS[0], (5, 12)),
                             Settings(*map(jnp.asarray, settings)))
    assert np.all(p[np.asarray(edge)] > 0)


def test_each_row_has_its_own_settings(compiled):
    rows = [Settings(), Settings(0.0), Settings(top_k=2), Settings(top_p=0.5), Settings(1.4, 0, 1.0, 0.4)]
    arrays = Settings(*map(np.asarray, zip(*rows)))
    u = RNG.random(5).astype(np.float32)
    together = compiled[1](u, LOGITS, arrays)
    for n, settings in enumerate(rows):
        alone = compiled[1](u[n:n + 1], LOGITS[n:n + 1], Settings(*map(jnp.asarray, settings)))
        for got, expected in zip(together, alone):
            np.testing.assert_allclose(got[n], expected[0], rtol=1e-6)


def test_a_row_that_cuts_nothing_keeps_its_tail_beside_one_that_does():
    logits_BV = 3.0 * jax.random.normal(jax.random.key(0), (8, 4096))
    settings = Settings(top_p=jnp.where(jnp.arange(8) == 3, 0.9, 1.0), top_k=jnp.where(jnp.arange(8) == 5, 50, 0))
    kept_B = (jax.jit(filtered_logits)(logits_BV, settings) > LOWEST).sum(1)
    assert kept_B[5] == 50 and kept_B[3] < 2000 and (np.delete(kept_B, [3, 5]) == 4096).all()


def test_forbidden_tokens_are_never_drawn_and_keep_their_place_in_the_model():
    best = int(LOGITS[0].argmax())
    forbidden = np.arange(12) == best
    for settings in (Settings(), Settings(0.0), Settings(top_k=1)):
        n = 500
        u = jax.random.uniform(jax.random.key(1), (n,))
        token, logp, sampler_logp = draw(u, np.broadcast_to(LOGITS[0], (n, 12)), settings, forbidden)
        assert not np.any(np.asarray(token) == best)
        model = np.log(reference(LOGITS[0], Settings()))
        np.testing.assert_allclose(logp, model[np.asarray(token)], atol=1e-5)
        if settings == Settings():
            left = np.where(forbidden, 1e-30, np.exp(model))
            np.testing.assert_allclose(sampler_logp, np.log(left / left.sum())[np.asarray(token)], atol=1e-5)


@pytest.mark.parametrize("V", [1, 12, 64, 100, 1536])
def test_blocks_of_any_vocabulary_invert_the_cumulative_distribution(V):
    logits = np.random.default_rng(V).normal(size=(200, V)).astype(np.float32) * 3
    u = np.random.default_rng(1).random(200).astype(np.float32)
    token = np.asarray(draw(u, logits, Settings())[0])
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    mass = np.cumsum(p, axis=1) / p.sum(1, keepdims=True)
    before = np.where(token > 0, np.take_along_axis(mass, np.maximum(token - 1, 0)[:, None], 1)[:, 0], 0.0)
    assert np.all(before <= u + 1e-5) and np.all(u <= mass[np.arange(200), token] + 1e-5)
