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
from jaxalign.data.preview import preview_batch
from jaxalign.errors import ConfigError
from jaxalign.models.lora import LoraConfig
from jaxalign.models.transformer import Transformer
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.logprobs import token_statistics
from jaxalign.objectives.reduce import as_loss, reduce, weight_sums
from jaxalign.sharding import gathered, make_mesh, put_batch
from jaxalign.stages.checks import objective_options
from jaxalign.stages.network import Loader, Network
from jaxalign.stages.origin import model_of, tokenizer_of
from jaxalign.stages.parameters import Parameters
from jaxalign.stages.run import train_stage
from jaxalign.train.checkpoint import pack_tokenizer, read_meta

LOGITS = 2**24  # numbers: logits beyond these are never there at once, unless config.logits_chunk says otherwise


class Stage(Parameters):
    """One stage. A subclass says what its batches hold (`kind_of`), what it can give an objective (`available`), what
    is trained (`init`, `start`), and its default settings."""

    name = ""
    writes = None  # names of the files that later stages read; None: a checkpoint
    policy = "policy"  # the part of a checkpoint that later stages start from
    beside = None  # a tree like the trainable one, or None: what a checkpoint has to hold beside that
    waits = True  # whether batches that are drawn wait for the step before

    def __init__(self, config, workdir, mesh):
        self.check(config)
        self.config, self.workdir, self.mesh = config, pathlib.Path(workdir), mesh
        self.warn = self.say = print if jax.process_index() == 0 else _nothing
        self.parent = read_meta(config.init_from) if config.init_from else None
        self.tokenizer = tokenizer_of(config, self.parent)
        self.model_config = model_of(config, self.parent, self.tokenizer, self.warn)
        self.lora = LoraConfig(**config.lora)
        self.network = Network(Transformer, self.model_config, self.lora)
        self._load = Loader(self.model_config, self.lora, mesh)
        self.frozen, self.reports, self.findings = {}, {}, {}
        self.objective = resolve(config.objective.name, OBJECTIVES)
        self.options = objective_options(config.objective, self.defaults().objective, self.objective)
        self._evaluate_step = jax.jit(self._evaluation)
        self.train_data = self._data(config.data.train, "train")
        self.dev_data = list(config.data.dev)
        self._again = {}
        if config.preview:
            self._preview()

    @classmethod
    def check(cls, config):
        """Raises ConfigError for what this stage's settings cannot be; reads and makes nothing.

        What is the same for all stages: `checks.check_stage`."""
        objective = resolve(config.objective.name, OBJECTIVES)
        check(objective, cls.names(objective), objective_options(config.objective, cls.defaults().objective, objective))
        if not config.data.train:
            raise ConfigError(f"{cls.name}: config.data.train is empty; give at least one source such as "
                              'dict(path="data.jsonl", shape="messages")')
        if not (config.tokenizer or config.init_from):
            raise ConfigError(f"{cls.name}: config.tokenizer is empty and there is no init_from to take one from; "
                              "train one with `jaxalign tokenizer` and set config.tokenizer")
        mesh = make_mesh(**config.mesh)
        split = mesh.shape["data"] * mesh.shape["fsdp"] * config.microbatches
        if config.batch_size % split:
            raise ConfigError(f"batch_size={config.batch_size} must divide by data × fsdp × microbatches = {split}; "
                              f"use {-(-config.batch_size // split) * split}")

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
        """The batch, its rows packed for the forward pass where that can be, a prompt of several answers once:
        `data/folding.py`.

        Not where parts of the rows go elsewhere: microbatches, several processes.
        """
        if not self.config.fold or self.config.microbatches > 1 or jax.process_count() > 1:
            return batch
        kind = "BRT" if "tokens_BRT" in batch else "BT"
        *rows, mask = (batch[f"{name}_{kind}"].reshape(-1, batch[f"{name}_{kind}"].shape[-1])
                       for name in ("tokens", "targets", "segment_ids", "mask"))
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return batch | fold(*rows, self.tokenizer.pad_id, rows=math.lcm(ROWS, devices),
                            least=-(-self.config.fold_rows // devices) * devices,
                            mask_BT=None if "window" in self.model_config.kinds else mask)

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

    def _data(self, sources, split, how=None):
        """Batches of sources, without end where the split is "train"; read as `config.data` says, or as `how` does."""
        c, repeat, name = self.config, split == "train", BAD_ROWS[split]
        how = how or c.data
        self.workdir.mkdir(parents=True, exist_ok=True)
        iterator = batches(
            list(sources), self.tokenizer, kind=self.kind, batch_size=self.rows_per_batch(),
            length=c.length, packing=c.data.packing, seed=c.seed, shuffle=c.data.shuffle and repeat, repeat=repeat,
            truncate=how.truncate or None, on_bad_row=how.on_bad_row,
            bad_rows_path=self.workdir / name if jax.process_index() == 0 else None,
            max_answers=c.get("max_answers") or None,
            process_index=jax.process_index(), process_count=jax.process_count())
        report = iterator.report
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

    @classmethod
    def kind_of(cls, objective):
        """Which of `data.intake.KINDS` its batches are."""
        return "tokens"

    @property
    def kind(self):
        return self.kind_of(self.objective)

    @classmethod
    def names(cls, objective):
        """The names `available` can give to an objective, without computing any."""
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
        """The objective's terms and metrics over the dev data, each divided once over all of it, and what
        `dev_figures` makes of it."""
        return self.measure(state, self._dev_batches()) if self.dev_data else {}

    def measure(self, state, batches):
        """`evaluate` of any batches of the kind that the stage trains on, `config.eval_batches` of them at most."""
        totals, kept = None, []
        for n, batch in enumerate(batches):
            if n >= self.config.eval_batches > 0:
                break
            with jax.set_mesh(self.mesh):
                placed = put_batch(self.prepared(batch, "dev"), self.mesh)
                sums, keep = self._evaluate_step(state.trainable, self.frozen, placed)
            totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
            kept.append(gathered(keep))
        figures = {name: float(total / max(weight, 1e-9)) for name, (total, weight) in totals.items()}
        return figures | self.dev_figures(kept)

    def dev_figures(self, kept):
        """Figures that are no weighted means, of what `measured` kept of every dev batch."""
        return {}

    def _dev_batches(self):
        return self.batches_again("dev", self.dev_data)

    def batches_again(self, split, sources, how=None):
        """Batches of the "dev" or "old" data from their start; read (`_data`) and tokenised once."""
        if split not in self._again:
            iterator = self._data(sources, split, how)
            self._again[split] = iterator, iterator.get_state()
        iterator, start = self._again[split]
        iterator.set_state(start)
        return iterator

    def _evaluation(self, trainable, frozen, batch):
        loss, keep = self.measured(self.whole(trainable, frozen), frozen, batch)
        terms = loss.terms | loss.metrics
        ones = {name: jnp.ones(()) for name in terms}
        sums, weights = reduce(terms, ones)[1], weight_sums(terms)
        return {name: (sums[name], weights[name]) for name in terms}, keep

    def measured(self, trainable, frozen, batch):
        """(`loss_of` a dev batch, arrays of a row each to keep for `dev_figures`)."""
        return self.loss_of(trainable, frozen, batch), {}

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

    def _preview(self):
        if jax.process_index() > 0:
            return
        position = self.train_data.get_state()
        preview_batch(next(self.train_data), self.tokenizer, Console())
        self.train_data.set_state(position)


STATISTICS = ("logp_BT", "logz_BT", "mean_logp_BT", "entropy_BT", "top_BT")
BAD_ROWS = {"train": "bad_rows.jsonl", "dev": "bad_dev_rows.jsonl", "old": "bad_old_rows.jsonl"}
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

