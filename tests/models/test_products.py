"""Products in 16 bits: as exact as their inputs, also in the gradient, and read from memory as they are."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.products import matmul

rng = np.random.default_rng(0)
M, I, O = 5, 512, 96


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_values_and_gradients_are_those_of_float64_but_for_one_rounding(dtype):
    x, W, weight = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((M, I), (I, O), (M, O)))
    value, pullback = jax.vjp(matmul, x, W)
    got = (value, *pullback(weight))
    chex.assert_type(got, dtype)
    exact = [np.asarray(v, np.float64) for v in (x, W, weight)]
    expected = exact[0] @ exact[1], exact[2] @ exact[1].T, exact[0].T @ exact[2]
    for a, b in zip(got, expected):
        # Sums of up to 512 terms: made in 16 bits they would be off by several roundings of their own size.
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=float(jnp.finfo(dtype).eps), atol=5e-5)


def test_a_kernel_in_bfloat16_is_not_widened_on_a_cpu():
    x, W = jnp.ones((M, I), jnp.bfloat16), jnp.ones((I, O), jnp.bfloat16)

    def widened(f):
        text = jax.jit(f).lower(x, W).compile().as_text()
        return re.findall(rf"f32\[{I},{O}\]", text)

    if jax.default_backend() != "cpu" or not widened(lambda x, W: x @ W):
        pytest.skip("this compiler does not widen the kernels of plain products either")
    assert not widened(matmul)
    assert not widened(lambda x, W: jax.grad(lambda x: (matmul(x, W).astype(jnp.float32) ** 2).sum())(x))
