"""t08, the model's side: a packed row's documents have the log-probabilities and gradients that they have alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIG, NAMES, documents, logp, rows, split

from jaxalign.data.folding import fold, unfold

SIZES = (7, 2, 9, 4)
WRITTEN = documents(SIZES)


# Rotations see differences of positions alone; an embedding of each position sees where a document begins.
LEARNED = dataclasses.replace(CONFIG, rope_fraction=0.0, learned_positions=20)


@pytest.fixture(scope="module", params=[CONFIG, LEARNED], ids=["rotary", "learned"])
def views(request):
    """(log-probabilities, their weighted sum's gradient) of one packed row, and of a row a document."""
    graphdef, params = split(request.param)
    weights = [np.random.default_rng(n).normal(size=size - 1) for n, size in enumerate(SIZES)]

    def view(batch, weight_BT):
        def total(params):
            logp_BT = logp(graphdef, params, batch)
            return jnp.sum(logp_BT * weight_BT), logp_BT

        (_, logp_BT), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
        return [np.asarray(logp_BT)[batch["segment_ids_BT"] > 0], gradient]

    packed, alone = rows(WRITTEN, 20, packed=True), rows(WRITTEN, 20)
    spread = np.zeros((4, 20))
    for n, weight in enumerate(weights):
        spread[n, :len(weight)] = weight
    return view(packed, np.pad(np.concatenate(weights), (0, 2))[None]), view(alone, spread)


def test_t08_packed_log_probabilities_are_those_of_each_document_alone(views):
    np.testing.assert_allclose(views[0][0], views[1][0], rtol=1e-5, atol=1e-5)


def test_t08_packed_gradients_are_those_of_each_document_alone(views):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), views[0][1], views[1][1])


def test_t08_rows_packed_for_the_forward_pass_alone_give_each_document_its_own():
    graphdef, params = split()
    batch = rows(WRITTEN, 20, starts=[3, 18, 0, 9])
    packed = fold(batch["tokens_BT"], batch["targets_BT"], batch["segment_ids_BT"], pad_id=0)
    folded = {name: packed[f"folded_{name[:-3]}_MS"] for name in (*NAMES, "targets_BT")}
    got, expected = (np.asarray(jax.jit(lambda p, b: logp(graphdef, p, b))(params, b)) for b in (folded, batch))
    got = np.asarray(unfold(got, packed["place_BU"]))[:, :-1]
    here = batch["segment_ids_BT"] > 0
    np.testing.assert_allclose(got[here], expected[here], rtol=1e-5, atol=1e-5)


def test_t08_no_gradient_crosses_a_border():
    graphdef, params = split()
    batch = rows(WRITTEN, 20, packed=True)

    def hidden(offset_TD):
        model = nnx.merge(graphdef, params)
        model._embedded = lambda tokens: model.embed[...][tokens] + offset_TD[None]
        return model(batch["tokens_BT"], batch["positions_BT"], batch["segment_ids_BT"])[0].sum(-1)

    reach = np.abs(jax.jit(jax.jacrev(hidden))(np.zeros((20, 16), np.float32))).max(-1)
    segment = batch["segment_ids_BT"][0]
    same = segment[:, None] == segment[None, :]
    assert np.all(reach[~same] == 0) and np.all(reach[np.tril(same)] > 0)
