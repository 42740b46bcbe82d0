"""The critics of PPO: what predicts the reward to come before each token is drawn."""

import jax
import jax.numpy as jnp

from jaxalign.models.heads import ScalarModel, ValueHead
from jaxalign.stages.network import Network, on_backbone
from jaxalign.stages.stage import in_place, rows_of

ORIGINS = ("reward", "policy")


class Separate:
    """A transformer of its own, whose gradients never touch the policy: InstructGPT's choice (arXiv:2203.02155)."""

    def __init__(self, model_config, lora):
        self.network = Network(ScalarModel, model_config, lora)

    def init(self, key):
        return self.network.init(key)

    def start(self, critic, policy, reward, origin):
        """The whole state it starts as: the reward model's, or the policy's transformer under the fresh head of
        `critic`."""
        made = reward if origin == "reward" else on_backbone(critic, policy)
        if self.network.lora.rank:  # what is trained of it is copied, what is frozen is shared
            return made
        return jax.tree.map(jnp.copy, made)  # the trained one's memory is reused from step to step

    def values(self, critic, batch, hidden):
        model = self.network.merge(critic)
        return in_place(model(*rows_of(batch, "tokens", "positions", "segment_ids")), batch)


class Shared:
    """A head on the policy's own hidden states: no second transformer to hold and to run, at the price that its loss
    pulls at what the policy knows. It starts at 0, wherever the policy comes from."""

    def __init__(self, model_config, lora):
        self.network = Network(ValueHead, model_config)

    def init(self, key):
        return self.network.init(key)

    def start(self, critic, policy, reward, origin):
        return critic

    def values(self, critic, batch, hidden):
        return in_place(self.network.merge(critic)(hidden()), batch)


# Each: `init(key)`, `start(…)` and `values(critic, batch, hidden)`, (B, T): what is expected before each target is
# drawn, where `hidden` makes the policy's hidden states of `rows_of`.
CRITICS = {"separate": Separate, "shared": Shared}
