"""Each row of `GRPO_FAMILY` against its own paper's equation, value and gradient, in float64."""

import chex
import jax
import numpy as np
import pytest
from absl.testing import parameterized

from jaxalign.errors import ConfigError
from jaxalign.experience.shaping import group_targets, overlong_punishment
from jaxalign.objectives.grpo import AGGREGATIONS, grpo
from jaxalign.objectives.reduce import reduce
from jaxalign.objectives.sampler_weights import SAMPLER_CORRECTIONS
from jaxalign.objectives.surrogates import SURROGATES, gspo, gspo_token
from jaxalign.stages.grpo import GRPO_FAMILY

RNG = np.random.default_rng(41)
G, B, T, L = 4, 8, 7, 10  # a group's responses, responses, tokens at most drawn, tokens allowed
LENGTHS = np.array([7, 3, 1, 5, 4, 7, 2, 6])
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
REWARD = np.array([1, 0, 0, 1, 0.5, 0, 1, 0], np.float32)
OLD = -np.abs(RNG.normal(size=(B, T))).astype(np.float32)
LOGP, REF, SAMPLER = ((OLD + s * RNG.normal(size=(B, T))).astype(np.float32) for s in (0.4, 0.4, 0.1))
ROWS = {name: row for name, row in GRPO_FAMILY.items()}
# The paper's clips of GSPO are so near 1 that hardly a ratio of this data is inside: wider ones try both sides.
WIDE = dict(GRPO_FAMILY["gspo"]["objective"], clip_low=0.1, clip_high=0.15)
ROWS["gspo, wide"] = dict(GRPO_FAMILY["gspo"], objective=WIDE)


def ours(row, logp):
    """(loss, advantage_BT): what the stage and the objective make of a row's settings."""
    stage, options = row, row["objective"]
    reward = REWARD + overlong_punishment(MASK.sum(1), budget=L, share=stage.get("overlong_share", 0.0))
    penalty = stage.get("kl_coefficient", 0.0) * (OLD - REF)
    made = group_targets(reward, MASK, penalty, group_size=G, scale=stage["advantage_scale"],
                         baseline=stage["advantage_baseline"])
    budget = np.full(B, L, np.float32)
    loss = grpo(logp, OLD, made["advantage_BT"], MASK, REF, SAMPLER, budget, **options)
    return reduce(loss.terms)[0], made["advantage_BT"]


def tokens(i):
    return range(LENGTHS[i])


def group(i):
    return range(i // G * G, i // G * G + G)


def grpo_advantage(r):
    return [(r[i] - np.mean(r[group(i)])) / np.std(r[group(i)]) for i in range(B)]


def clipped(ratio, advantage, low=0.2, high=0.2):
    return min(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def grpo_3(x, held, r):
    """arXiv:2402.03300, eq. 3, with eq. 4 as its KL."""
    A, beta, J = grpo_advantage(r), 0.04, []
    for i in range(B):
        J.append(np.mean([clipped(np.exp(x[i, t] - OLD[i, t]), A[i])
                          - beta * (np.exp(REF[i, t] - x[i, t]) - (REF[i, t] - x[i, t]) - 1) for t in tokens(i)]))
    return np.mean(J)


def dr_grpo(x, held, r):
    """arXiv:2503.20783: no deviation, no length of the response; the sum over a constant, as in its listing 1."""
    A = [r[i] - np.mean(r[group(i)]) for i in range(B)]
    return np.mean([sum(clipped(np.exp(x[i, t] - OLD[i, t]), A[i]) for t in tokens(i)) / L for i in range(B)])


def dapo_8(x, held, r):
    """arXiv:2503.14476, eq. 8 and 9, with eq. 13 in the reward; over the batch."""
    cache = 0.2 * L
    shaped = [r[i] + (0 if n <= L - cache else ((L - cache) - n) / cache) for i, n in enumerate(LENGTHS)]
    A = grpo_advantage(np.array(shaped))
    total = sum(clipped(np.exp(x[i, t] - OLD[i, t]), A[i], 0.2, 0.28) for i in range(B) for t in tokens(i))
    return total / LENGTHS.sum()


def gspo_5(low, high):
    """arXiv:2507.18071, eq. 5 to 7."""
    def J(x, held, r):
        A, total = grpo_advantage(r), []
        for i in range(B):
            pi, old = (np.prod([np.exp(y[i, t]) for t in tokens(i)]) for y in (x, OLD.astype(np.float64)))
            total.append(clipped((pi / old) ** (1 / LENGTHS[i]), A[i], low, high))
        return np.mean(total)
    return J


def cispo_4(x, held, r):
    """arXiv:2506.13585, eq. 4 and 5; `held` is what the gradient does not see."""
    A = grpo_advantage(r)
    total = sum(min(np.exp(held[i, t] - OLD[i, t]), 5.0) * A[i] * x[i, t] for i in range(B) for t in tokens(i))
    return total / LENGTHS.sum()


def rloo(x, held, r):
    """arXiv:2402.14740, section 2.3: the other k − 1 responses' mean reward as baseline, the KL inside the reward."""
    R = [r[i] - 0.03 * sum(OLD[i, t] - REF[i, t] for t in tokens(i)) for i in range(B)]
    return np.mean([(R[i] - sum(R[j] for j in group(i) if j != i) / (G - 1)) * sum(x[i, t] for t in tokens(i))
                    for i in range(B)])


def normalised(A):
    every = np.array([A[i][t] for i in range(B) for t in tokens(i)])
    return [[(a - every.mean()) / every.std() for a in row] for row in A]


def reinforce_pp(x, held, r):
    """arXiv:2501.03262: Aₜ = r − β · Σ_{s≥t} KLₛ, normalised over the batch; PPO's clip."""
    A = normalised([[r[i] - 0.01 * sum(OLD[i, s] - REF[i, s] for s in range(t, LENGTHS[i])) for t in tokens(i)]
                    for i in range(B)])
    return sum(clipped(np.exp(x[i, t] - OLD[i, t]), A[i][t]) for i in range(B) for t in tokens(i)) / LENGTHS.sum()


def reinforce_pp_baseline(x, held, r):
    """The same, with baseline: the group's mean off, then normalised over the batch; k2 in the loss."""
    A = normalised([[r[i] - np.mean(r[group(i)])] * LENGTHS[i] for i in range(B)])
    return sum(clipped(np.exp(x[i, t] - OLD[i, t]), A[i][t]) - 0.01 * (x[i, t] - REF[i, t]) ** 2 / 2
               for i in range(B) for t in tokens(i)) / LENGTHS.sum()


PRINTED = {"grpo": grpo_3, "dr_grpo": dr_grpo, "dapo": dapo_8, "gspo": gspo_5(3e-4, 4e-4),
           "gspo, wide": gspo_5(0.1, 0.15), "cispo": cispo_4, "rloo": rloo, "reinforce++": reinforce_pp,
           "reinforce++_baseline": reinforce_pp_baseline}


class Family(chex.TestCase):
    """With jit and without it."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*ROWS)
    def test_a_row_is_its_papers_equation(self, name):
        (loss, advantage), gradient = self.variant(
            jax.value_and_grad(lambda x: ours(ROWS[name], x), has_aux=True))(LOGP)
        x, r = LOGP.astype(np.float64), REWARD.astype(np.float64)
        # The papers maximise.
        np.testing.assert_allclose(loss, -PRINTED[name](x, x, r), rtol=1e-4, atol=2e-6)
        for i in range(B):
            for t in range(T):
                step = np.zeros((B, T))
                step[i, t] = 1e-6
                slope = (PRINTED[name](x + step, x, r) - PRINTED[name](x - step, x, r)) / 2e-6
                np.testing.assert_allclose(gradient[i, t], -slope, rtol=1e-3, atol=2e-6, err_msg=f"{i} {t}")
        assert np.all(np.asarray(advantage)[MASK == 0] == 0)


def test_every_row_has_its_equation_and_every_choice_is_in_a_row():
    assert set(PRINTED) == set(ROWS)
    used = [row["objective"] for row in ROWS.values()]
    assert {row["surrogate"] for row in used} == set(SURROGATES) - {"gspo_token"}
    assert {row["aggregation"] for row in used} == set(AGGREGATIONS)


def test_gspo_token_is_gspo_where_a_response_has_one_advantage_and_another_where_not():
    """arXiv:2507.18071, section 4.3."""
    def run(surrogate, advantage):
        options = dict(surrogate=surrogate, clip_low=0.1, clip_high=0.15, kl_coefficient=0.0)
        return jax.value_and_grad(lambda x: reduce(grpo(x, OLD, advantage, MASK, REF, **options).terms)[0])(LOGP)

    one = np.repeat(RNG.normal(size=(B, 1)), T, axis=1).astype(np.float32)
    for a, b in zip(run("gspo", one), run("gspo_token", one)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    many = RNG.normal(size=(B, T)).astype(np.float32)
    (value, gradient), (value_token, gradient_token) = run("gspo", many), run("gspo_token", many)
    np.testing.assert_allclose(value, value_token, rtol=1e-5)
    assert np.abs(np.asarray(gradient) - gradient_token).max() > 1e-3
    # Eq. 13's gradient: sᵢ · Âᵢₜ · ∇log π(oᵢₜ) on each token whose surrogate is not clipped.
    ratio = np.asarray(gspo(LOGP * MASK, OLD * MASK, many, MASK, clip_low=0.1, clip_high=0.15)[1])
    _, ratio_token = gspo_token(LOGP * MASK, OLD * MASK, many, MASK, clip_low=0.1, clip_high=0.15)
    np.testing.assert_allclose(ratio_token, ratio, rtol=1e-6)
    inside = np.where(many > 0, ratio <= 1.15, ratio >= 0.9)
    expected = -ratio * many * inside * MASK / LENGTHS[:, None] / B
    np.testing.assert_allclose(gradient_token, expected, rtol=1e-4, atol=1e-7)


def test_cispo_drops_no_token_that_ppo_clips():
    far = np.where(MASK > 0, OLD + 1.0, 0).astype(np.float32)  # a ratio of e, outside any clip here
    good = np.ones((B, T), np.float32)

    def gradient(**options):
        loss = lambda x: reduce(grpo(x, OLD, good, MASK, REF, kl_coefficient=0.0, **options).terms)[0]  # noqa: E731
        return np.asarray(jax.grad(loss)(far))[MASK > 0]

    assert np.all(gradient(surrogate="clip") == 0)
    assert np.all(gradient(surrogate="cispo", clip_low=1.0, clip_high=0.28) < 0)
    # Its weight is the clip's bound and not the ratio.
    got = gradient(surrogate="cispo", clip_high=0.28, aggregation="token")
    np.testing.assert_allclose(got, -1.28 / MASK.sum(), rtol=1e-5)


@pytest.mark.parametrize("correction", SAMPLER_CORRECTIONS)
def test_the_sampler_correction_multiplies_the_surrogate_alone_and_is_not_trained_through(correction):
    options = dict(kl_coefficient=0.1, sampler_correction=correction, sampler_cap=1.1)
    advantage = np.repeat(RNG.normal(size=(B, 1)), T, axis=1).astype(np.float32)

    def run(sampler, **options):
        loss = grpo(LOGP, OLD, advantage, MASK, REF, sampler, **options)
        return loss.terms["policy"].value, loss.terms["kl"].value, reduce(loss.metrics)[1].get("sampler_weight")

    plain = run(None, kl_coefficient=0.1)
    corrected = run(SAMPLER, **options)
    ratio = np.exp((OLD - SAMPLER).astype(np.float64)) if correction == "token" else np.repeat(
        np.exp(((OLD - SAMPLER) * MASK).sum(1, keepdims=True, dtype=np.float64)), T, axis=1)
    weight = np.minimum(ratio, 1.1)
    here = MASK > 0
    assert (weight[here] < 1.1).any() and (weight[here] == 1.1).any()
    np.testing.assert_allclose(np.asarray(corrected[0])[here], (weight * plain[0])[here], rtol=1e-5)
    np.testing.assert_array_equal(corrected[1], plain[1])
    np.testing.assert_allclose(corrected[2], weight[here].mean(), rtol=1e-5)
    # A sampler that is the policy needs no correction.
    np.testing.assert_allclose(run(OLD, **options)[0], plain[0], rtol=1e-6)
    gradient = jax.grad(lambda s, o: run(s, **options)[0].sum() + 0 * o.sum(), (0, 1))(SAMPLER, OLD)
    assert np.all(gradient[0] == 0)


def test_a_long_products_weight_does_not_overflow():
    length = 400
    mask, one = np.ones((1, length), np.float32), np.ones((1, length), np.float32)
    weight = SAMPLER_CORRECTIONS["product"](0 * one, -one, mask, cap=3.0)  # e⁴⁰⁰ before the cap
    np.testing.assert_allclose(weight, 3.0 * one, rtol=1e-6)


@pytest.mark.parametrize("option, words", [
    ({"surrogate": "ppo"}, "surrogate must be one of clip, gspo, .*got 'ppo'"),
    ({"sampler_correction": "sequence"}, "sampler_correction must be one of none, token, product; got 'sequence'"),
    ({"sampler_correction": "token"}, 'sampler_correction="token" needs sampler_logp_BT'),
    ({"aggregation": "budget"}, 'aggregation="budget" needs budget_B'),
])
def test_choices_that_are_unknown_or_lack_their_array_are_refused(option, words):
    with pytest.raises(ConfigError, match=words):
        grpo(LOGP, OLD, MASK, MASK, REF, **({"kl_coefficient": 0.0} | option))


def test_without_a_coefficient_there_need_be_no_reference():
    with pytest.raises(ConfigError, match="kl_coefficient=0.1 needs ref_logp_BT"):
        grpo(LOGP, OLD, MASK, MASK, kl_coefficient=0.1)
    loss = lambda *ref: reduce(grpo(LOGP, OLD, MASK, MASK, *ref, kl_coefficient=0.0).terms)[0]  # noqa: E731
    assert loss() == loss(REF)


@pytest.mark.parametrize("choices, words", [
    (dict(baseline="mean", scale="std"), "baseline must be one of group, others, none"),
    (dict(baseline="group", scale="max"), "scale one of std, none, batch"),
    (dict(baseline="others", scale="std"), '"std" with baseline "group" alone'),
])
def test_advantages_that_nobody_has_defined_are_refused(choices, words):
    with pytest.raises(ConfigError, match=words):
        group_targets(REWARD, MASK, group_size=G, **choices)
