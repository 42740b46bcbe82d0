"""Direct preference optimisation, from the same rankings a reward model would learn from."""

import jax
import jax.numpy as jnp

from jaxalign.objectives.logprobs import sequence_logp
from jaxalign.stages.defaults import base_config
from jaxalign.stages.stage import Stage


class DPO(Stage):
    """The policy against its own frozen start, on pairs of answers."""

    name = "dpo"
    kind = "pairs"

    @staticmethod
    def defaults():
        return base_config("dpo", objective=dict(name="dpo", beta=0.1, smoothing=0.0, nll_coefficient=0.0), batch_size=32)

    def start(self, trainable):
        trainable = super().start(trainable)
        # A copy: the trained one's memory is reused from step to step.
        self.frozen = {"reference": jax.tree.map(jnp.copy, trainable["policy"])}
        return trainable

    def next_batches(self, state):
        batches, figures = super().next_batches(state)
        return [self.folded(batch) for batch in batches], figures

    def names(self):
        pair = ("chosen_logp_B", "rejected_logp_B", "chosen_ref_B", "rejected_ref_B", "chosen_length_B",
                "rejected_length_B")
        return {*pair, "margin_B", "weight_B"}

    def available(self, trainable, frozen, batch):
        B, R, T = batch["tokens_BRT"].shape
        names = ("tokens", "targets", "positions", "segment_ids", "mask")
        rows = dict(batch) | {f"{name}_BT": batch[f"{name}_BRT"].reshape(B * R, T) for name in names}

        def both(policy):
            return sequence_logp(self.statistics(policy, rows).logp_BT, rows["mask_BT"]).reshape(B, R)

        logp_BR = both(trainable["policy"])
        ref_BR = jax.lax.stop_gradient(both(frozen["reference"]))
        length_BR = batch["mask_BRT"].sum(-1)
        return {"chosen_logp_B": logp_BR[:, 0], "rejected_logp_B": logp_BR[:, 1], "chosen_ref_B": ref_BR[:, 0],
                "rejected_ref_B": ref_BR[:, 1], "chosen_length_B": length_BR[:, 0],
                "rejected_length_B": length_BR[:, 1], "margin_B": batch["margin_B"],
                "weight_B": batch["answer_mask_BR"][:, 1]}
