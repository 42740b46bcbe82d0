"""Writes problems of reasoning-gym's generators, whose answers can be verified, as data files."""

import json
import pathlib
import time

from ml_collections import ConfigDict

from jaxalign.errors import ConfigError
from jaxalign.rewards.reasoning import create, pack

# reasoning-gym makes problem i of seed s from s + i: seeds that lie close share nearly all problems.
APART = 10**9


class MakeReasoning:
    """Not trained: writes `sft.jsonl`, `train.jsonl` and `dev.jsonl` of problems with their answers.

    One task of reasoning-gym, a split a seed. No question of `dev.jsonl` stands in the other two, and none twice in it;
    the other two may share questions, as a policy may be rewarded on what it has seen. Rows hold "prompt", "answer",
    "kind" (the task), its "options" and the problem's "metadata", all that the reward `reasoning_gym` needs. Some tasks
    know no answer but verify one: there "answer" is null and `sft` must be 0.
    """

    name = "reasoning"
    writes = ("sft.jsonl", "train.jsonl", "dev.jsonl")

    @staticmethod
    def defaults():
        # options: of the task, e.g. dict(min_terms=2, max_terms=2) for chain_sum; None: the task's own.
        return ConfigDict(dict(stage="reasoning", seed=0, task="chain_sum", options=None, sft=2000, train=2000,
                               dev=500)).lock()

    @staticmethod
    def check(config):
        create(config.task, **dict(config.options or {}))

    @staticmethod
    def run(config, workdir):
        started, workdir = time.monotonic(), pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        options = dict(config.options or {})
        held_out = {row["prompt"]: row for row in problems(config.task, config.seed * 3 + 2, config.dev, options)}
        rows = {"dev": list(held_out.values())}
        for number, split in enumerate(("sft", "train")):
            made = problems(config.task, config.seed * 3 + number, config[split], options)
            rows[split] = [row for row in made if row["prompt"] not in held_out]
        if any(row["answer"] is None for row in rows["sft"]):
            raise ConfigError(f"reasoning: {config.task} has no answers to imitate, only a verifier; set sft=0")
        for split, made in rows.items():
            if not made and config[split]:
                raise ConfigError(f"reasoning: {config.task} with {options} has too few different problems: none of "
                                  f"{config[split]} are left for {split}.jsonl; widen the options or make dev smaller")
            with open(workdir / f"{split}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        summary = {"name": workdir.name, "stage": "reasoning", "seconds": time.monotonic() - started, "steps": 0,
                   "tokens": 0, "before": {}, "after": {name: len(made) for name, made in rows.items()},
                   "checkpoint": str(workdir)}
        (workdir / "done.json").write_text(json.dumps(summary, indent=1))
        return summary


def problems(task, seed, size, options):
    """`size` problems of one task as rows; the same arguments give the same rows, other seeds other ones."""
    if not size:
        return []
    dataset = create(task, seed=seed * APART, size=size, **options)
    return [{"prompt": item["question"], "answer": None if item["answer"] is None else str(item["answer"]),
             "kind": task, "options": options, "metadata": pack(item["metadata"])} for item in dataset]
