"""A chain of stages, each starting from what the one before left; finished ones are skipped."""

import json
import math
import os
import pathlib
import platform
import resource
import sys
from importlib import metadata

import jax
from ml_collections import ConfigDict

from jaxalign import config as configs
from jaxalign.errors import ConfigError, JaxalignError
from jaxalign.report import write_report
from jaxalign.stages import STAGES, check_config, train_stage
from jaxalign.stages.inputs import check_inputs
from jaxalign.train.checkpoint import has_checkpoint

PLANNED = "planned.json"  # a stage's config with "@name" for paths: the run may be moved, or called from elsewhere
RUNNING = ("checkpoint_every", "keep", "log_every", "preview")  # how a stage is watched and kept; nothing comes of them
PACKAGES = ("jaxalign", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy")


def pipeline_config(**stages) -> ConfigDict:
    """A pipeline: its stages' configs in the order given, and a seed that is added to each of theirs.

    A path in a stage's config that begins with "@name" stands for the folder of the stage `name`.
    """
    return ConfigDict(dict(seed=0, chain=tuple(stages), stages=stages)).lock()


def run_pipeline(config, workdir):
    """Runs the chain; returns the report, written to `workdir/report.json` and `report.html`.

    The report's `wall_seconds` are its stages' own, also of those that an earlier call made: no imports, no page.

    Args:
      config: of `pipeline_config`. `config.chain` may be shortened to run its first part only.
      workdir: every stage gets a folder in it.
    Raises:
      ConfigError: an unknown stage or a reference to a later one, a config that cannot be, a file or checkpoint that is
        not there or not of the kind that its stage reads, or a finished stage whose config has changed since or whose
        parent has to be made anew; all before anything is run.
    """
    workdir = pathlib.Path(workdir)
    plan = _plan(config, workdir)
    finished = _all_finished(plan, workdir)
    _check_inputs(plan, finished, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.config.jax_compilation_cache_dir is None:
        # Stages of one kind, and the samplers of all models that are measured, are the same programs.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    summaries, claims, peak = [], [], 0.0
    for name, stage_config, planned, _ in plan:
        folder, done = workdir / name, finished[name]
        if done is None:
            print(f"\n── {name} ──", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(configs.to_json(stage_config))
            (folder / PLANNED).write_text(configs.to_json(planned))
            done = train_stage(stage_config, folder)
        else:
            print(f"── {name} ── done, skipped", flush=True)
            peak = peak or _peak_before(workdir / "report.json")
        summaries.append(done)
        claims += done.get("claims", [])
        report = _report(config, plan, summaries, claims, peak)
        (workdir / "report.json").write_text(json.dumps(_finite(report), indent=1, ensure_ascii=False))
        write_report(workdir)
    return report


def _plan(config, workdir):
    """Of every stage of the chain: its name, its config with paths, as it was planned ("@name"), and what it reads."""
    if "chain" not in config or "stages" not in config:
        kind = f"of one stage ({config.stage})" if "stage" in config else "no pipeline's"
        raise ConfigError(f"the config is {kind}: it has no `chain` of `stages`; run it with jaxalign train, or make a "
                          "pipeline with jaxalign.pipeline.pipeline_config")
    plan = []
    for name in config.chain:
        if name not in config.stages:
            raise ConfigError(f"config.chain names {name!r}, config.stages has: {', '.join(config.stages)}")
        stage = ConfigDict(config.stages[name])
        if stage.get("stage") not in STAGES:
            raise ConfigError(f"stages.{name}.stage={stage.get('stage')!r} must be one of {', '.join(STAGES)}")
        try:
            check_config(stage)
        except ConfigError as error:
            raise ConfigError(f"stages.{name}: {error}") from error
        parents = []
        resolved = ConfigDict(_resolve(stage.to_dict(), workdir, [step[0] for step in plan], name, parents))
        resolved.seed = int(resolved.get("seed", 0)) + int(config.seed)
        planned = ConfigDict(stage.to_dict() | {"seed": resolved.seed})
        plan.append((name, resolved.lock(), planned.lock(), list(dict.fromkeys(parents))))
    return plan


def _resolve(value, workdir, known, at, parents, keep=()):
    """The value with "@name/rest" turned into the path of that stage's folder, everywhere inside, but for the names in
    `keep`; the names that are met are added to `parents`."""
    if isinstance(value, dict):
        return {key: _resolve(item, workdir, known, f"{at}.{key}", parents, keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item, workdir, known, at, parents, keep) for item in value)
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    name, _, rest = value[1:].partition("/")
    if name not in known:
        before = ", ".join(known) or "none"
        raise ConfigError(f"stages.{at}={value!r}: no earlier stage {name!r}; before it come: {before}")
    parents.append(name)
    if name in keep:
        return value
    return str(workdir / name / rest) if rest else str(workdir / name)


def _all_finished(plan, workdir):
    """stage → its summary, None if it must (still) run; what came from a stage that must run is not finished either."""
    finished = {}
    for name, _, planned, parents in plan:
        folder = workdir / name
        finished[name] = _finished(folder, planned)
        anew = [parent for parent in parents if finished[parent] is None]
        if finished[name] is not None and anew:
            raise ConfigError(f"{folder} was made from an earlier {', '.join(anew)}, which has to be made anew; delete "
                              f"{folder} and those after it to make them again")
    return finished


def _check_inputs(plan, finished, workdir):
    """Raises ConfigError for what one of the stages that will run could not read."""
    earlier = {}
    for name, _, planned, _ in plan:
        if finished[name] is None:
            known = [step[0] for step in plan]
            there = ConfigDict(_resolve(planned.to_dict(), workdir, known, name, [], keep=earlier))
            try:
                check_inputs(there, STAGES[planned.stage], earlier)
            except JaxalignError as error:
                raise ConfigError(f"stages.{name}: {error}") from error
            earlier[name] = STAGES[planned.stage]


def _finished(folder, planned):
    """The summary of a finished stage, None if it must (still) run."""
    done, saved = folder / "done.json", folder / PLANNED
    if not saved.exists():
        return None
    old, new = ({key: value for key, value in config.items() if key not in RUNNING}
                for config in map(configs.from_json, (saved.read_text(), configs.to_json(planned))))
    changed = next(configs.differences(old, new), None)
    if changed and (done.exists() or has_checkpoint(folder)):
        raise ConfigError(f"{folder} was made with another config ({changed}); choose another workdir, or delete "
                          f"{folder} and those after it to make them again")
    return json.loads(done.read_text()) if done.exists() else None


def _peak_before(path):
    """The memory that the stages took which are not run again, in GiB, as the report of their run says."""
    try:
        return float(json.loads(path.read_text())["peak_rss_gib"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _finite(value):
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _report(config, plan, summaries, claims, peak_before):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    device = jax.devices()[0]
    keys = ("name", "stage", "seconds", "steps", "tokens", "before", "after", "checkpoint", "data", "findings")
    return {
        "claims": claims,
        "stages": [{key: summary.get(key) for key in keys} for summary in summaries],
        "lineage": [{"name": name, "from": parents} for name, _, _, parents in plan[: len(summaries)]],
        "wall_seconds": sum(s["seconds"] for s in summaries),
        "peak_rss_gib": max(peak, peak_before),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "device": f"{jax.device_count()} × {device.device_kind}, {os.cpu_count()} CPU cores",
        "seed": int(config.seed),
    }
