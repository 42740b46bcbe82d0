"""t13: GSPO's sequence ratio, a length-normalised mean, and the sampler-to-trainer correction, per token or the product
over the sequence, are confused."""

import jax
import numpy as np
import pytest

from jaxalign.objectives.grpo import grpo
from jaxalign.objectives.reduce import reduce
from jaxalign.objectives.sampler_weights import SAMPLER_CORRECTIONS
from jaxalign.objectives.surrogates import SURROGATES

RNG = np.random.default_rng(14)
LENGTHS, T = np.array([5, 2, 3]), 6
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
OLD = -np.abs(RNG.normal(size=(3, T))).astype(np.float32)
NEW, SAMPLER = ((OLD + 0.4 * RNG.normal(size=(3, T))).astype(np.float32) for _ in range(2))
HERE = MASK > 0
PER_TOKEN = {name: np.exp((a - b).astype(np.float64)) for name, a, b in (("new", NEW, OLD), ("sampler", OLD, SAMPLER))}
PRODUCT = {name: np.array([r[i, :n].prod() for i, n in enumerate(LENGTHS)]) for name, r in PER_TOKEN.items()}


def test_t13_gspos_ratio_is_the_length_normalised_one_of_the_trained_policy_to_its_old_self():
    """arXiv:2507.18071, eq. 7; the product, and the token's own ratio, are other numbers."""
    zero = np.where(HERE, 0, NEW)
    for name in ("gspo", "gspo_token"):
        got = np.asarray(SURROGATES[name](NEW - zero, OLD * MASK, MASK, MASK, clip_low=9.0, clip_high=9.0)[1])
        for i, n in enumerate(LENGTHS):
            np.testing.assert_allclose(got[i, :n], PRODUCT["new"][i] ** (1 / n), rtol=1e-5)
            assert np.abs(got[i, :n] - PRODUCT["new"][i]).min() > 0.01
            assert np.abs(got[i, :n] - PER_TOKEN["new"][i, :n]).max() > 0.01


@pytest.mark.parametrize("name", ["token", "product"])
def test_t13_the_samplers_weight_is_per_token_or_the_product_and_never_length_normalised(name):
    got = np.asarray(SAMPLER_CORRECTIONS[name](OLD, SAMPLER, MASK, cap=9.0))
    expected = PER_TOKEN["sampler"] if name == "token" else np.repeat(PRODUCT["sampler"][:, None], T, axis=1)
    np.testing.assert_allclose(got[HERE], expected[HERE], rtol=1e-5)
    for i, n in enumerate(LENGTHS):
        assert np.abs(got[i, :n] - PRODUCT["sampler"][i] ** (1 / n)).max() > 0.01


def test_t13_no_name_of_the_one_is_a_name_of_the_other():
    assert set(SAMPLER_CORRECTIONS) == {"token", "product"} and not set(SAMPLER_CORRECTIONS) & set(SURROGATES)
    assert not [name for name in (*SAMPLER_CORRECTIONS, *SURROGATES) if "seq" in name]


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
@pytest.mark.parametrize("correction", ["none", "token", "product"])
def test_t13_each_sees_its_own_pair_of_policies_only(surrogate, correction):
    """The sampler never moves the surrogate's ratio; the trained policy never moves the sampler's weight."""
    def metrics(new, sampler):
        loss = grpo(new, OLD, MASK, MASK, OLD, sampler, surrogate=surrogate, kl_coefficient=0.0,
                    sampler_correction=correction, sampler_cap=9.0)
        return reduce(loss.metrics)[1]

    run = jax.jit(metrics)
    base, other_sampler, other_policy = run(NEW, SAMPLER), run(NEW, SAMPLER - 0.5), run(NEW + 0.1, SAMPLER)
    assert base["ratio"] == other_sampler["ratio"] != other_policy["ratio"]
    if correction == "none":
        assert "sampler_weight" not in base
    else:
        assert base["sampler_weight"] == other_policy["sampler_weight"] != other_sampler["sampler_weight"]
