"""What a stage of a chain will read, looked at before the chain's first stage runs: files and checkpoints that are
there, and the names of what earlier stages will leave."""

import fnmatch

from jaxalign.batches import resolve
from jaxalign.data.intake import check_readable, check_sources
from jaxalign.data.sources import files
from jaxalign.data.tokenizer import load_tokenizer
from jaxalign.errors import ConfigError
from jaxalign.objectives import OBJECTIVES
from jaxalign.train.checkpoint import read_meta, read_reward_meta

# Keys of configs that name a checkpoint → what reads it. The claims' are the names of the models that they measure.
CHECKPOINTS = dict.fromkeys(("init_from", "base", "sft", "scratch", "ppo", "dpo", "grpo"), read_meta) | dict.fromkeys(
    ("reward_model", "reward"), read_reward_meta)


def check_inputs(config, stage, earlier):
    """Raises ConfigError for what a stage could not read; of every file that is there its first row alone is read.

    Args:
      config: the stage's, with "@name" for the folder of the earlier stage `name`.
      stage: its class.
      earlier: {name: class} of the stages before it that have still to run; what others left is there.
    """
    kind = "prompts" if stage.name == "candidates" else None
    if "objective" in config and config.objective.name:
        kind = stage.kind_of(resolve(config.objective.name, OBJECTIVES))
    data = config.get("data", {})
    for split in ("train", "dev", "old"):
        for number, source in enumerate(check_sources(list(data[split])) if data.get(split) else ()):
            _source(source, kind, data.get("on_bad_row", "error"), f"config.data.{split}[{number}]", earlier)
    for key, value in config.items():
        if key in CHECKPOINTS and isinstance(value, str) and value:
            _checkpoint(f"config.{key}", value, CHECKPOINTS[key], earlier)
    for number, reward in enumerate(config.get("rewards", ())):
        if reward.get("name") == "learned":
            _checkpoint(f"config.rewards[{number}].checkpoint", reward["checkpoint"], read_reward_meta, earlier)
    for key, names, read in (("tokenizer", ("tokenizer.model",), load_tokenizer), ("rankings", (), files),
                             ("blind_rankings", (), files),
                             ("world", ("eval.jsonl", "cloze.eval.jsonl", "align.dev.jsonl"), _is_world)):
        if config.get(key):
            _file(f"config.{key}", config[key], names, read, earlier)


def _source(source, kind, on_bad_row, key, earlier):
    if "records" in source:
        return check_readable(source, kind, on_bad_row)
    paths = source["path"] if isinstance(source["path"], (list, tuple)) else [source["path"]]
    for path in paths:
        _file(f"{key}.path", str(path), (), lambda path: check_readable(source | {"path": path}, kind, on_bad_row),
              earlier)


def _file(key, path, names, read, earlier):
    """`read` raises for a path that is there; in an earlier stage's folder it must be a file that stage writes, or,
    where it is the folder itself, all of `names`."""
    name, rest, stage = _reference(path, earlier)
    if stage is None:
        return read(path)
    writes = stage.writes or ()
    if not (fnmatch.filter(writes, rest) if rest else writes and set(names) <= set(writes)):
        raise ConfigError(f"{key}={path!r}: the stage {name!r} ({stage.name}) writes "
                          f"{', '.join(writes) or 'checkpoints'}")


def _checkpoint(key, path, read, earlier):
    name, rest, stage = _reference(path, earlier)
    if stage is None:
        return read(path)
    if stage.writes is not None or read is read_reward_meta and stage.name != "reward":
        wanted = "a reward model" if read is read_reward_meta else "a checkpoint"
        leaves = ", ".join(stage.writes) if stage.writes else "none"
        raise ConfigError(f"{key}={path!r}: expected {wanted}, {name!r} is a stage of the kind {stage.name}, which "
                          f"leaves {leaves}")


def _reference(path, earlier):
    """(name, what follows it, class) of an earlier stage that has still to run; three times None for any other path."""
    if not path.startswith("@"):
        return None, None, None
    name, _, rest = path[1:].partition("/")
    return name, rest, earlier[name]


def _is_world(path):
    files([f"{path}/eval.jsonl", f"{path}/cloze.eval.jsonl", f"{path}/align.dev.jsonl"])
