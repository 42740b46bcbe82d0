"""t24: `mean(loss * mask)` divides by T and not by the mask's sum (rlax `policy_gradient_loss` on padded text)."""

import jax
import numpy as np
import pytest

from jaxalign.batches import bind, signature
from jaxalign.data.corpus import ABSENT_RANK
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.grpo import AGGREGATIONS
from jaxalign.objectives.reduce import reduce
from jaxalign.objectives.surrogates import SURROGATES

RNG = np.random.default_rng(24)
B, T = 3, 6
MASK = (np.arange(T) < np.array([[6], [2], [3]])).astype(np.float32)
NAMES = "logp_BT logz_BT mean_logp_BT entropy_BT old_logp_BT ref_logp_BT sampler_logp_BT".split()
NAMES += "advantage_BT value_BT old_value_BT returns_BT".split()
ARRAYS = {name: RNG.normal(size=(B, T)).astype(np.float32) for name in NAMES}
ARRAYS |= {"mask_BT": MASK, "budget_B": np.full(B, 9.0, np.float32)}
CASES = [
    ("cross_entropy", {"z_loss": 0.1, "label_smoothing": 0.1}),
    ("ppo", {"value_coefficient": 0.5, "entropy_coefficient": 0.1}),
    *(("grpo", {"kl_coefficient": 0.1, "aggregation": name}) for name in AGGREGATIONS),
    *(("grpo", {"kl_coefficient": 0.1, "surrogate": name, "sampler_correction": "product"}) for name in SURROGATES),
]


def losses(name, options, arrays):
    """The loss, every term and every metric, each divided."""

    def run(arrays):
        terms, metrics = bind(OBJECTIVES[name], arrays, options)
        return reduce(terms), reduce(metrics)[1]

    return jax.tree.leaves(jax.jit(run)(arrays))


@pytest.mark.parametrize("name, options", CASES)
@pytest.mark.parametrize("more", [1, 3 * T])
def test_t24_more_padding_changes_no_loss_and_no_metric(name, options, more):
    padded = {key: np.pad(x, ((0, 0), (0, more))) if x.ndim == 2 else x for key, x in ARRAYS.items()}
    for before, after in zip(losses(name, options, ARRAYS), losses(name, options, padded)):
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_t24_the_divisor_is_the_number_of_tokens_that_count():
    ones = {name: np.ones((B, T), np.float32) for name in NAMES} | {"mask_BT": MASK}
    nll = losses("cross_entropy", {}, ones | {"logp_BT": -ones["logp_BT"]})
    assert nll[0] == 1.0  # a mean over T would give 11/18


@pytest.mark.parametrize("aggregation, divisor", [("sequence", None), ("token", 11.0), ("sum", 3.0), ("budget", 27.0)])
def test_t24_each_aggregation_divides_by_what_its_equation_says(aggregation, divisor):
    """Eleven tokens in three responses of 6, 2 and 3, each allowed nine: never by T."""
    advantage = np.where(MASK > 0, -RNG.random((B, T)), 99.0).astype(np.float32)  # at ratio 1 minus the surrogate
    zero = np.zeros((B, T), np.float32)
    options = {"kl_coefficient": 0.0, "aggregation": aggregation}
    arrays = ARRAYS | {"logp_BT": zero, "old_logp_BT": zero, "ref_logp_BT": zero, "advantage_BT": advantage}
    got = reduce(bind(OBJECTIVES["grpo"], arrays, options).terms)[1]["policy"]
    total = -(advantage * MASK).sum(1, dtype=np.float64)
    expected = np.mean(total / MASK.sum(1)) if divisor is None else total.sum() / divisor
    np.testing.assert_allclose(got, expected, rtol=1e-5)


PAIRS = {"ipo": {"beta": 0.2}, "kto": {"beta": 0.2}, "orpo": {"odds_coefficient": 0.5}, "simpo": {"beta": 2.0},
         "dpo": {"beta": 0.2}, "bradley_terry": {"centre": 0.1}}


@pytest.mark.parametrize("name", PAIRS)
def test_t24_a_pair_that_does_not_count_is_in_no_divisor(name):
    """Two pairs of two, or of four with two that do not count: one figure."""
    two = {argument: -1.0 - RNG.random(2).astype(np.float32) for argument in signature(OBJECTIVES[name])[0]}
    two |= {"weight_B": np.ones(2, np.float32), "chosen_length_B": np.full(2, 3.0, np.float32),
            "rejected_length_B": np.full(2, 4.0, np.float32)}
    four = {argument: np.append(x, [np.float32(np.nan)] * 2) for argument, x in two.items()}
    four["weight_B"] = np.array([1, 1, 0, 0], np.float32)
    for a, b in zip(losses(name, PAIRS[name], two), losses(name, PAIRS[name], four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", ["plackett_luce", "pairwise_ranking"])
def test_t24_a_ranking_that_is_not_there_is_in_no_divisor(name):
    """Two rankings of three; or of four answers, the last not there, with a row of padding and a prompt of one answer."""
    score, ranks = RNG.normal(size=(2, 3)).astype(np.float32), np.array([[0, 1, 1], [2, 0, 1]], np.int32)
    few = {"score_BR": score, "ranks_BR": ranks, "answer_mask_BR": np.ones((2, 3), np.float32)}
    more = {"score_BR": np.full((4, 4), 50.0, np.float32), "ranks_BR": np.full((4, 4), ABSENT_RANK, np.int32),
            "answer_mask_BR": np.zeros((4, 4), np.float32)}
    for key, array in few.items():
        more[key][:2, :3] = array
    more["answer_mask_BR"][2, 0], more["ranks_BR"][2, 0] = 1.0, 0
    for a, b in zip(losses(name, {"centre": 0.1}, few), losses(name, {"centre": 0.1}, more), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_t24_no_objective_is_left_out_here():
    assert {name for name, _ in CASES} | set(PAIRS) | {"plackett_luce", "pairwise_ranking"} == set(OBJECTIVES)
