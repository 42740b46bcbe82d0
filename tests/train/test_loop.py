"""The loop, with a stage of one number: when it logs, evaluates and saves; what a stop leaves."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jaxalign.errors import CheckpointError
from jaxalign.sharding import make_mesh
from jaxalign.stages.defaults import OPTIMIZER
from jaxalign.train.checkpoint import find
from jaxalign.train.loop import fit

MESH = make_mesh(devices=jax.devices()[:1])


class Counting:
    """Learns to answer with the mean of its batches, which count up; counts what is asked of it."""

    name = "counting"
    frozen, draws, waits, beside = {}, False, True, None

    def __init__(self, per_call=1, fail_at=None):
        self.position, self.per_call, self.fail_at = 0, per_call, fail_at
        self.evaluated, self.started = [], 0

    def init(self, key):
        return {"policy": nnx.State({"w": nnx.Param(jax.random.normal(key, ()), out_sharding=())})}

    def start(self, trainable):
        self.started += 1
        return trainable

    def next_batches(self, state):
        made = []
        for _ in range(self.per_call):
            if self.position == self.fail_at:
                raise KeyboardInterrupt
            ones = np.ones((4, 2), np.int32)
            made.append({"x_BT": np.full((4, 2), self.position, np.float32), "segment_ids_BT": ones})
            self.position += 1
        return made, {"position": float(self.position)}

    def loss_fn(self, trainable, frozen, batch, key):
        return jnp.square(batch["x_BT"] - trainable["policy"]["w"][...][None, None]), jnp.ones_like(batch["x_BT"])

    def evaluate(self, state):
        self.evaluated.append(int(state.step))
        return {"w": float(state.trainable["policy"]["w"][...])}

    def enough(self, metrics):
        return False

    def data_state(self):
        return {"position": self.position}

    def set_data_state(self, state):
        self.position = state["position"]

    def meta(self):
        return {"policy": "policy"}


def settings(**changes):
    return ConfigDict(dict(steps=10, log_every=1, eval_every=0, checkpoint_every=0, keep=9, microbatches=1, seed=0,
                           optimizer=OPTIMIZER | dict(peak_lr=0.1)) | changes)


def rows(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "tokens_per_second")} for row in found]



@pytest.mark.parametrize("per_call", [1, 2])
def test_a_run_that_breaks_off_goes_on_from_its_checkpoint_as_if_it_had_not(tmp_path, per_call, capsys):
    whole, broken = Counting(per_call), Counting(per_call, fail_at=8)
    config = settings(checkpoint_every=4, eval_every=4)
    fit(whole, tmp_path / "whole", config, MESH)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, tmp_path / "broken", config, MESH)
    assert find(tmp_path / "broken").name == "8"  # what was being written when it broke off was finished
    again = Counting(per_call)
    result = fit(again, tmp_path / "broken", config, MESH)
    assert "counting  8/10  found a checkpoint: goes on from step 8" in capsys.readouterr().out
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert result.steps == 10 and result.tokens == 80 and again.started == 1
    assert result.before == {"w": rows(tmp_path / "whole")[0]["dev/w"]} and 0 not in again.evaluated


def test_what_is_logged_evaluated_and_saved_when(tmp_path):
    stage = Counting()
    result = fit(stage, tmp_path, settings(log_every=3, eval_every=4, checkpoint_every=5), MESH)
    assert stage.evaluated == [0, 4, 8, 10]
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [3, 6, 9, 10]
    assert rows(tmp_path)[-2]["tokens"] == 80 and rows(tmp_path)[-2]["position"] == 10.0
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [5, 10]
    assert (result.steps, result.tokens, result.after["w"]) == (10, 80, rows(tmp_path)[-1]["dev/w"])
    # What a row says of step n is of step n: the loss before its update.
    assert rows(tmp_path)[0] == {"step": 0, "dev/w": result.before["w"]}


def test_several_steps_a_call_cross_an_evaluation_and_stop_at_the_last(tmp_path):
    stage = Counting(per_call=4)
    result = fit(stage, tmp_path, settings(eval_every=3, checkpoint_every=100), MESH)
    assert stage.evaluated == [0, 4, 8, 10] and result.steps == 10
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == list(range(1, 11))
    assert fit(Counting(per_call=4), tmp_path, settings(), MESH).steps == 10


def test_batches_that_are_passed_over_count_as_no_steps(tmp_path):
    stage = Counting(per_call=4)
    stage.enough = lambda metrics: int(stage.position) % 8 == 4  # one step of a call, then all four of the next
    result = fit(stage, tmp_path, settings(eval_every=3, checkpoint_every=5), MESH)
    assert result.steps == 10 and result.tokens == 80 and stage.position == 16
    assert stage.evaluated == [0, 5, 6, 10]  # calls end at 1, 5, 6 and 10
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [5, 10]
    assert [row["position"] for row in rows(tmp_path) if "loss" in row] == [4] + [8] * 4 + [12] + [16] * 4


def test_the_learning_rate_is_that_of_the_step_after_a_resume_too(tmp_path):
    config = settings(optimizer=OPTIMIZER | dict(peak_lr=0.5, schedule="linear", warmup_steps=4), checkpoint_every=3)
    fit(Counting(), tmp_path / "whole", config, MESH)
    with pytest.raises(KeyboardInterrupt):
        fit(Counting(fail_at=5), tmp_path / "cut", config, MESH)
    fit(Counting(), tmp_path / "cut", config, MESH)
    rates = [[row["lr"] for row in rows(tmp_path / name) if "lr" in row] for name in ("whole", "cut")]
    assert rates[0] == rates[1] and rates[0][:5] == [0.0, 0.125, 0.25, 0.375, 0.5] and len(set(rates[0])) >= 9


def test_fewer_steps_than_were_trained_are_refused(tmp_path):
    fit(Counting(), tmp_path, settings(steps=4), MESH)
    with pytest.raises(CheckpointError, match="has already trained 4 steps, config.steps=3"):
        fit(Counting(), tmp_path, settings(steps=3), MESH)


def test_more_steps_go_on_where_fewer_ended(tmp_path):
    fit(Counting(), tmp_path / "long", settings(steps=6, optimizer=OPTIMIZER | dict(schedule="constant")), MESH)
    for steps in (3, 6):
        config = settings(steps=steps, optimizer=OPTIMIZER | dict(schedule="constant"))
        fit(Counting(), tmp_path / "short", config, MESH)
    assert rows(tmp_path / "short")[-1] == rows(tmp_path / "long")[-1]


def test_a_stage_without_an_evaluation_needs_none(tmp_path):
    stage = Counting()
    stage.evaluate = types.MethodType(lambda self, state: {}, stage)
    result = fit(stage, tmp_path, settings(steps=2), MESH)
    assert result.before == result.after == {}


def test_a_stage_that_draws_its_samples_is_measured_by_its_first_and_its_last_rollout(tmp_path):
    def drawing(**options):
        stage = Counting(per_call=2, **options)
        stage.draws, stage.evaluate = True, lambda state: {}
        return stage

    whole = fit(drawing(), tmp_path / "whole", settings(steps=8), MESH)
    assert (whole.before, whole.after) == ({"position": 2.0}, {"position": 8.0})
    with pytest.raises(KeyboardInterrupt):
        fit(drawing(fail_at=6), tmp_path / "cut", settings(steps=8, checkpoint_every=4), MESH)
    for _ in range(2):  # where it goes on, and where nothing is left to do
        again = fit(drawing(), tmp_path / "cut", settings(steps=8, checkpoint_every=4), MESH)
        assert (again.before, again.after) == (whole.before, whole.after)


def test_the_time_of_a_step_that_waits_for_its_samples_holds_their_drawing(tmp_path, monkeypatch):
    """The last one's too, after which nothing is drawn."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stage = Counting()
    stage.draws, drawn = True, stage.next_batches

    def draw(state):
        clock[0] += 5.0
        return drawn(state)

    stage.next_batches = draw
    fit(stage, tmp_path, settings(steps=4), MESH)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line).get("tokens_per_second") for line in lines]
    assert [speed for speed in speeds if speed] == [8 / 5] * 4
