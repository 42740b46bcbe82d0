"""Products of matrices in fewer than 32 bits, summed in float32."""

import jax
import jax.numpy as jnp


def matmul(x_MI, kernel_IO):
    """x · W in x's type; in bfloat16 and float16 each product, and those of its gradient, are summed in float32.

    Accelerators do that unasked, and JAX 0.12 does on a CPU. Its compiler of version 0.10 must be asked: else it widens both
    matrices first and reads them from memory as float32, which took 1.3 to 5 times as long where few rows meet a kernel, as in
    decoding. Asked so in the ordinary way, the gradient's products would meet a float32 matrix and be widened after all.

    Args:
      x_MI, kernel_IO: of one float dtype.
    """
    return (x_MI @ kernel_IO) if x_MI.dtype == jnp.float32 else _narrow(x_MI, kernel_IO)


@jax.custom_vjp
def _narrow(x_MI, kernel_IO):
    return _summed(x_MI, kernel_IO, 1, 0)


def _forward(x_MI, kernel_IO):
    return _summed(x_MI, kernel_IO, 1, 0), (x_MI, kernel_IO)


def _backward(kept, gradient_MO):
    x_MI, kernel_IO = kept
    return _summed(gradient_MO, kernel_IO, 1, 1), _summed(x_MI, gradient_MO, 0, 0)


_narrow.defvjp(_forward, _backward)


def _summed(a, b, axis_a, axis_b):
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32).astype(a.dtype)
