"""GRPO with rewards that a rule can check: groups of answers to one problem, no reward model, no critic.

    jaxalign train --config=configs/grpo.py --workdir=runs/grpo

40 steps of 128 responses. `reward/numeric` is the share of right answers among those drawn.
Another reward: a function `(prompt, response, answer) -> float`, --config.rewards[0].name=my_module:my_reward.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("grpo")
    config.init_from = "runs/ppo"
    config.rewards = [{"name": "numeric", "weight": 1.0}]
    config.reward_kinds = ["arithmetic"]
    config.data.train = [
        {"path": "runs/data/grpo.train.jsonl", "shape": "prompts", "share": 0.75},
        # Not rewarded: here only the KL term acts, so that what the model could do stays.
        {"path": "runs/data/align.train.jsonl", "shape": "prompts", "share": 0.25},
    ]
    config.steps = 40
    config.batch_size = 128
    config.prompts_per_rollout = 16
    config.samples_per_prompt = 8
    config.optimizer.update(peak_lr=3e-4, schedule="linear", warmup_steps=5, end_fraction=0.1)
    config.log_every = 5
    config.checkpoint_every = 10
    return config
