"""An import in two processes: the checkpoint that one would write, though neither holds the whole model."""

import pathlib
import socket
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from published_models import config_of, write_model
from published_tokenizer import write_tokenizer

from jaxalign.exchange import import_model
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import Transformer
from jaxalign.train.checkpoint import load_params, read_meta

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

PROCESS = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
number, port, source, to = int(sys.argv[1]), *sys.argv[2:]
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + port, num_processes=2, process_id=number)
from jaxalign.exchange import import_model, importing
read = importing.read_parameters
def watched(*args, **options):
    params = read(*args, **options)
    leaves = jax.tree.leaves(params)
    print("HELD", sum(s.data.nbytes for x in leaves for s in x.addressable_shards) / sum(x.nbytes for x in leaves))
    return params
importing.read_parameters = watched
print("DONE", import_model(source, to)["parameters"])
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does_and_each_holds_its_half(tmp_path):
    write_model(tmp_path / "model", config_of("llama"), ml_dtypes.bfloat16)
    write_tokenizer(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = [subprocess.Popen([sys.executable, "-c", PROCESS, str(n), port, str(tmp_path / "model"), str(tmp_path / "two")],
                                text=True, cwd=pathlib.Path(__file__).parents[2], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT) for n in range(2)]
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    alone = import_model(tmp_path / "model", tmp_path / "one")
    for text in said:
        assert f"DONE {alone['parameters']}" in text
        assert float(text.split("HELD ")[1].split()[0]) < 0.55  # norms are whole everywhere
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "one", "two"]
    (one, meta_of_one), (two, meta_of_two) = (read_meta(tmp_path / name) for name in ("one", "two"))
    for each in (meta_of_one, meta_of_two):
        each.pop("lineage")  # where it lies
    assert meta_of_one == meta_of_two
    like = nnx.split(nnx.eval_shape(lambda: Transformer(ModelConfig(**meta_of_one["model"]), rngs=nnx.Rngs(0))))[1]
    jax.tree.map(np.testing.assert_array_equal, *(load_params(folder, "policy", like) for folder in (one, two)))
