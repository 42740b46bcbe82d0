"""A language model from random weights: next-token prediction on text.

    jaxalign train --config=configs/pretrain.py --workdir=runs/pretrain

600 steps of 1,024 tokens: two to three minutes on two busy CPU cores; the loss falls from 6.9 to below 0.9 nats.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("pretrain")
    config.tokenizer = "runs/tokenizer/tokenizer.model"
    config.data.train = [{"path": "runs/data/pretrain.train.jsonl", "shape": "text"}]
    config.data.dev = [{"path": "runs/data/pretrain.dev.jsonl", "shape": "text"}]
    config.model.update(width=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384)
    config.steps = 600
    config.batch_size = 16
    config.length = 64
    config.optimizer.update(name="muon", peak_lr=0.012, schedule="linear", warmup_steps=20, end_fraction=0.02)
    config.objective.z_loss = 1e-4
    config.log_every = 25
    config.checkpoint_every = 100  # what a run that is stopped loses at most; the same command then goes on
    return config
