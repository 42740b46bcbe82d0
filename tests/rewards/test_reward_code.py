"""Programs that a policy wrote: right ones pass, and whatever else they try costs their own row."""

import ctypes
import json
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxalign.errors import ConfigError
from jaxalign.rewards import REWARDS, code
from jaxalign.rewards.code import CHILD, UnitTests, layers, program_of, run_tests
from jaxalign.rewards.run import Rewards

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")
TWO = json.dumps({"tests": ["assert f(1) == 2", "assert f(2) == 3"], "setup": ""})


def kernel_has_both():
    """Asked of the system itself, not of the code that is tested."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        return False
    landlock = ctypes.CDLL(None).syscall(ctypes.c_long(444), None, ctypes.c_long(0), ctypes.c_long(1))
    return landlock > 0 and "\nSeccomp:" in pathlib.Path("/proc/self/status").read_text()


kernel = pytest.mark.skipif(not kernel_has_both(), reason="this system has no seccomp or no Landlock")


def passes(program, tests=("pass",), **options):
    return run_tests(program, list(tests), **dict(dict(seconds=2, memory=256 << 20), **options))


def units(**options):
    return UnitTests(**dict(dict(isolation="python", workers=2), **options))


def test_a_program_is_right_where_all_its_tests_pass():
    fenced = "Like this:\n```python\ndef f(n):\n    return n + 1\n```\nor so."
    responses = [fenced, "def f(n): return n + 1", "def f(n): return 2", "def f(n) return", "", "```\nf = 1\n```"]
    assert units()(responses, [TWO] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert units(credit="share")(responses, [TWO] * 6) == [1.0, 1.0, 0.5, 0.0, 0.0, 0.0]


def test_the_last_fenced_block_is_the_program():
    assert program_of("```py\na\n```\nand\n```Python\nb\nc\n```") == "b\nc\n"
    assert program_of("```json\n{}\n```\n```\na\r\n```") == "a\r\n"
    assert program_of("a = 1") == "a = 1"


@pytest.mark.parametrize("program", [
    "import builtins; builtins.exec = lambda *a, **k: None",
    "import builtins; builtins.compile = lambda *a, **k: ''",
    "__builtins__['exec'] = lambda *a: None",
    "globals()['__builtins__'] = {'f': lambda n: n + 1, 'sorted': lambda x: [3]}\nf = None",
    "import json; json.JSONEncoder.encode = lambda *a: '{}'; json.dumps = lambda *a: '{}'",
    "import builtins; builtins.BaseException = ()",
    "import builtins; builtins.sorted = lambda x: [3]",
    "import os; os.write(3, b'{}\\n1')",
    "import sys; sys.settrace(lambda *a: None)",
])
def test_a_program_that_meddles_with_its_judge_is_not_right_for_that(program):
    assert not any(passes(program, ["assert f(1) == 2", "assert sorted([1, 2]) == [3]"]))


def test_names_of_python_are_its_own_again_before_each_test():
    meddles = "import builtins\ndef f(n):\n    builtins.len = lambda x: 7\n    return n + 1"
    assert passes(meddles, ["assert f(1) == 2", "assert len([]) == 0"]) == [True, True]


def test_setup_comes_after_the_program_and_before_the_tests():
    assert passes("class Node:\n    pass", ["assert n and isinstance(n, Node)"], setup="n = Node()") == [True]
    assert passes("x = 1", ["assert x == 1"], setup="1 / 0") == []


@pytest.mark.parametrize("answer", ["", "5", "{}", '{"tests": []}', '{"tests": 1}', "null"])
def test_a_row_without_tests_is_a_fault_of_the_row(answer):
    rows = [{"prompt": "", "answer": answer}, {"prompt": "", "answer": TWO}]
    rewards = Rewards([dict(name="code", isolation="python", failed=-1.0)], REWARDS)
    total, figures = rewards(rows, ["def f(n): return n + 1"] * 2, np.ones(2, bool), lambda line: None)
    np.testing.assert_array_equal(total, [-1.0, 1.0])
    assert figures["reward/code/failed"] == 1.0


WHAT_PROGRAMS_NEED = """
from __future__ import annotations
import bisect, collections, copy, csv, dataclasses, datetime, decimal, enum, fractions, functools, hashlib, heapq, io
import itertools, json, math, os, operator, pathlib, random, re, statistics, string, tempfile, threading, time, typing
import unittest
@dataclasses.dataclass
class Point:
    x: int
    y: typing.ClassVar[int] = 1
Pair = collections.namedtuple("Pair", "a b")
assert Point(1).x == 1 and Pair(1, 2).b == 2 and hashlib.sha256(b"").digest() and sorted([2, 1]) == [1, 2]
with open("notes.txt", "w") as file:
    file.write("kept")
assert open("notes.txt").read() == "kept" and os.listdir(".")
with tempfile.TemporaryFile() as file:
    file.write(b"x")
print("output goes nowhere", input.__name__)
"""


def test_an_honest_program_has_what_it_needs():
    assert passes(WHAT_PROGRAMS_NEED.lstrip()) == [True]
    assert passes("x = [' ' * 10 ** 6 for _ in range(100)]") == [True]
    assert passes("print(hash('a'))\nh = hash('a')", ["assert h == " + str(hashed())]) == [True]  # scores repeat


def hashed():
    made = subprocess.run([sys.executable, "-c", "print(hash('a'))"], env={"PYTHONHASHSEED": "0"}, capture_output=True)
    return int(made.stdout)


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "secret").write_text("secret")
    return tmp_path


@pytest.fixture
def server():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.05)
        yield listening


ATTEMPTS = {
    "endless loop": "while True: pass",
    "endless sleep": "import time\ntime.sleep(600)",
    "endless output": "while True: print('x' * 10 ** 6)",
    "fork": "import os\nos.fork()",
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that goes on": "import os\nwhile True:\n    try: os.fork()\n    except BaseException: pass",
    "other program": "import subprocess\nsubprocess.run(['touch', '{outside}/touched'])",
    "shell": "import os\nassert os.system('touch {outside}/touched') == 0",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "low-level fork": "import _posixsubprocess",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "memory at once": "x = bytearray(10 ** 10)",
    "memory by and by": "x = []\nwhile True: x.append(bytearray(10 ** 7))",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
    "network from the library": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')",
    "read outside": "open('{outside}/secret').read()",
    "read outside, relative": "import os\nopen(os.path.relpath('{outside}/secret')).read()",
    "read outside by a link": "import os\nos.symlink('{outside}/secret', 'link')\nopen('link').read()",
    "read the environment": "open('/proc/self/environ').read()",
    "write outside": "open('{outside}/written', 'w').write('x')",
    "overwrite outside": "open('{outside}/secret', 'a').write('x')",
    "delete outside": "import os\nos.remove('{outside}/secret')",
    "folder outside": "import os\nos.mkdir('{outside}/made')",
    "database outside": "import sqlite3\nsqlite3.connect('{outside}/made.db')",
    "large file": "f = open('a', 'wb')\nwhile True: f.write(b'x' * 10 ** 6)",
    "signal to the parent": "import os\nos.kill(os.getppid(), 9)",
    "more memory again": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "foreign functions": "import ctypes\nctypes.CDLL(None).fork()",
    "the trainer's own packages": "import numpy",
    "exit as if all was well": "import sys\nsys.exit(0)",
    "leave as if all was well": "import os\nos._exit(0)",
    "its own verdict": "open('verdict', 'w').write('{{\"results\": [true]}}')\nimport os\nos._exit(0)",
    "endless recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): return f()\nf()",
    "deep nesting": "x = " + "(" * 10 ** 5 + "1" + ")" * 10 ** 5,
    "no Python": "def",
    "null byte": "a = 1\0",
    "half a character": "a = '\ud800'",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_costs_its_row_only(name, outside, server, monkeypatch, tmp_path_factory):
    inside = tmp_path_factory.mktemp("inside")
    monkeypatch.setattr("tempfile.tempdir", str(inside))
    program = ATTEMPTS[name].format(outside=outside, port=server.getsockname()[1])
    began = time.monotonic()
    answer = json.dumps({"tests": ["pass"]})
    said = []
    rewards = Rewards([dict(name="code", isolation="python", seconds=1, memory_mib=256)], REWARDS)
    total, figures = rewards([{"prompt": "", "answer": answer}] * 2, [program, "x = 1"], np.ones(2, bool), said.append)
    np.testing.assert_array_equal(total, [0.0, 1.0])
    assert figures["reward/code/failed"] == 0 and not said  # a wrong answer, no fault of the reward
    assert time.monotonic() - began < 15
    assert os.listdir(outside) == ["secret"] and (outside / "secret").read_text() == "secret"
    with pytest.raises(TimeoutError):
        server.accept()
    assert not running(inside) and not os.listdir(inside)


def running(folder):
    """Processes that work below a folder."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cwd"):
        try:
            found += [path] if os.readlink(path).startswith(str(folder)) else []
        except OSError:
            pass
    return found


KERNEL_ONLY = """
import os, socket, sys
sys.path.insert(0, {folder!r})
import code_child
code_child.limit = code_child.close_python = None
layers = code_child.close_files(os.path.realpath('.')) + code_child.close_calls()
assert layers == ['landlock', 'seccomp'], layers
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def refused(call):
    try:
        done = call()
    except OSError:
        return True
    return done == -1 and ctypes.get_errno() in (1, 13)
held = dict(
    fork=refused(os.fork), c_fork=refused(libc.fork),
    spawn=refused(lambda: os.spawnv(os.P_WAIT, '/bin/true', ['true'])),
    execute=refused(lambda: os.execv('/bin/true', ['true'])), socket=refused(socket.socket),
    local_socket=refused(lambda: socket.socket(socket.AF_UNIX)), kill=refused(lambda: os.kill(os.getppid(), 0)),
    read=refused(lambda: open({outside!r} + '/secret')),
    c_read=refused(lambda: libc.open({outside!r}.encode() + b'/secret', 0)),
    write=refused(lambda: open({outside!r} + '/written', 'w')),
    remove=refused(lambda: os.remove({outside!r} + '/secret')),
    library=refused(lambda: open(os.path.join(sys.base_prefix, 'jaxalign-written'), 'w')),
    make=refused(lambda: os.mkdir({outside!r} + '/made')), process=refused(lambda: open('/proc/self/environ')))
open('inside', 'w').close()
os.remove('inside')
print([name for name, good in held.items() if not good])
"""


@kernel
def test_the_kernel_alone_holds_what_python_is_told_to_hold(outside, tmp_path):
    """Root too, and by way of C."""
    inside = tmp_path / "inside"
    inside.mkdir()
    program = KERNEL_ONLY.format(folder=str(CHILD.parent), outside=str(outside))
    made = subprocess.run([sys.executable, "-S", "-B", "-c", program], cwd=inside, capture_output=True, text=True)
    assert made.stdout == "[]\n", made.stderr
    assert sorted(os.listdir(outside)) == ["inside", "secret"]


def test_python_alone_holds_it_where_the_kernel_has_nothing(monkeypatch, tmp_path, outside, server):
    source = CHILD.read_text()
    assert "layers = close_files(folder) + close_calls()" in source
    child = tmp_path / "code_child.py"
    child.write_text(source.replace("layers = close_files(folder) + close_calls()", "layers = []"))
    monkeypatch.setattr(code, "CHILD", child)
    layers.cache_clear()
    assert layers() == ()
    with pytest.raises(ConfigError, match="this system lacks landlock and seccomp, .*isolation=\"python\""):
        UnitTests()
    os.remove(child)
    layers.cache_clear()
    with pytest.raises(ConfigError, match="a program that does nothing did not come to its end"):
        units()
    child.write_text(source.replace("layers = close_files(folder) + close_calls()", "layers = []"))
    assert passes("x = 1") == [True]
    for name in ATTEMPTS:
        if name.startswith(("fork", "other", "shell", "exec", "low", "network", "read", "write", "overwrite", "delete",
                            "folder", "database", "signal", "foreign")) and name != "fork bomb that goes on":
            program = ATTEMPTS[name].format(outside=outside, port=server.getsockname()[1])
            assert passes(program, seconds=1) == [], name
    layers.cache_clear()
    assert (outside / "secret").read_text() == "secret" and not (outside / "touched").exists()


LIMITS = """
import resource, sys
sys.path.insert(0, {folder!r})
import code_child
code_child.limit(2, 1 << 28)
print([resource.getrlimit(getattr(resource, "RLIMIT_" + n)) for n in "CPU AS FSIZE NOFILE NPROC CORE".split()])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems may not let memory be limited")
def test_limits_hold_softly_and_hard():
    made = subprocess.run([sys.executable, "-S", "-B", "-c", LIMITS.format(folder=str(CHILD.parent))],
                          capture_output=True, text=True)
    expected = [2, 1 << 28, 16 << 20, 32, 0, 0]
    assert made.stdout == f"{[(value, value) for value in expected]}\n", made.stderr


def test_only_the_standard_library_can_be_imported():
    assert passes("import sys", ["assert not [p for p in sys.path if 'site-packages' in p or not p]"]) == [True]


TRAINER = """
from jaxalign.rewards.code import run_tests
print("started", flush=True)
run_tests("import time; time.sleep(60)", ["pass"], seconds=60, memory=1 << 28)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a sleeper outlives a killed trainer")
def test_a_killed_trainer_leaves_nothing_behind(tmp_path):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True,
                               env=dict(os.environ, PYTHONPATH=str(CHILD.parents[2]), TMPDIR=str(tmp_path)))
    assert trainer.stdout.readline() == "started\n"
    assert eventually(lambda: len(running(tmp_path)) == 1)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    assert eventually(lambda: not running(tmp_path))


def eventually(holds, seconds=20):
    end = time.monotonic() + seconds
    while not (done := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


@kernel
def test_nothing_less_than_the_kernel_is_the_default():
    assert UnitTests().workers >= 1


@pytest.mark.parametrize("options, words", [
    (dict(credit="some"), "credit='some'"), (dict(isolation="none"), "isolation='none'"),
    (dict(seconds=0.5), "seconds=0.5 must be whole"), (dict(memory_mib=1), "at least 64")])
def test_wrong_options(options, words):
    with pytest.raises(ConfigError, match=words):
        units(**options)


def test_mbpp_as_published(shared_data):
    """Every published program passes its own tests, and none another task's."""
    from jaxalign.data.intake import check_sources, read_rows

    rows = list(read_rows(check_sources({"path": shared_data / "verifiable" / "mbpp.train.jsonl", "shape": "mbpp"})[0]))
    assert len(rows) == 374
    some = rows[::17]  # all 374: 374 right, 0 of another task's
    programs, answers = [row.record["code"] for row in some], [row.answer for row in some]
    judge = units(workers=0)
    assert judge(programs, answers) == [1.0] * len(some)
    assert judge(programs[1:] + programs[:1], answers) == [0.0] * len(some)
