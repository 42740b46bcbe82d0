"""experiments/rl_learning at a tiny size: every method runs and is measured, finished runs are skipped, tables say so."""

import importlib
import json
import pathlib
import shutil
import xml.etree.ElementTree

import jax
import pytest
import tiny_stages

from jaxalign.errors import ConfigError
from jaxalign.sharding import make_mesh
from jaxalign.stages import STAGES, default_config, train_stage
from tiny_world import TINY_WORLD

HERE = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "rl_learning"
TINY = dict(steps=4, epochs=2, batch_size=8, prompts_per_rollout=4, samples_per_prompt=2, max_new_tokens=6, length=32,
            fold_rows=0, log_every=2, checkpoint_every=2, critic_warmup=2, dynamic_sampling=0, mesh=dict(data=1))


@pytest.fixture(scope="module")
def experiment():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield importlib.import_module("run")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """What the experiment reads of a finished quickstart: sums, rankings, held-out items, an SFT model."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name, made in (("sft", "sft"), ("reward", "reward"), ("ppo", "sft")):  # any policy may stand for PPO's
        shutil.copytree(tiny_stages.trained(made), folder / name)
    world = default_config("world")
    world.update(dict(num_entities=24, num_unknown=60, sizes=TINY_WORLD))
    train_stage(world, folder / "world")
    (folder / "candidates").mkdir()
    for split in ("train", "dev"):
        shutil.copy(tiny_stages.data()["rankings"]["path"], folder / "candidates" / f"rankings.{split}.jsonl")
    return folder


@pytest.mark.slow
def test_methods_run_are_measured_and_are_not_run_twice(experiment, start, tmp_path, monkeypatch, capsys):
    chosen = ["grpo", "ppo", "kto"]
    changes = {"ppo": dict(prompts_per_rollout=8, samples_per_prompt=1)}
    outcomes = experiment.main(start, tmp_path, seeds=(0, 1), methods=["grpo"], changes=TINY, limit=2)
    outcomes += experiment.main(start, tmp_path, seeds=(0,), methods=["ppo"], changes=TINY | changes["ppo"], limit=2)
    outcomes += experiment.main(start, tmp_path, seeds=(0,), methods=["kto"], changes=TINY, limit=2)
    assert [(each["method"], each["seed"]) for each in outcomes] == [("grpo", 0), ("grpo", 1), ("ppo", 0), ("kto", 0)]
    assert all(each["steps"] == 4 and each["figures"]["facts"]["n"] == 2 for each in outcomes)
    for each in outcomes[:-1]:
        assert len(each["curve"]["reward"]) == 2 and each["figures"]["sums"]["n"] == 6
        assert each["curve"]["tokens"][-1] > each["curve"]["tokens"][0] > 0
    assert outcomes[-1]["curve"]["steps"] == [2, 4] and 0 <= outcomes[-1]["figures"]["pairs_in_order"]["value"] <= 1
    monkeypatch.setattr(experiment, "train_stage", None)
    again = experiment.main(start, tmp_path, seeds=(0,), methods=chosen, changes=TINY, limit=2)
    assert again == [outcomes[0], *outcomes[2:]] and "ppo-seed0 ── done, skipped" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["runs"] == again and set(result["targets"]) == {"reinforcement", "preferences"}
    for kind, methods in (("reinforcement", chosen[:2]), ("preferences", chosen[2:])):
        words = "".join(xml.etree.ElementTree.parse(tmp_path / f"{kind}.svg").getroot().itertext())
        assert all(method in words for method in methods)
    assert list(result["given"]) == ["the start", "the start, best of 16", "the quickstart's PPO"]
    assert all(figures["facts"]["n"] == 2 and "gold" in figures for figures in result["given"].values())
    readme = (tmp_path / "README.md").read_text()
    assert readme.count("| the start |") == 2 and readme.count("| the start, best of 16 |") == 1
    assert readme.startswith("# ") and readme.count("## Figures\n") == 1 and readme.count("| ppo |") == 1


@pytest.mark.slow
def test_the_other_methods_run_too(experiment, start, tmp_path):
    methods = importlib.import_module("methods")
    others = [name for name in (*methods.REINFORCEMENT, *methods.PREFERENCES)
              if name not in ("ppo", "grpo", "grpo_overlap", "kto", "rloo")]
    outcomes = experiment.main(start, tmp_path, methods=others, changes=TINY, limit=2)
    one_step = TINY | dict(epochs=1, log_every=1)  # of 8 responses a rollout
    outcomes += experiment.main(start, tmp_path, methods=["rloo"], changes=one_step, limit=2)
    assert [each["method"] for each in outcomes] == [*others, "rloo"] and len(others) == 7
    for each in outcomes:
        assert each["steps"] == 4 and len(each["curve"]["reward"]) == (4 if each["method"] == "rloo" else 2)
        assert each["figures"]["facts"]["n"] == 2 and all(x >= 0 for x in each["curve"]["seconds"])


def test_every_method_is_a_whole_config_and_those_of_a_kind_see_the_same(experiment, start, tmp_path):
    methods = importlib.import_module("methods")
    made = {name: methods.config_of(name, start, 3) for name in (*methods.REINFORCEMENT, *methods.PREFERENCES)}
    for name, config in made.items():  # what the objective asks for, and its options, are checked there
        STAGES[config.stage](config, tmp_path / name, make_mesh(devices=jax.devices()[:1]))
    assert all(config.seed == 3 and config.init_from == str(start / "sft") for config in made.values())
    drawn = {name: config.prompts_per_rollout * config.samples_per_prompt * config.steps // config.epochs
             for name, config in made.items() if name in methods.REINFORCEMENT}
    assert set(drawn.values()) == {methods.ROLLOUTS * methods.RESPONSES}
    assert made["grpo_overlap"].overlap and not made["grpo"].overlap
    assert {name: config.objective.name for name, config in made.items() if name in methods.PREFERENCES} == {
        name: name for name in methods.PREFERENCES}


def test_a_target_is_reached_where_the_mean_of_so_many_points_is_as_high(experiment):
    curve = {"reward": [0.2, 0.9, 0.7, 0.8, 0.9], "tokens": [1, 2, 3, 4, 5], "seconds": [0, 10, 20, 30, 40]}
    assert experiment.reached(curve, 0.8, 3) == (4, 30) and experiment.reached(curve, 0.8, 1) == (2, 10)
    assert experiment.reached(curve, 0.81, 3) is None


def test_a_method_that_is_none_is_refused_with_those_there_are(experiment, tmp_path):
    with pytest.raises(ConfigError, match="--methods has 'grop'; there are: ppo, grpo, "):
        experiment.main(tmp_path, tmp_path, methods=["grop"])
