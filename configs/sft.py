"""Instruction tuning: conversations whose assistant turns are the targets.

    jaxalign train --config=configs/sft.py --workdir=runs/sft

200 steps of 1,024 tokens. Its dev loss, before and after, is the last but one line that it prints.
Other shapes: '--config.data.train[0].path=alpaca.json' '--config.data.train[0].shape=alpaca'.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("sft")
    config.init_from = "runs/pretrain"  # its tokenizer and the shape of its model come with it
    config.data.train = [
        {"path": "runs/data/sft.train.jsonl", "shape": "messages", "share": 0.8},
        # Some of the text goes on being read, so that what was learned from it stays.
        {"path": "runs/data/pretrain.train.jsonl", "shape": "text", "share": 0.2},
    ]
    config.data.dev = [{"path": "runs/data/sft.dev.jsonl", "shape": "messages"}]
    config.steps = 200
    config.batch_size = 8
    config.length = 128
    config.optimizer.update(name="muon", peak_lr=0.003, schedule="linear", warmup_steps=10, end_fraction=0.02)
    config.log_every = 25
    config.checkpoint_every = 50
    return config
