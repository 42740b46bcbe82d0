"""The stages by name. To add one: a file here and a line below.

One that trains is a `stage.Stage`. Any other is a class with `name`; `defaults()`, its config; `check(config)`, which
raises ConfigError for settings that cannot be; `run(config, workdir)`, which returns its summary and writes it to
`workdir/done.json`; and `writes`, the names of the files that later stages may read.
"""

from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.stages.candidates import Candidates
from jaxalign.stages.checks import check_stage
from jaxalign.stages.claims import WorldClaims
from jaxalign.stages.dpo import DPO
from jaxalign.stages.grpo import GRPO
from jaxalign.stages.ppo import PPO
from jaxalign.stages.pretrain import SFT, Pretrain
from jaxalign.stages.reasoning import MakeReasoning
from jaxalign.stages.reward import Reward
from jaxalign.stages.tokenizer import TrainTokenizer
from jaxalign.stages.world import MakeWorld

STAGES = {
    "world": MakeWorld,
    "reasoning": MakeReasoning,
    "tokenizer": TrainTokenizer,
    "pretrain": Pretrain,
    "sft": SFT,
    "candidates": Candidates,
    "reward": Reward,
    "ppo": PPO,
    "dpo": DPO,
    "grpo": GRPO,
    "claims": WorldClaims,
}


def default_config(name):
    """The settings of a stage with their defaults, locked: what a config file starts from."""
    return STAGES[name].defaults()


def train_stage(config, workdir):
    """Runs the stage that `config.stage` names, from its checkpoint if there is one; returns its summary."""
    check_config(config)
    return STAGES[config.stage].run(config, workdir)


def check_config(config):
    """Raises ConfigError unless the config is one stage's and can be: `checks.check_stage`, and the stage's `check`."""
    if "chain" in config:
        raise ConfigError("the config is a pipeline's, a chain of stages; run it with jaxalign pipeline")
    name = config.get("stage", "")
    if name not in STAGES:
        raise ConfigError(f"config.stage={name!r} must be one of {', '.join(STAGES)}")
    check_stage(config, STAGES[name].defaults())
    STAGES[name].check(config)


def load_assistant(checkpoint, **options):
    """The language model of a checkpoint, ready to talk: see `evaluate.assistant.Assistant`."""
    return Assistant.load(checkpoint, **options)
