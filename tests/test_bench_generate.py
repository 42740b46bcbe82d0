"""tools/bench_generate.py: its rows, at a size of seconds and without the peers."""

import importlib.util
import json
import pathlib
import sys

import pytest
from module_at import module_at

TOOLS = pathlib.Path(__file__).resolve().parents[1] / "tools"
TINY = ("--vocab=64 --width=16 --layers=2 --heads=2 --mlp=24 --prompts=4 --new=6 --requests=12 --mean=4 --cap=9 "
        "--runs=2 --first=1 --dtypes=float32").split()
FIELDS = {"name": str, "ours": float, "peer": float, "peer_name": str, "ratio": float, "unit": str, "device": str,
          "runs": int}


def module(name):
    return module_at(TOOLS / f"{name}.py")


def test_a_row_a_measurement(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    module("bench_generate").main([*TINY, "--peers=", f"--json={tmp_path / 'rows.json'}"])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows] == [f"generate {name} float32" for name in (
        "4x6", "4x6 greedy", "compile", "ragged", "stops")]
    for row in rows:
        assert list(row) == list(FIELDS) and row["ours"] > 0 and row["peer"] is row["peer_name"] is row["ratio"] is None
        assert row["unit"] == ("s" if "compile" in row["name"] else "tokens/s")
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len(rows) and all(row["name"] in line for row, line in zip(rows, table))


def test_a_ratio_is_above_one_where_ours_is_better(capsys):
    bench = object.__new__(module("bench_generate").Bench)
    bench.shape, bench.rows, bench.sides = {"dtype": "float32"}, [], {"jaxalign": type("Side", (), {"device": "cpu"})}
    bench._row("speed", "peer", [900.0, 1000.0, 4000.0], [500.0, 200.0, 600.0], "tokens/s")
    bench._row("compile", "peer", [2.0], [3.0], "s")
    assert [(row["ours"], row["peer"], row["ratio"], row["runs"]) for row in bench.rows] == [
        (1000.0, 500.0, 2.0, 3), (2.0, 3.0, 1.5, 1)]
    for row in bench.rows:
        assert all(isinstance(row[name], kind) for name, kind in FIELDS.items())
    assert "(900–4,000)" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_named(tmp_path):
    if importlib.util.find_spec("tunix"):
        pytest.skip("Tunix is installed here")
    with pytest.raises(SystemExit, match="(?s)No module named 'tunix'.*tunix ended.*bench_generate.sh"):
        module("bench_generate").main([*TINY, "--peers=tunix"])


def test_what_counts_of_a_row_ends_with_its_first_stop_token():
    ended = module("bench_generators").ended
    assert ended([7, 3, 9, 3], [3, 4]) == [7, 3] and ended([7, 8], [3]) == ended([7, 8], []) == [7, 8]


def test_requests_of_like_lengths_make_a_batch():
    assert module("bench_generators").batches([3, 9, 1, 5, 4], 2) == [[2, 0], [4, 3], [1]]
    assert sys.modules.get("torch") is None
