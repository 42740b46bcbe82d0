"""What a training step takes in memory, everything trained, LoRA and QLoRA: at 135 M by running, at 8 B and 70 B by
compiling for TPUs that need not be there.

    python tools/lora_memory.py                                    # all rows
    python tools/lora_memory.py 8b-nf4 8b-lora --json=FILE         # some; FILE keeps the others that it has

Compiling needs the package libtpu (pip install libtpu) and no accelerator. Loss, step, optimizer and shardings are those of
the stage `sft`, whose data are not read; where a row is only compiled, nothing is allocated. Bytes are those of one device.
"""

import argparse
import ctypes
import dataclasses
import json
import math
import os
import pathlib
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from jaxalign.models.lora import LoraConfig
from jaxalign.models.quantized import is_quantized, quantized
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.objectives.cross_entropy import cross_entropy
from jaxalign.sharding import batch_sharding, make_mesh, placed, put_batch
from jaxalign.stages.network import Network
from jaxalign.stages.pretrain import SFT
from jaxalign.train.optimizer import make_optimizer
from jaxalign.train.state import create_state, fresh_state
from jaxalign.train.step import make_train_step

LLAMA = dict(vocab_size=128256, head_dim=128, num_kv_heads=8, rope_theta=500_000.0, norm_eps=1e-5,
             tied_embeddings=False, dtype="bfloat16", remat="full")
MODELS = {
    "135m": dict(vocab_size=49152, width=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
                 rope_theta=100_000.0, norm_eps=1e-5),  # SmolLM2-135M
    "8b": LLAMA | dict(width=4096, num_layers=32, num_heads=32, mlp_dim=14336),  # Llama-3-8B
    "70b": LLAMA | dict(width=8192, num_layers=80, num_heads=64, mlp_dim=28672),  # Llama-3-70B
}
FORMS = {  # → settings of `config.lora`
    "full": {},
    "lora32": dict(rank=16, base="float32"),
    "lora": dict(rank=16, base="bfloat16"),
    "int8": dict(rank=16, base="int8"),
    "nf4": dict(rank=16, base="nf4"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: one row of `length` tokens on each device, over all of which parameters are split (fsdp)."""

    model: str
    form: str
    where: str = "cpu"  # one, on which it is run; or the TPUs that it is compiled for
    length: int = 2048


ROWS = {f"135m-{form}": Row("135m", form, length=256) for form in ("full", "lora32", "int8", "nf4")} | {
    "8b-nf4": Row("8b", "nf4", "v6e:1x1"),
    "8b-int8": Row("8b", "int8", "v6e:1x1"),
    "8b-lora": Row("8b", "lora", "v6e:1x1"),
    "8b-full": Row("8b", "full", "v6e:2x4"),
    "70b-nf4": Row("70b", "nf4", "v6e:2x2"),
    "70b-int8": Row("70b", "int8", "v6e:2x4"),
    "70b-lora": Row("70b", "lora", "v6e:2x4"),
    "70b-full": Row("70b", "full", "v6e:8x8"),
}
# The compiler is not to look for the chips it runs on, for there are none, nor for who else compiles for them.
ENVIRONMENT = dict(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
STEPS = 3  # of a row that is run


class Shape(SFT):
    """The stage `sft` of a model that is only a shape: without data, tokenizer or checkpoint."""

    def __init__(self, config, model_config):
        self.config, self.model_config, self.lora = config, model_config, LoraConfig(**config.lora)
        self.network = Network(Transformer, model_config, self.lora)
        self.objective, self.options = cross_entropy, {}


def devices_of(where):
    """The CPU's first device, or those of a TPU topology such as "v6e:2x4", for which can be compiled."""
    if where == "cpu":
        return jax.devices("cpu")[:1]
    # Alone on its host a chip is only if it is said to be.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if where.endswith(":1x1") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=where, **bounds).devices


class Step:
    """The training step of a `Shape`, and its arguments as shapes that say where over the mesh they are.

    Args:
      model: a `ModelConfig`.
      lora: settings of `config.lora`; none: everything is trained.
    """

    def __init__(self, model, lora, length, mesh):
        config = SFT.defaults()
        config.lora.update(lora)
        self.stage, self.mesh, self.rows = Shape(config, model), mesh, mesh.size
        self.optimizer, schedule = make_optimizer(config.optimizer, config.steps)
        self.call = jax.jit(make_train_step(self.stage.loss_fn, self.optimizer, schedule), donate_argnums=0)
        self.state = placed(jax.eval_shape(fresh_state(self.stage.init, self.optimizer), jax.random.key(0)), self.mesh)
        self.frozen = {}
        if lora:
            held = jax.eval_shape(lambda state: quantized(state, self.stage.lora.base), self.stage.network.abstract)
            self.frozen = {"base": {"policy": placed(held, self.mesh)}}
        rng, shape = np.random.default_rng(0), (self.rows, length)
        tokens_BT = rng.integers(1, model.vocab_size, (self.rows, length + 1)).astype(np.int32)
        self.numbers = {"tokens_BT": tokens_BT[:, :-1], "targets_BT": tokens_BT[:, 1:],
                        "positions_BT": np.broadcast_to(np.arange(length, dtype=np.int32), shape),
                        "segment_ids_BT": np.ones(shape, np.int32), "mask_BT": np.ones(shape, np.float32)}
        self.batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
                      for name, x in self.numbers.items()}

    def compiled(self):
        """The step, compiled for the mesh's devices; nothing is allocated."""
        with jax.set_mesh(self.mesh):
            return self.call.lower(self.state, self.frozen, self.batch).compile()

    def made(self):
        """(state, frozen) of random numbers, as a stage has them that begins."""
        state = create_state(self.stage.init, self.optimizer, jax.random.key(0), self.mesh)
        if not self.frozen:
            return state, {}
        draw = jax.jit(lambda key: nnx.split(Transformer(self.stage.model_config, rngs=nnx.Rngs(params=key)))[1])
        return state, {"base": {"policy": quantized(draw(jax.random.key(1)), self.stage.lora.base)}}


def size(tree):
    """Bytes of a tree's arrays on one device; four-bit numbers are packed, as the compilers for CPUs and TPUs do."""
    def of(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 0
        count = math.prod(x.sharding.shard_shape(x.shape))
        return count // 2 if x.dtype == jnp.uint4 else count * x.dtype.itemsize

    return sum(of(x) for x in jax.tree.leaves(tree))


def measured(model, lora, length, devices):
    """(what a step takes on one of the devices, the `Step`, it compiled): numbers of parameters, bytes.

    `arguments`, `temporary` and `step`, that is arguments, results that do not take their place, and temporaries, are the
    compiler's; the rest is counted from shapes. Gradients are among the temporaries.
    """
    mesh = make_mesh(fsdp=len(devices), devices=devices)
    step = Step(model, lora, length, mesh)
    started = time.monotonic()
    compiled = step.compiled()
    seconds, memory = time.monotonic() - started, compiled.memory_analysis()
    trained = sum(x.size for x in jax.tree.leaves(step.state.trainable))
    plain = sum(x.size for x in jax.tree.leaves(step.stage.network.abstract))
    gradients = size(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding),
                                  step.state.trainable))
    return {
        "parameters": plain + (trained if lora else 0), "trained": trained,
        "trained_share": trained / (plain + (trained if lora else 0)),
        "parameters_bytes": size(step.frozen) + size(step.state.trainable), "gradients_bytes": gradients,
        "scales_bytes": size([x.scale for x in jax.tree.leaves(step.frozen, is_leaf=is_quantized) if is_quantized(x)]),
        "optimizer_bytes": size(step.state.optimizer_state),
        "arguments_bytes": memory.argument_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes,
        "step_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "compile_seconds": seconds,
    }, step, compiled


def run(step, compiled, steps=STEPS):
    """Takes steps: what the process holds in them, at most, beyond what it held before parameters were made, in bytes;
    losses; the fastest step's seconds, without the first."""
    before = _resident()
    state, frozen = jax.block_until_ready(step.made())
    batch, peak, done = put_batch(step.numbers, step.mesh), [_resident()], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        losses, times = [], []
        for _ in range(steps):
            started = time.monotonic()
            state, metrics = compiled(state, frozen, batch)
            losses.append(float(metrics["loss"]))
            times.append(time.monotonic() - started)
    finally:
        done.set()
        watcher.join()
    return {"resident_bytes": peak[0] - before, "losses": losses, "step_seconds": min(times[1:])}


def _resident():
    ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what compiling, or a base that was quantised, took and freed
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def row(name):
    """The figures of one of `ROWS`."""
    r = ROWS[name]
    devices = devices_of(r.where)
    figures, step, compiled = measured(ModelConfig(**MODELS[r.model]), FORMS[r.form], r.length, devices)
    ran = run(step, compiled) if r.where == "cpu" else {}
    return {"name": name} | dataclasses.asdict(r) | {
        "lora": FORMS[r.form], "devices": len(devices), "jax": jax.__version__} | figures | ran


def alone(name):
    """`row` in a process of its own: what another leaves behind is no part of it."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(row, name).result()


def table(rows):
    """Of rows as `row` makes them, in GB (10⁹ bytes) a device."""
    shown = Table(title="one row of tokens a device; GB = 10⁹ bytes, of one device")
    for column in ("row", "on", "tokens", "trained", "parameters", "gradients", "optimizer", "activations and the rest",
                   "step", "resident, run"):
        shown.add_column(column, justify="left" if column in ("row", "on") else "right")
    for r in rows:
        rest = r["temporary_bytes"] - r["gradients_bytes"]
        numbers = (r["parameters_bytes"], r["gradients_bytes"], r["optimizer_bytes"], rest, r["step_bytes"])
        shown.add_row(r["name"], f"{r['devices']} × {r['where'].split(':')[0]}", str(r["length"]),
                      f"{r['trained'] / 1e6:,.1f} M, {r['trained_share']:.2%}", *(f"{x / 1e9:.2f}" for x in numbers),
                      f"{r['resident_bytes'] / 1e9:.2f}" if "resident_bytes" in r else "")
    return shown


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--json", type=pathlib.Path, help="where the figures are written")
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; expected some of {', '.join(ROWS)}")
    kept = {r["name"]: r for r in json.loads(options.json.read_text())} if options.json and options.json.exists() else {}
    for name in options.rows or ROWS:
        kept[name] = alone(name)
        if options.json:
            options.json.write_text(json.dumps([kept[n] for n in ROWS if n in kept], indent=1) + "\n")
    Console(width=140).print(table([kept[n] for n in ROWS if n in kept]))


if __name__ == "__main__":
    main()
