"""experiments/smollm2 at a tiny size: every part runs, is measured and told, and is not run twice."""

import importlib
import importlib.util
import json
import pathlib
import xml.etree.ElementTree

import pytest
import tiny_stages

pytest.importorskip("reasoning_gym")
pytest.importorskip("jinja2")

from jaxalign.data.vocabularies import BYTE_OF  # noqa: E402
from jaxalign.errors import ConfigError  # noqa: E402
from jaxalign.exchange import import_model  # noqa: E402
from published_models import config_of, write_model  # noqa: E402
from published_tokenizer import LETTERS, write_tokenizer  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "smollm2"
# The package warns of what it imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
LIMITS = dict(sums=6, gsm8k=3, same=4)


@pytest.fixture(scope="module")
def experiment():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        for name in ("run", "parts", "measures"):  # other experiments have modules of these names
            patch.delitem(importlib.sys.modules, name, raising=False)
        yield importlib.import_module("run")
        for name in ("run", "parts", "measures"):
            importlib.sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The checkpoint of a small Llama with weights by formula and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("published")
    more = [text for text in BYTE_OF if text not in LETTERS and text != "\u0120"]
    write_model(folder, config_of("llama") | {"vocab_size": 258, "max_position_embeddings": 512})
    write_tokenizer(folder, more=more)
    import_model(folder, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("data"), tiny_stages.data()
    tiny = dict(mesh=dict(data=1), lora=dict(rank=2), model=dict(remat="none"), batch_size=4, steps=2, fold_rows=0)
    drawn = tiny | dict(prompts_per_rollout=2, samples_per_prompt=2, length=200, max_new_tokens=4, checkpoint_every=1)

    asked = [{"question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(4)]
    gsm8k = tiny_stages.jsonl(folder / "gsm8k.jsonl", asked)
    compared = [{"prompt": f"{n}+1?", "chosen": str(n + 1), "rejected": "no"} for n in range(8)]
    pairs = dict(path=str(tiny_stages.jsonl(folder / "pairs.jsonl", compared)), shape="pairs")
    preferred = tiny | dict(data=dict(train=[pairs], dev=[dict(pairs, limit=6)]))
    talk = tiny | dict(data=dict(train=[data["messages"]], dev=[dict(data["messages"], limit=6)]))
    return {"sums": dict(sft=8, train=12, dev=8), "sums_sft": tiny, "grpo_sums": drawn, "sft": talk,
            "dpo": preferred, "reward": preferred,
            "grpo_gsm8k": drawn | dict(data=dict(train=[dict(path=str(gsm8k), shape="gsm8k")]))}


@pytest.fixture(scope="module")
def made(experiment, model, changes, tmp_path_factory):
    """(workdir, out, entries) of all parts but the one that needs transformers."""
    folder = tmp_path_factory.mktemp("smollm2")
    dev = folder / "data" / "verifiable"
    dev.mkdir(parents=True)
    path = changes["grpo_gsm8k"]["data"]["train"][0]["path"]
    (dev / "gsm8k.dev.jsonl").write_text(pathlib.Path(path).read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.recipes, "DATA", folder / "data")
        yield folder / "work", folder / "out", experiment.main(
            model, folder / "work", out=folder / "out", parts="abcde", changes=changes, limits=LIMITS)


def test_every_part_is_measured_and_none_is_run_twice(experiment, model, changes, made, monkeypatch):
    workdir, out, entries = made
    named = {each["name"]: each for each in entries}
    assert json.loads((out / "result.json").read_text()) == entries
    assert named["sums, exact match"]["n"] == 6 and named["GSM8K dev, last number right"]["n"] == 3
    assert named["sums, exact match"]["steps"] == 4 and named["sums, exact match, by GRPO after the cold start"]["steps"] == 2
    readme = (out / "README.md").read_text()
    assert readme.startswith("# SmolLM2") and readme.count("## Figures\n") == 1 and "](sums.svg)" in readme
    assert all(named[each["name"]]["n"] == 6 for each in entries if "pairs" in each["name"])
    for each in entries:
        assert f"| {each['name']} | " in readme
        low, high = each["ci95"]
        assert each["minutes"] >= 0 and low - 1e-6 <= each["after"] - each["before"] <= high + 1e-6, each
    for name in ("answered", "losses"):
        monkeypatch.setattr(experiment, name, None)
    again = experiment.main(model, workdir, out=out, parts="abcde", changes=changes, limits=LIMITS)
    assert again == entries


def test_the_sums_are_told_with_what_they_were_before(made):
    workdir, out, _ = made
    text = (out / "transcripts.md").read_text()
    rows = [json.loads(line) for line in (workdir / "sums" / "dev.jsonl").read_text().splitlines()]
    assert text.count("| State the final answer") == 6 and all(row["prompt"] in text for row in rows[:6])
    assert "exact match" in "".join(xml.etree.ElementTree.parse(out / "sums.svg").getroot().itertext())
    trained_on = "".join((workdir / "sums" / f"{split}.asked.jsonl").read_text() for split in ("sft", "train"))
    assert not any(json.dumps(row["prompt"]) in trained_on for row in rows)


def test_the_sft_loss_before_is_that_of_the_stage(made):
    workdir, _, entries = made
    told = next(each for each in entries if each["name"].startswith("SFT"))
    done = json.loads((workdir / "sft" / "done.json").read_text())
    assert told["before"] == pytest.approx(done["before"]["nll"], rel=2e-3)
    # Merged, a kernel is rounded to bfloat16 with its adapter in it; trained, each by itself.
    assert told["after"] == pytest.approx(done["after"]["nll"], rel=5e-3) and told["after"] < told["before"]


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs the extra `bench`")
@pytest.mark.filterwarnings("ignore")
def test_what_is_exported_answers_the_same_in_transformers(experiment, model, changes, made):
    workdir, out, _ = made
    entries = experiment.main(model, workdir, out=out, parts="x", changes=changes, limits=LIMITS)
    told = next(each for each in entries if each["name"].startswith("export"))
    assert told["n"] == 4 and told["after"] == 1.0
    theirs = json.loads((workdir / "same_theirs.json").read_text())
    assert all(each["ids"] for each in theirs)


def test_answers_that_differ_are_not_the_same(experiment):
    assert experiment.same_answers([{"text": "5"}, {"text": "6"}], [{"text": "5"}, {"text": "7"}]) == [1.0, 0.0]


def test_a_reward_model_without_the_policy_that_it_starts_from_is_refused(experiment, model, tmp_path):
    with pytest.raises(ConfigError, match="--parts=b,c"):
        experiment.main(model, tmp_path, parts="c")
    with pytest.raises(ConfigError, match="--parts has 'f'; there are: a, b"):
        experiment.main(model, tmp_path, parts="f")
