"""Direct preference optimisation: the policy from pairs of answers, without a reward model or sampling.

    jaxalign train --config=configs/dpo.py --workdir=runs/dpo

100 steps of 32 pairs. `dev/accuracy` is the share of pairs whose better answer became likelier; it starts at 0.5.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("dpo")
    config.init_from = "runs/sft"  # the start, and, frozen, the reference
    # A ranking gives every pair that it orders; published pairs are shape "pairs".
    config.data.train = [{"path": "runs/rankings/rankings.train.jsonl", "shape": "rankings"}]
    config.data.dev = [{"path": "runs/rankings/rankings.dev.jsonl", "shape": "rankings"}]
    config.objective.beta = 0.1
    config.steps = 100
    config.batch_size = 32
    config.length = 96
    config.optimizer.update(peak_lr=3e-4, schedule="linear", warmup_steps=10, end_fraction=0.02)
    config.checkpoint_every = 25
    return config
