"""How a command's process begins: with huge pages where the kernel has them, once, and as it was called."""

import os
import platform
import subprocess
import sys

import pytest

from jaxalign import huge_pages

TUNABLE = "glibc.malloc.hugetlb=1"


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """Calls ask_for_huge_pages under a kernel that says `mode`; returns what it would begin, or None."""
    def call(mode, **environment):
        kernel = tmp_path / "enabled"
        if mode is not None:
            kernel.write_text(mode)
        monkeypatch.setattr(huge_pages, "HUGE_PAGES", kernel)
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        begun = []
        monkeypatch.setattr(huge_pages.os, "execve", lambda *arguments: begun.append(arguments))
        huge_pages.ask_for_huge_pages()
        return begun[0] if begun else None
    return call


def test_it_begins_anew_with_the_same_words_and_the_setting(begin, monkeypatch):
    called = ["python3", "-W", "error", "-m", "jaxalign", "train", "--config=a b.py"]
    monkeypatch.setattr(huge_pages.sys, "orig_argv", called)
    program, words, environment = begin("always [madvise] never\n", OTHER="kept")
    assert program == sys.executable
    assert words == [sys.executable, *called[1:]]
    assert environment["GLIBC_TUNABLES"] == TUNABLE and environment["OTHER"] == "kept"


@pytest.mark.parametrize("mode", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_where_asking_changes_nothing_nothing_is_begun(begin, mode):
    assert begin(mode) is None


@pytest.mark.parametrize("value", ["", "glibc.malloc.arena_max=2", TUNABLE])
def test_the_environment_counts(begin, value):
    assert begin("always [madvise] never\n", GLIBC_TUNABLES=value) is None


def test_a_place_where_no_program_may_be_started(begin, monkeypatch):
    def refuse(*_):
        raise PermissionError

    assert begin("always [madvise] never\n") is not None
    monkeypatch.setattr(huge_pages.os, "execve", refuse)
    huge_pages.ask_for_huge_pages()  # goes on


def has_huge_pages():
    library, version = platform.libc_ver()
    return (library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
            and huge_pages.HUGE_PAGES.exists() and "[madvise]" in huge_pages.HUGE_PAGES.read_text())


needs_huge_pages = pytest.mark.skipif(
    not has_huge_pages(), reason="needs a kernel that gives huge pages on request, and glibc 2.35")


def clean(**environment):
    return {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "XLA_FLAGS")
            } | environment


@needs_huge_pages
def test_a_real_command_runs_with_the_setting(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("import os, sys\ndef get_config():\n    sys.exit(f\"tunables: {os.environ['GLIBC_TUNABLES']}\")\n")
    done = subprocess.run([sys.executable, "-m", "jaxalign", "train", f"--config={config}", f"--workdir={tmp_path}"],
                          env=clean(), capture_output=True, text=True)
    assert f"tunables: {TUNABLE}" in done.stderr


# The product of 4096 x 16 with its transpose is a temporary of 64 MiB: 16,384 pages of 4 KiB, 32 of 2 MiB.
STEPS = """
import resource, jax, jax.numpy as jnp
step = jax.jit(lambda x: (x @ x.T) @ x)
x = jnp.full((4096, 16), 0.01)
step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@needs_huge_pages
def test_a_step_touches_a_tenth_of_the_pages():
    plain, huge = (int(subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, check=True,
                                      text=True).stdout)
                   for environment in (clean(), clean(GLIBC_TUNABLES=TUNABLE)))
    assert huge < plain / 10
