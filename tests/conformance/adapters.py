"""Adapters: ours against PEFT's reading of the same files, and of those that we export again."""

from __future__ import annotations

import functools
import json
import pathlib
import sys
import tempfile

import numpy as np

from comparison import Row
from jaxalign.exchange import export_adapters, import_adapters, import_model

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "golden")]

import make_peft  # noqa: E402
import peft_adapters as adapters  # noqa: E402
import published_models as published  # noqa: E402
import published_tokenizer  # noqa: E402

TOLERANCE = 1e-4


def adapter(draw, *, case):
    """Logits of an adapter that PEFT laid out, and of what became of it here and was exported."""
    family, options = adapters.CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        published.write_model(folder / "model", published.config_of(family))
        published_tokenizer.write_tokenizer(folder / "model")
        adapters.write_adapter(folder / "adapter", family, **options)
        import_model(folder / "model", folder / "base")
        import_adapters(folder / "adapter", folder / "run", folder / "base")
        export_adapters(folder / "run", folder / "out")
        ours = dict(enumerate(adapters.logits(folder / "run")))
        theirs = [make_peft.of_folders(folder / "model", folder / name) for name in ("adapter", "out")]
        both = {f"{name} {n}": x for name, given in zip(("theirs", "exported"), theirs) for n, x in enumerate(given)}
        return {name: ours[int(name[-1])] for name in both}, both


def goldens(draw):
    """The committed golden against what is made now."""
    held = json.loads(adapters.GOLDEN.read_text())["cases"]
    made = {case: make_peft.golden(case) for case in adapters.CASES}

    def numbers(cases):
        return {f"{case} {n}": adapters.unpacked(text) for case, texts in cases.items() for n, text in enumerate(texts)}

    assert all(np.isfinite(x).all() for x in numbers(held).values())
    return numbers(held), numbers(made)


ROWS = [Row(f"adapters: {case}", "peft PeftModel", functools.partial(adapter, case=case), TOLERANCE, draws=1)
        for case in adapters.CASES] + [Row("tests/golden/peft.json", "peft, made afresh", goldens, TOLERANCE, draws=1)]
