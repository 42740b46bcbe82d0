"""What a stage trains of its networks, and what stays as it was loaded."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.lora import has_adapters
from jaxalign.stages.network import joined
from jaxalign.train.adapters import base_record


class Parameters:
    """Of a `Stage`, whose `config`, `lora`, `frozen`, `workdir` and `say` it uses."""

    base = None  # what a checkpoint says of the frozen weights under its adapters
    continued = frozenset()  # names of parts whose adapters were there before

    def load(self, network, path=None, part=None):
        """(whole state, where its frozen weights are from) of a checkpoint's part: by default `init_from`'s policy."""
        return self._load(path or self.config.init_from, network, part)

    def take_over(self, name, network, fresh, whole, base=None):
        """What is trained of a whole state: all of it, or adapters and heads; then the rest is frozen.

        Args:
          base: where that rest is from, if the checkpoints are to say so.
        """
        if not self.lora.rank:
            return whole
        trained, frozen = network.divided(whole, fresh)
        if has_adapters(whole):
            self.continued = self.continued | {name}
        self.frozen = self.frozen | {"base": self.frozen.get("base", {}) | {name: frozen}}
        if base:
            self.base = base_record(base, self._load.marks[str(base)], self.workdir)
            plain = sum(x.size for x in jax.tree.leaves(network.abstract))
            count, adapters = (sum(x.size for x in jax.tree.leaves(tree))
                               for tree in (trained, nnx.filter_state(trained, nnx.LoRAParam)))
            of = plain + adapters
            self.say(f"{self.name}: adapters of rank {self.lora.rank}; trains {count:,} of {of:,} parameters, "
                     f"{count / of:.2%}")
        return trained

    def whole(self, trainable, frozen):
        """`trainable` with the frozen weights that its adapters are beside; every part a whole state."""
        return trainable | {name: joined(base, trainable[name]) for name, base in frozen.get("base", {}).items()}

    def as_it_starts(self, policy):
        """A policy's whole state now, frozen: under adapters no second copy of what never changes."""
        # The trained one's memory is reused from step to step.
        copy = jax.tree.map(jnp.copy, policy)
        if not self.lora.rank:
            return copy
        base = self.frozen["base"]["policy"]
        return joined(base, copy) if "policy" in self.continued else base

    def adapters_meta(self):
        """What a checkpoint says of its adapters, if it has any."""
        return {"lora": dataclasses.asdict(self.lora), "base": self.base} if self.base else {}
