"""Every stage ends alike on one device and on eight, in one piece and in microbatches: parameters, figures, tokens."""

import functools
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_stages

from jaxalign.stages import rl, train_stage

EIGHT = dict(data=2, fsdp=2, tensor=2)
VARIANTS = {
    "devices": dict(mesh=EIGHT),
    "microbatches": dict(microbatches=2),
    "both": dict(mesh=EIGHT, microbatches=2),
    # More parts than rows are packed into otherwise; and more rows than there need be, two on each device.
    "rows": dict(mesh=dict(data=4, fsdp=2)),
    "spare_rows": dict(mesh=dict(data=4, fsdp=2), fold_rows=9),
}
CASES = [*((name, variant) for name in tiny_stages.SHAPES for variant in ("devices", "microbatches")),
         ("reward", "both"), ("grpo", "both"), ("reward", "rows"), ("grpo", "spare_rows")]
QUICK = [("reward", "devices"), ("reward", "microbatches"), ("grpo", "devices"), ("grpo", "microbatches")]

# Nearly the gradient itself: the first step of Adam as it is used is a sign, and that of a zero is what rounding leaves.
OPTIMIZER = dict(peak_lr=1.0, eps=1.0, warmup_steps=0, schedule="constant")
# Two steps a rollout: the second is off the policy that drew, and the next rollout is drawn from what both have made.
DRAWN = dict(steps=4, prompts_per_rollout=4, samples_per_prompt=4, optimizer=OPTIMIZER | dict(peak_lr=0.2))
CHANGES = {
    "ppo": DRAWN | dict(kl_control="adaptive", kl_target=0.1, reward_scaling="normalise"),
    "grpo": DRAWN | dict(rewards=[dict(name="length", most=8, least=4, unit="characters")]),
}


def run(name, **changes):
    """(workdir, each rollout's prompts, tokens and ends) of a stage's run."""
    changes = dict(steps=2, batch_size=8, optimizer=OPTIMIZER) | CHANGES.get(name, {}) | changes
    if name in CHANGES:
        changes["init_from"] = tiny_stages.ends_its_turns()
    workdir, drawn, rows = tiny_stages.folder() / name, [], rl.response_rows

    def noted(prompts, rollouts, *more):
        drawn.append((prompts, rollouts.tokens.tolist(), rollouts.reason.tolist()))
        return rows(prompts, rollouts, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "response_rows", noted)
        train_stage(tiny_stages.config(name, checkpoint_every=changes["steps"] // 2, keep=2, **changes), workdir)
    return workdir, drawn


whole = functools.cache(run)  # one run that every variant is compared with: one device, one piece


def parameters(workdir, step):
    with ocp.PyTreeCheckpointer() as handler, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they come back on the devices they were saved from
        return jax.tree.map(np.asarray, handler.restore(workdir / "checkpoints" / str(step) / "params"))


def figures(workdir):
    return [{name: value for name, value in row.items() if name not in ("time", "tokens_per_second")}
            for row in tiny_stages.metrics(workdir)]


@pytest.mark.parametrize("name, variant", [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES])
def test_a_stage_in_parts_is_the_whole_one(name, variant):
    expected, drawn = whole(name)
    got, drawn_in_parts = run(name, **VARIANTS[variant])
    assert drawn_in_parts == drawn and len(drawn) == (2 if name in CHANGES else 0)
    assert all(len(set(ends)) == 2 for _, _, ends in drawn)  # long and short ones, and scores that differ
    rows = figures(expected)
    for row, part in zip(rows, figures(got), strict=True):
        assert part == pytest.approx(row, rel=1e-4, abs=1e-5)
    steps = rows[-1]["step"]
    halfway, after, in_parts = parameters(expected, steps // 2), parameters(expected, steps), parameters(got, steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), in_parts, after)
    # What is compared has moved by far more than it may differ.
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (halfway, after)))) > 1e-2
