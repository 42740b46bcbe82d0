"""t12: top-p, top-k or temperature bias the importance ratio."""

import jax
import numpy as np
import pytest
import tiny_stages
from test_t11_sampler_is_trainer import at_rate_zero
from tiny_models import documents, logits, split

from jaxalign.errors import ConfigError
from jaxalign.rollout.engine import Sampler
from jaxalign.rollout.sampling import Settings
from jaxalign.stages import train_stage


@pytest.mark.parametrize("settings", [Settings(0.5), Settings(top_k=3), Settings(top_p=0.6), Settings(1.7, 9, 0.9)],
                         ids=str)
def test_t12_both_log_probabilities_are_kept_each_of_the_distribution_it_names(settings):
    graphdef, params = split()
    (prompt,) = documents((5,))
    sampler = Sampler(graphdef, stop_ids=(), max_new_tokens=6, slots=1, bucket=8)
    got = sampler(params, [prompt], jax.random.split(jax.random.key(2), 1), settings)
    whole = np.array([prompt + got.tokens[0].tolist()], np.int32)
    rows = np.asarray(jax.jit(lambda p: logits(graphdef, p, whole))(params), np.float64)[0, 4:-1]
    for n, row in enumerate(rows):
        token = got.tokens[0, n]
        assert got.logp[0, n] == pytest.approx(row[token] - np.log(np.exp(row).sum()), abs=1e-4)
        scaled = np.sort(row / settings.temperature)[::-1][:settings.top_k or None]
        p = np.exp(scaled) / np.exp(scaled).sum()
        kept = scaled[:int((np.cumsum(p) - p < settings.top_p).sum())]
        expected = row[token] / settings.temperature - np.log(np.exp(kept).sum())
        assert got.sampler_logp[0, n] == pytest.approx(expected, abs=1e-4)
    assert np.abs(got.logp - got.sampler_logp).max() > 1e-2  # they are different numbers


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_t12_at_another_temperature_the_trained_policy_is_the_one_that_was_sampled(name):
    # The run is at temperature 0.7; against the model's own distribution the KL is a hundred times the bound.
    assert all(row["sampler_kl"] < 1e-6 and row["ratio"] == pytest.approx(1.0, abs=1e-5)
               for row in at_rate_zero(name))


def test_t12_sampling_that_cannot_be_trained_on_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="temperature=0.0 must be above 0"):
        train_stage(tiny_stages.config("grpo", temperature=0.0), tmp_path)
