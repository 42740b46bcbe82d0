"""Running one stage from its config: the validated start, the loop, the summary."""

import json
import pathlib
import time

import jax

from jaxalign import config as configs
from jaxalign.sharding import make_mesh
from jaxalign.stages.forgetting import told
from jaxalign.train.checkpoint import has_checkpoint
from jaxalign.train.loop import fit


def train_stage(stage_class, config, workdir):
    """Trains a stage, or goes on where it stopped; returns its summary and writes it to `workdir/done.json`."""
    workdir = pathlib.Path(workdir)
    started = time.monotonic()
    mesh = make_mesh(**config.mesh)
    stage = stage_class(config, workdir, mesh)
    resumed = has_checkpoint(workdir)
    if resumed:
        _tell_changes(stage, config, workdir / "config.json")
    else:
        _keep_config(config, workdir / "config.json")
    result = fit(stage, workdir, config, mesh, started)
    if resumed:  # not before: what the checkpoint refuses is not the config of this run
        _keep_config(config, workdir / "config.json")
    for line in told(result.before, result.after):
        stage.say(f"{stage.name}: {line}")
    lineage = stage.meta()["lineage"]
    summary = {"name": workdir.name, "stage": stage.name, "seconds": _seconds(result, workdir / "done.json", resumed),
               "steps": result.steps, "tokens": result.tokens, "before": result.before, "after": result.after,
               "checkpoint": str(workdir), "lineage": lineage, "data": stage.reports}
    if stage.findings:
        summary["findings"] = stage.findings
    record = json.dumps(summary, indent=1)
    if jax.process_index() == 0:  # the others would write the same, over each other
        (workdir / "done.json").write_text(record)
    return json.loads(record)  # as whoever reads the file will have it: an interval is a list


def _seconds(result, path, resumed):
    """What the stage took; as its record says where it was finished before this call."""
    before = json.loads(path.read_text()) if resumed and path.exists() else {}
    return before["seconds"] if before.get("steps") == result.steps else result.seconds


def _tell_changes(stage, config, path):
    if path.exists():
        for change in configs.differences(configs.from_json(path.read_text()), config):
            stage.say(f"{stage.name}: the config changed since this run began: {change}")


def _keep_config(config, path):
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(configs.to_json(config))
