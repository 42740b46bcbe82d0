"""Ranked candidates: several answers of a policy to every prompt, ordered by a judge with a human's noise."""

import json
import pathlib
import time

import numpy as np

from jaxalign.batches import check, resolve, signature
from jaxalign.data.intake import check_sources
from jaxalign.data.pipeline import batches
from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.rewards import REWARDS
from jaxalign.stages.defaults import base_config


class Candidates:
    """Not trained: writes `rankings.train.jsonl`, `rankings.dev.jsonl` and `rankings.blind.jsonl` ({"messages", "answers",
    "ranks", "scores"}).

    Training rankings are by score + noise · Gumbel, which makes the order of any two answers a Bradley–Terry draw (of those
    that `choice` takes with a look at it, such as "apart", a clearer one); the dev rankings, which only measure, are by
    the score alone. `done.json` says how many pairs the noise has turned around. As people do on a scale, the judge gives
    grades in steps of `grade`: answers of the same grade are a tie. Which `answers` of the samples are ranked is `choice`'s
    to say, one of `CHOICES`; in `rankings.blind.jsonl`, of the dev prompts' samples too, they are chosen without the judge's knowledge.
    """

    name = "candidates"
    writes = ("rankings.train.jsonl", "rankings.dev.jsonl", "rankings.blind.jsonl")

    @staticmethod
    def defaults():
        return base_config("candidates", samples_per_prompt=8, answers=4, max_new_tokens=48,
                           temperatures=[1.0],  # of a prompt's samples, in turn
                           dev_samples_per_prompt=0,  # 0: as many as samples_per_prompt
                           judge="gold", noise=0.1, grade=0.1, choice="different", batch_size=256, length=64)

    @staticmethod
    def check(config):
        if config.grade <= 0:
            raise ConfigError(f"candidates: config.grade={config.grade} must be above 0; for no ties take a small one, "
                              "1e-9")
        if not config.temperatures or not all(isinstance(t, (int, float)) and t >= 0 for t in config.temperatures):
            raise ConfigError(f"candidates: config.temperatures={list(config.temperatures)} must be one number or more, each "
                              "0 or above, such as [0.7, 1.0]")
        if config.choice not in CHOICES:
            raise ConfigError(f"candidates: config.choice={config.choice!r} must be one of {', '.join(CHOICES)}")
        judge = resolve(config.judge, REWARDS)
        if isinstance(judge, type):
            raise ConfigError(f"candidates: config.judge={config.judge!r} has something to prepare; take a reward that "
                              "is a function of prompt, response and answer, such as 'gold' or \"module:function\"")
        check(judge, ("prompt", "response", "answer"), ())
        if not config.init_from:
            raise ConfigError("candidates: config.init_from is empty; give the workdir of the policy that answers")
        check_sources(list(config.data.train))

    @classmethod
    def run(cls, config, workdir):
        cls.check(config)
        started, workdir = time.monotonic(), pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        assistant = Assistant.load(config.init_from, max_new_tokens=config.max_new_tokens,
                                   batch_size=config.batch_size)
        judge = _by_name(resolve(config.judge, REWARDS))
        figures, reports, tokens = {}, {}, 0
        for split, sources, noise in (("train", config.data.train, config.noise), ("dev", config.data.dev, 0.0)):
            if split == "dev" and not sources:
                continue
            rows, reports[split] = _rows(sources, assistant.tokenizer, config, workdir, split)
            seed = config.seed + (split == "dev")
            copies = split == "dev" and config.dev_samples_per_prompt or config.samples_per_prompt
            answers, drawn = draw(assistant, rows, copies, seed=seed, temperatures=config.temperatures,
                                  tell=_Progress(f"candidates {split}", len(rows) * copies))
            tokens += drawn
            figures[f"{split}_prompts"] = len(rows)
            scores = graded(rows, answers, judge)
            for file, choice in ((split, config.choice), ("blind", BLIND))[:1 + (split == "dev")]:
                ranked = order(rows, answers, scores, noise=noise, seed=seed, config=config, choice=choice)
                with open(workdir / f"rankings.{file}.jsonl", "w", encoding="utf-8") as out:
                    out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ranked)
                figures |= {f"{file}_{name}": value for name, value in counted(ranked).items()}
        summary = {"name": workdir.name, "stage": "candidates", "seconds": time.monotonic() - started, "steps": 0,
                   "tokens": tokens, "before": {}, "after": figures, "checkpoint": str(workdir), "data": reports}
        (workdir / "done.json").write_text(json.dumps(summary, indent=1))
        return summary


def draw(assistant, rows, copies, *, seed, temperatures, tell=None):
    """(the different ones of `copies` answers to each row's prompt, in the order drawn; tokens drawn).

    The temperatures take turns among a prompt's answers, from the first one on. Where a policy is sure, its answers at a
    low one are all alike and teach nothing about what else could be said.
    """
    conversations = [row["messages"] for row in rows for _ in range(copies)]
    heat = np.tile(np.resize(np.asarray(temperatures, np.float32), copies), len(rows))
    texts = assistant.reply(conversations, seed=seed, temperature=heat, tell=tell)
    answers = [list(dict.fromkeys(t for t in texts[n:n + copies] if t)) for n in range(0, len(texts), copies)]
    return answers, sum(len(assistant.tokenizer.encode(text)) + 1 for text in texts)


def graded(rows, answers, judge):
    """The judge's score of each of each row's answers."""
    # What the judge knows: of the world's rows more than an answer.
    return [np.array([judge(row["prompt"], text, row.get("gold", row.get("answer"))) for text in texts])
            for row, texts in zip(rows, answers, strict=True)]


def order(rows, answers, scores, *, noise, seed, config, choice):
    """Rankings of at least two of each row's answers, those that `CHOICES[choice]` takes; `scores` as of `graded`."""
    rng, ranked = np.random.default_rng([seed, 7]), []
    for row, texts, score in zip(rows, answers, scores, strict=True):
        points = (score + noise * rng.gumbel(size=len(texts))) / config.grade
        kept = CHOICES[choice](texts, points, config.answers)
        if len(kept) < 2:
            continue
        ranked.append({"messages": row["messages"], "answers": [texts[i] for i in kept],
                       "ranks": np.unique(-np.floor(points[kept] + 0.5), return_inverse=True)[1].tolist(),
                       "scores": np.round(score[kept], 4).tolist(), "kind": row.get("kind"),
                       "entity": row.get("entity")})
    return ranked


def counted(rankings):
    """How many rankings, and of how many answers each; of the pairs that they tell apart, the share which the judge's
    score, without noise, has the other way around."""
    sizes = [len(row["answers"]) for row in rankings]
    pairs = turned = 0
    for row in rankings:
        ranks, scores = np.array(row["ranks"]), np.array(row["scores"])
        above = ranks[:, None] < ranks[None]
        pairs, turned = pairs + above.sum(), turned + (above & (scores[:, None] < scores[None])).sum()
    return {"rankings": len(sizes), "answers": sum(sizes), **{f"of_{n}": sizes.count(n) for n in sorted(set(sizes))},
            "pairs": int(pairs), "turned_around": float(turned / pairs) if pairs else 0.0}


def most_different(texts, points, count):
    """Indices of at most `count` of the texts, as different from each other as can be had greedily.

    People learn nothing from ranking the same thing said twice. The text drawn first stays; then comes, each time, the
    one that shares the smallest part of its word pairs (Jaccard) with whichever chosen one it is most like.
    """
    del points
    pairs = [set(zip(["", *text.split()], [*text.split(), ""])) for text in texts]
    likeness, kept = dict.fromkeys(range(len(texts)), 0.0), []
    while likeness and len(kept) < count:
        new = min(likeness, key=likeness.get)  # of equals the one drawn first
        del likeness[new]
        kept.append(new)
        for i in likeness:
            both = len(pairs[i] & pairs[new]) / len(pairs[i] | pairs[new])
            likeness[i] = max(likeness[i], both)
    return kept


def apart(texts, points, count):
    """Indices of at most `count` answers, any two at least one grade apart: the best, the worst, and what lies evenly
    between them. A ranking then has no ties, and none that only rounding has parted.

    Args:
      points: scores in units of a grade.
    """
    del texts
    order, steps = np.argsort(-points, kind="stable"), []
    for i in order:  # of answers within one grade the best is taken, and of equal ones the one drawn first
        if not steps or points[steps[-1]] - points[i] >= 1:
            steps.append(int(i))
    places = np.linspace(0, len(steps) - 1, min(count, len(steps)))
    return [steps[i] for i in np.unique(np.round(places).astype(int))]


CHOICES = {"different": most_different, "apart": apart}
BLIND = "different"  # to the judge


class _Progress:
    """A line of how far the answers are, every few seconds."""

    EVERY = 5.0

    def __init__(self, name, total):
        self.name, self.total, self.started = name, total, time.monotonic()
        self.shown = self.started

    def __call__(self, done, tokens):
        now = time.monotonic()
        if now - self.shown >= self.EVERY and done:
            took, self.shown = now - self.started, now
            print(f"{self.name}  {done:,}/{self.total:,} answers  {tokens / took / 1000:.1f}k tokens/s  "
                  f"ETA {took / done * (self.total - done):.0f} s", flush=True)


def _by_name(judge):
    """A judge that may ask for less than all three, as one that is given all."""
    names = list(signature(judge)[0])

    def ask(prompt, response, answer):
        given = {"prompt": prompt, "response": response, "answer": answer}
        return judge(**{name: given[name] for name in names if name in given})

    return ask


def _rows(sources, tokenizer, config, workdir, split):
    """(the prompts' records, what became of the data)."""
    listed = workdir / ("bad_rows.jsonl" if split == "train" else "bad_dev_rows.jsonl")
    iterator = batches([dict(source) for source in sources], tokenizer, kind="prompts", batch_size=256,
                       length=config.length, shuffle=False, repeat=False, seed=config.seed,
                       truncate=config.data.truncate or None, on_bad_row=config.data.on_bad_row, bad_rows_path=listed)
    report = iterator.report
    print(f"candidates {split} data: {report.summary()}" + (f", listed in {listed}" if report.bad else ""))
    rows = [row for batch in iterator for row in batch["rows"] if row is not None]
    return rows, {"rows": report.rows, "bad": len(report.bad), "truncated": report.truncated_share}
