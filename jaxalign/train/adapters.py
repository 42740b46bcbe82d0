"""Checkpoints that hold adapters alone, and what those were trained beside.

Such a checkpoint's `meta` has "lora", the fields of a `LoraConfig`, and "base": where the frozen weights are, from the
workdir and as an absolute path, and their fingerprint.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.errors import CheckpointError
from jaxalign.models.heads import ScalarModel
from jaxalign.models.lora import LoraConfig, adapt, is_trained, merged, under
from jaxalign.models.quantized import held, quantized
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.sharding import make_mesh, placed
from jaxalign.train.checkpoint import find, load_params, read_meta, read_params

AT_ONCE = 2**30  # bytes: for fewer, what one by one takes in time is more than what it spares


def fingerprint(params):
    """Eight hex digits that another bit anywhere, or bits in another order, make others; however they are sharded.

        Σᵢ bits(xᵢ) · (2i + 1)  mod 2³², of every array, and these sums in turn
    """
    return _in_turn(jax.jit(lambda leaves: [_sum(x) for x in leaves])(jax.tree.leaves(params)))


@jax.jit
def _sum(x):
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    index, size = jnp.zeros((1,) * x.ndim, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(size % 2**32)
        size *= x.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def _in_turn(sums):
    return f"{sum(int(s) * (2 * i + 1) for i, s in enumerate(sums)) % 2**32:08x}"


def base_record(folder, mark, workdir):
    """What `meta` says of the frozen weights in `folder`, whose `fingerprint_of` is `mark`."""
    folder = pathlib.Path(folder).absolute()
    return {"path": str(folder), "from_workdir": os.path.relpath(folder, pathlib.Path(workdir).absolute()),
            "fingerprint": mark}


def fingerprint_of(folder, meta, params):
    """Of the policy in a checkpoint, which `load_params` gave as `params`."""
    if "lora" not in meta:
        return fingerprint(params)
    # Products are not the same to the last bit wherever they are computed: of what is merged, the parts are looked at.
    own = read_params(folder, meta, meta["policy"], abstract_adapters(meta, Transformer)[1])
    return f"{meta['base']['fingerprint']}+{fingerprint(own)}"


def load_frozen(folder, like, base):
    """(a checkpoint's policy as frozen weights in the type that `base` names, its `fingerprint_of`).

    What is quantised and larger than `AT_ONCE` is read one kernel at a time, so that never is it in memory as a whole
    before. (What is to be merged first is.)
    """
    _, meta = read_meta(folder)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
    if "lora" in meta or base == "float32" or size <= AT_ONCE:
        params = load_params(folder, meta["policy"], like)
        return quantized(params, base), fingerprint_of(folder, meta, params)
    sums = []

    def each(path, variable):
        sums.append(_sum(variable.get_value()))
        return held(path, variable, base)

    return read_params(folder, meta, meta["policy"], like, each), _in_turn(sums)


def abstract_adapters(meta, cls):
    """(graphdef, abstract state of what is trained) of a module under the adapters that `meta` describes."""
    model, lora = ModelConfig(**meta["model"]), LoraConfig(**meta["lora"])
    graphdef, whole = nnx.split(nnx.eval_shape(lambda: adapt(cls(model, rngs=nnx.Rngs(0)), lora, rngs=nnx.Rngs(0))))
    return graphdef, nnx.split_state(whole, is_trained, ...)[0]


def base_folder(folder, meta):
    """The folder of the checkpoint that the adapters in `folder` were trained beside. Raises CheckpointError."""
    base = meta["base"]
    workdir = pathlib.Path(folder).absolute().parents[1]  # WORKDIR/checkpoints/STEP: both may have been moved together
    for place in (workdir / base["from_workdir"], pathlib.Path(base["path"])):
        if (place / "meta").is_dir():
            return find(os.path.normpath(place))
    raise CheckpointError(f"{folder}: it holds adapters of {base['path']}, which is not there; put it back, or train "
                          "and export before a base is deleted or goes on training")


def load_base(folder, meta, like):
    """(folder, frozen weights of the `Transformer` under a checkpoint's adapters, their fingerprint).

    Raises:
      CheckpointError: it is gone, or another than the adapters were trained beside.
    """
    where = base_folder(folder, meta)
    frozen, found = load_frozen(where, like, meta["lora"]["base"])
    if found != meta["base"]["fingerprint"]:
        raise CheckpointError(f"{folder}: its adapters were trained beside weights with the fingerprint "
                              f"{meta['base']['fingerprint']}, {where} has {found}: it was trained anew since")
    return where, frozen, found


def load_merged(folder, meta, part, like):
    """`load_params` of a checkpoint of adapters: `like` is a plain `Transformer`'s or `ScalarModel`'s state; of its
    shardings the mesh is taken, its axes are shared out as everywhere."""
    scalar = "backbone" in like
    graphdef, abstract = abstract_adapters(meta, ScalarModel if scalar else Transformer)
    sharding = getattr(jax.tree.leaves(like)[0], "sharding", None)
    mesh = sharding.mesh if sharding else make_mesh(fsdp=-1, devices=jax.local_devices())
    like, abstract = placed(like, mesh), placed(abstract, mesh)
    trained = read_params(folder, meta, part, abstract)
    _, base, _ = load_base(folder, meta, like["backbone"] if scalar else like)
    frozen = under("backbone", base) if scalar else base
    # Of float32 each kernel takes the place of the one that it is made of, and no model is held twice.
    in_place = all(x.dtype == jnp.float32 for x in jax.tree.leaves(frozen))
    return jax.jit(lambda frozen, trained: merged(graphdef, nnx.merge_state(frozen, trained)),
                   out_shardings=jax.tree.map(lambda x: x.sharding, like),
                   donate_argnums=(0,) if in_place else ())(frozen, trained)
