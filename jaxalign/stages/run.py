"""Running one stage from its config: the validated start, the loop, the summary."""

import json
import pathlib
import time

import jax

from jaxalign import config as configs
from jaxalign.errors import ConfigError
from jaxalign.sharding import make_mesh
from jaxalign.train.checkpoint import has_checkpoint
from jaxalign.train.loop import fit


def train_stage(stage_class, config, workdir):
    """Trains a stage, or goes on where it stopped; returns its summary and writes it to `workdir/done.json`."""
    workdir = pathlib.Path(workdir)
    started = time.monotonic()
    mesh = make_mesh(**config.mesh)
    split = mesh.shape["data"] * mesh.shape["fsdp"] * config.microbatches
    if config.batch_size % split:
        raise ConfigError(f"batch_size={config.batch_size} must divide by data × fsdp × microbatches = {split}; "
                          f"use {-(-config.batch_size // split) * split}")
    stage = stage_class(config, workdir, mesh)
    _keep_config(stage, config, workdir / "config.json")
    reading = time.monotonic() - started
    result = fit(stage, workdir, config, mesh)
    lineage = stage.meta()["lineage"]
    summary = {"name": workdir.name, "stage": stage.name, "seconds": reading + result.seconds,
               "steps": result.steps, "tokens": result.tokens, "before": result.before, "after": result.after,
               "checkpoint": str(workdir), "lineage": lineage, "data": stage.reports}
    if jax.process_index() == 0:  # the others would write the same, over each other
        (workdir / "done.json").write_text(json.dumps(summary, indent=1))
    return summary


def _keep_config(stage, config, path):
    """Writes the config beside the checkpoints; where they were made with another, says what changed."""
    if path.exists() and has_checkpoint(path.parent):
        for change in configs.differences(configs.from_json(path.read_text()), config):
            stage.say(f"{stage.name}: the config changed since this run began: {change}")
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(configs.to_json(config))
