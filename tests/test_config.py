"""Configs: files, overrides, checks, and their JSON."""

import math

import pytest
from absl import flags
from ml_collections import ConfigDict, config_dict

from jaxalign import config as configs
from jaxalign.errors import ConfigError, JaxalignError

SOURCE = """
from ml_collections import ConfigDict

def get_config(size="small"):
    config = ConfigDict({
        "stage": "sft", "init_from": None, "steps": 100, "decay": True, "betas": (0.9, 0.95),
        "optimizer": {"peak_lr": 1e-3, "warmup": 10}, "layers": [1, 2],
        "data": {"train": [{"path": "a.jsonl", "shape": "text"}], "dev": ""},
        "objective": {"name": "cross_entropy", "z_loss": 0.0},
    })
    config.stage = size
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sft.py"
    path.write_text(SOURCE)
    return path


def parse(file, *argv):
    config = configs.load(file)
    values = flags.FlagValues()
    configs.define_overrides(config, values, argv)
    values(["jaxalign", *argv])
    return config


def test_load_locks_and_passes_the_argument(file):
    config = configs.load(f"{file}:large")
    assert config.stage == "large" and config.is_locked and config.optimizer.is_locked


def test_overrides_reach_nested_keys_and_list_entries(file):
    config = configs.load(file, {"optimizer.peak_lr": 2, "data.train[0].path": "b.jsonl", "init_from": "runs/sft"})
    assert config.optimizer.peak_lr == 2.0 and isinstance(config.optimizer.peak_lr, float)
    assert config.data.train[0]["path"] == "b.jsonl" and config.init_from == "runs/sft"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"optimizer.peek_lr": 1.0}, "optimizer.peek_lr does not exist; did you mean optimizer.peak_lr"),
        ({"peak_lr": 1.0}, "peak_lr does not exist; did you mean optimizer.peak_lr"),
        ({"steps": "many"}, "steps: expected int, got str 'many'"),
        ({"steps": True}, "steps: expected int, got bool True"),
        ({"steps": 1.5}, "steps: expected int, got float 1.5"),
        ({"decay": 1}, "decay: expected bool, got int 1"),
        ({"data.train[3].path": "x"}, "has 1 entries"),
        ({"data.train[0].paht": "x"}, r"did you mean data.train\[0\].path"),
        ({"steps.more": 1}, "steps is int 100"),
        ({"optimizer": 3}, "optimizer: expected ConfigDict, got int 3"),
    ],
)
def test_wrong_overrides_name_the_key_and_the_cure(file, override, message):
    with pytest.raises(ConfigError, match=message):
        configs.load(file, override)


def test_flags_set_every_kind_of_value(file):
    config = parse(
        file, "--config.steps=5", "--config.optimizer.peak_lr=1", "--noconfig.decay", "--config.betas=(0.8, 0.9)",
        "--config.layers=[3]", "--config.init_from=runs/pretrain", "--config.data.train[0].path=c.jsonl",
        "--config.stage", "dpo",
    )  # fmt: skip
    assert (config.steps, config.optimizer.peak_lr, config.decay, config.betas) == (5, 1.0, False, (0.8, 0.9))
    assert (config.layers, config.init_from, config.stage) == ([3], "runs/pretrain", "dpo")
    assert config.data.train[0]["path"] == "c.jsonl"


def test_a_flag_with_a_mistyped_key_names_the_nearest(file):
    with pytest.raises(ConfigError, match="did you mean optimizer.peak_lr"):
        parse(file, "--config.optimizer.peak_1r=1")


def test_a_stage_of_a_chain_is_named_where_it_stands_and_not_where_it_is_mentioned(tmp_path):
    stages = {"claims": {"sft": "@sft"}, "sft": {"steps": 3}}
    source = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict(dict(stages=STAGES))\n"
    (tmp_path / "chain.py").write_text(source.replace("STAGES", repr(stages)))
    with pytest.raises(ConfigError, match="config key sft does not exist; did you mean stages.sft[?]"):
        configs.load(tmp_path / "chain.py", {"sft.steps": 5})


def test_another_objective_brings_its_own_options(file):
    config = parse(file, "--config.objective.name=mine:loss", "--config.objective.beta=0.2")
    assert config.objective.to_dict() == {"name": "mine:loss", "beta": 0.2} and config.objective.is_locked
    assert parse(file, "--config.objective.name=cross_entropy").objective.z_loss == 0.0
    with pytest.raises(ConfigError, match="objective.zloss does not exist; did you mean objective.z_loss"):
        parse(file, "--config.objective.zloss=0.2")


def test_a_missing_file_names_its_neighbour(file):
    with pytest.raises(ConfigError, match=r"stf.py not found; did you mean .*sft.py"):
        configs.load(file.with_name("stf.py"))
    with pytest.raises(ConfigError, match="not found$"):
        configs.load("no/such/folder/x.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(:\n", r"bad.py:1: SyntaxError"),
        ("x = 1\n", r"expected a function get_config\(\)"),
        ("def get_config():\n    return {}\n", "must return an ml_collections ConfigDict, got dict"),
        ("def get_config():\n    x = 1\n    return x / 0\n", "bad.py:3: ZeroDivisionError: division by zero"),
        (SOURCE.replace("config.stage = size", "config.lock(); config.stepz = 3"), "Did you mean \"steps\""),
        (SOURCE.replace("config.stage = size", "config.steps = 'x'"), "bad.py:11: TypeError: .*steps"),
    ],
)  # fmt: skip
def test_errors_inside_a_config_file_name_its_line(tmp_path, source, message):
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message):
        configs.load(path)


def test_errors_of_the_package_pass_through(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("from jaxalign.errors import DataError\ndef get_config():\n    raise DataError('f', 1, 'a', 'b')\n")
    with pytest.raises(JaxalignError, match="^f:1: expected a, got b$"):
        configs.load(path)


DEFAULTS = ConfigDict(
    {"steps": 1, "lr": 1.0, "name": "x", "none": None, "sizes": (1, 2), "typed": config_dict.placeholder(int),
     "model": {"layers": 2}, "objective": {"name": "dpo", "beta": 0.1}}
)  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"steps": 3, "lr": 2, "none": "any", "sizes": [1], "model": {"layers": 9}},
        {"typed": 3, "objective": {"name": "m:f", "own": 3}},
        {"typed": None},
    ],
)
def test_check_admits(config):
    configs.check(ConfigDict(config), DEFAULTS)
    configs.check(config, DEFAULTS.to_dict() | {"typed": None})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"stpes": 3}, "stpes does not exist; did you mean steps"),
        ({"model": {"layer": 3}}, "model.layer does not exist; did you mean model.layers"),
        ({"layers": 3}, "did you mean model.layers"),
        ({"zzz": 3}, "the config has: "),
        ({"steps": 1.5}, "steps: expected int, got float 1.5"),
        ({"steps": None}, "steps: expected int, got NoneType None"),
        ({"model": 3}, "model: expected ConfigDict, got int 3"),
        ({"name": {"a": 1}}, "name: expected str, got a group of keys"),
        ({"typed": "x"}, "typed: expected int, got str 'x'"),
        ({"objective": {"beta": "x"}}, "objective.beta: expected float, got str 'x'"),
    ],
)
def test_check_refuses(config, message):
    with pytest.raises(ConfigError, match=message):
        configs.check(ConfigDict(config), DEFAULTS)


def test_json_is_lossless():
    config = ConfigDict(
        {
            "b": 1, "a": 0.1 + 0.2, "none": None, "typed": config_dict.placeholder(int), "flag": False,
            "text": "é\n\"",
            "tuple": (1, (2.5, "x"), []), "list": [{"path": "a", "w": (1,)}, [None]], "inner": {"deep": {"x": ()}},
            "mixed": [ConfigDict({"p": 1})], "inf": math.inf, "empty": {},
        }
    )  # fmt: skip
    config.lock()  # equality of ConfigDicts counts the lock
    again = configs.from_json(configs.to_json(config))
    assert again == config and again.is_locked
    assert isinstance(again.tuple[1], tuple) and isinstance(again.list[0]["w"], tuple)
    assert isinstance(again.mixed[0], ConfigDict) and isinstance(again.list[0], dict)
    assert again.typed is None and again.get_type("typed") is int
    assert configs.to_json(again) == configs.to_json(config)


def test_json_refuses_what_it_cannot_keep():
    with pytest.raises(ConfigError, match=r"config key data\[1\].path: object cannot be kept"):
        configs.to_json(ConfigDict({"data": [1, {"path": object()}]}))


def test_numbers_below_their_least_are_named():
    config = ConfigDict({"steps": 0, "optimizer": {"warmup_steps": -1}, "rate": math.nan, "sft": "a path"})
    configs.check_least(config, {"steps": 0, "microbatches": 1, "steps.none": 1, "sft": 1})
    with pytest.raises(ConfigError, match="config key optimizer.warmup_steps=-1: expected 0 or more"):
        configs.check_least(config, {"optimizer.warmup_steps": 0})
    with pytest.raises(ConfigError, match="rate=nan: expected 0 or more"):
        configs.check_least(config, {"rate": 0})


def test_differences_of_configs_name_every_key():
    old = ConfigDict({"steps": 1, "optimizer": {"peak_lr": 1.0, "b1": 0.9}, "gone": 1, "data": [1]})
    new = ConfigDict({"steps": 1, "optimizer": {"peak_lr": 2.0, "b1": 0.9}, "data": [2], "fresh": ""})
    assert list(configs.differences(old, new)) == [
        "data: [1] → [2]", "gone is gone", "optimizer.peak_lr: 1.0 → 2.0", "fresh is new"]
    assert not list(configs.differences(old, old))
