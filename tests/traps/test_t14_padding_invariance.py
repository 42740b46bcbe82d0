"""t14: the padding is attended to in the trainer's forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIG, documents, logp, rows, split

WRITTEN = documents((8, 5, 2))


@functools.cache
def run(config=CONFIG):
    graphdef, params = split(config)

    def total(params, batch):
        logp_BT = logp(graphdef, params, batch)
        return jnp.sum(logp_BT * batch["mask_BT"]), logp_BT

    gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
    return lambda batch: gradient(params, batch)


def view(length, starts=None, pad=0):
    """Log-probabilities of the documents' targets, and the gradient of their sum."""
    batch = rows(WRITTEN, length, starts=starts, pad=pad)
    (_, logp_BT), gradient = run()(batch)
    return np.asarray(logp_BT)[batch["mask_BT"] > 0], gradient


JUNK = np.random.default_rng(3).integers(0, CONFIG.vocab_size, (3, 12))
PADDINGS = {
    "right, other ids": dict(length=12, pad=JUNK),
    "left": dict(length=12, starts=[12 - 7, 12 - 4, 12 - 1]),
    "left, other ids": dict(length=12, starts=[12 - 7, 12 - 4, 12 - 1], pad=JUNK),
    "both sides": dict(length=12, starts=[3, 2, 6], pad=JUNK),
    "more of it": dict(length=24),
}


@pytest.mark.parametrize("padding", PADDINGS)
def test_t14_padding_changes_neither_log_probabilities_nor_gradients(padding):
    expected, gradient = view(12)
    got, other = view(**PADDINGS[padding])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), other, gradient)


@pytest.mark.parametrize("softcap", [0.0, 5.0])  # two forms of attention
def test_t14_a_row_of_padding_only_is_finite(softcap):
    batch = rows(WRITTEN, 12)
    batch = {name: np.concatenate([value, np.zeros_like(value[:1])]) for name, value in batch.items()}
    (total, logp_BT), gradient = run(dataclasses.replace(CONFIG, attention_softcap=softcap))(batch)
    assert np.isfinite(total) and np.all(np.isfinite(logp_BT))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
