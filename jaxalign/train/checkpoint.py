"""Checkpoints: all that the next stage, or the same stage tomorrow, needs, under one path.

    WORKDIR/checkpoints/STEP/params      the trainable parameters: of a model under adapters these and its heads alone
                             optimizer   optimizer state, step and key
                             beside      what else a stage keeps of the parameters' shape, if it does
                             meta        config, model shapes, tokenizer with its hash, lineage, data position; of
                                         adapters, their config and the checkpoint they were trained beside
"""

import base64
import contextlib
import hashlib
import pathlib

import jax
import orbax.checkpoint as ocp
from flax import nnx

from jaxalign.errors import CheckpointError
from jaxalign.train.state import TrainState

FOLDER = "checkpoints"
PART = 2**22  # bytes: a large array is compressed by so many at a time
FILE = 2**25  # bytes: what is compressed stays in memory until it fills a file


def plain(tree):
    """A tree of `nnx.State`s as nested dicts of arrays."""
    return jax.tree.map(nnx.to_pure_dict, tree, is_leaf=lambda node: isinstance(node, nnx.State))


def flat_shapes(tree):
    """{"policy/layers/attention/key/kernel": [[4, 128, 4, 32], "float32"], …} of a plain tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "key", k)) for k in path): [list(leaf.shape), str(leaf.dtype)]
            for path, leaf in leaves}


class Checkpointer:
    """Saves a stage's `TrainState` asynchronously and restores the newest.

    Args:
      workdir: the stage's folder.
      keep: how many checkpoints stay.
      at_once: bytes of parameters that are being written at a time, at least those of the largest; of these some `PART`s are
        there twice. None: all of them, which takes nearly as much memory again as they have.
    """

    def __init__(self, workdir, *, keep=1, at_once=None):
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        handlers, self._save_params = None, ocp.args.StandardSave
        if at_once is not None:
            # One more, for it refuses an array of just so many bytes.
            bounded = ocp.BasePyTreeCheckpointHandler(save_concurrent_bytes=at_once + 1)
            handlers = {"params": ocp.PyTreeCheckpointHandler(handler_impl=bounded),
                        "optimizer": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
            self._save_params = _in_parts
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, state: TrainState, meta, beside=None):
        """Starts writing; returns as soon as the arrays are copied. A broken-off save is never taken for a whole one."""
        params = plain(state.trainable)
        optimizer = _optimizer_item(state)
        meta = dict(meta, step=int(state.step), parameters=flat_shapes(params),
                    optimizer=flat_shapes(optimizer["state"]))
        more = {} if beside is None else {"beside": ocp.args.StandardSave(plain(beside))}
        self.manager.save(int(state.step), args=ocp.args.Composite(
            params=self._save_params(params), optimizer=ocp.args.StandardSave(optimizer),
            meta=ocp.args.JsonSave(meta), **more))

    def latest_step(self):
        return self.manager.latest_step()

    def restore(self, state: TrainState):
        """(state, meta) of the newest checkpoint, into the shapes and shardings of `state`."""
        step = self.latest_step()
        params = plain(state.trainable)
        optimizer = _optimizer_item(state)
        _, meta = read_meta(self.folder / str(step))
        compare(meta["parameters"], flat_shapes(params), self.folder / str(step))
        for name, (_, dtype) in flat_shapes(params).items():
            if meta["parameters"][name][1] != dtype:
                raise CheckpointError(f"{self.folder / str(step)}: {name} is {meta['parameters'][name][1]}, this config makes it "
                                      f"{dtype}; go on with the run's own config.lora.dtype, or start a new workdir with init_from")
        held, made = meta.get("optimizer"), flat_shapes(optimizer["state"])
        if held not in (None, made):
            raise CheckpointError(f"{self.folder / str(step)}: its optimizer holds {len(held)} arrays, "
                                  f"config.optimizer makes {len(made)}, not the same; go on with the optimizer of the "
                                  "run, or start a new workdir with init_from")
        with _readable(self.folder / str(step)):
            got = self.manager.restore(step, args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(params)),
                optimizer=ocp.args.StandardRestore(_abstract(optimizer))))
        restored = TrainState(
            step=got["optimizer"]["step"], trainable=refill(state.trainable, got["params"]),
            optimizer_state=refill(state.optimizer_state, got["optimizer"]["state"]),
            key=jax.random.wrap_key_data(got["optimizer"]["key"]))
        return restored, meta

    def restore_beside(self, like):
        """What the newest checkpoint holds beside the trainable parameters, as a tree like `like`; None if nothing."""
        folder = self.folder / str(self.latest_step())
        if not (folder / "beside").is_dir():
            return None
        with _readable(folder):
            got = self.manager.restore(self.latest_step(), args=ocp.args.Composite(
                beside=ocp.args.StandardRestore(_abstract(plain(like)))))
        return refill(like, got["beside"])

    def close(self):
        """Waits until what was saved is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()


def _in_parts(params):
    return ocp.args.PyTreeSave(params, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PART), params),
                               ocdbt_target_data_file_size=FILE)


def _optimizer_item(state):
    # By number, not by name: optax nests tuples and masks, and the state is only ever restored into its own kind.
    leaves = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state.optimizer_state))}
    return {"state": leaves, "step": state.step, "key": jax.random.key_data(state.key)}


def refill(tree, arrays):
    """`tree` with the arrays of a plain tree of the same structure in place of its own."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(arrays))


def compare(found, expected, where):
    """Refuses a checkpoint whose parameters are not the expected ones, naming the first few that differ."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    other = [f"{name} is {found[name][0]}, expected {expected[name][0]}"
             for name in sorted(set(found) & set(expected)) if found[name][0] != expected[name][0]]
    parts = [f"{what} {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
             for what, names in (("missing:", missing), ("unexpected:", unexpected), ("other shape:", other)) if names]
    if parts:
        raise CheckpointError(f"{where}: the parameters are not this model's ({'; '.join(parts)}); "
                              "set config.model as in the checkpoint, or name another checkpoint")


def find(path):
    """The folder of one checkpoint, from a stage's workdir (its newest step), or the step's own folder."""
    path = pathlib.Path(path).absolute()
    if (path / "meta").is_dir():
        return path
    for folder in (path / FOLDER, path):
        if steps := _steps(folder):
            return max(steps, key=lambda p: int(p.name))
    inside = sorted(p.parent.name for p in path.glob(f"*/{FOLDER}"))
    if inside:
        raise CheckpointError(f"{path}: no checkpoint of its own; it holds those of {', '.join(inside)}: name one of "
                              f"them, such as {path / inside[0]}")
    raise CheckpointError(f"{path}: no checkpoint found; expected a stage's workdir, or a folder such as "
                          f"{path / FOLDER / '100'}")


def has_checkpoint(workdir):
    """Whether a stage's run left a whole checkpoint, and not the folder for them alone."""
    return bool(_steps(pathlib.Path(workdir) / FOLDER))


def _steps(folder):
    return [p for p in folder.glob("*") if p.name.isdigit() and (p / "meta").is_dir()]


def read_meta(path):
    """(folder, meta) of a checkpoint: its config, model shape, tokenizer, lineage."""
    folder = find(path)
    with _readable(folder):
        return folder, ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")


@contextlib.contextmanager
def _readable(folder):
    # Orbax and what it reads with raise errors of many kinds, and long ones.
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"{folder}: cannot be read ({reason}); it is damaged or was written by something else; "
                              "take another, or delete this one") from error


def read_reward_meta(path):
    """`read_meta` of a reward model; its "pooling" says how it reads a score. Raises CheckpointError for another stage's."""
    folder, meta = read_meta(path)
    if "pooling" not in meta:
        raise CheckpointError(f"{folder}: expected a reward model, this is a checkpoint of the stage {meta.get('stage')!r}, "
                              "which gives no score; name the workdir of a reward stage")
    return folder, meta


def load_params(folder, part, like):
    """One part ("policy", "reward", …) of a checkpoint's parameters, into the shapes and shardings of `like`.

    Adapters are read with what they were trained beside, and merged into it (`train/adapters.py`).

    Args:
      folder: as returned by `find`.
      part: top-level name; "policy/backbone" reaches inside.
      like: an `nnx.State` of arrays or ShapeDtypeStructs, whose structure the result has.
    Raises:
      CheckpointError: names parameters that are missing, unexpected or of another shape.
    """
    _, meta = read_meta(folder)
    if "lora" in meta:
        from jaxalign.train.adapters import load_merged  # which reads both parts by way of this function

        return load_merged(folder, meta, part, like)
    return read_params(folder, meta, part, like)


def read_params(folder, meta, part, like, each=None):
    """`load_params` of just what the checkpoint holds.

    Args:
      each: what to keep of a parameter, (path, variable) → value; then they are read one by one, and never are two whole.
    """
    expected = flat_shapes(nnx.to_pure_dict(like))
    found = {name[len(part) + 1:]: shape for name, shape in meta["parameters"].items() if name.startswith(part + "/")}
    compare(found, expected, f"{folder} ({part})")
    part = tuple(part.split("/"))
    if each is None:
        return refill(like, _restored(folder, part, _abstract(nnx.to_pure_dict(like))))
    kept = []
    for path, variable in nnx.to_flat_state(like):
        whole = variable.replace(_restored(folder, part + path, _abstract(variable.get_value())))
        kept.append((path, variable.replace(each(path, whole))))
        del whole
    return nnx.from_flat_state(kept)


def _restored(folder, path, item):
    """What a checkpoint's parameters hold at a path, a tree or an array as `item` describes it."""
    for name in reversed(path):
        item = {name: item}
    with _readable(folder), ocp.PyTreeCheckpointer() as handler:
        got = handler.restore(folder / "params", args=ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True))
    for name in path:
        got = got[name]
    return got


def pack_tokenizer(model_bytes):
    """A tokenizer's bytes as they stand in `meta`."""
    return {"model": base64.b64encode(model_bytes).decode(), "hash": hashlib.sha256(model_bytes).hexdigest()}


def unpack_tokenizer(meta):
    """The tokenizer's bytes of a checkpoint's `meta`."""
    return base64.b64decode(meta["tokenizer"]["model"])


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)
