"""Code that two processes run together, each with two devices of its own."""

import pathlib
import socket
import subprocess
import sys

BEGIN = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
number, port, *given = int(sys.argv[1]), *sys.argv[2:]
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + port, num_processes=2, process_id=number)
"""
END = "\njax.distributed.shutdown()\n"


def run_in_two(code, *given, timeout):
    """What each of the processes said; a failure of either is the test's.

    Args:
      code: Python, in which `number` is the process's and `given` a list of texts.
      given: what it is given, as texts.
      timeout: seconds for each.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = [subprocess.Popen([sys.executable, "-c", BEGIN + code + END, str(n), port, *map(str, given)], text=True,
                                cwd=pathlib.Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
               for n in range(2)]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return said
