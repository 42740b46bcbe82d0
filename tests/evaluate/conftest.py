"""Two tiny checkpoints made by the stages: a language model as it was drawn, and a trained reward model."""

import json

import pytest

from jaxalign.data.tokenizer import train_tokenizer
from jaxalign.stages import default_config, train_stage

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box quietly near jade green hills".split()
LINES = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
MODEL = dict(width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with `tokenizer.model`, data files, and the workdirs `policy` and `reward`."""
    folder = tmp_path_factory.mktemp("evaluate")
    train_tokenizer(LINES, folder / "tokenizer.model", vocab_size=360)
    write(folder / "text.jsonl", [{"text": line + " café"} for line in LINES])
    write(folder / "chat.jsonl", [chat(f"What is {i}?", line) for i, line in enumerate(LINES)])
    pairs = [{"prompt": f"Say {i}.", "chosen": line, "rejected": "no"} for i, line in enumerate(LINES)]
    write(folder / "pairs.jsonl", pairs)
    policy = default_config("pretrain")
    policy.update(dict(tokenizer=str(folder / "tokenizer.model"), steps=0, batch_size=8, length=64, preview=False,
                       model=MODEL, data=dict(train=[dict(path=str(folder / "text.jsonl"), shape="text")])))
    train_stage(policy, folder / "policy")
    reward = default_config("reward")
    reward.update(dict(init_from=str(folder / "policy"), steps=30, batch_size=8, length=64, log_every=100,
                       objective=dict(name="bradley_terry"), optimizer=dict(peak_lr=0.01),
                       data=dict(train=[dict(path=str(folder / "pairs.jsonl"), shape="pairs")])))
    train_stage(reward, folder / "reward")
    return folder
