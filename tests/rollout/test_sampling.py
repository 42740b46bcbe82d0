"""Sampling: the right distribution, the right log-probabilities, each row for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import documents, split

from jaxalign.errors import ConfigError
from jaxalign.rollout.engine import Sampler
from jaxalign.rollout.sampling import LOWEST, Settings, draw, filtered_logits

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 12)).astype(np.float32) * 2.0
SETTINGS = [Settings(), Settings(temperature=0.5), Settings(top_k=3), Settings(top_p=0.7), Settings(2.0, 5, 0.8),
            Settings(top_k=1), Settings(top_p=1e-6), Settings(1.3, 50, 1.0)]


def reference(logits, settings):
    """Probabilities to draw from, float64, as they are described: sort, cut, normalise."""
    p = np.exp(np.asarray(logits, np.float64) / settings.temperature)
    p /= p.sum()
    order = np.argsort(-p)[:settings.top_k or len(p)]
    kept, mass = [], 0.0
    for token in order:
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


PROMPTS = documents((3, 7, 1, 5, 6), seed=5)
KEYS = jax.random.split(jax.random.key(8), len(PROMPTS))
STOP = 4


@pytest.fixture(scope="module")
def sampler():
    made = {}

    def get(batch_size, bucket=8):
        if (batch_size, bucket) not in made:
            made[batch_size, bucket] = Sampler(split()[0], stop_ids=(STOP,), max_new_tokens=10, batch_size=batch_size,
                                               bucket=bucket)
        return made[batch_size, bucket]

    return get


def test_a_response_depends_on_its_prompt_and_key_alone(sampler):
    params = split()[1]
    expected = sampler(4)(params, PROMPTS, KEYS)  # two batches, the last filled up
    order = np.array([3, 0, 4, 2, 1])
    shuffled = sampler(4)(params, [PROMPTS[i] for i in order], KEYS[order])
    other = sampler(3, bucket=16)(params, PROMPTS, KEYS)
    alone = sampler(3, bucket=16)(params, [PROMPTS[1]], KEYS[1:2])
    for n, i in enumerate(order):
        assert np.array_equal(shuffled.tokens[n], expected.tokens[i])
    assert np.array_equal(other.tokens, expected.tokens) and np.array_equal(alone.tokens[0], expected.tokens[1])
    np.testing.assert_allclose(other.logp, expected.logp, atol=1e-5)
    elsewhere = sampler(4)(params, PROMPTS, jax.random.split(jax.random.key(9), len(PROMPTS)))
    assert not np.array_equal(elsewhere.tokens, expected.tokens)


def test_rounds_change_no_response(sampler):
    params, many = split()[1], PROMPTS * 8
    keys = jax.random.split(jax.random.key(2), len(many))
    whole, parts = (Sampler(split()[0], stop_ids=(STOP,), max_new_tokens=10, batch_size=32, bucket=4, segment=segment)(
        params, many, keys) for segment in (0, 4))
    assert whole.tokens.shape == parts.tokens.shape == (len(many), 10)
    for name in ("tokens", "mask", "finished"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_allclose(parts.logp, whole.logp, atol=1e-5)
    np.testing.assert_allclose(parts.sampler_logp, whole.sampler_logp, atol=1e-5)


def test_few_rows_make_a_small_batch():
    made = Sampler(split()[0], stop_ids=(STOP,), max_new_tokens=10, batch_size=128)
    assert [made._batch(rows) for rows in (1, 8, 9, 32, 33, 128, 500)] == [8, 8, 32, 32, 128, 128, 128]
    shared = Sampler(split()[0], stop_ids=(STOP,), max_new_tokens=10, batch_size=128, devices=8)
    assert shared._batch(1) == 8


def test_a_response_ends_with_its_stop_token(sampler):
    params = split()[1]
    many = PROMPTS * 12
    out = sampler(4)(params, many, jax.random.split(jax.random.key(1), len(many)))
    assert 3 < out.finished.sum() < len(many)
    for n in range(len(many)):
        drawn = int(out.mask[n].sum())
        assert np.array_equal(out.mask[n], np.arange(10) < drawn)
        tokens = out.tokens[n, :drawn].tolist()
        assert STOP not in tokens[:-1]
        assert (tokens[-1] == STOP) == out.finished[n] and (out.finished[n] or drawn == 10)
        assert out.ids(n) == (tokens[:-1] if out.finished[n] else tokens)
        assert np.all(out.tokens[n, drawn:] == 0) and np.all(out.logp[n, drawn:] == 0)


def test_prompts_that_cannot_be_are_refused(sampler):
    with pytest.raises(ConfigError, match="at least one token"):
        sampler(4)(split()[1], [[1], []], KEYS[:2])
