"""A reward model: one score for an answer, learned from rankings (Plackett–Luce) or pairs (Bradley–Terry).

    jaxalign train --config=configs/reward.py --workdir=runs/reward

120 steps of 16 prompts with up to four answers each. `dev/accuracy` is its agreement with the judge; a coin's is 0.5.
Pairs: --config.objective.name=bradley_terry '--config.data.train[0].shape=pairs'. Rankings are read as pairs too.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("reward")
    config.init_from = "runs/sft"
    config.data.train = [{"path": "runs/rankings/rankings.train.jsonl", "shape": "rankings"}]
    config.data.dev = [{"path": "runs/rankings/rankings.dev.jsonl", "shape": "rankings"}]
    config.objective.name = "plackett_luce"
    config.steps = 120
    config.batch_size = 16
    config.length = 96
    config.optimizer.update(peak_lr=5e-4, schedule="linear", warmup_steps=10, end_fraction=0.02)
    config.checkpoint_every = 40
    return config
