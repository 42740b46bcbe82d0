"""PPO against a learned reward, with a KL penalty to the model it starts from.

    jaxalign train --config=configs/ppo.py --workdir=runs/ppo

60 steps of 64 responses. `score` is the reward model's mean, `kl` the distance from the start, nats an answer; the
other figures, and what can be chosen (critic, adaptive KL, scaling, several steps a rollout): objectives/README.md.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("ppo")
    config.init_from = "runs/sft"
    config.reward_model = "runs/reward"  # the critic starts from it as well
    config.data.train = [{"path": "runs/data/align.train.jsonl", "shape": "prompts"}]
    config.steps = 60
    config.batch_size = 64  # responses an optimizer step
    config.prompts_per_rollout = 64
    config.length = 64  # the prompt's budget in tokens
    config.max_new_tokens = 48
    config.kl_coefficient = 0.05
    config.optimizer.update(peak_lr=3e-4, schedule="linear", warmup_steps=5, end_fraction=0.1)
    config.log_every = 5
    config.checkpoint_every = 10
    return config
