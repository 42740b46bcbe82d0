import jax
import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.objectives import grpo as objective
from jaxalign.objectives.reduce import reduce

RNG = np.random.default_rng(7)
B, T = 4, 7
OLD = -np.abs(RNG.normal(size=(B, T))).astype(np.float32)
LOGP = (OLD + 0.4 * RNG.normal(size=(B, T))).astype(np.float32)
REF = (OLD + 0.4 * RNG.normal(size=(B, T))).astype(np.float32)
ADVANTAGE = np.repeat(RNG.normal(size=(B, 1)), T, axis=1).astype(np.float32)
LENGTHS = np.array([7, 3, 1, 5])
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
ARGS = (LOGP, OLD, ADVANTAGE, MASK, REF)


@pytest.mark.parametrize("aggregation", ["sequence", "token"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_float64_reference(aggregation, estimator):
    beta, low, high = 0.04, 0.2, 0.28
    logp, old, advantage, _, ref = (x.astype(np.float64) for x in ARGS)
    rows = []
    for i in range(B):
        row = []
        for t in range(LENGTHS[i]):
            ratio, u = np.exp(logp[i, t] - old[i, t]), ref[i, t] - logp[i, t]
            kl = {"k1": -u, "k2": u**2 / 2, "k3": np.exp(u) - u - 1}[estimator]  # k3 is eq. 4
            surrogate = min(ratio * advantage[i, t], np.clip(ratio, 1 - low, 1 + high) * advantage[i, t])
            row.append(-(surrogate - beta * kl))  # eq. 3, negated
        rows.append(row)
    expected = np.mean([np.mean(row) for row in rows]) if aggregation == "sequence" else np.mean(sum(rows, []))

    def run(*args):
        loss = objective(
            *args, clip_low=low, clip_high=high, kl_coefficient=beta, kl_estimator=estimator, aggregation=aggregation
        )
        return reduce(loss.terms)[0], reduce(loss.metrics)[1]

    loss, means = jax.jit(run)(*ARGS)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
    ratio = np.exp(logp - old)[MASK > 0]
    np.testing.assert_allclose(means["ratio"], ratio.mean(), rtol=1e-5)
    np.testing.assert_allclose(means["clip_fraction"], np.mean((ratio < 1 - low) | (ratio > 1 + high)), rtol=1e-5)


def test_sequence_weights_do_not_favour_long_responses():
    weights = jax.jit(lambda mask: objective(*ARGS[:3], mask, kl_coefficient=0.0).terms["policy"].weight)
    weight = np.asarray(weights(MASK))
    np.testing.assert_allclose(weight.sum(1), np.ones(B), rtol=1e-6)
    np.testing.assert_array_equal(weights(0 * MASK), np.zeros((B, T)))


def test_gradient_signs():
    """At ratio 1 a good response becomes likelier, a bad one less so; the KL term draws towards the reference."""

    def gradient(beta, advantage):
        loss = lambda x: reduce(objective(x, LOGP, advantage, MASK, REF, kl_coefficient=beta).terms)[0]  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(LOGP))

    here = MASK > 0
    np.testing.assert_array_equal(np.sign(gradient(0.0, ADVANTAGE))[here], -np.sign(ADVANTAGE)[here])
    np.testing.assert_array_equal(np.sign(gradient(1.0, 0 * ADVANTAGE))[here], np.sign(LOGP - REF)[here])


@pytest.mark.parametrize("option", [{"kl_estimator": "k4"}, {"aggregation": "rows"}])
def test_unknown_choices_are_refused(option):
    with pytest.raises(ConfigError, match="must be one of"):
        objective(*ARGS, kl_coefficient=0.0, **option)
