"""t18 for every stage: stopped half-way and gone on with, it ends bit for bit where an uninterrupted run ends."""

import json
import pathlib
import shutil
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_stages

from jaxalign.stages import train_stage
from jaxalign.train.checkpoint import read_meta

# A rollout holds two optimizer steps.
CHANGES = {
    "pretrain": dict(microbatches=2, data=dict(packing="best_fit")),
    "ppo": dict(optimizer=dict(schedule="linear")),
    # Of a policy some of whose responses end: what they earn differs within a group, and a rollout's steps move.
    "grpo": dict(samples_per_prompt=4, batch_size=8, rewards=[dict(name="length", most=8, least=4, unit="characters")],
                 optimizer=dict(schedule="constant")),
}
STEPS, STOP = 4, 2


def config_of(name):
    settings = dict(steps=STEPS, checkpoint_every=STOP, keep=2) | CHANGES.get(name, {})
    if name.startswith("grpo"):
        settings["init_from"] = tiny_stages.ends_its_turns()
    if name == "ppo_adaptive":  # all that goes over from rollout to rollout: β, the scores' moments, what was skipped
        return tiny_stages.config("ppo", epochs=2, target_kl=1e-6, kl_control="adaptive", kl_target=0.1, kl_gain=0.5,
                                  reward_scaling="normalise", optimizer=dict(warmup_steps=0), **settings)
    if name.endswith("_overlap"):  # the weights that draw the next rollout are those of the one before
        name = name.removesuffix("_overlap")
        return tiny_stages.config(name, overlap=True, **(settings | CHANGES[name]))
    if name.endswith("_lora"):
        return tiny_stages.config(name.removesuffix("_lora"), lora=dict(rank=2, form="dora"), **settings)
    if name != "kto":
        return tiny_stages.config(name, **settings)
    # On single answers, the reference's log-probabilities kept on disk.
    config = tiny_stages.config("dpo", reference="cached", **settings).unlock()
    config.objective = dict(name="kto", beta=0.1)
    return config.lock()


def arrays(workdir, step):
    """Everything a checkpoint holds as arrays: parameters, optimizer state, step, key."""
    folder = pathlib.Path(workdir) / "checkpoints" / str(step)
    with ocp.PyTreeCheckpointer() as handler, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they come back on the devices they were saved from
        return [handler.restore(folder / item) for item in ("params", "optimizer")]


def timeless(rows):
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in rows]


@pytest.mark.parametrize("name", [
    "pretrain", "sft", "reward", "dpo", "ppo", "grpo", "grpo_overlap", "sft_lora",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("kto", "ppo_adaptive", "ppo_overlap", "ppo_lora"))])
def test_t18_a_stopped_and_resumed_stage_is_the_uninterrupted_one_bit_for_bit(name, tmp_path):
    config = config_of(name)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_stage(config, whole)
    # As if it had been killed after the first half, while it wrote more.
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / str(STEPS))
    (resumed / "done.json").unlink()
    train_stage(config, resumed)
    for a, b in zip(arrays(whole, STEPS), arrays(resumed, STEPS)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    halfway = arrays(whole, STOP)[0]
    assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (halfway, arrays(whole, STEPS)[0]))))
    assert timeless(tiny_stages.metrics(whole)) == timeless(tiny_stages.metrics(resumed))
    if name.startswith("grpo"):  # there was something to learn, before the stop and after it
        spread = [row["spread"] for row in tiny_stages.metrics(whole)]
        assert len(spread) == STEPS and min(spread) > 0
    metas = [read_meta(folder)[1] for folder in (whole, resumed)]
    assert ("carried" in metas[0]["data"]) == (name == "ppo_adaptive")
    assert metas[0]["data"] == metas[1]["data"] and metas[0]["history"]["tokens"] == metas[1]["history"]["tokens"]
    done = [json.loads((folder / "done.json").read_text()) for folder in (whole, resumed)]
    assert done[0]["after"] == done[1]["after"] and done[0]["before"] == done[1]["before"]
