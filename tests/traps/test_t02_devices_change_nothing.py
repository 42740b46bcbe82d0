"""t02: the number of devices changes the loss. One device, eight of them in any arrangement, and two processes give the
same loss and the same gradient."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_sharding import same, stepped

PROCESS = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
number, port, folder, tests = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + port, num_processes=2, process_id=number)
sys.path.insert(0, tests)
import numpy as np, test_sharding
from jaxalign.sharding import make_mesh, put_batch
mesh = make_mesh(data=4)
whole = test_sharding.batch()
mine = {name: value[number * 8:(number + 1) * 8] for name, value in whole.items()}  # each reads its own rows
loss, after = test_sharding.one_step(mesh, mine)[:2]
if number == 0:
    np.savez(folder + "/got.npz", loss, *[np.asarray(leaf) for leaf in jax.tree.leaves(after)])
jax.distributed.shutdown()
"""


@pytest.mark.parametrize("sizes", [
    dict(data=8), dict(fsdp=4, tensor=2), pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow)])
def test_t02_eight_devices_give_the_gradient_of_one(sizes):
    same(stepped(**sizes), stepped(data=1))


def test_t02_two_processes_give_the_gradient_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    tests = str(pathlib.Path(__file__).parents[1])
    running = [subprocess.Popen([sys.executable, "-c", PROCESS, str(n), port, str(tmp_path), tests], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for n in range(2)]
    try:
        said = [process.communicate(timeout=600)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    loss, *gradient = np.load(tmp_path / "got.npz").values()
    expected = stepped(data=1)
    same((float(loss), gradient), (expected[0], jax.tree.leaves(expected[1])))
