"""Problems of reasoning-gym as data files: seeded, disjoint where they measure, and in a shape that a stage reads."""

import importlib.util
import json

import pytest

from jaxalign.data.intake import check_sources, read_rows
from jaxalign.errors import ConfigError
from jaxalign.rewards.rules import numeric_match
from jaxalign.stages import default_config, train_stage

SUMS = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2)
installed = pytest.mark.skipif(not importlib.util.find_spec("reasoning_gym"), reason="needs the extra `reasoning`")


def made(folder, **changes):
    config = default_config("reasoning")
    config.update(dict(dict(options=SUMS, sft=40, train=60, dev=30), **changes))
    summary = train_stage(config, folder)
    rows = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
            for name in ("sft", "train", "dev")}
    return rows, summary


@installed
@pytest.mark.filterwarnings("ignore")
def test_splits_are_seeded_and_the_measuring_one_is_apart(tmp_path):
    rows, summary = made(tmp_path / "a")
    held_out = [row["prompt"] for row in rows["dev"]]
    assert len(held_out) == len(set(held_out)) <= 30
    assert not set(held_out) & {row["prompt"] for name in ("sft", "train") for row in rows[name]}
    # Two terms of one or two digits make some ten thousand problems; few are met twice by chance.
    assert len(rows["sft"]) >= 37 and len(rows["train"]) >= 55
    assert len({row["prompt"] for row in rows["sft"]} & {row["prompt"] for row in rows["train"]}) <= 4
    assert summary["after"] == {name: len(rows[name]) for name in ("dev", "sft", "train")}
    assert made(tmp_path / "none to imitate", sft=0)[0] == rows | {"sft": []}
    assert made(tmp_path / "b")[0] == rows and made(tmp_path / "c", seed=1)[0] != rows


@installed
@pytest.mark.filterwarnings("ignore")
def test_a_stage_reads_them_and_a_rule_scores_them_as_their_generator_does(tmp_path):
    import reasoning_gym

    made(tmp_path)
    for row in read_rows(check_sources({"path": tmp_path / "dev.jsonl", "shape": "prompts"})[0]):
        left, sign, right = row.messages[-1]["content"].split(":")[1].split("=")[0].split()
        assert int(row.answer) == (int(left) + int(right) if sign == "+" else int(left) - int(right))
    dataset = reasoning_gym.create_dataset("chain_sum", seed=5, size=20, **SUMS)
    for entry in dataset:
        for said in (entry["answer"], str(int(entry["answer"]) + 1)):
            assert (dataset.score_answer(said, entry) == 1.0) == (numeric_match("", said, entry["answer"]) == 1.0)


@installed
@pytest.mark.filterwarnings("ignore")
def test_what_it_cannot_make_is_one_message(tmp_path):
    with pytest.raises(ConfigError, match="cannot make task='chain_sums'"):
        made(tmp_path, task="chain_sums")
    with pytest.raises(ConfigError, match="cannot make.*min_term"):
        made(tmp_path, options=dict(min_term=2))
    with pytest.raises(ConfigError, match="too few different problems"):
        made(tmp_path, options=dict(SUMS, max_digits=1), dev=5000)


def test_without_the_extra_it_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[reasoning\]'"):
        made(tmp_path)
