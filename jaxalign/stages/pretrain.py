"""Next-token prediction: pretraining, continued pretraining, and instruction tuning, which differ in data alone."""

import math

import jax.numpy as jnp
import numpy as np

from jaxalign.batches import bind
from jaxalign.errors import ConfigError, JaxalignError
from jaxalign.evaluate.perplexity import piece_sizes, target_bytes
from jaxalign.objectives.reduce import Loss, Term, as_loss
from jaxalign.stages.defaults import base_config
from jaxalign.stages.forgetting import OLD, old_domain
from jaxalign.stages.stage import Stage


class NextToken(Stage):
    """Learns to predict text. Where it starts from a checkpoint, its dev figures are of what that had learned as well
    (`forgetting.old_domain`), so that what the new costs stands beside what it brings."""

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        size_V, *more = piece_sizes(self.tokenizer)
        # No bytes are known of a piece that stands for anything: figures per byte become NaN, and are left out.
        self.sizes = np.where(np.arange(len(size_V)) == self.tokenizer.unk_id, np.nan, size_V), *more
        self.old = self._find_old()

    @classmethod
    def defaults(cls):
        return base_config(
            cls.name, objective=dict(name="cross_entropy", z_loss=0.0, label_smoothing=0.0),
            forgetting=True,  # whether what init_from had learned is measured too, before and after, as dev data are
            data=dict(old=[]))  # sources of that; empty: the dev data of init_from's own config

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.data.old and not (config.init_from and config.forgetting):
            raise ConfigError(f"{cls.name}: config.data.old says what a checkpoint had learned, and this stage "
                              f"{'is told not to measure that' if config.init_from else 'starts from none'}; set "
                              f"{'forgetting=True' if config.init_from else 'init_from'}, or leave it empty")

    def evaluate(self, state):
        figures = super().evaluate(state)
        if self.old:
            old = self.measure(state, self.batches_again("old", *self.old))
            figures |= {OLD + name: old[name] for name in ("nll", "bits_per_byte", "accuracy") if name in old}
        return figures

    def measure(self, state, batches):
        """And, of the objective's own, whatever it is: nats a token, bits a byte, the share of targets that no token is
        likelier than."""
        figures = super().measure(state, batches)
        size = figures.pop("bytes_per_token")
        return figures | ({"bits_per_byte": figures["nll"] / math.log(2) / size} if size > 0 else {})

    def measured(self, trainable, frozen, batch):
        given, mask_BT = self.available(trainable, frozen, batch), batch["mask_BT"]
        loss = as_loss(bind(self.objective, given, self.options))
        bytes_BT = target_bytes(batch["tokens_BT"], batch["targets_BT"], *map(jnp.asarray, self.sizes))
        return Loss(loss.terms, loss.metrics | {
            "nll": Term(-given["logp_BT"](), mask_BT), "accuracy": Term(given["top_BT"](), mask_BT),
            "bytes_per_token": Term(bytes_BT.astype(jnp.float32), mask_BT)}), {}

    def _find_old(self):
        """(sources of what was learned before, how they are read), looked into; None where there are none to be had."""
        sources, how, why = old_domain(self.config, self.parent)
        if sources:
            try:
                self.batches_again("old", sources, how)
                return sources, how
            except (JaxalignError, OSError) as error:
                if self.config.data.old:
                    raise
                why = f"the dev data of {self.config.init_from} cannot be had ({error})"
        if why:
            self.warn(f"{self.name}: forgetting is not measured: {why}; sources of what was learned before may be given "
                      "as config.data.old")
        return None


class Pretrain(NextToken):
    """Every token of every document is a target."""

    name = "pretrain"


class SFT(NextToken):
    """Instruction tuning: the assistant's turns are the targets."""

    name = "sft"
