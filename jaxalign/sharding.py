"""Meshes and the one table that maps logical parameter axes to mesh axes.

Every parameter declares its logical axes where it is made (`nnx.Param(..., out_sharding=("embed", "mlp"))`).
Changing the parallelism of a run is changing `RULES`, or the sizes of the mesh; no model code knows of either.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor")

# logical axis → mesh axis. `data` only ever splits batches; `fsdp` splits batches and parameters; `tensor` splits
# the axes inside a matrix product.
RULES = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": None,
    "layers": None,
    "norm": None,
    "rank": None,  # of an adapter
}

BATCH_SPEC = PartitionSpec(("data", "fsdp"))


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
    """A mesh with axes (data, fsdp, tensor); one of the sizes may be -1 and takes what is left.

    Axes are `Auto`: the compiler places the intermediate values. (`Explicit`, JAX's default, refuses
    `embed[tokens]` and gradients whose sharding differs from their parameter's.)
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [int(data), int(fsdp), int(tensor)]
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise ConfigError(f"mesh sizes data={data} fsdp={fsdp} tensor={tensor}: expected positive numbers and at most one -1")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    needed = int(np.prod(sizes))
    if needed > len(devices):
        raise ConfigError(f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} needs {needed} devices, "
                          f"this machine has {len(devices)}; use smaller sizes, or -1 for one of them")
    grid = np.asarray(devices[:needed]).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def partition_spec(names, shape, mesh: Mesh, rules=None) -> PartitionSpec:
    """The PartitionSpec of one parameter; an axis whose length the mesh axis does not divide stays whole."""
    rules = RULES if rules is None else rules
    used, spec = set(), []
    for name, length in zip(names or (), shape):
        if name is not None and name not in rules:
            raise ConfigError(f"logical axis {name!r} has no rule; rules exist for {sorted(rules)}")
        axis = rules.get(name) if name is not None else None
        fits = axis is not None and axis not in used and length % mesh.shape[axis] == 0
        spec.append(axis if fits else None)
        used.add(axis if fits else None)
    return PartitionSpec(*spec)


def shardings(tree, mesh: Mesh, rules=None):
    """The NamedSharding of every leaf of an `nnx.State` (or any tree holding states); leaves without names replicate.

    The result has the tree's own structure, each variable's value replaced by its sharding, so that it can be given
    to `jax.jit(..., out_shardings=...)`.
    """

    def of(variable):
        if not hasattr(variable, "get_metadata"):
            return NamedSharding(mesh, PartitionSpec())
        names = variable.get_metadata().get("out_sharding")
        # Of a value in parts, as numbers and their scales, each; of none, where an optimizer does not treat a parameter.
        return variable.replace(jax.tree.map(
            lambda x: NamedSharding(mesh, partition_spec(names, x.shape, mesh, rules)), variable.get_value()))

    return jax.tree.map(of, tree, is_leaf=lambda leaf: hasattr(leaf, "get_metadata"))


def placed(abstract, mesh: Mesh):
    """Shapes with the shardings that `shardings` gives them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings(abstract, mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split along their first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH_SPEC)


def put_batch(batch, mesh: Mesh):
    """A tree of numpy arrays as arrays over the mesh, rows split; of several processes each gives its own rows."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def gathered(tree):
    """Arrays over the mesh as numpy arrays, in every process all of their rows."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def wait_for_all(where):
    """Waits until every process has come to the same place, a name for errors."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def look_up(table_VD, tokens_BT):
    """`table[tokens]`, each device looking up its own rows: in the mesh of `jax.set_mesh`, if there is one.

    Left to itself, the compiler splits the result as the table is split, by columns, and drags that through the layers.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(MESH_AXES) <= set(mesh.axis_names) or tokens_BT.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return table_VD[tokens_BT]
    # As with every other matrix under fsdp, the columns come together before use.
    table_VD = jax.lax.with_sharding_constraint(table_VD, partition_spec(("vocab", None), table_VD.shape, mesh))
    return jax.lax.with_sharding_constraint(table_VD[tokens_BT], BATCH_SPEC)


def by_rows(x, axis, heads):
    """`x` with an axis of rows split as batches are, another as key-value heads are, in the mesh of `jax.set_mesh`, if there is
    one and it divides the rows; the others are the compiler's."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(MESH_AXES) <= set(mesh.axis_names) or x.shape[axis] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = BATCH_SPEC[0]
    spec[heads], = partition_spec(("kv_heads",), x.shape[heads:heads + 1], mesh)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
