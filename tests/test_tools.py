"""The shell scripts of tools/ on machines that lack something, with pythons of a few shell lines."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOLS = "awk bash cat chmod cksum cp cut date df dirname du grep head ls mkdir mktemp rm tail touch tr".split()

# A Python that knows the calls the scripts make, and writes each down. An environment it makes holds a copy of itself.
PYTHON = """#!/bin/bash
echo "$*" >> "$CALLS"
case "$*" in
  "-c import sys; print("*version_info*) echo {version} ;;
  "-c import sys; print(sys.version)") echo "{version}.1 (fake)" ;;
  "-c import venv"*) exit {no_venv} ;;
  "-c import pip") exit {no_pip} ;;
  "-m ensurepip") exit {no_ensurepip} ;;
  "-m venv "*) {make_venv}
    mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
  "-m pip "*) cat "$PIP_SAYS"; exit "$(cat "$PIP_EXITS")" ;;
  "-m pytest"*) echo "pytest in $PWD on $JAX_PLATFORMS:"; printf '<%s>' "${{@:2}}"; exit 5 ;;
  "-m jaxalign "*) echo "ran in $PWD:"; printf '<%s>' "${{@:2}}"; exit "${{JAXALIGN_EXITS:-0}}" ;;
  */tests/conformance/run.py*) echo "compared on $JAX_PLATFORMS:"; printf '<%s>' "${{@:2}}"; exit 6 ;;
  */tools/bench_generate.py*) echo "measured:"; printf '<%s>' "${{@:2}}"; exit 7 ;;
  *) exit 9 ;;
esac
"""


class Machine:
    """A checkout of the scripts on a machine whose PATH holds only what a test puts there."""

    def __init__(self, folder):
        self.root, self.bin, self.elsewhere = folder / "check out", folder / "bin", folder / "elsewhere"
        for made in (self.root / ".ci", self.bin, self.elsewhere):
            made.mkdir(parents=True)
        shutil.copytree(ROOT / "tools", self.root / "tools")
        shutil.copy(ROOT / ".ci" / "run", self.root / ".ci" / "run")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.calls, self.pip_says, self.pip_exits = (folder / name for name in ("calls", "pip_says", "pip_exits"))
        self.pip("", 0)

    def pip(self, says, exits):
        self.pip_says.write_text(says)
        self.pip_exits.write_text(str(exits))

    def command(self, name, source):
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(source)
        (self.bin / name).chmod(0o755)

    def python(self, name="python3", version="3.12", venv=True, make_venv=":", pip=True, ensurepip=True):
        self.command(name, PYTHON.format(version=version, no_venv=int(not venv), make_venv=make_venv,
                                         no_pip=int(not pip), no_ensurepip=int(not ensurepip)))

    def run(self, script="tools/test.sh", *arguments, **environment):
        self.calls.write_text("")
        return subprocess.run(
            ["bash", self.root / script, *arguments],
            cwd=self.elsewhere,
            capture_output=True,
            text=True,
            env={
                "PATH": str(self.bin),
                "HOME": str(self.elsewhere),
                "CALLS": str(self.calls),
                "PIP_SAYS": str(self.pip_says),
                "PIP_EXITS": str(self.pip_exits),
                **environment,
            },
        )

    def pip_calls(self):
        return [line.rsplit(" ", 1)[-1] for line in self.calls.read_text().splitlines() if line.startswith("-m pip")]

    def complaint(self, *arguments, **environment):
        """The one line that a run ends with which must fail before it reaches pytest."""
        done = self.run(*arguments, **environment)
        said = [line for line in done.stderr.splitlines() if not line.startswith("Installing ")]
        assert done.returncode == 1 and done.stdout == "" and len(said) == 1 and said[0].startswith("error: "), done
        return said[0]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_no_python(machine):
    assert "no Python found; install Python 3.11 or newer" in machine.complaint()


def test_a_python_that_is_too_old(machine):
    machine.python("python3", "3.9")
    machine.python("python", "2.7")
    assert "python3 is Python 3.9, jaxalign needs 3.11 or newer" in machine.complaint()


def test_a_python_named_by_the_user(machine):
    machine.python("python3", "3.12")
    machine.python("my python", "3.10")
    assert "needs 3.11 or newer" in machine.complaint(PYTHON=str(machine.bin / "my python"))
    assert "PYTHON=/none does not run" in machine.complaint(PYTHON="/none")


def test_a_python_without_venv(machine):
    machine.python(venv=False)
    assert "sudo apt install python3.12-venv" in machine.complaint()


def test_a_python_whose_venv_breaks_off(machine):
    machine.python(make_venv="echo 'ensurepip is not available'; exit 1")
    assert "sudo apt install python3.12-venv" in machine.complaint()
    assert not (machine.root / ".venv").exists()


def test_broken_shims_and_lesser_pythons_are_passed_over(machine):
    machine.command("python3.13", "#!/bin/bash\nexit 127\n")
    machine.python("python3.12", "3.12", venv=False)
    machine.python("python3.11", "3.11")
    assert machine.run().returncode == 5 and machine.pip_calls() == [".[test]"]


def test_an_environment_that_somebody_else_made(machine):
    """As uv makes them, without pip; or long ago, with an old Python."""
    machine.python(pip=False)
    (machine.root / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", machine.root / ".venv" / "bin" / "python")
    assert machine.run().returncode == 5 and machine.pip_calls() == [".[test]"]
    assert "-m ensurepip" in machine.calls.read_text()
    (machine.root / ".venv" / ".jaxalign-test").unlink()
    machine.python(pip=False, ensurepip=False)
    shutil.copy(machine.bin / "python3", machine.root / ".venv" / "bin" / "python")
    assert ".venv holds no pip; install it there, move the folder away" in machine.complaint()
    machine.python(version="3.10")
    shutil.copy(machine.bin / "python3", machine.root / ".venv" / "bin" / "python")
    assert ".venv holds Python 3.10, jaxalign needs 3.11 or newer; move it away" in machine.complaint()


def test_a_full_disk_before_the_install(machine):
    machine.python()
    machine.command("df", "#!/bin/bash\necho header\necho disk 9 9 2048 99% /\n")
    assert "2 MiB are free" in machine.complaint()


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full; free about"),
        ("NewConnectionError: Failed to establish a new connection: [Errno 101]", "connect to a network, or set pip's"),
        ("Temporary failure in name resolution", "the package index cannot be reached"),
        ("ERROR: Could not find a version that satisfies setuptools>=64 (from versions: none)", "cannot be reached"),
    ],
)
def test_pip_failures_are_interpreted(machine, says, expected):
    machine.python()
    machine.pip(f"Collecting jax\n{says}\nERROR: No matching distribution found\n", 1)
    assert expected in machine.complaint()
    # The next call tries again and, with the cause gone, gets through.
    machine.pip("", 0)
    assert machine.run().returncode == 5 and machine.pip_calls() == [".[test]"]


def test_any_other_pip_failure_shows_the_end_of_its_log(machine):
    machine.python()
    machine.pip("".join(f"line {i}\n" for i in range(100)), 1)
    done = machine.run()
    assert done.returncode == 1 and "line 99\n" in done.stderr and "line 10\n" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: pip install failed") and "install.log" in done.stderr


def test_a_folder_that_is_no_environment_is_left_alone(machine):
    machine.python()
    (machine.root / ".venv").mkdir()
    (machine.root / ".venv" / "precious").write_text("x")
    assert "is not a virtual environment" in machine.complaint()
    assert (machine.root / ".venv" / "precious").exists()


def test_the_first_call_installs_and_the_second_reuses(machine):
    machine.python()
    first = machine.run("tools/test.sh", "--all", "-k", "two words")
    assert first.returncode == 5, "the exit code is pytest's"
    assert first.stdout == f"pytest in {machine.root} on cpu:\n<pytest><--all><-k><two words>"
    assert re.search(r"Installing jaxalign\[test\] .*\nInstalled in \d+ s; .*\.venv is \d+ MiB\.\n", first.stderr)
    second = machine.run()
    assert second.returncode == 5 and machine.pip_calls() == [] and second.stderr == ""


def test_the_tests_extras_are_added_to_the_quickstarts_environment(machine):
    machine.python()
    assert machine.run("tools/quickstart.sh").returncode == 0 and machine.pip_calls() == ["."]
    assert machine.run("tools/test.sh").returncode == 5 and machine.pip_calls() == [".[test]"]
    assert "-m venv" not in machine.calls.read_text()
    # The larger environment serves both.
    assert machine.run("tools/quickstart.sh").returncode == 0 and machine.pip_calls() == []


def test_changed_dependencies_are_installed_into_the_same_environment(machine):
    machine.python()
    machine.run()
    with (machine.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    machine.run()
    assert machine.pip_calls() == [".[test]"] and "-m venv" not in machine.calls.read_text()


def test_another_python_asked_for_makes_another_environment(machine):
    machine.python()
    machine.python("python3.11", "3.11")
    assert machine.run(PYTHON="python3").returncode == 5
    assert machine.run(PYTHON="python3.11").returncode == 5
    assert "-m venv" in machine.calls.read_text() and machine.pip_calls() == [".[test]"]


def test_an_environment_broken_off_halfway_is_made_anew(machine):
    machine.python()
    machine.run()
    (machine.root / ".venv" / "bin" / "python").unlink()
    assert machine.run().returncode == 5 and machine.pip_calls() == [".[test]"]


def test_the_environment_can_stand_elsewhere(machine):
    machine.python()
    place = machine.elsewhere / "environment"
    assert machine.run(JAXALIGN_VENV=str(place)).returncode == 5
    assert (place / "pyvenv.cfg").exists() and not (machine.root / ".venv").exists()


def test_the_quickstart_runs_the_pipeline_and_passes_flags_on(machine):
    machine.python()
    done = machine.run("tools/quickstart.sh", "--config.seed=1")
    ran = (
        f"<jaxalign><pipeline><--config={machine.root}/configs/quickstart.py><--workdir={machine.root}/runs/quickstart>"
    )
    assert ran + "<--config.seed=1>" in done.stdout and f"ran in {machine.elsewhere}" in done.stdout
    assert machine.run("tools/quickstart.sh", "--workdir", "mine").stdout.endswith("<--workdir><mine>")
    assert machine.run("tools/quickstart.sh", JAXALIGN_EXITS="2").returncode == 2


def test_the_conformance_check_has_an_environment_of_its_own(machine):
    machine.python("python3.13", "3.13")
    machine.python("python3.11", "3.11")
    machine.run("tools/quickstart.sh")
    done = machine.run("tools/conformance.sh", "--only=two words")
    assert done.returncode == 6 and done.stdout == "compared on cpu:\n<--only=two words>"
    assert machine.pip_calls() == [".[conformance]"]
    assert "3.11" in (machine.root / ".conformance-venv" / "bin" / "python").read_text()
    assert not (machine.root / ".venv" / ".jaxalign-conformance").exists()
    assert machine.run("tools/conformance.sh").returncode == 6 and machine.pip_calls() == []
    place = machine.elsewhere / "peers"
    assert machine.run("tools/conformance.sh", JAXALIGN_CONFORMANCE_VENV=str(place)).returncode == 6
    assert (place / "pyvenv.cfg").exists()
    (place / "pyvenv.cfg").unlink()
    (place / "bin" / "python").unlink()
    said = machine.complaint("tools/conformance.sh", JAXALIGN_CONFORMANCE_VENV=str(place))
    assert "set JAXALIGN_CONFORMANCE_VENV to another folder" in said


def test_the_bench_has_an_environment_of_its_own(machine):
    machine.python("python3.11", "3.11")
    done = machine.run("tools/bench_generate.sh", "--peers=tunix", "--json=two words")
    assert done.returncode == 7 and done.stdout == "measured:\n<--peers=tunix><--json=two words>"
    assert machine.pip_calls() == [".[bench]"] and not (machine.root / ".venv").exists()
    assert machine.run("tools/bench_generate.sh").returncode == 7 and machine.pip_calls() == []
    place = machine.elsewhere / "peers"
    assert machine.run("tools/bench_generate.sh", JAXALIGN_BENCH_VENV=str(place)).returncode == 7
    assert (place / "pyvenv.cfg").exists()


def test_continuous_integration_calls_the_readmes_command(machine):
    machine.python()
    done = machine.run(".ci/run")
    assert done.returncode == 5 and done.stdout.startswith(f"pytest in {machine.root} on cpu:\n<pytest>")
    assert "bash tools/test.sh" in (ROOT / ".ci" / "run").read_text()


def test_the_whole_run_has_a_process_a_core_and_named_tests_have_one(machine):
    machine.python()
    whole = "<--numprocesses=auto><--maxprocesses=4><--dist=loadfile><--no-loadscope-reorder>"
    assert machine.run().stdout.endswith(f"<pytest>{whole}")
    assert machine.run("tools/test.sh", "--all").stdout.endswith(f"<pytest>{whole}<--all>")
    assert machine.run("tools/test.sh", "tests/report").stdout.endswith("<pytest><tests/report>")


SCRIPTS = ["tools/test.sh", "tools/quickstart.sh", "tools/conformance.sh", "tools/bench_generate.sh", ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_called_by_name(script):
    assert os.access(ROOT / script, os.X_OK) and (ROOT / script).read_text().startswith("#!/usr/bin/env bash\n")
