"""An import in two processes: the checkpoint that one would write, though neither holds the whole model."""

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from published_models import config_of, write_model
from published_tokenizer import write_tokenizer
from two_processes import run_in_two

from jaxalign.exchange import import_model
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import Transformer
from jaxalign.train.checkpoint import load_params, read_meta

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

PROCESS = """
source, to = given
from jaxalign.exchange import import_model, importing
read = importing.read_parameters
def watched(*args, **options):
    params = read(*args, **options)
    leaves = jax.tree.leaves(params)
    print("HELD", sum(s.data.nbytes for x in leaves for s in x.addressable_shards) / sum(x.nbytes for x in leaves))
    return params
importing.read_parameters = watched
print("DONE", import_model(source, to)["parameters"])
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does_and_each_holds_its_half(tmp_path):
    write_model(tmp_path / "model", config_of("llama"), ml_dtypes.bfloat16)
    write_tokenizer(tmp_path / "model")
    said = run_in_two(PROCESS, tmp_path / "model", tmp_path / "two", timeout=240)
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
