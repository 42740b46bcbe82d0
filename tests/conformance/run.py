"""Compares jaxalign's objectives and models with independent public implementations, on random ragged inputs.

    bash tools/conformance.sh [--json=FILE] [--only=TEXT] [--seeds=N] [--out=FOLDER]

Values and gradients, ours from the same arrays as theirs; where theirs is a trainer of TRL's, from hidden states and
output embedding on, through the trainer's own loss and, for policies, its own rollout (trainers.py).

`--out=experiments/conformance` writes the page that shows the rows, and its figures (page.py).

To add a row: a function that draws inputs and returns both sides, and one line in the `ROWS` of its file; for one more
objective of a family, the line alone. What differs on purpose, and why, is in differences.py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import pathlib
import sys
import traceback

import rich.box
import rich.console
import rich.table

# ours: whichever checkout this file lies in
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import adapters  # noqa: E402
import advantages  # noqa: E402
import families  # noqa: E402
import ggufs  # noqa: E402
import page  # noqa: E402
import policies  # noqa: E402
import preferences  # noqa: E402
import rankings  # noqa: E402
import real  # noqa: E402
import seeing  # noqa: E402
import supervised  # noqa: E402
import tokens  # noqa: E402
import trained  # noqa: E402
from comparison import Skip, measure  # noqa: E402
from differences import DIFFERENCES  # noqa: E402
from jaxalign.objectives import OBJECTIVES  # noqa: E402

GROUPS = [supervised, rankings, preferences, policies, tokens, advantages, families, seeing, ggufs, real, trained, adapters]
ROWS = [row for group in GROUPS for row in group.ROWS]
PACKAGES = ["trl", "transformers", "verl", "rlax", "rax", "peft"]


def main(arguments):
    flags = argparse.ArgumentParser(prog="bash tools/conformance.sh", description=__doc__.splitlines()[0])
    flags.add_argument("--json", default="conformance.json", metavar="FILE", help="where the figures go (%(default)s)")
    flags.add_argument("--only", default="", metavar="TEXT", help="the rows whose check or peer contains this")
    flags.add_argument("--seeds", type=int, default=5, metavar="N", help="draws a row (%(default)s)")
    flags.add_argument("--out", default="", metavar="FOLDER", help="where the page of all rows goes (nowhere)")
    flags = flags.parse_args(arguments)
    if flags.out and flags.only:
        sys.exit("error: --out is the page of all rows; leave --only out")
    rows = [row for row in ROWS if flags.only in f"{row.check} | {row.against}"]
    if not rows or flags.seeds < 1:
        sys.exit(f"error: nothing to compare: {len(rows)} rows contain {flags.only!r}, --seeds={flags.seeds}")

    figures, run = [], page.run_of(flags.seeds)  # the commit that this was, whatever becomes of the files meanwhile
    with rich.console.Console(stderr=True).status("") as status:
        for row in rows:
            status.update(f"{len(figures) + 1} of {len(rows)}: {row.check}")
            figures.append(_measured(row, flags.seeds))
    pathlib.Path(flags.json).write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    if flags.out:
        page.write(flags.out, run | {"rows": figures})

    # As wide as its rows where nobody looks, so that a log's lines are whole.
    console = rich.console.Console(width=None if sys.stdout.isatty() else 180)
    console.print(_table(figures, flags.seeds))
    console.print(_differences())
    skipped = {figure["check"]: figure["skipped"] for figure in figures if "skipped" in figure}
    broken = [figure["check"] for figure in figures if not figure["holds"] and figure["check"] not in skipped]
    bare = sorted(set(OBJECTIVES) - {row.name for row in ROWS})
    compared = len(figures) - len(skipped)
    console.print(f"{compared - len(broken)} of {compared} rows hold; figures in {flags.json}"
                  + (f" and {flags.out}" if flags.out else ""))
    for check, why in skipped.items():
        console.print(f"skipped: {check}: {why}")
    if broken:
        print(f"error: no agreement: {'; '.join(broken)}", file=sys.stderr)
    if bare:
        print(f"error: objectives without a row: {', '.join(bare)}; add one in tests/conformance", file=sys.stderr)
    return 1 if broken or bare else 0


def _measured(row, seeds):
    package, _, rest = row.against.partition(" ")
    if package in PACKAGES:
        row = row._replace(against=f"{package} {importlib.metadata.version(package)} {rest}")
    try:
        return measure(row, seeds)
    except Skip as why:
        return _without_errors(row) | {"holds": None, "skipped": str(why)}
    except Exception as error:  # a peer's new release may break one row; the others still tell something
        traceback.print_exc()
        return _without_errors(row) | {"holds": False, "error": f"{type(error).__name__}: {error}"}


def _without_errors(row):
    return {"check": row.check, "against": row.against, "max_abs_error": None, "max_relative_error": None,
            "tolerance": row.tolerance}  # fmt: skip


def _table(figures, seeds):
    table = rich.table.Table(
        title=f"Agreement over {seeds} draws, values and gradients", box=rich.box.SIMPLE_HEAD
    )
    for name in ("check", "against", "absolute", "relative", "tolerance", ""):
        table.add_column(name)
    for figure in figures:
        errors = [figure["max_abs_error"], figure["max_relative_error"]]
        table.add_row(
            figure["check"], figure["against"], *("–" if error is None else f"{error:.1e}" for error in errors),
            f"{figure['tolerance']:g}",
            "skipped" if "skipped" in figure else "holds" if figure["holds"] else "[red]does not hold[/]",
        )
    return table


def _differences():
    table = rich.table.Table(title="What differs on purpose", box=rich.box.SIMPLE_HEAD)
    for name in ("what", "ours", "theirs", "why, and how it is compared"):
        table.add_column(name)
    for difference in DIFFERENCES:
        table.add_row(*difference)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
