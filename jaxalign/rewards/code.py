"""Unit tests for code that a policy wrote, each program in a process of its own.

What holds a program back, from the outside in:

    its own process and session   killed, the session with it, when its time is up; a new one every time
    limits (all of POSIX)         processor time, memory, 16 MiB a file, 32 open files, no core; no further process or
                                  thread (that one does not bind root)
    seccomp (Linux, x86-64 and    the kernel refuses sockets, processes, threads, other programs, signals to other
    64-bit Arm)                   processes, and raising limits; root too
    Landlock (Linux 5.13)         the kernel refuses every file but Python's library, to be read, and a temporary
                                  folder, empty at first, deleted afterwards; root too
    Python's audit hook           refuses the same from within Python, on any system, and ctypes and such besides

What is not held back: many small files, as long as its time lasts; whether and how large files are (not what they hold). Tests
run beside the program, as their authors wrote them: one that searches the interpreter's frames for the token by which they
report, whose objects claim to equal everything, or that puts its own in place of what a test calls from a module
(`math.isclose`) or by a name of the program's, is taken for right; Python's own names (`sorted`, `exec`) are put back before
each test. Without the two kernel layers a program that knows CPython well gets out. It is a fence for a policy's mistakes and
shortcuts, no prison for an enemy: where that is the fear, run the whole job in a virtual machine.
"""

import concurrent.futures
import functools
import json
import os
import pathlib
import re
import secrets
import signal
import subprocess
import sys
import tempfile

from jaxalign.errors import ConfigError

CHILD = pathlib.Path(__file__).with_name("code_child.py")
KERNEL = {"landlock", "seccomp"}
_FENCED = re.compile(r"^```([^`\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
WALL = 3
LANGUAGES = ("", "python", "py", "python3")


class UnitTests:
    """1 where the response's program passes all unit tests of its row, else 0.

    A program that loops, forks, hogs memory, or reaches for the network or for files is ended or refused, and scores as
    what it did not pass. The module's text says what holds it back and what does not.

    Args:
      seconds: processor time of a program with all its tests, whole seconds. Of wall time it gets WALL times as much,
        so that a busy machine makes no program wrong.
      memory_mib: address space.
      credit: "all" (1 or 0) or "share" (of the tests that pass; 0 where the program does not come to its end).
      workers: programs at a time; 0 is the number of cores.
      isolation: "kernel" refuses to start where seccomp or Landlock is missing, "python" does with what there is.
    The answer is JSON text, {"tests": ["assert f(1) == 2", …], "setup": "…"}, as the data shape `mbpp` gives it. The
    program is the last block fenced by ```, or the whole response.
    """

    def __init__(self, *, seconds=4, memory_mib=512, credit="all", workers=0, isolation="kernel"):
        if credit not in ("all", "share") or isolation not in ("kernel", "python"):
            raise ConfigError(f"code: credit={credit!r}, isolation={isolation!r}; expected 'all' or 'share', and "
                              "'kernel' or 'python'")
        if seconds < 1 or seconds != int(seconds) or memory_mib < 64:
            raise ConfigError(f"code: seconds={seconds} must be whole and at least 1, memory_mib={memory_mib} at least "
                              "64")
        self.seconds, self.memory, self.credit = int(seconds), int(memory_mib) << 20, credit
        self.timeout = WALL * seconds + 5.0  # of a row, for the one who runs this
        self.workers = workers or os.cpu_count() or 1
        self._check(isolation)

    def __call__(self, responses, answers):
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._score, responses, answers))

    def _score(self, response, answer):
        try:
            job = json.loads(answer)
            tests, setup = list(job["tests"]), job.get("setup", "")
        except (ValueError, TypeError, KeyError, AttributeError):
            tests = []
        if not tests:
            return None  # the row's fault, not the response's
        passed = run_tests(program_of(response), tests, setup, seconds=self.seconds, memory=self.memory)
        return sum(passed) / len(tests) if self.credit == "share" else float(len(tests) == sum(passed))

    def _check(self, isolation):
        seen = layers(self.seconds, self.memory)
        if seen is None:
            raise ConfigError(f"code: a program that does nothing did not come to its end; raise "
                              f"seconds={self.seconds} or memory_mib={self.memory >> 20}")
        if isolation == "kernel" and KERNEL - set(seen):
            raise ConfigError(f"code: this system lacks {' and '.join(sorted(KERNEL - set(seen)))}, so what the policy "
                              "writes would be held back by Python alone; run in a container or on a Linux that has "
                              "them, or accept it with isolation=\"python\"")


def program_of(response):
    """The last block of a response that is fenced as Python or as nothing in particular, or all of it."""
    blocks = [text for language, text in _FENCED.findall(response) if language.strip().lower() in LANGUAGES]
    return blocks[-1] if blocks else response


def run_tests(code, tests, setup="", *, seconds, memory):
    """Whether each test passes: a list of booleans, empty where the program does not come to its end in time.

    Args:
      code, setup: Python, run before the tests in this order.
      tests: Python statements that raise where the program is wrong.
      seconds: processor time, whole seconds. memory: bytes of address space.
    """
    verdict = _run(code, tests, setup, seconds, memory)
    return verdict["results"] if verdict else []


@functools.cache
def layers(seconds=4, memory=512 << 20):
    """The kernel's layers that hold on this system, among `KERNEL`; None where not even an empty program runs."""
    verdict = _run("", [], "", seconds, memory)
    return tuple(verdict["layers"]) if verdict else None


def _run(code, tests, setup, seconds, memory):
    token = secrets.token_hex(16)  # a program that ends with exit code 0 has not passed for that
    job = {"code": code, "tests": tests, "setup": setup, "seconds": seconds, "memory": memory, "token": token}
    with tempfile.TemporaryDirectory(prefix="jaxalign-code-", ignore_cleanup_errors=True) as folder:
        # -P, -s, -S: nothing but the standard library can be imported; hashes are fixed, so that scores repeat.
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", str(CHILD), str(os.getpid())], cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "HOME": folder, "TMPDIR": folder, "PATH": os.defpath})
        try:
            process.communicate(json.dumps(job).encode(), timeout=WALL * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
            process.wait()
        try:
            with open(pathlib.Path(folder) / "verdict", "rb") as file:
                first, passed = file.read(1 << 20).split(b"\n")
                verdict = json.loads(first)
        except (OSError, ValueError):
            return None
    good = isinstance(verdict, dict) and verdict.get("token") == token and len(passed) in (0, len(tests))
    return {"layers": verdict["layers"], "results": [each == ord("1") for each in passed]} if good else None
