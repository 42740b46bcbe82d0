"""The floor plan: imports go down only, rooms have names, and the top level holds what the README says."""

import ast
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxalign"

FLOORS = {
    "errors": 1, "config": 1, "batches": 1, "shapes": 1, "sharding": 1, "huge_pages": 1,
    "objectives": 2, "models": 2, "data": 2,
    "train": 3, "rollout": 3, "rewards": 3,
    "experience": 4, "evaluate": 4, "exchange": 4,
    "stages": 5, "pipeline": 5, "report": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip

# Rooms on one floor that may know each other: floor 1 is the ground, and on floor 5 the pipeline runs the stages
# and then writes the report.
NEIGHBOURS = {(room, "errors") for room, floor in FLOORS.items() if floor == 1} | {
    ("batches", "shapes"), ("sharding", "shapes"), ("batches", "config"),
    ("pipeline", "stages"), ("pipeline", "report"),
}  # fmt: skip

TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "jaxalign", "configs", "experiments", "tests", "tools"}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(source, path):
    """Dotted names of what a file imports from the package, wherever in the file it does so."""
    package = ("jaxalign", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jaxalign")
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            if module.split(".")[0] == "jaxalign":
                yield from (f"{module}.{alias.name}" for alias in node.names)


def faults_of(source, path):
    room = room_of(path)
    if room == "__init__":
        return [f"jaxalign/__init__.py imports {name}" for name in imports_of(source, path)]
    faults = []
    for name in imports_of(source, path):
        other = (name.split(".") + ["__init__"])[1]
        if other == room or other == "__version__":
            continue
        if other not in FLOORS:
            faults.append(f"{room} imports {name}, a room without a floor")
        elif FLOORS[other] > FLOORS[room]:
            faults.append(f"{room} (floor {FLOORS[room]}) imports {name} from above (floor {FLOORS[other]})")
        elif FLOORS[other] == FLOORS[room] and (room, other) not in NEIGHBOURS:
            faults.append(f"{room} imports {name}, its neighbour on floor {FLOORS[room]}")
        elif (room, other) == ("train", "objectives") and name.split(".")[2:3] != ["reduce"]:
            faults.append(f"train imports {name}; of the objectives it may know `reduce` alone")
    return faults


def test_imports_go_down_only():
    files = [path for path in PACKAGE.rglob("*.py")]
    assert len(files) > 10
    faults = [f"{path.relative_to(ROOT)}: {fault}" for path in files for fault in faults_of(path.read_text(), path)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/chat.py", "from jaxalign.models import transformer"),
        ("objectives/dpo.py", "def f():\n    import jaxalign.data.chat"),
        ("models/heads.py", "from ..objectives import kl"),
        ("train/step.py", "from jaxalign.objectives import dpo"),
        ("train/step.py", "from jaxalign import rollout"),
        ("rollout/engine.py", "from jaxalign.rewards.rules import exact"),
        ("config.py", "from jaxalign.stages import default_config"),
        ("evaluate/perplexity.py", "import jaxalign.pipeline"),
        ("data/chat.py", "from jaxalign.misc import x"),
        ("__init__.py", "from jaxalign.errors import ConfigError"),
    ],
)
def test_the_check_sees_a_breach(file, source):
    assert faults_of(source, PACKAGE / file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("train/step.py", "from jaxalign.objectives.reduce import reduce"),
        ("train/step.py", "from jaxalign.objectives import reduce\nfrom . import state"),
        ("rollout/engine.py", "from jaxalign.models import cache\nfrom jaxalign.data.chat import render"),
        ("cli.py", "from jaxalign import __version__, stages"),
    ],
)
def test_the_check_admits_what_goes_down(file, source):
    assert not faults_of(source, PACKAGE / file)


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms <= set(FLOORS), f"rooms without a floor: {sorted(rooms - set(FLOORS))}"


def test_no_file_is_a_building_of_its_own():
    long = {str(p.relative_to(ROOT)): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 350}
    assert not long, f"files over 350 lines: {long}"


def test_no_room_without_a_name():
    nameless = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}
    found = [path for folder in ("jaxalign", "tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert not [str(path) for path in found if path.name in nameless]


def test_the_top_level_holds_what_the_readme_says():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    names = {line.strip('"').split("/")[0] for line in listed.stdout.splitlines()}
    extra = {name for name in names if not name.startswith(".")} - TOP_LEVEL
    assert not extra, f"top level holds more than {sorted(TOP_LEVEL)}: {sorted(extra)}"
