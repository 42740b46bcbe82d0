"""Every command and every snippet of the README runs: at a tiny size by default, as it stands under --all.

`blocks`, `jaxalign_commands`, `tiny` and `run` may be used by other tests.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from jaxalign.cli import main
from jaxalign.cli.commands import COMMANDS
from published_models import config_of, write_model
from published_tokenizer import write_tokenizer
from tiny_world import TINY_WORLD

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
ROOT = README.parent

# What makes each recipe tiny. One device of the eight, so that batches may be smaller than eight rows.
ONE_DEVICE = ["--config.mesh.data=1", "--config.log_every=1", "--config.eval_batches=1"]
TINY_MODEL = [f"--config.model.{key}={value}" for key, value in dict(
    width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32).items()]

def _flags(sizes, at="sizes"):
    for key, value in sizes.items():
        yield from _flags(value, f"{at}.{key}") if isinstance(value, dict) else [f"--config.{at}.{key}={value}"]


SHORT = ["--config.steps=2", "--config.batch_size=4", *ONE_DEVICE]
TINY = {
    "configs/world.py": ["--config.num_entities=24", "--config.num_unknown=60", *_flags(TINY_WORLD)],
    "configs/tokenizer.py": ["--config.vocab_size=400"],
    "configs/pretrain.py": [*SHORT, *TINY_MODEL],
    "configs/sft.py": SHORT,
    "configs/candidates.py": ["--config.samples_per_prompt=3", "--config.max_new_tokens=8", "--config.batch_size=64",
                              "--config.data.train[0].limit=24", "--config.data.dev[0].limit=12"],
    "configs/reward.py": SHORT,
    "configs/dpo.py": SHORT,
    "configs/ppo.py": [*SHORT, "--config.prompts_per_rollout=4", "--config.max_new_tokens=8"],
    "configs/grpo.py": [*SHORT, "--config.prompts_per_rollout=1", "--config.samples_per_prompt=4",
                        "--config.max_new_tokens=8"],
    "sample": ["--max_new_tokens=4"],
    "evaluate": ["--limit=4", "--max_new_tokens=4", "--batch_size=4", "--length=64"],
    "import": [],
    "export": [],
}


def blocks(language):
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def shell_lines():
    """Every line of the bash blocks, those that end in a backslash joined with the next."""
    joined = "".join(blocks("bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def jaxalign_commands():
    """Every `jaxalign` command as a list of arguments, in the README's order."""
    return [shlex.split(line, comments=True)[1:] for line in shell_lines() if line.startswith("jaxalign ")]


def tiny(arguments):
    """The same command at a tiny size."""
    return [*arguments, *TINY[_config(arguments) or arguments[0]]]


def run(arguments):
    """Runs a command in this process; its exit code."""
    return main(list(arguments))


def prepare(folder):
    """A folder as the README's reader has it: the recipes, the objective that it tells to write, a published model."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    model = folder / "downloads" / "SmolLM2-135M-Instruct"
    write_model(model, config_of("llama"))
    write_tokenizer(model)
    source = next(block for block in blocks("python") if block.startswith("# my_objectives.py"))
    (folder / "my_objectives.py").write_text(source, encoding="utf-8")


def _config(words):
    return next((word.partition("=")[2] for word in words if word.startswith("--config=")), "")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_objectives", raising=False)
    yield tmp_path
    sys.modules.pop("my_objectives", None)


def test_every_line_is_a_command_that_this_file_runs_or_a_script_that_is_there():
    for line in shell_lines():
        words = shlex.split(line, comments=True)
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file() and words[2:] == [], line
            assert subprocess.run(["bash", "-n", ROOT / words[1]]).returncode == 0, line
        else:
            assert words[0] == "jaxalign" and words[1] in COMMANDS, line
            assert (_config(words) or words[1]) in TINY, f"no tiny size for: {line}"
    assert shell_lines()[:2] == ["bash tools/quickstart.sh", "bash tools/test.sh"]


def test_every_file_and_link_that_it_names_is_there():
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)#:]+)\)", text)
    named += re.findall(r"`((?:configs|experiments|tests|tools|jaxalign)/[\w./]*)`", text)
    rooms = "objectives|stages|train|models|data|rollout|rewards"
    named += [f"jaxalign/{path}" for path in re.findall(rf"`((?:{rooms})/[\w/]*(?:\.py)?)`", text)]
    assert len(named) > 15
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_six_commands_and_the_others_run(reader, capsys):
    for arguments in jaxalign_commands():
        assert run(tiny(arguments)) == 0, (arguments, capsys.readouterr().err)
    shown = capsys.readouterr().out
    assert (reader / "exported" / "model.safetensors").is_file()
    assert "bits_per_byte" in shown and "accuracy" in shown and "refused" in shown
    for name in ("tokenizer", "pretrain", "sft", "rankings", "reward", "ppo", "grpo", "dpo", "focal"):
        assert (reader / "runs" / name / "done.json").is_file(), name
    # The error that it shows is the one that comes.
    source = (reader / "my_objectives.py").read_text()
    (reader / "my_wrong_objectives.py").write_text(source.replace("logp_BT, mask_BT, *", "logp_BT, ref_logp_BT, *"))
    train = ["train", "--config=configs/sft.py", "--workdir=runs/wrong"]
    assert run([*tiny(train), "--config.objective.name=my_wrong_objectives:focal"]) == 2
    shown = next(block for block in blocks("text") if block.startswith("error: "))
    assert capsys.readouterr().err.split() == shown.split()


def test_the_notebook_runs_and_prints_what_it_says(reader, capsys):
    source = next(block for block in blocks("python") if "my_objectives import" in block)
    exec(compile(source, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    expected = re.search(r"print\(loss\(logp_BT\)\)  # ([\d.]+)\.\.\.", source)[1]
    assert printed[0].startswith(expected)
    assert "all negative" in source
    assert all(float(number) < 0 for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", " ".join(printed[1:])))


def as_it_stands(arguments, folder):
    """A command in a process of its own, without what the tests set: no simulated devices."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "jaxalign", *arguments], cwd=folder, env=environment, check=True)


@pytest.mark.slow
def test_every_command_as_it_stands(tmp_path):
    prepare(tmp_path)
    for arguments in jaxalign_commands():
        as_it_stands(arguments, tmp_path)


@pytest.mark.slow
def test_the_quickstart_as_it_stands(tmp_path):
    # What tools/quickstart.sh runs once the environment is there; the script itself: tests/test_tools.py.
    pipeline = ["pipeline", f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}/quickstart"]
    as_it_stands(pipeline, tmp_path)
    assert (tmp_path / "quickstart" / "report.html").stat().st_size > 10_000
    report = json.loads((tmp_path / "quickstart" / "report.json").read_text())
    assert report["peak_rss_gib"] <= 4
    held = {claim["name"]: claim["holds"] for claim in report["claims"]}
    # What held with every seed, on every machine and in every form so far; the rest is for experiments/quickstart to say.
    for name in ("day zero: the random model answers nothing", "pretraining gives knowledge: facts never asked in SFT",
                 "… the same SFT from random weights", "GRPO reasons: held-out arithmetic", "… gain over the PPO model",
                 "it holds a conversation: second-turn questions"):
        assert held[name], name
