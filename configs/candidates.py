"""Rankings to learn from: several answers of the SFT model to each prompt, ordered by a judge with a person's noise.

    jaxalign train --config=configs/candidates.py --workdir=runs/rankings

6,000 answers to 1,000 prompts, and a fifth of that to measure with; no training.
The judge is the miniature world's gold scorer, or any function `(prompt, response, answer) -> float` given as
--config.judge=my_module:my_judge. With rankings made by people you need this recipe not at all.
"""

from jaxalign.stages import default_config


def get_config():
    config = default_config("candidates")
    config.init_from = "runs/sft"
    config.data.train = [{"path": "runs/data/align.train.jsonl", "shape": "prompts", "limit": 1000}]
    config.data.dev = [{"path": "runs/data/align.dev.jsonl", "shape": "prompts", "limit": 200}]
    config.samples_per_prompt = 6
    config.answers = 4
    config.judge = "gold"
    return config
