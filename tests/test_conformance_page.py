"""The committed page of tools/conformance.sh is that of its figures, of all rows, and they hold."""

import json
import pathlib
import re

import pytest
from module_at import module_at
from published_models import CASES

from jaxalign.objectives import OBJECTIVES

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "conformance"


@pytest.fixture(scope="module")
def page():
    return module_at(ROOT / "tests" / "conformance" / "page.py")


@pytest.fixture
def result():
    return json.loads((FOLDER / "result.json").read_text(encoding="utf-8"))


def test_the_page_is_what_the_figures_make_of_it(page, result):
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == page.text(result)


def test_every_objective_and_every_part_of_every_family_has_a_row_that_holds(page, result):
    assert [row["check"] for row in result["rows"] if not row["holds"]] == []
    assert {row["check"].partition(":")[0] for row in result["rows"]} >= set(OBJECTIVES)
    parts = {(case, part) for case in CASES for part in page.PARTS if part != "cache" or "classifier" not in case}
    assert {page.part_of(row) for row in result["rows"]} >= parts


def test_the_rows_need_nothing_of_the_tests_own_packages():
    """Their environment has no pytest."""
    files = [*(ROOT / "tests" / "conformance").glob("*.py"), *(ROOT / "tests" / "golden").glob("make_*.py")]
    assert len(files) > 10
    words = re.compile(r"^\s*(?:import|from) (?:pytest|test_\w+|chex)\b", re.MULTILINE)
    assert words.search("from test_peft import logits") and not words.search("from testing import x")
    assert [str(file) for file in files if words.search(file.read_text(encoding="utf-8"))] == []


RUN = {"commit": "abc1234", "python": "3.11", "seeds": 5, "versions": {"peer": "1.0"}}


def row(check, largest=1e-7, holds=True, **more):
    return {"check": check, "against": "peer 1.0", "max_abs_error": largest, "max_relative_error": largest,
            "tolerance": 1e-5, "holds": holds} | more  # fmt: skip


def test_a_row_that_fails_and_one_that_was_skipped_are_shown_as_that(page, tmp_path):
    rows = [row("dpo", 0.5, False), row("grpo: by sum"), row("llama: logits"), row("llama: export", 0.0),
            row("real: logits", None, None, skipped="absent"), row("odd: cache", None, False, error="broke")]  # fmt: skip
    page.write(tmp_path / "out", RUN | {"rows": rows})
    lines = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").splitlines()
    assert "5 rows compared, 3 hold, 1 skipped. Without agreement: dpo; odd: cache." in lines
    assert "| dpo | peer 1.0 | 5.0e-01 | 5.0e-01 | 1e-05 | **no** |" in lines
    assert "| grpo: by sum | peer 1.0 | 1.0e-07 | 1.0e-07 | 1e-05 | yes |" in lines
    assert "| llama | peer 1.0 | 1.0e-07 | – | – | 0 | 1e-05 | yes |" in lines
    assert "| real | peer 1.0 | – | – | – | – | 1e-05 | skipped |" in lines
    assert "| odd | peer 1.0 | – | – | error | – | 1e-05 | **no** |" in lines
