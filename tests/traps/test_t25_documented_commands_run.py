"""Trap t25: the quickstart in the documentation does not run (tunix `docs/quickstart.md`; trl #5697).

tests/e2e/test_readme.py runs every command and snippet of the README. Here: it sees one that does not run, and what
`--help` shows as examples can be run too.
"""

import pathlib
import shlex

import pytest
from module_at import module_at

from jaxalign.cli import flags
from jaxalign.cli.commands import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def readme():
    return module_at(ROOT / "tests" / "e2e" / "test_readme.py")


@pytest.mark.parametrize(("right", "wrong"), [
    ("jaxalign train --config=configs/sft.py", "jaxalign trian --config=configs/sft.py"),
    ("bash tools/test.sh", "bash tools/tests.sh"),
    ("jaxalign train --config=configs/dpo.py", "pip install jaxalign-extras"),
])
def test_a_command_that_cannot_be_run_is_seen(readme, tmp_path, right, wrong):
    readme.test_every_line_is_a_command_that_this_file_runs_or_a_script_that_is_there()
    text = readme.README.read_text(encoding="utf-8")
    assert right in text
    readme.README = tmp_path / "README.md"
    readme.README.write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(AssertionError):
        readme.test_every_line_is_a_command_that_this_file_runs_or_a_script_that_is_there()


def test_a_wrong_flag_in_a_command_is_seen(readme, tmp_path, monkeypatch, capsys):
    readme.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    world = next(command for command in readme.jaxalign_commands() if "--config=configs/world.py" in command)
    assert readme.run([*world, "--config.num_entity=24"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("example", [example for command in COMMANDS.values() for example in command.examples])
def test_the_examples_of_the_help_have_configs_and_flags_that_exist(example, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(example.partition(" > ")[0])
    assert words[0] == "jaxalign"
    flags.parse(COMMANDS[words[1]], words[2:])
