"""`jaxalign tokenizer`: from sources of any shape to a model that the next stage takes."""

import json
import pathlib

import pytest

from jaxalign.cli import main
from jaxalign.data.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box quietly near jade green hills".split()


@pytest.fixture
def flags(tmp_path):
    lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return [
        "tokenizer", f"--config={ROOT / 'configs' / 'tokenizer.py'}", f"--workdir={tmp_path / 'tokenizer'}",
        f"--config.data.train[0].path={tmp_path / 'text.jsonl'}", "--config.vocab_size=360",
    ]  # fmt: skip


def test_the_command_writes_a_model_and_says_what_it_is(flags, tmp_path, capsys):
    assert main(flags) == 0
    model = tmp_path / "tokenizer" / "tokenizer.model"
    tokenizer = Tokenizer.load(model)
    assert tokenizer.decode(tokenizer.encode("seven lazy wizards")) == "seven lazy wizards"
    assert f"wrote {model}: {tokenizer.vocab_size} pieces" in capsys.readouterr().out
    done = json.loads((tmp_path / "tokenizer" / "done.json").read_text())
    assert done["checkpoint"] == str(model) and done["after"]["vocab_size"] == tokenizer.vocab_size


def test_mistakes_are_one_message(flags, capsys):
    assert main([*flags, "--config.vocab_size=10"]) == 2
    assert "vocab_size=10 is below" in capsys.readouterr().err
    assert main([*flags, "--config.data.train[0].path=nowhere/*.txt"]) == 2
    assert "nowhere/*.txt" in capsys.readouterr().err


def test_bad_rows_stop_it_or_are_skipped_listed_and_told(flags, tmp_path, capsys):
    with open(tmp_path / "text.jsonl", "a") as file:
        file.write('{"text": "cut off\n')
    assert main(flags) == 2 and f"text.jsonl:{len(WORDS) * 3 + 1}: expected a JSON object" in capsys.readouterr().err
    assert main([*flags, "--config.data.on_bad_row=skip"]) == 0
    listed = tmp_path / "tokenizer" / "bad_rows.jsonl"
    assert f"tokenizer: 1 bad rows skipped, listed in {listed}" in capsys.readouterr().out
    assert json.loads(listed.read_text())["line"] == len(WORDS) * 3 + 1
