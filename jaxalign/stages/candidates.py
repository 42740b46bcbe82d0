"""Ranked candidates: several answers of a policy to every prompt, ordered by a judge with a human's noise."""

import json
import pathlib
import time

import numpy as np

from jaxalign.batches import resolve
from jaxalign.data.pipeline import batches
from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.rewards import REWARDS
from jaxalign.stages.defaults import base_config


class Candidates:
    """Not trained: writes `rankings.train.jsonl` and `rankings.dev.jsonl` ({"messages", "answers", "ranks", "scores"}).

    Training rankings are by score + noise · Gumbel, which makes the order of any two a Bradley–Terry draw; the dev
    rankings, which only measure, are by the score alone. As people do on a scale, the judge gives grades in steps of
    `grade`: answers of the same grade are a tie.
    """

    name = "candidates"

    @staticmethod
    def defaults():
        return base_config("candidates", samples_per_prompt=8, answers=4, max_new_tokens=48, temperature=1.0,
                           judge="gold", noise=0.1, grade=0.1, batch_size=256, length=64)

    @staticmethod
    def run(config, workdir):
        if config.grade <= 0:
            raise ConfigError(f"candidates: config.grade={config.grade} must be above 0; for no ties take a small one, 1e-9")
        started, workdir = time.monotonic(), pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        assistant = Assistant.load(config.init_from, max_new_tokens=config.max_new_tokens,
                                   batch_size=config.batch_size)
        judge = resolve(config.judge, REWARDS)
        figures, tokens = {}, 0
        for split, sources, noise in (("train", config.data.train, config.noise), ("dev", config.data.dev, 0.0)):
            rows = _rows(sources, assistant.tokenizer, config)
            seed = config.seed + (split == "dev")
            ranked, drawn = rank(assistant, rows, judge, noise=noise, seed=seed, config=config)
            tokens += drawn
            with open(workdir / f"rankings.{split}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ranked)
            figures |= {f"{split}_prompts": len(rows), f"{split}_rankings": len(ranked),
                        f"{split}_answers": sum(len(row["answers"]) for row in ranked)}
        summary = {"name": workdir.name, "stage": "candidates", "seconds": time.monotonic() - started, "steps": 0,
                   "tokens": tokens, "before": {}, "after": figures, "checkpoint": str(workdir)}
        (workdir / "done.json").write_text(json.dumps(summary, indent=1))
        return summary


def rank(assistant, rows, judge, *, noise, seed, config):
    """(rankings with at least two different answers each, tokens drawn)."""
    copies = config.samples_per_prompt
    conversations = [row["messages"] for row in rows for _ in range(copies)]
    texts = assistant.reply(conversations, seed=seed, temperature=config.temperature)
    rng = np.random.default_rng([seed, 7])
    ranked = []
    for n, row in enumerate(rows):
        answers = most_different([t for t in texts[n * copies:(n + 1) * copies] if t], copies)
        scores = np.array([judge(row["prompt"], answer, row["gold"]) for answer in answers])
        grades = np.round((scores + noise * rng.gumbel(size=len(answers))) / config.grade)
        kept = apart(grades, config.answers)
        if len(kept) < 2:
            continue
        ranked.append({"messages": row["messages"], "answers": [answers[i] for i in kept], "ranks": list(range(len(kept))),
                       "scores": np.round(scores[kept], 4).tolist(), "kind": row.get("kind")})
    return ranked, sum(len(assistant.tokenizer.encode(text)) + 1 for text in texts)


def apart(grades, count):
    """Indices of at most `count` answers, the best first, no two of one grade: the best, the worst, and what lies evenly
    between them. Of one grade the first is taken."""
    first = np.unique(-np.asarray(grades), return_index=True)[1]
    return [int(first[i]) for i in np.unique(np.round(np.linspace(0, len(first) - 1, min(count, len(first)))).astype(int))]


def most_different(texts, count):
    """At most `count` of the texts, no two alike, as different from each other as can be had greedily.

    People learn nothing from ranking the same thing said twice. The text drawn first stays; then comes, each time, the
    one that shares the smallest part of its word pairs (Jaccard) with whichever chosen one it is most like.
    """
    left = list(dict.fromkeys(texts))
    pairs = {text: set(zip(["", *text.split()], [*text.split(), ""])) for text in left}
    likeness = dict.fromkeys(left, 0.0)
    chosen = []
    while left and len(chosen) < count:
        new = min(left, key=likeness.get)  # of equals the one drawn first
        left.remove(new)
        chosen.append(new)
        for text in left:
            both = len(pairs[text] & pairs[new]) / len(pairs[text] | pairs[new])
            likeness[text] = max(likeness[text], both)
    return chosen


def _rows(sources, tokenizer, config):
    iterator = batches([dict(source) for source in sources], tokenizer, kind="prompts", batch_size=256,
                       length=config.length, shuffle=False, repeat=False, seed=config.seed)
    return [row for batch in iterator for row in batch["rows"] if row is not None]
