"""What every stage of the pipeline shares: its model, tokenizer, data and lineage."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxalign import config as configs
from jaxalign.batches import bind, check, resolve
from jaxalign.data.folding import ROWS, fold, unfold
from jaxalign.data.pipeline import batches
from jaxalign.data.preview import preview_row
from jaxalign.data.tokenizer import load_tokenizer, open_tokenizer
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models.lora import LoraConfig
from jaxalign.models.transformer import ModelConfig, Transformer
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.objectives.reduce import as_loss, reduce, weight_sums
from jaxalign.sharding import put_batch
from jaxalign.stages.checks import objective_options
from jaxalign.stages.defaults import MODEL
from jaxalign.stages.network import Loader, Network
from jaxalign.stages.parameters import Parameters
from jaxalign.stages.run import train_stage
from jaxalign.train.checkpoint import pack_tokenizer, read_meta, unpack_tokenizer

RUNTIME = ("dtype", "remat", "unroll")  # choices of how a model runs, not of what it is
LOGITS = 2**24  # numbers: logits beyond these are never there at once, unless config.logits_chunk says otherwise


class Stage(Parameters):
    """One stage. A subclass says what its batches hold (`kind`), what it can give an objective (`available`), what
    is trained (`init`, `start`), and its default settings."""

    name = ""
    kind = "tokens"
    policy = "policy"  # the part of a checkpoint that later stages start from
    beside = None  # a tree like the trainable one, or None: what a checkpoint has to hold beside that
    waits = True  # whether batches that are drawn wait for the step before

    def __init__(self, config, workdir, mesh):
        self.config, self.workdir, self.mesh = config, pathlib.Path(workdir), mesh
        self.warn = self.say = print if jax.process_index() == 0 else _nothing
        self.parent = read_meta(config.init_from) if config.init_from else None
        self.tokenizer = self._tokenizer()
        self.model_config = self._model_config()
        self.lora = LoraConfig(**config.lora)
        self.network = Network(Transformer, self.model_config, self.lora)
        self._load = Loader(self.model_config, self.lora, mesh)
        self.frozen, self.reports = {}, {}
        self.objective = resolve(config.objective.name, OBJECTIVES)
        if self.draws and config.data.dev:
            raise ConfigError(f"{self.name}: config.data.dev is not read by a stage that draws its samples, whose "
                              "figures are those of its rollouts; leave it empty, and measure the checkpoint with "
                              "jaxalign evaluate")
        self.options = objective_options(config.objective, self.defaults().objective, self.objective)
        self._evaluate_step = jax.jit(self._evaluation)
        self.train_data = self._data(config.data.train, repeat=True)
        check(self.objective, self.names(), self.options)
        self.dev_data = list(config.data.dev)
        self._dev = None
        if config.preview:
            self._preview()

    # -- what is trained ------------------------------------------------------------------------------------------

    def init(self, key):
        """Random parameters: `{"policy": nnx.State}`."""
        return {"policy": self.network.init(key)}

    def start(self, trainable):
        """Parameters handed over by `init_from`; the random ones where there is none."""
        if self.parent is None:
            return trainable
        return {"policy": self.take_over("policy", self.network, trainable["policy"], *self.load(self.network))}

    # -- batches --------------------------------------------------------------------------------------------------

    def next_batches(self, state):
        """([one batch], figures to log beside the loss)."""
        return [self.prepared(next(self.train_data), "train")], {"truncated": self.train_data.report.truncated_share}

    def prepared(self, batch, split):
        """A batch of the "train" or "dev" data as the loss takes it."""
        return arrays(batch)

    def folded(self, batch):
        """The batch, its rows packed for the forward pass where that can be: `data/folding.py`.

        Not where parts of the rows go elsewhere: microbatches, several processes.
        """
        if not self.config.fold or self.config.microbatches > 1 or jax.process_count() > 1:
            return batch
        kind = "BRT" if "tokens_BRT" in batch else "BT"
        rows = [batch[f"{name}_{kind}"] for name in ("tokens", "targets", "segment_ids")]
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return batch | fold(*(array.reshape(-1, array.shape[-1]) for array in rows), self.tokenizer.pad_id,
                            rows=math.lcm(ROWS, devices), least=-(-self.config.fold_rows // devices) * devices)

    @property
    def draws(self):
        """Whether batches are drawn from the policy that is trained."""
        return self.kind == "prompts"

    def enough(self, metrics):
        """Whether what is left of the batches is passed over, by the figures of the step before."""
        return False

    def data_state(self):
        return self.train_data.get_state()

    def set_data_state(self, state):
        self.train_data.set_state(state)

    def rows_per_batch(self):
        return self.config.batch_size

    def _data(self, sources, *, repeat, name="bad_rows.jsonl"):
        c = self.config
        if not sources:
            raise ConfigError(f"{self.name}: config.data.{'train' if repeat else 'dev'} is empty; give at least one "
                              'source such as dict(path="data.jsonl", shape="messages")')
        self.workdir.mkdir(parents=True, exist_ok=True)
        iterator = batches(
            list(sources), self.tokenizer, kind=self.kind, batch_size=self.rows_per_batch(),
            length=c.length, packing=c.data.packing, seed=c.seed, shuffle=c.data.shuffle and repeat, repeat=repeat,
            truncate=c.data.truncate or None, on_bad_row=c.data.on_bad_row,
            bad_rows_path=self.workdir / name if jax.process_index() == 0 else None,
            max_answers=c.get("max_answers") or None,
            process_index=jax.process_index(), process_count=jax.process_count())
        report, split = iterator.report, "train" if repeat else "dev"
        listed = f", listed in {self.workdir / name}" if report.bad else ""
        self.say(f"{self.name} {split} data: {report.summary()}{listed}")
        self.reports[split] = {"rows": report.rows, "bad": len(report.bad), "truncated": report.truncated_share}
        return iterator

    @classmethod
    def run(cls, config, workdir):
        """Trains from `config` into `workdir`, or goes on where that stopped; returns a summary."""
        return train_stage(cls, config, workdir)

    # -- loss -----------------------------------------------------------------------------------------------------

    def available(self, trainable, frozen, batch):
        """name → value or maker of it, for the objective. Names are those of `batches.VOCABULARY`."""
        statistics = functools.cache(lambda: self.statistics(trainable["policy"], batch))
        made = {name: (lambda name=name: getattr(statistics(), name)) for name in STATISTICS}
        return dict(batch) | made

    def names(self):
        """The names `available` can give, without computing any."""
        return set(BATCH_NAMES) | set(STATISTICS)

    def statistics(self, policy, batch, temperature=1.0):
        """Log-probability, entropy and normaliser of the targets under a policy's parameters."""
        return self.read_off(self.hidden(policy, batch), policy, batch, temperature)

    def hidden(self, policy, batch):
        """Last hidden states of the batch's rows, or of the packed rows where it has them."""
        rows = rows_of(batch, "tokens", "positions", "segment_ids")
        return self.network.merge(policy)(*rows, key=batch.get("dropout_key"))

    def read_off(self, hidden, policy, batch, temperature=1.0):
        """`statistics` of hidden states."""
        targets, = rows_of(batch, "targets")
        chunk = self.config.logits_chunk or chunk_of(hidden.shape[0], self.model_config.vocab_size)
        model = self.network.merge(policy)
        statistics = token_statistics(hidden, model.unembedding_DV, targets, temperature=temperature, chunk=chunk,
                                      softcap=model.softcap)
        return in_place(statistics, batch)

    def loss_fn(self, trainable, frozen, batch, key):
        """The objective's `Loss`. With a key, adapters drop; without one, as where it is only measured, they do not."""
        batch = batch | {"dropout_key": key} if key is not None and self.lora.dropout else batch
        return self.loss_of(self.whole(trainable, frozen), frozen, batch)

    def loss_of(self, trainable, frozen, batch):
        """`loss_fn` of whole states."""
        return as_loss(bind(self.objective, self.available(trainable, frozen, batch), self.options))

    # -- dev figures ----------------------------------------------------------------------------------------------

    def evaluate(self, state):
        """The objective's terms and metrics over the dev data, each divided once over all of it."""
        if not self.dev_data:
            return {}
        totals = None
        for n, batch in enumerate(self._dev_batches()):
            if n >= self.config.eval_batches > 0:
                break
            with jax.set_mesh(self.mesh):
                placed = put_batch(self.prepared(batch, "dev"), self.mesh)
                sums = self._evaluate_step(state.trainable, self.frozen, placed)
            totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        return {name: float(total / max(weight, 1e-9)) for name, (total, weight) in totals.items()}

    def _dev_batches(self):
        """The dev data from its start; read and tokenised once."""
        if self._dev is None:
            self._dev = self._data(self.dev_data, repeat=False, name="bad_dev_rows.jsonl")
            self._dev_start = self._dev.get_state()
        self._dev.set_state(self._dev_start)
        return self._dev

    def _evaluation(self, trainable, frozen, batch):
        loss = self.loss_fn(trainable, frozen, batch, None)
        terms = loss.terms | loss.metrics
        ones = {name: jnp.ones(()) for name in terms}
        sums, weights = reduce(terms, ones)[1], weight_sums(terms)
        return {name: (sums[name], weights[name]) for name in terms}

    # -- handing over ---------------------------------------------------------------------------------------------

    def meta(self):
        """What a checkpoint says of itself."""
        lineage = list(self.parent[1]["lineage"]) if self.parent else []
        here = {"stage": self.name, "path": str(self.workdir), "steps": int(self.config.steps),
                "parent": self.config.init_from}
        more = {"published": self.parent[1]["published"]} if self.parent and "published" in self.parent[1] else {}
        return more | self.adapters_meta() | {
            "stage": self.name,
            "policy": self.policy,
            "config": configs.to_json(self.config),
            "model": dataclasses.asdict(self.model_config),
            "tokenizer": pack_tokenizer(self.tokenizer.model_bytes),
            "lineage": lineage + [here],
        }

    def _tokenizer(self):
        c = self.config
        given = load_tokenizer(c.tokenizer) if c.tokenizer else None
        inherited = open_tokenizer(unpack_tokenizer(self.parent[1])) if self.parent else None
        if given and inherited and given.hash != inherited.hash and not c.allow_other_tokenizer:
            raise CheckpointError(
                f"config.tokenizer={c.tokenizer} (sha256 {given.hash[:12]}) is not the tokenizer that "
                f"{c.init_from} was trained with ({inherited.hash[:12]}): its ids mean other tokens; leave "
                "config.tokenizer empty to take over the checkpoint's, or set allow_other_tokenizer=True")
        if not (given or inherited):
            raise ConfigError(f"{self.name}: config.tokenizer is empty and there is no init_from to take one from; "
                              "train one with `jaxalign tokenizer` and set config.tokenizer")
        return given or inherited

    def _model_config(self):
        runtime = {name: self.config.model[name] for name in RUNTIME}
        if self.parent:
            found = self.parent[1]["model"]
            if self.tokenizer.vocab_size > found["vocab_size"]:
                raise CheckpointError(f"config.tokenizer={self.config.tokenizer} has {self.tokenizer.vocab_size} "
                                      f"pieces, the model of {self.config.init_from} embeds {found['vocab_size']}; use a "
                                      "tokenizer that is no larger")
            for name, value in self.config.model.items():
                if name not in RUNTIME and value not in (found.get(name, value), MODEL[name]):
                    self.warn(f"{self.name}: config.model.{name}={value!r} is not used; the model of "
                              f"{self.config.init_from} has {found[name]!r}")
            model = ModelConfig(**(found | runtime))
        else:
            model = ModelConfig(vocab_size=self.tokenizer.vocab_size, **self.config.model)
        drawn = self.config.get("max_new_tokens", 0)
        model.need_places(self.config.length + drawn, f"{self.name}: config.length={self.config.length}" + (
            f" with config.max_new_tokens={drawn}" if drawn else ""), "make it smaller")
        return model

    def _preview(self):
        if jax.process_index() > 0:
            return
        position = self.train_data.get_state()
        batch = next(self.train_data)
        self.train_data.set_state(position)
        console = Console()
        if self.kind == "prompts":  # no target yet: the answer is drawn
            tokens_P = batch["tokens_BP"][0]
            preview_row(tokens_P, np.zeros(len(tokens_P)), self.tokenizer, console,
                        note="a prompt: what counts in the loss is drawn later")
        elif self.kind == "tokens":
            preview_row(batch["tokens_BT"][0], batch["mask_BT"][0], self.tokenizer, console,
                        targets=batch["targets_BT"][0])
        else:
            for r in np.flatnonzero(batch["answer_mask_BR"][0]):
                preview_row(batch["tokens_BRT"][0, r], batch["mask_BRT"][0, r], self.tokenizer, console,
                            targets=batch["targets_BRT"][0, r])


STATISTICS = ("logp_BT", "logz_BT", "mean_logp_BT", "entropy_BT")
BATCH_NAMES = ("tokens_BT", "targets_BT", "mask_BT", "positions_BT", "segment_ids_BT")


def _nothing(*_):
    """What processes but the first say: the same as the first."""


def rows_of(batch, *names):
    """Arrays as the transformer reads them: of the packed rows where the batch has them."""
    return [batch[f"folded_{name}_MS" if "place_BU" in batch else f"{name}_BT"] for name in names]


def in_place(made, batch):
    """What was made of `rows_of`, a number a position, in the batch's own rows."""
    return unfold(made, batch["place_BU"][:, :-1]) if "place_BU" in batch else made


def chunk_of(rows, vocab_size):
    """How many positions of every row may have their logits at once."""
    return max(1, LOGITS // (rows * vocab_size))


def arrays(batch):
    """The arrays of a batch; source records and other Python objects stay behind."""
    return {name: value for name, value in batch.items() if isinstance(value, (np.ndarray, jax.Array))}

