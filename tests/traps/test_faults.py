"""The faults that tools/break_traps.py puts in still fit the code, every trap has some, and the tool tells seen from not seen.

That each is seen is said by the tool itself, which takes its time: README.md.
"""

import ast
import importlib
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = [f"t{number:02}" for number in range(1, 27)]


def load_tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("break_traps")


TOOL = load_tool()
FAULTS = TOOL.catalogue()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.trap}: {fault.what}")
def test_a_fault_fits_the_code_as_it_is(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    broken = TOOL.broken(fault, text)  # which wants what it replaces there just once
    assert broken != text and fault.what
    if fault.file.endswith(".py"):
        assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text)), "a change of comments or layout is no fault"
    assert TOOL.tests_of(fault)


def test_every_trap_has_faults_and_tests_of_its_own():
    assert sorted({fault.trap for fault in FAULTS}) == NAMES
    for name in NAMES:
        assert list((ROOT / "tests" / "traps").glob(f"test_{name}_*.py")), name
        assert any(not fault.tests for fault in FAULTS if fault.trap == name), name
    assert len({(fault.trap, fault.what) for fault in FAULTS}) == len(FAULTS)


def test_a_fault_that_no_longer_fits_is_named():
    fault = FAULTS[0]._replace(old="what stands nowhere")
    with pytest.raises(ValueError, match="t01, .*expected once in .*, found 0 times: 'what stands nowhere'"):
        TOOL.broken(fault, "x = 1\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TOOL.copied(tmp_path_factory.mktemp("broken") / "copy")


MASK = next(fault for fault in FAULTS if fault.trap == "t05" and "rendering" in fault.what)


def test_a_fault_is_seen_and_the_copy_is_whole_again(folder):
    before = (folder / MASK.file).read_bytes()
    verdict = TOOL.tried(MASK, folder)
    assert verdict.seen and verdict.by == "test_t05_the_rendering_is_the_golden_one: AssertionError"
    assert (folder / MASK.file).read_bytes() == before == (ROOT / MASK.file).read_bytes()


def test_what_changes_nothing_is_not_seen(folder):
    verdict = TOOL.tried(MASK._replace(new="mask += list(turn_mask)"), folder)
    assert not verdict.seen and verdict.by == "3 tests passed"
    assert "| NOT SEEN |" in TOOL.markdown([verdict])


@pytest.mark.parametrize("code, failures, seen, by", [
    (1, [("test_a", "AssertionError")], True, "test_a: AssertionError"),
    (1, [("test_a", "Failed")], True, "test_a: Failed"),  # an error that was expected did not come
    (1, [("test_a", "DataError")], True, "test_a: DataError"),  # the fault says that it may
    (1, [("test_a", "NameError")], False, "test_a: NameError"),
    (2, [("test_a", "collection")], False, "test_a: collection"),  # a module that cannot be imported
    (5, [], False, "pytest ended with 5"),  # no test at all
])
def test_only_what_a_test_asserts_shows_a_fault(code, failures, seen, by):
    assert TOOL.judged(MASK._replace(error="DataError"), TOOL.Outcome(code, 0, failures, "")) == (seen, by)


@pytest.mark.parametrize("message, kind", [
    ("assert 1 == 2", "AssertionError"), ("AssertionError: \nNot equal to tolerance", "AssertionError"),
    ("Failed: DID NOT RAISE <class 'ValueError'>", "Failed"), ("jaxalign.errors.DataError: rows.jsonl:2: …", "DataError"),
    ('failed on setup with "KeyError: 1"', "KeyError"), ("collection failure", "collection"),
])
def test_the_kind_of_an_error_is_read_off_pytests_message(message, kind):
    assert TOOL._kind(message) == kind


def test_a_run_says_what_was_not_seen_and_ends_with_1(monkeypatch, tmp_path, capsys):
    """`main` itself, its tests replaced: they pass without a fault, and with every fault but one."""
    def tested(fault, folder):
        there = fault.new in (folder / fault.file).read_text(encoding="utf-8")
        fails = there and "calls" in fault.what
        return TOOL.Outcome(int(fails), 3, [("test_a", "AssertionError")] * fails, "")

    monkeypatch.setattr(TOOL, "tested", tested)
    assert TOOL.main(["--only=t05", f"--json={tmp_path / 'out.json'}"]) == 1
    rows = json.loads((tmp_path / "out.json").read_text())
    assert {row["trap"] for row in rows} == {"t05"} and len(rows) > 2
    assert [row["what"] for row in rows if row["seen"]] == ["the assistant's calls are the world's"]
    said = capsys.readouterr().out
    assert f"1 of {len(rows)} faults seen" in said and said.count("NOT SEEN") == 2 * (len(rows) - 1)
    monkeypatch.setattr(TOOL, "tested", lambda fault, folder: TOOL.Outcome(1, 0, [("test_a", "AssertionError")], "red"))
    assert TOOL.main(["--only=t05"]) == 1 and "do not pass without it: red" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        TOOL.main(["--only=t99"])
