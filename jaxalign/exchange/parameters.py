"""Between published tensors and our stacked parameters, one tensor at a time, in both directions."""

import functools
import itertools
import math

import jax
import numpy as np
from flax import nnx

from jaxalign.errors import CheckpointError
from jaxalign.models.families import IGNORED
from jaxalign.models.families.layouts import LAYOUTS, inputs_of
from jaxalign.sharding import shardings
from jaxalign.train.checkpoint import flat_shapes

FLOATS = ("float32", "float16", "bfloat16")  # which float32 holds exactly


class Mapping:
    """Which published tensor holds what, for one model.

    Args:
      tensors: list of `families.names.Tensor`.
      config: `ModelConfig`.
      shapes: path → shape of our parameters, as they are stacked.

    Attributes: `published` (name → (`Tensor`, index into the leading axes of its parts)).
    """

    def __init__(self, tensors, config, shapes):
        self.shapes = shapes
        self.published, self.holders = {}, {}
        for tensor in tensors:
            ranges = [range(n) for key, n in (("{layer}", config.num_layers), ("{expert}", config.num_experts))
                      if key in tensor.name]
            for index in itertools.product(*ranges):
                name = tensor.name.format(**dict(zip(("layer", "expert"), index)))
                self.published[name] = tensor, index
                for n, part in enumerate(tensor.parts):
                    self.holders[part, index] = name, n

    def part_shapes(self, name):
        tensor, index = self.published[name]
        return [self.shapes[part][len(index):] for part in tensor.parts]

    def inputs(self, name):
        tensor, _ = self.published[name]
        return [inputs_of(part, shape) for part, shape in zip(tensor.parts, self.part_shapes(name))]

    def shape(self, name):
        """As published."""
        return tuple(LAYOUTS[self.published[name][0].layout].shape(self.part_shapes(name), self.inputs(name)))

    def take_apart(self, name, array):
        """Our arrays that a published one holds."""
        return LAYOUTS[self.published[name][0].layout].read(array, self.part_shapes(name), self.inputs(name))

    def put_together(self, name, leaves):
        """The published array of our stacked ones (path → array)."""
        tensor, index = self.published[name]
        return LAYOUTS[tensor.layout].write([leaves[part][index] for part in tensor.parts], self.inputs(name))


class Source:
    """A file's tensors under the names that a family's mapping has for them, checked before any is read.

    Args:
      files: has `names`, `shape(name)`, `dtype(name)`, `read(name)`.
      mapping: a `Mapping`.
      where: of errors.
      copies: names of tensors that may stand there beside the one they are tied to.

    Attributes: `dtypes` (published name → numpy dtype); `bare` (whether names lack their first part, as in files
    written of a model without its head); `copied` (those of `copies` that are there).
    """

    def __init__(self, files, mapping, where, copies=()):
        self.files, self.mapping, self.where = files, mapping, where
        wanted, known = mapping.published, set(files.names)
        self.name_of = {name: name if name in known or bare(name) not in known else bare(name) for name in wanted}
        self.bare = any(found != name for name, found in self.name_of.items())
        missing = sorted(name for name in wanted if self.name_of[name] not in known)
        extra = sorted(name for name in known - set(self.name_of.values()) if not name.endswith(IGNORED))
        self.copied = [name for name in copies if name in extra]
        for name in self.copied:
            self._check_copy(name)
        extra = [name for name in extra if name not in self.copied]
        problems = [f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
                    for what, names in (("missing:", missing), ("unknown:", extra)) if names]
        if problems:
            raise CheckpointError(f"{where}: the tensors are not those that config.json describes "
                                  f"({'; '.join(problems)}); the file or the config is another model's")
        for name in wanted:
            found, expected = tuple(files.shape(self.name_of[name])), mapping.shape(name)
            if found != expected:
                raise CheckpointError(f"{where}: {self.name_of[name]} has shape {list(found)}, config.json makes it "
                                      f"{list(expected)}; the file or the config is another model's")
        self.dtypes = {name: files.dtype(self.name_of[name]) for name in wanted}
        for name, dtype in self.dtypes.items():
            if dtype.name not in FLOATS:
                raise CheckpointError(f"{where}: {self.name_of[name]} is of type {dtype.name}; expected one of "
                                      f"{', '.join(FLOATS)}")

    def _check_copy(self, name):
        """Refuses a copy of the embedding that is none: what is tied has no output matrix of its own."""
        tied = next(self.name_of[n] for n, (t, _) in self.mapping.published.items() if t.parts[0].endswith("embed"))
        how = [(self.files.shape(n), self.files.dtype(n)) for n in (name, tied) if n in self.files.names]
        if len(how) < 2 or how[0] == how[1] and np.array_equal(self.files.read(name), self.files.read(tied)):
            return
        told = "other numbers" if how[0] == how[1] else f"{how[0][1].name} {list(how[0][0])} beside {how[1][1].name} {list(how[1][0])}"
        raise CheckpointError(f"{self.where}: {name} should be {tied} again, as in a model with tie_word_embeddings or a classifier, but they "
                              f"differ ({told}); set tie_word_embeddings to false in config.json if a language model has an output matrix of its "
                              "own, else delete that tensor")

    def part(self, path, index, slices):
        """A slice of one layer's (and expert's) part of a parameter, in its published type."""
        name, n = self.mapping.holders[path, index]
        return self.mapping.take_apart(name, self.files.read(self.name_of[name]))[n][slices]

    def leaf(self, path, slices):
        """A slice of a stacked parameter, float32, read tensor by tensor."""
        shape = self.mapping.shapes[path]
        stacked = next(len(index) for part, index in self.mapping.holders if part == path)
        ranges = [range(*s.indices(n)) for s, n in zip(slices, shape)]
        out = aligned([len(r) for r in ranges])
        for at in itertools.product(*(range(len(r)) for r in ranges[:stacked])):
            index = tuple(r[i] for r, i in zip(ranges, at))
            out[at] = self.part(path, index, tuple(slices[stacked:]))
        return out


def bare(name):
    """A tensor's name without its first part."""
    return name.partition(".")[2]


def aligned(shape):
    """An uninitialised float32 array that begins at a multiple of 64 bytes, so that JAX on a CPU need not copy it."""
    size = math.prod(shape) * 4
    buffer = np.empty(size + 64, np.uint8)
    first = -buffer.ctypes.data % 64
    return buffer[first:first + size].view(np.float32).reshape(shape)


def read_parameters(source, abstract, mesh, made=()):
    """An `nnx.State` read from a `Source`, each device reading what is its own.

    Args:
      abstract: the state with shapes for arrays.
      mesh: where it goes.
      made: paths of parameters that no file holds; they are zero.
    """
    placed = jax.tree.leaves(shardings(abstract, mesh))
    paths = list(flat_shapes(nnx.to_pure_dict(abstract)))
    leaves = []
    for path, sharding, leaf in zip(paths, placed, jax.tree.leaves(abstract)):
        read = (lambda slices, leaf=leaf: np.zeros(leaf.shape, leaf.dtype)[slices]) if path in made else (
            functools.partial(source.leaf, path))
        leaves.append(jax.make_array_from_callback(leaf.shape, sharding, read))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)
