"""Every stage on data of a few lines: configs for tests, and a chain of trained stages made once a process."""

import atexit
import functools
import json
import pathlib
import shutil
import tempfile

from jaxalign.stages import default_config, train_stage

TOKENIZER = pathlib.Path(__file__).parent / "golden" / "chat_tokenizer.model"
MODEL = dict(width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
TEXTS = ["The fox is red.", "The river is deep.", "A fox is near the river.", "Who is there?", "The sky is blue."]


def folder():
    path = pathlib.Path(tempfile.mkdtemp(prefix="jaxalign-tiny-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@functools.cache
def data():
    """{kind: source} over files of a few lines each."""
    where = folder()
    sums = [(a, b) for a in range(4) for b in range(3)]
    asked = [{"prompt": f"{a}+{b}?", "answer": str(a + b)} for a, b in sums]
    files = {
        "text": [{"text": f"{text} {n}"} for n in range(4) for text in TEXTS],
        "messages": [{"messages": [{"role": "user", "content": row["prompt"]},
                                   {"role": "assistant", "content": row["answer"]}]} for row in asked],
        "rankings": [{"prompt": row["prompt"], "answers": [row["answer"], "I do not know.", "no"],
                      "ranks": [0, 1, 1 + n % 2]} for n, row in enumerate(asked)],
        "prompts": asked,
    }
    return {shape: dict(path=str(jsonl(where / f"{shape}.jsonl", rows)), shape=shape) for shape, rows in files.items()}


SHAPES = {"pretrain": "text", "sft": "messages", "reward": "rankings", "dpo": "rankings", "ppo": "prompts",
          "grpo": "prompts"}
PARENTS = {"sft": "pretrain", "reward": "sft", "dpo": "sft", "ppo": "sft", "grpo": "sft"}


def config(name, **changes):
    """A tiny run of a stage, started from the tiny chain; `changes` override, nested groups key by key."""
    made = default_config(name)
    source = data()[SHAPES[name]]
    rl = name in ("ppo", "grpo")
    made.update(dict(
        steps=4, batch_size=4, length=20 if rl else 32, log_every=1, preview=False, mesh=dict(data=1),
        data=dict(train=[source], dev=[] if rl else [dict(source, limit=6)]),
        optimizer=dict(peak_lr=1e-2, warmup_steps=1)))
    if rl:
        made.update(dict(prompts_per_rollout=4, samples_per_prompt=2, max_new_tokens=6))
    if name == "ppo" and "reward_model" not in changes:
        made.reward_model = trained("reward")
    if name == "grpo":
        made.rewards = [dict(name="numeric", weight=1.0)]
    if "init_from" not in changes and name in PARENTS:
        made.init_from = trained(PARENTS[name])
    if not (changes.get("init_from") or made.init_from):
        made.update(dict(tokenizer=str(TOKENIZER), model=MODEL))
    made.update(changes)
    return made


@functools.cache
def trained(name):
    """The workdir of a stage trained for a few steps."""
    workdir = folder() / name
    train_stage(config(name), workdir)
    return str(workdir)


@functools.cache
def ends_its_turns():
    """A policy some of whose responses end and some do not; all of `trained("sft")`'s are cut, and earn the same."""
    workdir = folder() / "sft"
    train_stage(config("sft", steps=20, optimizer=dict(peak_lr=3e-2)), workdir)
    return str(workdir)


def metrics(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
