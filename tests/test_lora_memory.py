"""tools/lora_memory.py at a tiny size: what it counts is what there is, and what it says a step takes a step takes."""

import dataclasses
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxalign.models.config import ModelConfig
from jaxalign.models.quantized import is_quantized

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = ModelConfig(vocab_size=64, width=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=256,
                    dtype="bfloat16", remat="full")
LORA = dict(rank=2)


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module("lora_memory")


@pytest.fixture(scope="module")
def figures(tool):
    """Of everything trained, and of adapters beside a base in each type: `measured` and what it returns beside."""
    forms = {"full": {}} | {base: LORA | dict(base=base) for base in ("float32", "bfloat16", "int8", "nf4")}
    return {name: tool.measured(MODEL, lora, 16, jax.devices()[:1]) for name, lora in forms.items()}


def test_parameters_are_counted_by_hand(figures):
    D, F, N, K, H = MODEL.width, MODEL.mlp_dim, MODEL.num_heads, MODEL.num_kv_heads, MODEL.head_dim
    kernels = 4 * (D * N * H * 2 + D * K * H * 2 + 3 * D * F)
    norms, embed = 4 * 2 * D + D, 64 * D
    adapters = 4 * 2 * (2 * (D + N * H) + 2 * (D + K * H) + 3 * (D + F))
    full, nf4 = figures["full"][0], figures["nf4"][0]
    assert full["parameters"] == full["trained"] == kernels + norms + embed
    assert nf4["trained"] == adapters and nf4["parameters"] == kernels + norms + embed + adapters
    assert nf4["trained_share"] == adapters / nf4["parameters"]
    assert nf4["gradients_bytes"] == 4 * adapters
    assert 8 * adapters < nf4["optimizer_bytes"] < 8 * adapters + 64  # two moments, and counts of steps
    tiles = kernels // 64 + 4 * (D * N * H) * (1 / 16 - 1 / 64)  # out of the heads a tile is a head's 16 numbers
    assert nf4["scales_bytes"] == 2 * tiles
    assert nf4["parameters_bytes"] == kernels // 2 + 2 * tiles + 2 * embed + 4 * norms + 4 * adapters


def test_what_is_counted_is_what_the_compiler_is_given(figures):
    for name, (row, _, _) in figures.items():
        counted = row["parameters_bytes"] + row["optimizer_bytes"]
        batch = 5 * 16 * 4
        assert counted + batch <= row["arguments_bytes"] < counted + batch + 200, name
        assert row["step_bytes"] >= row["arguments_bytes"] + row["temporary_bytes"] > row["gradients_bytes"]
    held = [figures[name][0]["parameters_bytes"] for name in ("float32", "bfloat16", "int8", "nf4")]
    assert held == sorted(held, reverse=True) and held[0] > 3 * held[2] > 4 * held[3]


@pytest.mark.slow
def test_what_is_compiled_runs_on_what_a_stage_would_hold(tool, figures):
    for name in ("full", "nf4"):
        _, step, compiled = figures[name]
        made = step.made()
        jax.tree.map(lambda x, like: (x.shape, x.dtype) == (like.shape, like.dtype) or pytest.fail(name), made,
                     (step.state, step.frozen))
        assert any(map(is_quantized, jax.tree.leaves(made[1], is_leaf=is_quantized))) == (name == "nf4")
        ran = tool.run(step, compiled)
        assert len(ran["losses"]) == tool.STEPS and ran["losses"][-1] < ran["losses"][0]
        # So little is hidden by what else the process gives back meanwhile.
        assert ran["step_seconds"] > 0 and abs(ran["resident_bytes"]) < 2**28


def test_what_is_resident_is_seen_to_grow_and_fall(tool):
    before = tool._resident()
    numbers = np.ones(2**24)
    grown = tool._resident() - before
    assert 0.8 * numbers.nbytes < grown < 1.2 * numbers.nbytes
    del numbers
    assert tool._resident() - before < grown / 2


@pytest.mark.slow
def test_over_more_devices_each_takes_less(tool, figures):
    split, step, _ = tool.measured(MODEL, LORA | dict(base="nf4"), 16, jax.devices()[:4])
    one = figures["nf4"][0]
    assert step.batch["tokens_BT"].shape == (4, 16) and split["trained"] == one["trained"]
    # Kernels are split four ways; norms and the half of an adapter that has no `embed` axis are not.
    assert one["parameters_bytes"] / 4 < split["parameters_bytes"] < one["parameters_bytes"] / 2


def test_rows_are_kept_and_shown(tool, figures, monkeypatch, tmp_path, capsys):
    row = figures["nf4"][0]
    monkeypatch.setattr(tool, "alone", lambda name: {"name": name} | dataclasses.asdict(tool.ROWS[name]) | dict(
        devices=1, resident_bytes=7 * 10**9) | row | {"step_bytes": 12_340_000_000})
    file = tmp_path / "result.json"
    for name in ("8b-nf4", "135m-nf4"):
        tool.main([name, f"--json={file}"])
    assert [r["name"] for r in json.loads(file.read_text())] == ["135m-nf4", "8b-nf4"]
    shown = capsys.readouterr().out
    assert "12.34" in shown and "7.00" in shown and f"{row['trained_share']:.2%}" in shown
    with pytest.raises(SystemExit):
        tool.main(["9b-nf4"])
    assert "no row 9b-nf4; expected some of 135m-full" in capsys.readouterr().err


def test_the_committed_rows_are_those_of_the_tool(tool):
    rows = json.loads((ROOT / "experiments" / "lora_memory" / "result.json").read_text())
    assert [r["name"] for r in rows] == list(tool.ROWS)
    for r in rows:
        assert {name: r[name] for name in ("model", "form", "where", "length")} == dataclasses.asdict(tool.ROWS[r["name"]])
        assert r["lora"] == tool.FORMS[r["form"]] and r["trained"] <= r["parameters"]


@pytest.fixture
def uncached():
    """Programs for chips that are not there can be written to the cache of compilations, and not read from it."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def test_it_compiles_for_chips_that_are_not_there(tool, uncached, monkeypatch):
    pytest.importorskip("libtpu")
    for name, value in tool.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    row, _, _ = tool.measured(MODEL, LORA | dict(base="nf4"), 16, tool.devices_of("v5e:2x2"))
    assert row["arguments_bytes"] >= row["parameters_bytes"] + row["optimizer_bytes"]
