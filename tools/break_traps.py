"""Puts the faults of tests/traps/faults*.py into a copy of the code, one at a time, and says which the traps' tests see.

    python tools/break_traps.py                                  # all
    python tools/break_traps.py --only=t05,t07 --json=FILE       # those of some traps; FILE gets what came out
    python tools/break_traps.py --markdown=FILE                  # FILE gets the table

A fault is SEEN where a test that passes without it fails with it, by what it asserts or by the error that the fault names;
a module that no longer imports, or a test that is not collected, shows nothing. Exit code 1 where one is not seen.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAPS = ROOT / "tests" / "traps"
COPIED = ("jaxalign", "tests", "configs", "tools", "README.md", "pyproject.toml")
LEFT = shutil.ignore_patterns("__pycache__", "*.pyc", ".jax_cache", ".pytest_cache")
SECONDS = 3600  # that one fault's tests may take, on a machine that others use too
ASSERTED = ("AssertionError", "Failed")  # the second is pytest's: an error that was expected did not come


class Outcome(NamedTuple):
    """What pytest made of some tests."""

    code: int
    passed: int
    failures: list  # (test, kind of error) of each that failed
    said: str  # the end of its output


class Verdict(NamedTuple):
    """`seen`, and by which test, or why not."""

    fault: object  # a `Fault`
    seen: bool
    by: str
    seconds: float


def catalogue(only=()):
    """Every `Fault` of the files beside the traps' tests, in the order of the traps; of some traps where `only` names any."""
    if str(TRAPS) not in sys.path:
        sys.path.insert(0, str(TRAPS))
    faults = [fault for path in sorted(TRAPS.glob("faults*.py")) for fault in importlib.import_module(path.stem).FAULTS]
    return [fault for fault in sorted(faults, key=lambda fault: fault.trap) if not only or fault.trap in only]


def copied(folder):
    """Copies what the tests need into `folder`; returns it."""
    for name in COPIED:
        source, to = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, to, ignore=LEFT)
        else:
            shutil.copy(source, to)
    return folder


def tests_of(fault, folder=ROOT):
    """The test files that must see a fault, from the root."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob(fault.tests or f"tests/traps/test_{fault.trap}_*.py"))


def broken(fault, text):
    """A file's text with the fault in it. Raises ValueError unless what it replaces stands there just once."""
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.trap}, {fault.what}: expected once in {fault.file}, found {text.count(fault.old)} "
                         f"times: {fault.old!r}; take it over as the file has it now")
    return text.replace(fault.old, fault.new)


def tested(fault, folder):
    """`Outcome` of the fault's tests in a copy, as that is."""
    report = folder / "junit.xml"
    report.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_") and key != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--all", "-p", "no:cacheprovider", f"--junitxml={report}",
               *(["-k", fault.only] if fault.only else []), *tests_of(fault, folder)]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome(-1, 0, [], f"not over within {SECONDS} s")
    passed, failures = 0, []
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        for found in (*case.iter("failure"), *case.iter("error")):
            failures.append((case.get("name"), _kind(found.get("message", ""))))
        passed += len(case) == 0
    return Outcome(done.returncode, passed, failures, done.stdout[-2000:] + done.stderr[-2000:])


def _kind(message):
    """The class of the error, of pytest's first line about it."""
    message = re.sub(r'^failed on setup with "', "", message)
    if message.startswith("assert "):  # of an assert statement pytest leaves the name out
        return "AssertionError"
    return re.match(r"[\w.]*", message)[0].rpartition(".")[2]


def tried(fault, folder):
    """The `Verdict` of one fault, put into a copy that is as it was again afterwards."""
    path, start = folder / fault.file, time.monotonic()
    whole = path.read_text(encoding="utf-8")
    path.write_text(broken(fault, whole), encoding="utf-8")
    try:
        outcome = tested(fault, folder)
    finally:
        path.write_text(whole, encoding="utf-8")
    seen, by = judged(fault, outcome)
    return Verdict(fault, seen, by, time.monotonic() - start)


def judged(fault, outcome):
    """(whether the outcome shows the fault, by what)."""
    for test, kind in outcome.failures:
        if outcome.code == 1 and kind in (*ASSERTED, fault.error):
            return True, f"{test}: {kind}"
    if outcome.code == 0:
        return False, f"{outcome.passed} tests passed"
    return False, "; ".join(f"{test}: {kind}" for test, kind in outcome.failures) or f"pytest ended with {outcome.code}"


def whole(fault, folder):
    """What is wrong with a fault's tests while it is not there; empty where they pass."""
    outcome = tested(fault, folder)
    if outcome.code == 0 and outcome.passed:
        return ""
    said = " ".join(outcome.said.split())[-300:]
    return f"its tests do not pass without it: {said}"


def table(verdicts):
    shown = Table(title="faults put in, and whether the trap's tests see them")
    for column in ("trap", "fault", "file", "", "by", "s"):
        shown.add_column(column, justify="right" if column == "s" else "left")
    for v in verdicts:
        shown.add_row(v.fault.trap, v.fault.what, v.fault.file.removeprefix("jaxalign/"), _word(v), v.by, f"{v.seconds:.0f}")
    return shown


def markdown(verdicts):
    lines = ["| trap | fault | put into | seen | by |", "|---|---|---|---|---|"]
    for v in verdicts:
        by = v.by.rpartition(": ")[0].replace("|", "\\|") or v.by
        lines.append(f"| {v.fault.trap} | {v.fault.what} | `{v.fault.file}` | {_word(v)} | `{by}` |")
    return "\n".join(lines) + "\n"


def _row(v):
    return v.fault._asdict() | {"seen": v.seen, "by": v.by, "seconds": round(v.seconds, 1)}


def _word(verdict):
    return "SEEN" if verdict.seen else "NOT SEEN"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="traps, as t05,t07; empty: all")
    parser.add_argument("--json", type=pathlib.Path, help="where the verdicts are written")
    parser.add_argument("--markdown", type=pathlib.Path, help="where the table is written")
    options = parser.parse_args(arguments)
    only = [name for name in options.only.split(",") if name]
    faults = catalogue(only)
    if missing := set(only) - {fault.trap for fault in faults}:
        parser.error(f"no faults of {', '.join(sorted(missing))}; there are some of t01 to t26")
    start, verdicts, checked, console = time.monotonic(), [], {}, Console(width=160)
    with tempfile.TemporaryDirectory(prefix="broken-") as folder:
        folder = copied(pathlib.Path(folder))
        for fault in faults:
            tests = (*tests_of(fault, folder), fault.only)
            if tests not in checked:
                checked[tests] = whole(fault, folder)
            wrong = checked[tests]
            verdicts.append(Verdict(fault, False, wrong, 0.0) if wrong else tried(fault, folder))
            print(f"{fault.trap}  {_word(verdicts[-1]):8}  {fault.what}  ({verdicts[-1].by})", flush=True)
            if options.json:  # each time: what is broken off leaves what came out by then
                options.json.write_text(json.dumps([_row(v) for v in verdicts], indent=1) + "\n")
    seconds, unseen = time.monotonic() - start, [v for v in verdicts if not v.seen]
    console.print(table(verdicts))
    console.print(f"{len(verdicts) - len(unseen)} of {len(verdicts)} faults seen, {seconds:.0f} s")
    if options.markdown:
        options.markdown.write_text(markdown(verdicts), encoding="utf-8")
    return int(bool(unseen))


if __name__ == "__main__":
    sys.exit(main())
