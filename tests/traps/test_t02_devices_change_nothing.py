"""t02: the number of devices changes the loss. One device, eight of them in any arrangement, and two processes give the
same loss and the same gradient."""

import pathlib

import jax
import numpy as np
import pytest
from test_sharding import same, stepped
from two_processes import run_in_two

PROCESS = """
folder, tests = given
sys.path.insert(0, tests)
import numpy as np, test_sharding
from jaxalign.sharding import make_mesh, put_batch
mesh = make_mesh(data=4)
whole = test_sharding.batch()
mine = {name: value[number * 8:(number + 1) * 8] for name, value in whole.items()}  # each reads its own rows
loss, after = test_sharding.one_step(mesh, mine)[:2]
if number == 0:
    np.savez(folder + "/got.npz", loss, *[np.asarray(leaf) for leaf in jax.tree.leaves(after)])
"""


@pytest.mark.parametrize("sizes", [
    dict(data=8), dict(fsdp=4, tensor=2), pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow)])
def test_t02_eight_devices_give_the_gradient_of_one(sizes):
    several, one = stepped(**sizes), stepped(data=1)
    assert several[0] == pytest.approx(one[0], rel=1e-5)  # the loss; and the gradient, leaf by leaf:
    same(several, one)


def test_t02_two_processes_give_the_gradient_of_one(tmp_path):
    run_in_two(PROCESS, tmp_path, pathlib.Path(__file__).parents[1], timeout=600)
    loss, *gradient = np.load(tmp_path / "got.npz").values()
    one = stepped(data=1)
    assert float(loss) == pytest.approx(one[0], rel=1e-5)
    same((float(loss), gradient), (one[0], jax.tree.leaves(one[1])))
