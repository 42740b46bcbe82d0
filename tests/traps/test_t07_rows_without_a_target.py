"""t07: a batch without one target token gives NaN or a division by zero."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.pipeline import batches
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import DataError
from jaxalign.objectives.reduce import Term, reduce

TOKENIZER = Tokenizer.load(pathlib.Path(__file__).parents[1] / "golden" / "chat_tokenizer.model")
GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
WITHOUT = {
    "no assistant": {"messages": [{"role": "user", "content": "a"}]},
    "nothing trained": {"messages": [{"role": "user", "content": "a"},
                                     {"role": "assistant", "content": "b", "train": False}]},
    "an empty answer": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
    "all of it cut off": {"messages": [{"role": "user", "content": "fox " * 40},
                                       {"role": "assistant", "content": "b"}]},
}


@pytest.mark.parametrize("record", WITHOUT.values(), ids=WITHOUT)
def test_t07_a_row_without_a_target_is_refused_by_name(tmp_path, record):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(record) + "\n", encoding="utf-8")
    source, options = {"path": str(path), "shape": "messages"}, {"kind": "tokens", "batch_size": 2, "length": 24}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: expected ") as caught:
        batches(source, TOKENIZER, **options)
    assert caught.value.line == 2
    iterator = batches(source, TOKENIZER, on_bad_row="skip", packing="none", **options)
    assert [bad["line"] for bad in iterator.report.bad] == [2]
    assert (next(iterator)["mask_BT"].sum(axis=1) > 0).all()


def test_t07_the_reduction_is_finite_where_nothing_counts():
    values = jnp.array([[jnp.nan, jnp.inf, 1.0]])
    loss, grad = jax.value_and_grad(lambda v: reduce({"loss": Term(v, jnp.zeros_like(v))})[0])(values)
    assert loss == 0 and np.array_equal(grad, np.zeros((1, 3)))
