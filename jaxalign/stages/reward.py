"""The reward model: one score for a whole conversation, learned from rankings or pairs."""

import numpy as np

from jaxalign.batches import bind, signature
from jaxalign.errors import ConfigError
from jaxalign.evaluate.calibration import by_length, calibration
from jaxalign.models.heads import ScalarModel
from jaxalign.objectives.reduce import Loss, Term, as_loss
from jaxalign.rewards.learned import POOLINGS, score_and_likelihood, score_rows
from jaxalign.stages.defaults import base_config
from jaxalign.stages.network import Network, on_backbone
from jaxalign.stages.stage import Stage


class Reward(Stage):
    """Bradley–Terry on pairs or Plackett–Luce on K-way rankings: the objective's arguments say which."""

    name = "reward"
    policy = "reward/backbone"

    def __init__(self, config, workdir, mesh):
        super().__init__(config, workdir, mesh)
        self.scorer = Network(ScalarModel, self.model_config, self.lora)

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.pooling not in POOLINGS:
            raise ConfigError(f"reward: config.pooling={config.pooling!r} must be one of {', '.join(POOLINGS)}")
        if config.lm_coefficient and config.pooling != "likelihood":
            raise ConfigError(f"reward: config.lm_coefficient={config.lm_coefficient} keeps the backbone a language "
                              'model, whose likelihood only config.pooling="likelihood" computes; set that, or 0')

    @staticmethod
    def defaults():
        return base_config("reward", objective=dict(name="plackett_luce", centre=0.0), batch_size=16, max_answers=0,
                           pooling="last",  # one of rewards/learned.POOLINGS
                           lm_coefficient=0.0)  # how much the best answer's own likelihood counts

    @classmethod
    def kind_of(cls, objective):
        return "pairs" if "chosen_score_B" in signature(objective)[0] else "rankings"

    def init(self, key):
        return {"reward": self.scorer.init(key)}

    def start(self, trainable):
        """The language model of `init_from` under a fresh head; a whole reward model where that is one."""
        if self.parent is None:
            return trainable
        fresh = trainable["reward"]
        if self.parent[1]["policy"] == "reward/backbone":
            whole, base = self.load(self.scorer, part="reward")
        else:
            language, base = self.load(self.network)
            whole = on_backbone(fresh, language)
        return {"reward": self.take_over("reward", self.scorer, fresh, whole, base)}

    @classmethod
    def names(cls, objective):
        return {"score_BR", "ranks_BR", "answer_mask_BR", "chosen_score_B", "rejected_score_B", "margin_B", "weight_B"}

    def next_batches(self, state):
        batches, figures = super().next_batches(state)
        return [self.folded(batch) for batch in batches], figures

    def available(self, trainable, frozen, batch):
        return self._made(batch, self._scored(trainable, batch)[0])

    def loss_of(self, trainable, frozen, batch):
        """The objective and, at choice, the likelihood of the best answers: a backbone that goes on being a language
        model generalises further (Yang et al. 2024, arXiv:2406.10216, section 3.2) and still knows what is true."""
        return self._loss(batch, *self._scored(trainable, batch))

    def measured(self, trainable, frozen, batch):
        score_BR, logp_BRT = self._scored(trainable, batch)
        first = {name: batch[f"{name}_BRT"][:, 0] for name in ("tokens", "mask")}
        return self._loss(batch, score_BR, logp_BRT), first | {
            "score": score_BR, "ranks": batch["ranks_BR"], "there": batch["answer_mask_BR"] > 0,
            "length": batch["mask_BRT"].sum(-1)}

    def dev_figures(self, kept):
        """Calibration error, and accuracy by how long the preferred answer is beside the other; `findings` has the bins
        and intervals."""
        kept = {name: np.concatenate([keep[name] for keep in kept]) for name in kept[0]}
        above = kept["there"][:, :, None] & kept["there"][:, None, :] & (
            kept["ranks"][:, :, None] < kept["ranks"][:, None, :])
        row, better, worse = np.nonzero(above)
        if not len(row):
            return {}
        start, numbers = kept["mask"].argmax(1) + 1, {}  # in the inputs, which are one behind the targets
        prompts = np.array([numbers.setdefault(tokens[:n].tobytes(), len(numbers))
                            for tokens, n in zip(kept["tokens"], start)])[row]  # pairs of one ranking have one
        scores, lengths = kept["score"].astype(np.float64), kept["length"]
        difference = scores[row, better] - scores[row, worse]
        self.findings = calibration(difference, prompts) | by_length(difference, lengths[row, better],
                                                                     lengths[row, worse], prompts)
        return {"calibration_error": self.findings["calibration_error"]["value"]} | {
            f"accuracy_by_length/{name.replace(' ', '_')}": figure["value"]
            for name, figure in self.findings["accuracy_by_length"].items()}

    def _loss(self, batch, score_BR, logp_BRT):
        loss = as_loss(bind(self.objective, self._made(batch, score_BR), self.options))
        if not self.config.lm_coefficient:
            return loss
        best_BR = batch["answer_mask_BR"] * (batch["ranks_BR"] == 0)
        term = Term(-logp_BRT, batch["mask_BRT"] * best_BR[..., None], self.config.lm_coefficient)
        return Loss(loss.terms | {"lm": term}, loss.metrics)

    def _scored(self, trainable, batch):
        """(score_BR, logp_BRT)."""
        B, R, T = batch["tokens_BRT"].shape
        model = self.scorer.merge(trainable["reward"])
        score, logp = score_and_likelihood(model, _flat(batch), self.config.pooling)
        return score.reshape(B, R), None if logp is None else logp.reshape(B, R, T)

    def _made(self, batch, score_BR):
        made = {"score_BR": score_BR, "ranks_BR": batch["ranks_BR"], "answer_mask_BR": batch["answer_mask_BR"]}
        if "margin_B" in batch:
            made |= {"chosen_score_B": score_BR[:, 0], "rejected_score_B": score_BR[:, 1],
                     "margin_B": batch["margin_B"], "weight_B": batch["answer_mask_BR"][:, 1]}
        return made

    def meta(self):
        return super().meta() | {"pooling": self.config.pooling}


def scores(model, batch, pooling):
    """Score of every answer of a rankings or pairs batch, (B, R)."""
    return score_rows(model, _flat(batch), pooling).reshape(batch["tokens_BRT"].shape[:2])


def _flat(batch):
    """Every answer as a row of its own."""
    names = ("tokens", "targets", "segment_ids", "mask")
    T = batch["tokens_BRT"].shape[-1]
    return dict(batch) | {f"{name}_BT": batch[f"{name}_BRT"].reshape(-1, T) for name in names}
