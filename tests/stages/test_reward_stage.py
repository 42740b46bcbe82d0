"""What a reward model's stage says of its scores at its end: whether it means them, and whether it likes length."""

import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_stages

from jaxalign.evaluate import evaluate_checkpoint
from jaxalign.evaluate.calibration import by_length, calibration
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES
from jaxalign.stages.reward import Reward


def test_the_stage_ends_with_the_figures_that_evaluate_gives_of_its_checkpoint():
    workdir = pathlib.Path(tiny_stages.trained("reward"))
    done, last = json.loads((workdir / "done.json").read_text()), tiny_stages.metrics(workdir)[-1]
    source = dict(tiny_stages.data()["rankings"], limit=6)  # the stage's dev data
    (expected,) = evaluate_checkpoint(workdir, [source], {"length": 32}).values()
    named = ("calibration_error", "calibration", "accuracy_by_length", "longer_preferred")
    for got, wanted in zip(jax.tree.leaves([done["findings"][name] for name in named]),
                           jax.tree.leaves([expected[name] for name in named]), strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)
    assert expected["calibration_error"]["n"] == 15 and len(expected["accuracy_by_length"]) == 3
    shares = {name.replace(" ", "_"): figure["value"] for name, figure in expected["accuracy_by_length"].items()}
    for figures in (done["after"], {name.removeprefix("dev/"): value for name, value in last.items()}):
        assert figures["calibration_error"] == pytest.approx(expected["calibration_error"]["value"], abs=1e-5)
        assert {name: figures[f"accuracy_by_length/{name}"] for name in shares} == shares
    assert done["before"]["calibration_error"] == 0  # of equal scores half are right, and the model says so


def rankings():
    """Dev batches as `measured` keeps them: prompts 1, 1, 2 and a row that is none; ties and absent answers."""
    whole = dict(
        tokens=np.array([[1, 9, 4, 5], [1, 9, 6, 7], [1, 8, 4, 0], [0, 0, 0, 0]], np.int32),
        mask=np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], np.float32),
        score=np.array([[2.0, 0.5, 1.0], [0.1, 3.0, 7.0], [1.0, 1.5, 1.0], [9.0, 1.0, 0.0]], np.float32),
        ranks=np.array([[0, 1, 1], [0, 1, 99], [1, 0, 2], [99, 99, 99]], np.int32),
        there=np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool),
        length=np.array([[3.0, 9.0, 3.0], [2.0, 2.0, 0.0], [2.0, 8.0, 4.0], [0.0, 0.0, 0.0]]))
    return [{name: array[part] for name, array in whole.items()} for part in (slice(0, 2), slice(2, 4))]


def test_pairs_are_those_that_people_ordered_and_of_one_prompt_are_drawn_together():
    stage = object.__new__(Reward)
    got = stage.dev_figures(rankings())
    difference = [1.5, 1.0, -2.9, 0.5, 0.5, 0.0]  # by hand: two of the first row, one of the second, three of the third
    lengths, others, prompts = [3, 3, 2, 8, 8, 2], [9, 3, 2, 2, 4, 4], [0, 0, 0, 1, 1, 1]
    expected = calibration(difference, prompts) | by_length(difference, lengths, others, prompts)
    assert stage.findings["calibration_error"]["n"] == 6
    for a, b in zip(jax.tree.leaves(stage.findings), jax.tree.leaves(expected), strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    assert got == {"calibration_error": stage.findings["calibration_error"]["value"]} | {
        f"accuracy_by_length/{name.replace(' ', '_')}": figure["value"]
        for name, figure in expected["accuracy_by_length"].items()}
    assert got["accuracy_by_length/over_twice"] == 1.0 and got["accuracy_by_length/alike"] == 0.5


def test_where_nothing_was_ordered_there_is_nothing_to_say():
    stage = object.__new__(Reward)
    tied = [batch | {"ranks": np.zeros_like(batch["ranks"])} for batch in rankings()]
    assert stage.dev_figures(tied) == {}


def test_pairs_have_the_same_figures(tmp_path):
    config = tiny_stages.config("reward")
    with config.unlocked():
        config.objective = dict(name="bradley_terry", margin_scale=0.0, centre=0.01)
    stage = STAGES["reward"](config, tmp_path, make_mesh(devices=jax.devices()[:1]))
    trainable = jax.jit(stage.init)(jax.random.key(3))
    kept = []
    for batch in stage._dev_batches():
        loss, keep = jax.jit(stage.measured)(trainable, {}, stage.prepared(batch, "dev"))
        kept.append(keep | {"accuracy": loss.metrics["accuracy"].value, "weight": loss.metrics["accuracy"].weight})
    stage.dev_figures(jax.tree.map(np.asarray, kept))
    right, weight = (np.concatenate([keep[name] for keep in kept]) for name in ("accuracy", "weight"))
    bins = stage.findings["accuracy_by_length"].values()
    assert sum(each["n"] for each in bins) == weight.sum() == 15
    assert sum(each["value"] * each["n"] for each in bins) == pytest.approx((right * weight).sum())
