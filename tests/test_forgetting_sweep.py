"""experiments/forgetting at a tiny size: the recipes run at every share, finished runs are skipped, tables say so."""

import gzip
import json
import pathlib
import xml.etree.ElementTree

import pytest
import tiny_stages
from module_at import module_at

from jaxalign import config as configs
from jaxalign.errors import ConfigError
from jaxalign.stages import check_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = dict(steps=2, batch_size=4, length=64, log_every=1, checkpoint_every=0, preview=False, mesh=dict(data=1))
TINY_MODEL = tiny_stages.MODEL | dict(unroll=1)
CHANGES = {"tokenizer": dict(vocab_size=300), "adapt": TINY, "domain_sft": TINY,
           "pretrain": TINY | dict(model=TINY_MODEL), "sft": TINY | dict(model=TINY_MODEL)}


@pytest.fixture(scope="module")
def experiment():
    return module_at(ROOT / "experiments" / "forgetting" / "run.py")


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Files of a few lines where the real sets have theirs."""
    root = tmp_path / "data"
    for folder in ("pretrain", "sft"):
        (root / folder).mkdir(parents=True)
    text = " ".join(f"The fox number {n} is near the river." for n in range(40))
    for split in ("train", "dev"):
        with gzip.open(root / "pretrain" / f"books.{split}.jsonl.gz", "wt") as file:
            file.write(json.dumps({"text": text, "source": "a"}) + "\n")
        tiny_stages.jsonl(root / "pretrain" / f"tinystories.{split}.jsonl", [{"text": "Once there was a fox."}])
    (root / "pretrain" / "wiki_demo.txt").write_text("".join(f"Anarchism {n} is a philosophy.\n" for n in range(40)))
    asked = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"It is {2 * n}."} for n in range(60)]
    for name in ("alpaca_en_demo", "rasbt_instruction_data"):
        (root / "sft" / f"{name}.json").write_text(json.dumps(asked))
    for name in ("gpteacher_roleplay", "gpteacher_codegen"):
        rows = [{"instruction": row["instruction"], "input": "", "response": f"def f():\n    return {n} # {name}"}
                for n, row in enumerate(asked)]
        (root / "sft" / f"{name}.json").write_text(json.dumps(rows))
    tiny_stages.jsonl(root / "sft" / "topical_chat.valid_freq.jsonl", [{"messages": [
        {"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": f"Hello {n}"}]} for n in range(60)])
    tiny_stages.jsonl(root / "sft" / "dolly_sample.jsonl", [{"prompt": f"{n}?", "answer": f"{n}!"} for n in range(60)])
    (root / "preference").mkdir()
    with gzip.open(root / "preference" / "hh_harmless.train.jsonl.gz", "wt") as file:
        file.write(json.dumps({"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: a?\n\nAssistant: c"}) + "\n")
    monkeypatch.setenv("JAXALIGN_SHARED_DATA", str(root))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [["code"], ["code", "code_sft"]])
def test_a_recipe_is_swept_measured_and_not_run_twice(tasks, experiment, sets, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    chosen = dict(tasks=tasks, shares=(0.0, 0.5), changes=CHANGES)
    outcomes = experiment.main(run, **chosen)
    assert [(each["task"], each["replay"], each["rate"]) for each in outcomes] == [
        (task, *what) for task in tasks for what in ((0, 1), (0.5, 1), (0, experiment.GENTLE))]
    for each in outcomes:
        # The way of the stage and that of the experiment to the same figure: the first as it trained, the other read back.
        for domain in ("old", "new"):
            nll, change = each[domain]["nll"], each[domain]["change"]
            assert change["value"] == pytest.approx(nll["after"] - nll["before"], abs=1e-4) and abs(change["value"]) > 1e-4
            assert change["ci95"][0] <= change["value"] <= change["ci95"][1] and change["n"] > 20
    starts = [each["old"]["nll"]["before"] for each in outcomes]
    assert [len(set(starts[n:n + 3])) for n in range(0, len(starts), 3)] == [1] * len(tasks) == [1] * len(set(starts))
    monkeypatch.setattr(experiment, "train_stage", None)
    assert experiment.main(run, **chosen) == outcomes
    assert "code-replay0.5-rate1 ── done, skipped" in capsys.readouterr().out
    assert json.loads((run / "result.json").read_text())["runs"] == outcomes
    for domain in ("old", "new"):
        words = "".join(xml.etree.ElementTree.parse(run / f"{domain}.svg").getroot().itertext())
        assert all(task in words for task in tasks)
    readme = (run / "README.md").read_text()
    assert readme.startswith("# ") and readme.count("## Figures\n") == 1 and readme.count("| the start |") == len(tasks)
    assert readme.count("| 0.5 | 1 |") == len(tasks) == readme.count("| 0 | × 0.25 |")


def test_the_recipes_are_whole_configs_and_the_share_is_that_of_the_old(experiment, sets, tmp_path):
    begin = {"pretrain": tmp_path / "p", "sft": tmp_path / "s"}
    for task in experiment.TASKS:
        for share in (0.0, 0.25):
            config = experiment.config_of(task, share, 1, begin)
            check_config(config)
            new, *replay = config.data.train
            assert new["share"] == 1 - share and sum(source["share"] for source in replay) == pytest.approx(share)
            assert (new["split"], config.data.dev[0]["split"]) == ("train", "dev")
            assert config.init_from == str(begin[experiment.TASKS[task][1]]) and not config.data.old
        assert experiment.config_of(task, 0.0, 0.25, begin).optimizer.peak_lr == config.optimizer.peak_lr / 4


@pytest.mark.parametrize("name", ["adapt", "domain_sft"])
def test_a_recipe_reads_files_that_are_among_the_real_sets(name, shared_data, monkeypatch):
    monkeypatch.setenv("JAXALIGN_SHARED_DATA", str(shared_data))
    config = configs.load(ROOT / "configs" / f"{name}.py")
    check_config(config)
    sources = [*config.data.train, *config.data.dev]
    assert len(sources) > 2 and all(pathlib.Path(source["path"]).is_file() for source in sources)


def test_what_cannot_be_swept_is_refused(experiment, tmp_path):
    with pytest.raises(ConfigError, match="--tasks has 'cod'; there are: code, wiki, code_sft"):
        experiment.main(tmp_path, tasks=["cod"])
    with pytest.raises(ConfigError, match="--shares=0.0,1.0: expected numbers from 0 to below 1"):
        experiment.main(tmp_path, shares=(0.0, 1.0))
