"""Direct preference optimisation and its family, from the same data a reward model would learn from."""

import functools

import jax
import numpy as np

from jaxalign.batches import signature
from jaxalign.errors import ConfigError
from jaxalign.objectives.kto import kto_reference_point
from jaxalign.objectives.logprobs import sequence_logp
from jaxalign.sharding import put_batch
from jaxalign.stages.defaults import base_config
from jaxalign.stages.reference import cached, fingerprint
from jaxalign.stages.stage import Stage, arrays

PAIR = ("chosen_logp_B", "rejected_logp_B", "chosen_ref_B", "rejected_ref_B", "chosen_length_B", "rejected_length_B",
        "margin_B")
LONE = ("logp_B", "ref_logp_B", "desirable_B", "reference_point_B")
OF_THE_REFERENCE = {"chosen_ref_B", "rejected_ref_B", "ref_logp_B", "reference_point_B"}


class DPO(Stage):
    """The policy against its own frozen start, on pairs of answers, or on single ones where the objective asks for
    `desirable_B` (KTO). An objective that asks for no reference has none."""

    name = "dpo"

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        self.needs_reference = bool(OF_THE_REFERENCE & set(signature(self.objective)[0]))
        self.ref_logp = {}  # "train" and "dev" → log-probability of each sequence, where they are cached
        self._reference_point = jax.jit(self._reference_point_of)

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.reference not in ("live", "cached"):
            raise ConfigError(f'dpo: config.reference={config.reference!r} must be "live" or "cached"')
        if config.reference == "cached" and jax.process_count() > 1:
            raise ConfigError('dpo: config.reference="cached" hashes whole parameters, which of several processes none '
                              'has; use "live"')

    @staticmethod
    def defaults():
        return base_config(
            "dpo", objective=dict(name="dpo", beta=0.1, smoothing=0.0, nll_coefficient=0.0), batch_size=32,
            # "cached": its log-probabilities are computed once, before the first step, and kept in the workdir; the
            # reference itself leaves the memory.
            reference="live")

    @classmethod
    def kind_of(cls, objective):
        return "unpaired" if "desirable_B" in signature(objective)[0] else "pairs"

    def start(self, trainable):
        trainable = super().start(trainable)
        if not self.needs_reference:
            return trainable
        if self.config.reference == "cached":
            self._cache(self.whole(trainable, self.frozen)["policy"])
        else:
            self.frozen |= {"reference": self.as_it_starts(trainable["policy"])}
        return trainable

    def next_batches(self, state):
        (batch,), figures = super().next_batches(state)
        if self.kind == "unpaired" and self.needs_reference:
            # Here and not in the loss: z₀ is of the whole batch and of the policy as the step begins, and no gradient
            # flows through it.
            placed = put_batch(self.folded(_answer(batch, slice(1, 2))), self.mesh)
            with jax.set_mesh(self.mesh):
                point = float(self._reference_point(state.trainable, self.frozen, placed))
            batch = _answer(batch, slice(0, 1))
            batch["reference_point_B"] = np.full(len(batch["desirable_B"]), point, np.float32)
        return [self.folded(batch)], figures

    def prepared(self, batch, split):
        batch = arrays(batch)
        sequence_BR = batch.pop("sequence_BR")
        if split in self.ref_logp:
            batch["ref_logp_BR"] = np.where(sequence_BR >= 0, self.ref_logp[split][sequence_BR], np.float32(0.0))
        return batch

    @classmethod
    def names(cls, objective):
        return {"weight_B", *(LONE if cls.kind_of(objective) == "unpaired" else PAIR)}

    def available(self, trainable, frozen, batch):
        policy_BR = functools.cache(lambda: self._logps(trainable["policy"], batch))
        ref_BR = functools.cache(lambda: self._ref_logps(frozen, batch))
        length_BR, weight_BR = batch["mask_BRT"].sum(-1), batch["answer_mask_BR"]
        if "desirable_B" in batch:
            weight_B = weight_BR[:, 0]
            point_B = batch["reference_point_B"] if "reference_point_B" in batch else (
                lambda: kto_reference_point(policy_BR()[:, 1], ref_BR()[:, 1], weight_B))
            return {"logp_B": lambda: policy_BR()[:, 0], "ref_logp_B": lambda: ref_BR()[:, 0],
                    "desirable_B": batch["desirable_B"], "reference_point_B": point_B, "weight_B": weight_B}
        return {"chosen_logp_B": lambda: policy_BR()[:, 0], "rejected_logp_B": lambda: policy_BR()[:, 1],
                "chosen_ref_B": lambda: ref_BR()[:, 0], "rejected_ref_B": lambda: ref_BR()[:, 1],
                "chosen_length_B": length_BR[:, 0], "rejected_length_B": length_BR[:, 1],
                "margin_B": batch["margin_B"], "weight_B": weight_BR[:, 1]}

    def _logps(self, policy, batch):
        """Log-probability of every answer, summed over its tokens, (B, R)."""
        B, R, T = batch["tokens_BRT"].shape
        names = ("tokens", "targets", "positions", "segment_ids", "mask")
        rows = dict(batch) | {f"{name}_BT": batch[f"{name}_BRT"].reshape(B * R, T) for name in names}
        return sequence_logp(self.statistics(policy, rows).logp_BT, rows["mask_BT"]).reshape(B, R)

    def _ref_logps(self, frozen, batch):
        if "ref_logp_BR" in batch:
            return batch["ref_logp_BR"]
        return jax.lax.stop_gradient(self._logps(frozen["reference"], batch))

    def _reference_point_of(self, trainable, frozen, batch):
        """z₀, a scalar, of a batch that holds the mismatched answers alone."""
        weight_B = batch["mask_BRT"].max((1, 2))
        policy = self.whole(trainable, frozen)["policy"]
        return kto_reference_point(self._logps(policy, batch)[:, 0], self._ref_logps(frozen, batch)[:, 0], weight_B)[0]

    def _cache(self, policy):
        """Fills `ref_logp`, from the workdir's files where they are of this reference and this data."""
        splits = {"train": self.train_data} | ({"dev": self._dev_batches()} if self.dev_data else {})
        logps = jax.jit(self._logps)
        for split, iterator in splits.items():
            corpus = iterator.corpus
            expected = fingerprint(policy, self.model_config, corpus)
            self.ref_logp[split] = cached(self.workdir / f"reference.{split}.npz", expected,
                                          lambda corpus=corpus: self._all_logps(logps, policy, corpus), self.warn)

    def _all_logps(self, logps, policy, corpus):
        """Log-probability of each of a corpus's sequences, (number of sequences,)."""
        values, rows = np.zeros(len(corpus.sequences.size), np.float32), self.config.batch_size
        # Sequences of like length share a batch, so that the packed rows are few.
        order = np.argsort(corpus.sequences.size, kind="stable")
        for first in range(0, len(order), rows):
            numbers = order[first:first + rows]
            batch = {f"{name}_BRT": x[:, None] for name, x in corpus.lone(numbers, rows).items()}
            with jax.set_mesh(self.mesh):
                values[numbers] = np.asarray(logps(policy, put_batch(self.folded(batch), self.mesh)))[:len(numbers), 0]
        return values


def _answer(batch, which):
    """The batch with these of its answers alone."""
    return {name: x[:, which] if name.rsplit("_", 1)[-1].startswith("BR") else x for name, x in batch.items()}
