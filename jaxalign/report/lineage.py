"""Which stage came from which: read from what the run left, and drawn as a graph."""

import json
import pathlib
from collections.abc import Mapping, Sequence

from jaxalign.report import plots

# What these name was handed over whole; other paths in a config (data, tokenizers) are drawn only where no chain of
# such arrows says the same.
STRONG = ("init_from", "reward_model", "parent")
BOX, STEP = 106, 134  # a box, and a box with the gap after it: eight columns fill the page


def parents_of(workdir: pathlib.Path, report: dict) -> dict[str, list[str]]:
    """{stage: stages it came from}: the report's `lineage` if it lists {"name", "from"}, else from the stages' configs.

    A stage's `config.json` names other stages by their folders.
    """
    names = [stage["name"] for stage in report.get("stages") or []]
    given = [entry for entry in report.get("lineage") or [] if isinstance(entry, dict)]
    if given:
        listed = {str(e.get("name")): e.get("from") or [] for e in given}
        return {name: [came] if isinstance(came, str) else list(map(str, came)) for name, came in listed.items()}
    strong: dict[str, list[str]] = {name: [] for name in names}
    weak: dict[str, list[str]] = {name: [] for name in names}
    for index, name in enumerate(names):
        path = workdir / name / "config.json"
        if not path.is_file():
            continue
        for key, text in _texts(json.loads(path.read_text(encoding="utf-8"))):
            # Only earlier stages: a name may also be an ordinary word in some path.
            found = [part for part in pathlib.PurePath(text).parts if part in names[:index]]
            if found:
                (strong if key in STRONG else weak)[name].append(found[-1])
    parents = {name: list(dict.fromkeys(came)) for name, came in strong.items()}
    for name in names:
        came = list(dict.fromkeys(weak[name]))
        for parent in reversed(came):  # the nearest first, so that its own ancestors need no arrow
            others = [*parents[name], *(c for c in came if c != parent)]
            if not any(parent == other or _leads(weak, strong, parent, other) for other in others):
                parents[name].append(parent)
    # What only measures the others has no part in how they were made.
    used = {parent for came in parents.values() for parent in came}
    measuring = {s["name"] for s in report.get("stages") or [] if not s.get("steps") and s["name"] not in used}
    return {name: came for name, came in parents.items() if name not in measuring} if used else {}


def _texts(value, key=""):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value


def _leads(weak, strong, ancestor, name):
    """Whether a stage stands on another one, however many stages lie between."""
    return any(p == ancestor or _leads(weak, strong, ancestor, p) for p in [*strong.get(name, ()), *weak.get(name, ())])


def graph(parents: Mapping[str, Sequence[str]], colours: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """Boxes for stages, from left to right, with an arrow from each stage that handed something over.

    Args:
      parents: stage to the stages it came from, in the order they ran; names that are no stage are drawn too.
      colours: stage to CSS class.
      notes: stage to a second line of text.
    """
    column = _columns(parents)
    row = _rows(parents, column)
    taken = {(column[name], row[name]): name for name in column}
    lanes = {
        (parent, name): _lane(range(column[parent] + 1, column[name]), row[name], taken)
        for name, given in parents.items()
        for parent in given
    }
    top = 34 if -1 in lanes.values() else 8

    def middle(line):
        return top + 22 + line * 64 if line >= 0 else 16

    body = []
    for (parent, name), lane in lanes.items():
        start, end = 8 + column[parent] * STEP + BOX, 8 + column[name] * STEP
        y0, y1, across, half = middle(row[parent]), middle(row[name]), middle(lane), (STEP - BOX) / 2
        path = f"M{start},{y0}"
        if column[name] - column[parent] > 1:
            # Into the lane in the gap after the parent, out of it in the gap before the child.
            path += f" C{start + half},{y0} {start + half},{across} {start + 2 * half},{across}"
            path += f" L{end - 2 * half},{across}"
            y0, start = across, end - 2 * half
        path += f" C{start + half},{y0} {end - half},{y1} {end - 6},{y1}"
        body.append(f'<path class="edge" d="{path}"/>')
        body.append(f'<path class="head" d="M{end - 7},{y1 - 4} L{end - 1},{y1} L{end - 7},{y1 + 4} Z"/>')
    for (across, line), name in taken.items():
        x, y = 8 + across * STEP, middle(line) - 22
        body.append(f'<rect class="node {colours.get(name, "")}" x="{x}" y="{y}" width="{BOX}" height="44" rx="8"/>')
        note = notes.get(name, "")
        body.append(plots.label("name", x + BOX / 2, y + (19 if note else 27), name, "middle"))
        body.append(plots.label("tick", x + BOX / 2, y + 34, note, "middle"))
    width = 16 + max(column.values()) * STEP + BOX
    height = max(map(middle, [*row.values(), *lanes.values()])) + 32
    return (
        f'<svg class="lineage" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="which stage came from which">{"".join(body)}</svg>'
    )


def _columns(parents):
    """Each name's longest way from a beginning. A broken lineage may loop: a name met on its own way is skipped."""
    columns: dict[str, int] = {}

    def deep(name, way=()):
        if name not in columns:
            above = [deep(parent, (*way, name)) for parent in parents.get(name, ()) if parent not in (*way, name)]
            columns[name] = 1 + max(above, default=-1)
        return columns[name]

    for name in [*parents, *(p for given in parents.values() for p in given)]:
        deep(name)
    return dict(sorted(columns.items(), key=lambda item: item[1]))


def _rows(parents, column):
    """The row of the nearest parent, or the next free one below it."""
    rows: dict[str, int] = {}
    for name in column:
        above = [p for p in parents.get(name, ()) if p in rows]
        line = rows[max(above, key=lambda p: column[p])] if above else 0
        while (column[name], line) in {(column[other], rows[other]) for other in rows}:
            line += 1
        rows[name] = line
    return rows


def _lane(between, row, taken):
    """The row nearest to `row` that no box stands in, in the columns between; -1 runs above all boxes."""
    last = max(line for _, line in taken) + 1
    free = [line for line in range(-1, last + 1) if not any((column, line) in taken for column in between)]
    return min(free, key=lambda line: (abs(line - row), line < 0))
