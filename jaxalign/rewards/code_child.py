"""Runs one program with its tests and nothing else: started by `code.py` as a script, in a process of its own.

Standard library only, and no import of the package: it starts in a hundredth of a second. Reads a job as JSON from
standard input, gives up what it does not need, runs, and writes what it saw to the file `verdict`.
"""

import builtins
import json
import os
import platform
import struct
import sys
import types

# Kernel's numbers of what no answer needs: sockets; processes and threads; other programs; signals and looks at other
# processes; limits, name spaces, and ways around a filter.
REFUSED = {
    "x86_64": (0xC000003E, (41, 53, 56, 57, 58, 435, 59, 322, 62, 200, 234, 129, 297, 424, 434, 101, 310, 311, 302, 160,
                            272, 308, 165, 425, 321)),
    "aarch64": (0xC00000B7, (198, 199, 220, 435, 221, 281, 129, 130, 131, 138, 240, 424, 434, 117, 270, 271, 261, 164,
                             97, 268, 40, 425, 280)),
}
# The same, and what could undo the rest, as Python names it in its audit events.
EVENTS = ("socket.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.", "pty.", "os.kill",
          "signal.pthread_kill", "_thread.start_new", "resource.", "ctypes.", "gc.get_", "code.__new__", "sqlite3.",
          "syslog.", "sys.settrace", "sys.setprofile", "sys.monitoring.")
MODULES = ("ctypes", "_ctypes", "_posixsubprocess")
LOOKING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.chdir")
READABLE = (sys.base_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero",
            "/dev/urandom", "/dev/random")


def main():
    job = json.load(sys.stdin)
    verdict = os.open("verdict", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    limit(job["seconds"], job["memory"])
    follow_parent(int(sys.argv[1]))
    folder = os.path.realpath(os.getcwd())
    layers = close_files(folder) + close_calls()
    close_python(folder)
    # All that is called after the program has run is held here, not looked up where the program may have put its own.
    write, leave, first = os.write, os._exit, json.dumps({"token": job["token"], "layers": layers}).encode()
    write(verdict, first + b"\n" + run(job["code"], job["setup"], job["tests"]))
    leave(0)  # no clean-up that the program may have asked for


def run(code, setup, tests):
    """Whether each test passes, after program and setup: b"1" or b"0" for each; b"" where those do not come to their end."""
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses look their module up
    space, names, everything, execute, read = module.__dict__, builtins.__dict__, BaseException, exec, compile
    before, results = dict(names), []
    try:
        execute(read(code, "program", "exec"), space)
        execute(read(setup, "setup", "exec"), space)
    except everything:  # SystemExit and KeyboardInterrupt are faults of the program too
        return b""
    for test in tests:
        names.update(before)  # no test is judged by an `exec` or a `sorted` of the program's making
        space["__builtins__"] = names
        try:
            execute(read(test, "test", "exec"), space)
            results.append(b"1")
        except everything:
            results.append(b"0")
    return b"".join(results)


def limit(seconds, memory):
    """Soft and hard limits: processor seconds, bytes of memory, of a file, open files, processes (not for root)."""
    import resource

    wanted = {"CPU": seconds, "AS": memory, "FSIZE": 16 << 20, "NOFILE": 32, "NPROC": 0, "CORE": 0}
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):  # some systems do not let memory be limited
                pass


def libc():
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def follow_parent(parent):
    """On Linux it dies with the one who started it, process `parent`; a killed trainer leaves no sleepers behind."""
    if sys.platform.startswith("linux"):
        libc().prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)


def close_files(folder):
    """Landlock (Linux 5.13): reads the library, reads and writes the folder, no other file; ["landlock"] if so."""
    import ctypes

    if not sys.platform.startswith("linux"):
        return []
    call, long = libc().syscall, ctypes.c_long
    version = call(long(444), None, long(0), long(1))  # landlock_create_ruleset, asking for its version
    if version < 1:
        return []
    every = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    execute, write_file, read_file, read_folder = 1, 2, 4, 8
    rules = call(long(444), struct.pack("Q", every), long(8), long(0))
    for path in (folder, *READABLE):
        if not os.path.exists(path):
            continue
        rights = every if path == folder else execute | read_file | read_folder
        if not os.path.isdir(path):
            rights = read_file | write_file if path == os.devnull else read_file
        place = os.open(path, os.O_PATH)
        call(long(445), long(rules), long(1), struct.pack("<Qi", rights, place), long(0))  # landlock_add_rule
        os.close(place)
    libc().prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return ["landlock"] if rules >= 0 and call(long(446), long(rules), long(0)) == 0 else []  # landlock_restrict_self


def close_calls():
    """Seccomp (Linux): the kernel answers EPERM to the calls in `REFUSED`; ["seccomp"] if it holds."""
    import ctypes

    if not sys.platform.startswith("linux") or platform.machine() not in REFUSED:
        return []
    architecture, numbers = REFUSED[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # instructions of the classic packet filter
    refuse, end, allow = 0x00050001, 0x80000000, 0x7FFF0000  # EPERM; end the process; let it through
    n = len(numbers)
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, end), (load, 0, 0, 0),
             (at_least, n + 1, 0, 0x40000000)]  # x86's second set of numbers
    lines += [(equal, n - k, 0, number) for k, number in enumerate(numbers)]  # each jumps to the last line
    lines += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    where = struct.pack("HP", len(lines), ctypes.addressof(program))
    library = libc()
    library.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return ["seccomp"] if library.prctl(22, 2, where, 0, 0) == 0 else []  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def close_python(folder):
    """Python's own refusal of the same, where the kernel has none of it; cannot be taken back."""
    for name in MODULES:
        sys.modules.pop(name, None)
    realpath, decode = os.path.realpath, os.fsdecode
    readable = tuple(realpath(path) for path in (folder, *READABLE))

    def inside(path, folders):
        if isinstance(path, int):
            return True
        path = realpath(decode(path))
        return any(path == each or path.startswith(each + os.sep) for each in folders)

    def refuse(event, arguments):
        if event.startswith(EVENTS):
            raise PermissionError(f"{event} is not allowed here")
        if event == "import" and (arguments[0] in MODULES or arguments[1] and not inside(arguments[1], readable[1:])):
            raise PermissionError(f"import of {arguments[0]} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if not inside(path, (folder, os.devnull) if writes else readable):
                raise PermissionError(f"{path!r} is not allowed here")
        elif event.startswith("os.") and event not in ("os.putenv", "os.unsetenv"):
            folders = readable if event in LOOKING else (folder,)
            if not all(inside(path, folders) for path in arguments if isinstance(path, (str, bytes))):
                raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    main()
