"""Writes the miniature world of the quickstart as data files."""

import dataclasses
import json
import pathlib
import time

from ml_collections import ConfigDict

from jaxalign.data.world import Shares, Sizes, write_world


class MakeWorld:
    """Not trained: makes the data that the other stages read."""

    name = "world"
    writes = ("align.dev.jsonl", "align.train.jsonl", "cloze.eval.jsonl", "eval.jsonl", "grpo.train.jsonl",
              "pretrain.dev.jsonl", "pretrain.train.jsonl", "sft.dev.jsonl", "sft.train.jsonl", "tokenizer.train.jsonl")

    @staticmethod
    def defaults():
        return ConfigDict(dict(stage="world", seed=0, num_entities=170, num_unknown=1300, digits=2,
                               shares=dataclasses.asdict(Shares()), sizes=_sizes())).lock()

    @staticmethod
    def check(config):
        """`checks.check_stage` says all."""

    @staticmethod
    def run(config, workdir):
        started = time.monotonic()
        workdir = pathlib.Path(workdir)
        manifest = write_world(workdir, config.seed, num_entities=config.num_entities, num_unknown=config.num_unknown,
                               digits=config.digits, shares=Shares(**config.shares), **config.sizes.to_dict())
        summary = {"name": workdir.name, "stage": "world", "seconds": time.monotonic() - started, "steps": 0,
                   "tokens": 0, "before": {}, "after": {}, "checkpoint": str(workdir), "seed": config.seed,
                   "lands": manifest["lands"]}
        (workdir / "done.json").write_text(json.dumps(summary, indent=1))
        return summary


def _sizes():
    return {key: dict(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(Sizes()).items()}
