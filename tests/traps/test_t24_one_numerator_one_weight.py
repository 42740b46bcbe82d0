"""t24: `mean(loss * mask)` divides by T and not by the mask's sum (rlax `policy_gradient_loss` on padded text)."""

import jax
import numpy as np
import pytest

from jaxalign.batches import bind
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.reduce import reduce

RNG = np.random.default_rng(24)
B, T = 3, 6
MASK = (np.arange(T) < np.array([[6], [2], [3]])).astype(np.float32)
NAMES = "logp_BT logz_BT mean_logp_BT entropy_BT old_logp_BT ref_logp_BT".split()
NAMES += "advantage_BT value_BT old_value_BT returns_BT".split()
ARRAYS = {name: RNG.normal(size=(B, T)).astype(np.float32) for name in NAMES} | {"mask_BT": MASK}
CASES = [
    ("cross_entropy", {"z_loss": 0.1, "label_smoothing": 0.1}),
    ("ppo", {"value_coefficient": 0.5, "entropy_coefficient": 0.1}),
    ("grpo", {"kl_coefficient": 0.1, "aggregation": "token"}),
    ("grpo", {"kl_coefficient": 0.1, "aggregation": "sequence"}),
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
    padded = {key: np.pad(x, ((0, 0), (0, more))) for key, x in ARRAYS.items()}
    for before, after in zip(losses(name, options, ARRAYS), losses(name, options, padded)):
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_t24_the_divisor_is_the_number_of_tokens_that_count():
    ones = {name: np.ones((B, T), np.float32) for name in NAMES} | {"mask_BT": MASK}
    nll = losses("cross_entropy", {}, ones | {"logp_BT": -ones["logp_BT"]})
    assert nll[0] == 1.0  # a mean over T would give 11/18
