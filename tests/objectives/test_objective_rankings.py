import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.objectives import bradley_terry as bt
from jaxalign.objectives import pairwise_ranking as all_pairs
from jaxalign.objectives import plackett_luce as pl
from jaxalign.objectives import reduce as reduction

bradley_terry = jax.jit(bt, static_argnames=("margin_scale", "centre"))
pairwise_ranking, plackett_luce = (jax.jit(f, static_argnames="centre") for f in (all_pairs, pl))
reduce = jax.jit(reduction.reduce)

RNG = np.random.default_rng(2)
# The interesting shapes of a ranking of up to five; 99 stands for an absent answer.
RANKS = np.array(
    [
        [0, 1, 2, 3, 4],
        [3, 0, 4, 1, 2],
        [0, 0, 1, 1, 1],
        [1, 0, 1, 0, 1],
        [0, 0, 0, 0, 0],
        [2, 2, 5, 5, 0],
        [0, 1, 99, 99, 99],
        [0, 99, 0, 1, 99],
        [99, 0, 0, 99, 99],
        [0, 99, 99, 99, 99],
    ],
    np.int32,
)
MASK = (RANKS < 99).astype(np.float32)
SCORES = RNG.normal(size=RANKS.shape).astype(np.float32) * 2


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def enumerated(scores, ranks):
    """Mean negative log-likelihood over every order that the ranks allow, by writing all of them down."""
    losses = []
    for order in itertools.permutations(range(len(scores))):
        if all(ranks[a] <= ranks[b] for a, b in zip(order, order[1:])):
            s = np.array([scores[i] for i in order], np.float64)
            losses.append(-sum(s[k] - np.log(np.sum(np.exp(s[k:]))) for k in range(len(s))))
    return np.mean(losses)


@pytest.mark.parametrize("row", range(len(RANKS)))
def test_plackett_luce_is_the_mean_over_the_orders_allowed(row):
    here = MASK[row] > 0
    got = plackett_luce(SCORES, RANKS, MASK).terms["preference"]
    np.testing.assert_allclose(got.value[row], enumerated(SCORES[row][here], RANKS[row][here]), rtol=1e-5, atol=1e-5)
    assert got.weight[row] == (here.sum() >= 2)


def test_plackett_luce_of_two_is_bradley_terry():
    scores, one = SCORES[:, :2], np.ones((len(SCORES), 2), np.float32)
    ranks = np.tile(np.array([0, 1], np.int32), (len(SCORES), 1))
    pair = bradley_terry(scores[:, 0], scores[:, 1], np.zeros(len(SCORES), np.float32))
    for ranking in (plackett_luce, pairwise_ranking):
        got = reduce(ranking(scores, ranks, one).terms)[0]
        np.testing.assert_allclose(got, reduce(pair.terms)[0], rtol=1e-5)


def test_plackett_luce_draws_tied_answers_together():
    scores, ranks = jnp.asarray([[1.0, 0.0]]), jnp.zeros((1, 2), jnp.int32)
    gradient = jax.jit(jax.grad(lambda s: reduce(plackett_luce(s, ranks, jnp.ones_like(s)).terms)[0]))(scores)
    assert gradient[0, 0] > 0 > gradient[0, 1]


def test_plackett_luce_likelihoods_of_all_orders_sum_to_one():
    scores = np.tile(SCORES[:1, :4], (math.factorial(4), 1))
    ranks = np.array(list(itertools.permutations(range(4))), np.int32)
    nll = plackett_luce(scores, ranks, np.ones_like(scores)).terms["preference"].value
    np.testing.assert_allclose(np.exp(-np.asarray(nll, np.float64)).sum(), 1.0, rtol=1e-5)


def test_plackett_luce_refuses_too_many_answers():
    with pytest.raises(ConfigError, match="at most 12 answers, got 13; use pairwise_ranking"):
        pl(np.zeros((1, 13)), np.zeros((1, 13), np.int32), np.ones((1, 13)))


def test_pairwise_ranking_reference():
    losses = []
    for scores, ranks, mask in zip(SCORES.astype(np.float64), RANKS, MASK):
        pairs = [(w, l) for w in range(5) for l in range(5) if mask[w] and mask[l] and ranks[w] < ranks[l]]
        if pairs:  # InstructGPT, eq. 1: −1/#pairs · Σ log σ(r_w − r_l)
            losses.append(-sum(log_sigmoid(scores[w] - scores[l]) for w, l in pairs) / len(pairs))
    loss = pairwise_ranking(SCORES, RANKS, MASK)
    np.testing.assert_allclose(reduce(loss.terms)[0], np.mean(losses), rtol=1e-5)
    assert len(losses) == 7  # neither all ties nor a lone answer counts


@pytest.mark.parametrize("ranking", [plackett_luce, pairwise_ranking])
def test_centring_is_the_squared_mean_of_each_prompts_answers(ranking):
    plain, centred = ranking(SCORES, RANKS, MASK), ranking(SCORES, RANKS, MASK, centre=0.3)
    assert "centre" not in plain.terms
    levels = [(2 * np.mean(scores[mask > 0])) ** 2 for scores, mask in zip(SCORES.astype(np.float64), MASK)
              if mask.sum() > 1]
    loss, means = reduce(centred.terms)
    np.testing.assert_allclose(means["centre"], np.mean(levels), rtol=1e-5)
    np.testing.assert_allclose(loss, reduce(plain.terms)[0] + 0.3 * np.mean(levels), rtol=1e-5)
    # Of two answers it is what the paper prints, and `bradley_terry` has.
    two = np.zeros(len(SCORES), np.int32)[:, None] + np.arange(2, dtype=np.int32)
    pair = ranking(SCORES[:, :2], two, np.ones((len(SCORES), 2), np.float32), centre=0.3)
    expected = bradley_terry(SCORES[:, 0], SCORES[:, 1], np.zeros(len(SCORES), np.float32), centre=0.3)
    np.testing.assert_allclose(reduce(pair.terms)[0], reduce(expected.terms)[0], rtol=1e-5)


@pytest.mark.parametrize("ranking", [plackett_luce, pairwise_ranking])
def test_ranking_gradient_raises_the_best_and_lowers_the_worst(ranking):
    gradient = jax.jit(jax.grad(lambda s: reduce(ranking(s, RANKS, MASK).terms)[0]))(SCORES)
    assert np.all(gradient[0, 0] < 0) and gradient[0, 4] > 0 and gradient[1, 1] < 0 < gradient[1, 2]
    assert np.all(np.asarray(gradient)[MASK == 0] == 0)


@pytest.mark.parametrize("scale, centre", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.01), (1.0, 0.1)])
def test_bradley_terry_reference(scale, centre):
    chosen, rejected, margin = (SCORES[:, i].astype(np.float64) for i in range(3))
    margin = np.abs(margin)
    expected = np.mean(-log_sigmoid(chosen - rejected - scale * margin) + centre * (chosen + rejected) ** 2)
    loss = bradley_terry(
        SCORES[:, 0], SCORES[:, 1], margin.astype(np.float32), margin_scale=scale, centre=centre
    )
    np.testing.assert_allclose(reduce(loss.terms)[0], expected, rtol=1e-5)
    means = reduce(loss.metrics)[1]
    np.testing.assert_allclose(means["accuracy"], np.mean(chosen > rejected), rtol=1e-5)
    np.testing.assert_allclose(means["margin"], np.mean(chosen - rejected), rtol=1e-5, atol=1e-6)


def test_bradley_terry_gradient_signs():
    def loss(chosen, rejected, **options):
        return reduce(bradley_terry(chosen, rejected, jnp.ones(1), **options).terms)[0]

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnames=("margin_scale", "centre"))
    one, zero, high = (np.full(1, x, np.float32) for x in (1.0, 0.0, 3.0))
    up, down = gradient(one, zero)
    assert up < 0 < down
    assert gradient(one, zero, margin_scale=1.0)[0] < up  # a margin asks for more
    up, down = gradient(high, high, centre=10.0)  # the regulariser draws two high scores down
    assert up > 0 and down > 0


def test_a_draw_counts_half():
    means = reduce(bradley_terry(jnp.asarray([1.0, 0.0]), jnp.zeros(2), jnp.zeros(2)).metrics)[1]
    assert means["accuracy"] == 0.75
