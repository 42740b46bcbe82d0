"""Next-token prediction: pretraining, continued pretraining, and instruction tuning, which differ in data alone."""

from jaxalign.stages.defaults import base_config
from jaxalign.stages.stage import Stage


class Pretrain(Stage):
    """Every token of every document is a target."""

    name = "pretrain"

    @staticmethod
    def defaults():
        return base_config("pretrain", objective=dict(name="cross_entropy", z_loss=0.0, label_smoothing=0.0))


class SFT(Stage):
    """Instruction tuning: the assistant's turns are the targets."""

    name = "sft"

    @staticmethod
    def defaults():
        return base_config("sft", objective=dict(name="cross_entropy", z_loss=0.0, label_smoothing=0.0))
