"""The README's table of PPO's details names files and tests that are there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "jaxalign" / "objectives" / "README.md"
SECTION = README.read_text(encoding="utf-8").split("## PPO, detail by detail\n")[1].split("\n## ")[0]
ROWS = [line.strip("| \n").split(" | ") for line in SECTION.splitlines() if line.startswith("| ") and "tests/" in line]


def numbers(cell):
    """"16–19" and "1, 2" as the numbers they stand for."""
    for part in filter(None, re.split(r",\s*", cell)):
        first, _, last = part.partition("–")
        yield from range(int(first), int(last or first) + 1)


def test_all_25_details_have_a_row():
    numbered = [row for row in ROWS if row[0][0].isdigit()]
    assert [n for row in numbered for n in numbers(row[0])] == list(range(1, 26))
    assert all(len(row) == 5 for row in numbered)


def test_every_file_and_test_that_a_row_names_exists():
    found = 0
    for row in ROWS:
        for name in re.findall(r"`(tests/[^`]+)`", row[-1]):
            path, _, test = name.partition("::")
            wanted = f"\ndef {test}(" if test else "\ndef test_"
            assert wanted in (ROOT / path).read_text(encoding="utf-8"), name
            found += 1
        for name in re.findall(r"`([\w/]+\.py)`", row[-2]):
            assert (ROOT / "jaxalign" / name).is_file(), name
    assert found > 25


def test_the_figures_it_explains_are_those_that_a_stage_logs():
    """Which PPO's own test sees in every line."""
    logged = (ROOT / "tests" / "stages" / "test_ppo_stage.py").read_text(encoding="utf-8")
    table = SECTION.split("| figure | what |")[1]
    for line in table.splitlines()[2:]:
        for name in re.findall(r"`([\w/]+)`", line.strip("| ").split(" | ")[0]):
            assert f'"{name}"' in logged, name
