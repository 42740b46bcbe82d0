"""How a published tensor holds our parameters: fused, transposed, with heads folded into rows; each way both ways.

A kernel of ours has its inputs' axes first; `fan_in` says how many those are. `shape` gives the published tensor's
shape, `read` takes it apart into arrays of our shapes, `write` puts those together again, bit for bit.
"""

import math
from typing import Callable, NamedTuple

import numpy as np


class Layout(NamedTuple):
    shape: Callable  # (our shapes, numbers of input axes) → published shape
    read: Callable  # (published array, our shapes, numbers of input axes) → our arrays
    write: Callable  # (our arrays, numbers of input axes) → published array


def _matrix(shape, inputs):
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def _linear_shape(shapes, inputs):
    sizes = [_matrix(shape, n) for shape, n in zip(shapes, inputs)]
    return sum(out for _, out in sizes), sizes[0][0]


def _linear_read(x, shapes, inputs):
    ends = np.cumsum([_matrix(shape, n)[1] for shape, n in zip(shapes, inputs)])
    return [part.T.reshape(shape) for part, shape in zip(np.split(x, ends[:-1]), shapes)]


def _linear_write(arrays, inputs):
    parts = [a.reshape(_matrix(a.shape, n)).T for a, n in zip(arrays, inputs)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _columns_shape(shapes, inputs):
    return _linear_shape(shapes, inputs)[::-1]


def _columns_read(x, shapes, inputs):
    return _linear_read(x.T, shapes, inputs)


def _columns_write(arrays, inputs):
    return _linear_write(arrays, inputs).T


def _vector_shape(shapes, inputs):
    return (sum(map(math.prod, shapes)),)


def _vector_read(x, shapes, inputs):
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(x, ends[:-1]), shapes)]


def _vector_write(arrays, inputs):
    return np.concatenate([a.reshape(-1) for a in arrays])


# Query, key and value of a head stand together, head after head: (N · 3 · H, D).
def _by_head_shape(shapes, inputs):
    rows = sum(shape[-2] * shape[-1] for shape in shapes)
    return (rows,) + ((shapes[0][0],) if inputs[0] else ())


def _by_head_read(x, shapes, inputs):
    heads, size = shapes[0][-2:]
    x = np.moveaxis(x.reshape(heads, len(shapes), size, *x.shape[1:]), 1, 0)  # (3, N, H, D)
    return [np.moveaxis(part, -1, 0) if inputs[0] else part for part in x]


def _by_head_write(arrays, inputs):
    parts = [np.moveaxis(a, 0, -1) if inputs[0] else a for a in arrays]
    x = np.stack(parts, axis=1)
    return x.reshape(-1, *x.shape[3:])


LAYOUTS = {
    "same": Layout(lambda shapes, inputs: shapes[0], lambda x, shapes, inputs: [x], lambda arrays, inputs: arrays[0]),
    "linear": Layout(_linear_shape, _linear_read, _linear_write),  # (outputs, inputs), as torch's Linear
    "columns": Layout(_columns_shape, _columns_read, _columns_write),  # (inputs, outputs), as GPT-2's Conv1D
    "vector": Layout(_vector_shape, _vector_read, _vector_write),
    "by_head": Layout(_by_head_shape, _by_head_read, _by_head_write),
}


def inputs_of(path, shape):
    """How many leading axes of a parameter of ours are inputs: of a bias none, of attention's output two."""
    if path.endswith("bias"):
        return 0
    return 2 if path.endswith("out/kernel") else 1
