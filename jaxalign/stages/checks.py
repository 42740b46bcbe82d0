"""What can be said against a config before anything is read or made; a chain of stages is checked whole at its start."""

from jaxalign.batches import check_options, resolve, signature
from jaxalign.config import check, check_least
from jaxalign.data.intake import check_sources
from jaxalign.errors import ConfigError
from jaxalign.models.lora import LoraConfig
from jaxalign.models.transformer import ModelConfig
from jaxalign.objectives import OBJECTIVES
from jaxalign.rewards import REWARDS
from jaxalign.train.optimizer import make_optimizer

# The least that a setting may be; what is not named may be any number.
LEAST = dict.fromkeys(
    ("batch_size", "length", "microbatches", "log_every", "keep", "prompts_per_rollout", "samples_per_prompt", "epochs",
     "max_new_tokens", "model.width", "model.num_layers", "model.num_heads", "model.num_kv_heads", "model.head_dim",
     "model.mlp_dim", "model.unroll", "kl_prompts", "train", "dev", "max_chars"), 1) | dict.fromkeys(
    ("seed", "steps", "logits_chunk", "eval_every", "eval_batches", "checkpoint_every", "max_answers", "limit",
     "optimizer.peak_lr", "optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.clip_norm", "temperature",
     "noise", "dev_samples_per_prompt", "target_kl", "reward_clip", "optimizer.lora_plus", "sft"), 0) | {
    "answers": 2, "num_entities": 12}
CHOICES = {"packing": ("best_fit", "none"), "truncate": ("", "right", "left", "error"), "on_bad_row": ("error", "skip")}


def check_stage(config, defaults):
    """Raises ConfigError for unknown keys, wrong types, numbers and names that cannot be; opens no file.

    Args:
      config: one stage's.
      defaults: that stage's defaults.
    """
    check(config, defaults)
    check_least(config, LEAST)
    if "optimizer" in config:
        make_optimizer(config.optimizer, config.steps)
    if "model" in config:
        ModelConfig(vocab_size=1, **config.model)
    if "lora" in config and LoraConfig(**config.lora).rank and not config.init_from:
        raise ConfigError(f"config.lora.rank={config.lora.rank} needs an init_from: adapters learn what differs from a "
                          "model that has learned something; set it, or rank 0")
    if "objective" in config and config.objective.name:
        function = resolve(config.objective.name, OBJECTIVES)
        check_options(function, objective_options(config.objective, defaults.objective, function))
    for reward in config.get("rewards", ()):
        if not hasattr(reward, "keys") or "name" not in reward:
            raise ConfigError(f"config.rewards holds {reward!r}; expected entries such as dict(name='numeric', "
                              "weight=1.0)")
        resolve(reward["name"], REWARDS)
    data = config.get("data", {})
    for split in ("train", "dev", "old"):
        if data.get(split):
            check_sources(list(data[split]))
    for key, choices in CHOICES.items():
        if data.get(key, choices[0]) not in choices:
            raise ConfigError(f"config.data.{key}={data[key]!r}; expected one of {', '.join(map(repr, choices))}")


def objective_options(objective, defaults, function):
    """The options that a config's objective gives its function.

    A config that names another objective than its stage's own still holds the options of that one. Those that the new
    one does not have, and nobody has set, are left out.

    Args:
      objective: `config.objective`.
      defaults: the same of the stage's defaults.
      function: what `objective.name` stands for.
    """
    other, known = objective.name != defaults.name, signature(function)[1]
    return {name: value for name, value in objective.items()
            if name != "name" and not (other and name not in known and defaults.get(name) == value)}
