"""t11: sampler and trainer disagree about a token's log-probability."""

import functools

import jax
import numpy as np
import pytest
import tiny_stages
from tiny_models import documents, logp, split

from jaxalign.experience.rows import response_rows
from jaxalign.rollout.engine import Sampler
from jaxalign.stages import train_stage
from jaxalign.stages.rl import PolicyStage

PROMPTS = documents((3, 7, 1, 5, 6, 2), seed=5)


@functools.cache
def at_rate_zero(name):
    """The figures of a run that samples and trains, at learning rate 0: two rollouts of two steps, two epochs."""
    settings = dict(steps=8, epochs=2, optimizer=dict(peak_lr=0.0, warmup_steps=0), temperature=0.7)
    workdir = tiny_stages.folder() / name
    train_stage(tiny_stages.config(name, **settings), workdir)
    return tiny_stages.metrics(workdir)


def test_t11_the_samplers_log_probabilities_are_the_trainers():
    graphdef, params = split()
    sampler = Sampler(graphdef, stop_ids=(4,), max_new_tokens=10, slots=4, bucket=8)
    rollouts = sampler(params, PROMPTS, jax.random.split(jax.random.key(0), len(PROMPTS)))
    batch = response_rows(PROMPTS, rollouts, 20, pad_id=0)
    trained = np.asarray(jax.jit(lambda p, b: logp(graphdef, p, b, chunk=5))(params, batch))
    drawn = batch["mask_BT"] > 0
    assert drawn.sum() == rollouts.mask.sum() > 30
    for name in ("rollout_logp_BT", "sampler_logp_BT"):  # at temperature 1 the same
        np.testing.assert_allclose(trained[drawn], batch[name][drawn], atol=1e-4)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_t11_a_run_at_rate_zero_keeps_ratio_one_and_logs_how_far_the_sampler_is(name):
    rows = at_rate_zero(name)
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        assert row["ratio"] == pytest.approx(1.0, abs=1e-5) and row["clip_fraction"] == 0.0
        assert abs(row["approx_kl"]) < 1e-6 and abs(row["kl"]) < 1e-5
        assert 0 <= row["sampler_kl"] < 1e-6


def test_t11_what_is_logged_is_nought_only_where_the_two_agree():
    rng = np.random.default_rng(11)
    trainer, sampler = -rng.random((2, 3, 5)).astype(np.float32)
    mask = (np.arange(5) < [[5], [2], [3]]).astype(np.float32)
    got = object.__new__(PolicyStage).sampler_figures(trainer, {"sampler_logp_BT": sampler, "mask_BT": mask})
    difference = (trainer - sampler).astype(np.float64)[mask > 0]
    expected = np.mean(np.exp(difference) - 1 - difference)  # k3 of KL(sampler, trainer)
    assert float(got["sampler_kl"]) == pytest.approx(expected, rel=1e-5) and expected > 0.01
