"""One network of a stage: trained whole, or frozen under adapters that are trained beside it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.models.heads import ScalarModel
from jaxalign.models.lora import HEADS, LoraConfig, adapt, has_adapters, is_trained, under, with_magnitudes
from jaxalign.models.transformer import Transformer
from jaxalign.sharding import placed
from jaxalign.train.adapters import base_folder, load_base, load_frozen
from jaxalign.train.checkpoint import load_params, read_meta, read_params

OFF = LoraConfig()


class Network:
    """A kind of module in the two forms that its parameters may have: plain, or with adapters where `lora.rank` says so.

    Attributes: `graphdef`, `abstract` (of the plain module); `adapted` (the graphdef with adapters), `trained` (the
    abstract state of what is trained).
    """

    def __init__(self, cls, model_config, lora=OFF):
        self.cls, self.model_config, self.lora = cls, model_config, lora
        self.graphdef, self.abstract, self.adapted, self.trained = _forms(cls, model_config, lora)

    def init(self, key):
        """What is trained, freshly drawn. Pure."""
        module = _module(self.cls, self.model_config, key)
        if not self.lora.rank:
            return nnx.split(module)[1]
        return nnx.split(_adapted(module, self.lora, jax.random.fold_in(key, 1)), is_trained, ...)[1]

    def merge(self, params):
        """The module of a whole state, plain or adapted: which of the two it is the state says."""
        return nnx.merge(self.adapted if has_adapters(params) else self.graphdef, params)

    def divided(self, whole, fresh):
        """(what is trained, what is frozen) of a whole state.

        Args:
          whole: plain or adapted; its heads may be missing. Nothing that is trained shares memory with it, for that is
            reused from step to step.
          fresh: of `init`: the adapters and heads of what has none.
        """
        found, base = nnx.split_state(whole, is_trained, ...)
        trained = jax.tree.map(jnp.copy, nnx.merge_state(fresh, found))
        if self.lora.form == "dora" and not has_adapters(whole):
            trained = jax.jit(self._measured, out_shardings=jax.tree.map(lambda x: x.sharding, trained))(trained, base)
        return trained, base

    def _measured(self, trained, base):
        return nnx.split_state(with_magnitudes(self.adapted, joined(base, trained)), is_trained, ...)[0]


def _module(cls, model_config, key):
    return cls(model_config, rngs=nnx.Rngs(params=key))


def _adapted(module, lora, key):
    return adapt(module, lora, rngs=nnx.Rngs(params=key))


@functools.lru_cache(maxsize=32)
def _forms(cls, model_config, lora):
    """What a `Network` has of graphdefs and abstract states. A stage asks for the same several times, and tracing takes long."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: _module(cls, model_config, jax.random.key(0))))
    if not lora.rank:
        return graphdef, abstract, graphdef, abstract
    made = nnx.eval_shape(lambda: _adapted(_module(cls, model_config, jax.random.key(0)), lora, jax.random.key(0)))
    adapted, whole = nnx.split(made)
    return graphdef, abstract, adapted, nnx.split_state(whole, is_trained, ...)[0]


def joined(base, trained):
    """The whole state of what is frozen and what is trained; no array is copied."""
    return nnx.merge_state(base, trained)


def on_backbone(scalar, language):
    """The state of a `ScalarModel` with a language model's, plain or adapted, in place of its backbone."""
    heads = nnx.split_state(scalar, lambda path, _: path[0] in HEADS, ...)[0]
    return nnx.merge_state(under("backbone", language), heads)


class Loader:
    """Reads whole states from checkpoints; what they have in common, because it is frozen, once.

    Attributes: `held`, the frozen `Transformer`s by the folder of their checkpoint, as `lora.base` says; `marks`, the
    fingerprints of what they were in the checkpoint.
    """

    def __init__(self, model_config, lora, mesh):
        self.language, self.lora, self.mesh = Network(Transformer, model_config), lora, mesh
        self.held, self.marks = {}, {}

    def __call__(self, path, network, part=None):
        """(the whole state of a checkpoint's part, default its policy; the folder of the frozen weights in it).

        Adapters of the kind that is trained here stay beside their base, and training goes on with them; others, and all
        where none are trained, are merged into theirs.
        """
        folder, meta = read_meta(path)
        part = part or meta["policy"]
        if not network.lora.rank:
            return load_params(folder, part, placed(network.abstract, self.mesh)), None
        if self._goes_on(meta):
            where = base_folder(folder, meta)
            if str(where) not in self.held:
                self._hold(*load_base(folder, meta, placed(self.language.abstract, self.mesh)))
            trained = read_params(folder, meta, part, placed(network.trained, self.mesh))
            return joined(self._under(network, self.held[str(where)]), trained), where
        if str(folder) not in self.held:
            self._hold(folder, *load_frozen(folder, placed(self.language.abstract, self.mesh), self.lora.base))
        whole = self._under(network, self.held[str(folder)])
        if network.cls is ScalarModel:
            heads = load_params(folder, part, placed(network.abstract, self.mesh))
            whole = joined(whole, nnx.split_state(heads, is_trained, ...)[0])
        return whole, folder

    def _hold(self, folder, frozen, mark):
        self.held[str(folder)], self.marks[str(folder)] = frozen, mark

    def _goes_on(self, meta):
        """Whether a checkpoint's adapters are of the kind that is trained here: how much is dropped, and in how many bits they
        were held, does not matter."""
        if "lora" not in meta:
            return False
        return dataclasses.replace(LoraConfig(**meta["lora"]), dropout=self.lora.dropout, dtype=self.lora.dtype) == self.lora

    def _under(self, network, language):
        return under("backbone", language) if network.cls is ScalarModel else language
