"""The stages by name. To add one: a file here and a line below."""

from jaxalign.stages.pretrain import SFT, Pretrain

STAGES = {"pretrain": Pretrain, "sft": SFT}
