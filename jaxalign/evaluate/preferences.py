"""Whether a model orders answers as people did."""

import functools

import jax
import numpy as np
from flax import nnx

from jaxalign.data import encode
from jaxalign.data.chat import render
from jaxalign.data.corpus import Sequences, assemble
from jaxalign.data.rows import Ranking, pairs_of
from jaxalign.data.tokenizer import open_tokenizer
from jaxalign.errors import DataError
from jaxalign.evaluate.calibration import by_length, calibration, share
from jaxalign.evaluate.statistics import bootstrap_mean, kendall_tau_b, probability_above
from jaxalign.models.heads import ScalarModel
from jaxalign.models.transformer import ModelConfig
from jaxalign.rewards.learned import score_rows
from jaxalign.train.checkpoint import load_params, read_reward_meta, unpack_tokenizer


ROWS, POSITIONS = 32, 32  # responses at a time, and the step of their length: each length is compiled once


class RewardModel:
    """A reward stage's checkpoint with its tokenizer: conversations in, one score each out."""

    def __init__(self, graphdef, params, tokenizer, pooling="last"):
        self.graphdef, self.params, self.tokenizer, self.pooling = graphdef, params, tokenizer, pooling
        self._score = jax.jit(self._scores)

    @classmethod
    def load(cls, checkpoint):
        """From a reward stage's workdir or one checkpoint's folder. Raises CheckpointError."""
        folder, meta = read_reward_meta(checkpoint)
        config = ModelConfig(**meta["model"])
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: ScalarModel(config, rngs=nnx.Rngs(0))))
        return cls(graphdef, load_params(folder, "reward", abstract), open_tokenizer(unpack_tokenizer(meta)),
                   meta["pooling"])

    @functools.cached_property
    def _config(self):
        return nnx.merge(self.graphdef, self.params).backbone.config

    def score(self, batch):
        """Score of the one conversation in each row of a numpy batch of tokens, (B,)."""
        names = ("tokens_BT", "targets_BT", "segment_ids_BT", "mask_BT")
        return np.asarray(self._score(self.params, {name: batch[name] for name in names}))

    def score_responses(self, conversations, responses):
        """Score of each response, a text, as the next turn of its conversation, (N,).

        Texts are written with this model's own tokenizer, whoever drew them. An empty response is scored too.
        """
        written = [self._written(*turns) for turns in zip(conversations, responses, strict=True)]
        longest = max((len(ids) for ids, _ in written), default=2)  # a score is read after the last, too
        self._config.need_places(longest, "a response with its prompt", "make them shorter")
        length = -(-(longest - 1) // POSITIONS) * POSITIONS
        scores = np.zeros(len(written), np.float32)
        for first in range(0, len(written), ROWS):
            sequences = Sequences()
            for ids, mask in written[first:first + ROWS]:
                sequences.add(ids, mask)
            size = sequences.freeze().size
            batch = assemble(sequences, sequences.start, size - 1, np.arange(len(size)), np.zeros_like(size),
                             np.ones_like(size), ROWS, length, self.tokenizer.pad_id)
            batch = {f"{name}_BT": array for name, array in batch.items()}
            scores[first:first + ROWS] = self.score(batch)[:len(size)]
        return scores

    def _written(self, messages, response):
        prompt = [{**message, "train": False} for message in messages]
        ids, mask = render(prompt, self.tokenizer, add_generation_prompt=True)
        # Not rendered as a turn of the conversation: there an empty one is an error.
        drawn, tail = [*self.tokenizer.encode(response), self.tokenizer.end_id], self.tokenizer.tail_ids
        return ids + drawn + tail, mask + [1] * len(drawn) + [0] * len(tail)

    def _scores(self, params, batch):
        return score_rows(nnx.merge(self.graphdef, params), batch, self.pooling)


def preferences(model, rows, intake, *, batch_size, length):
    """Agreement with human rankings.

    A reward model orders answers by their score, a language model by the sum of its log-probabilities of the answer's
    tokens (end of turn included), which favours short answers; so their mean is given beside it.

    Args:
      model: a `RewardModel` or an `Assistant`.
      rows: `Ranking`s.
      intake: an `Intake`: rows whose answers do not fit in `length` are bad rows; prompts are cut on the left.
      batch_size, length: answers at a time and positions each.
    Returns:
      {"accuracy", "kendall_tau_b"}, each {"value", "n", "ci95"}; for a language model also "accuracy_per_token", for a
      reward model what `calibration` and `by_length` give.
      Accuracy is the share of judged pairs ordered alike, a draw counting one half; τ-b is the mean over rankings of
      three answers or more, left out where there is none. Intervals: Wilson's for pairs of their own, bootstrapped by
      prompt where one prompt gives several pairs.
    """
    corpus, origin = encode.rankings(enumerate(rows), model.tokenizer, intake, length=length, truncate="left",
                                     template=model.tokenizer.template, pairs=False, max_answers=None)
    if not len(corpus):
        raise DataError(rows[0].path, None, f"answers that fit in {length} tokens", "none", "a larger --length")
    rows = [rows[n] for n in origin]
    judge = isinstance(model, RewardModel)
    totals, lengths = _measure(model, corpus, batch_size, judge)
    members = [member[member >= 0] for member in corpus.member_R]
    better, worse, prompts = _judged(rows, members)
    difference = totals[better] - totals[worse]
    figures = {"accuracy": _accuracy(difference, prompts)}
    if judge:
        figures |= calibration(difference, prompts) | by_length(difference, lengths[better], lengths[worse], prompts)
    else:
        per_token = totals / lengths
        figures["accuracy_per_token"] = _accuracy(per_token[better] - per_token[worse], prompts)
    taus = [kendall_tau_b([-rank for rank in row.ranks], totals[member]) for row, member in zip(rows, members)
            if len(row.ranks) > 2]
    taus = [tau for tau in taus if not np.isnan(tau)]
    if taus:
        value, low, high = bootstrap_mean(taus)
        figures["kendall_tau_b"] = {"value": value, "n": len(taus), "ci95": (low, high)}
    return figures


def thumbs(model, rows, intake, *, batch_size, length):
    """How often an answer that was liked stands above one that was not, whatever their prompts.

    Args:
      model, intake, batch_size, length: as in `preferences`.
      rows: `Unpaired`s.
    Returns:
      {"liked_above_disliked"}: {"value", "n", "ci95"}, the area under the ROC curve, by score or summed
      log-probability; for a language model also "liked_above_disliked_per_token". Nothing where all were liked, or
      none was.
    """
    alone = [Ranking(row.path, row.line, row.messages, [row.answer], [0]) for row in rows]
    corpus, origin = encode.rankings(enumerate(alone), model.tokenizer, intake, length=length, truncate="left",
                                     template=model.tokenizer.template, pairs=False, max_answers=1)
    if not len(corpus):
        raise DataError(rows[0].path, None, f"answers that fit in {length} tokens", "none", "a larger --length")
    judge = isinstance(model, RewardModel)
    totals, lengths = (values[corpus.member_R[:, 0]] for values in _measure(model, corpus, batch_size, judge))
    liked = np.asarray([rows[n].desirable for n in origin])
    if liked.all() or not liked.any():
        return {}
    named = {"": totals} if judge else {"": totals, "_per_token": totals / lengths}
    figures = {}
    for name, values in named.items():
        value, low, high = probability_above(values[liked], values[~liked])
        figures["liked_above_disliked" + name] = {"value": value, "n": len(liked), "ci95": (low, high)}
    return figures


def _measure(model, corpus, batch_size, judge):
    """(score or summed log-probability, number of the answer's tokens) of every sequence, each measured once."""
    totals, lengths = (np.zeros(len(corpus.sequences.size), np.float64) for _ in range(2))
    per_batch = max(1, batch_size // corpus.member_R.shape[1])
    for first in range(0, len(corpus), per_batch):
        items = np.arange(first, min(first + per_batch, len(corpus)))
        # The last batch has as many rows as the others, some of them empty, so that nothing is compiled twice.
        batch = corpus.batch(items, items - first, per_batch)
        flat = {f"{name}_BT": batch[f"{name}_BRT"].reshape(-1, corpus.length)
                for name in ("tokens", "targets", "mask", "positions", "segment_ids")}
        values = model.score(flat) if judge else (np.where(flat["mask_BT"] > 0, model.logp(flat), 0.0)).sum(1)
        member, there = corpus.member_R[items], corpus.member_R[items] >= 0
        shape = batch["answer_mask_BR"].shape
        totals[member[there]] = values.reshape(shape)[:len(items)][there]
        lengths[member[there]] = flat["mask_BT"].sum(1).reshape(shape)[:len(items)][there]
    return totals, lengths


def _judged(rows, members):
    """Of every pair that people ordered: the numbers of its better and its worse sequence, and of its prompt."""
    pairs = [(member[better], member[worse], n) for n, (row, member) in enumerate(zip(rows, members))
             for better, worse, _ in pairs_of(row)]
    if not pairs:
        raise DataError(rows[0].path, None, "at least one pair of answers that people ordered", "ties only",
                        "give ranks that differ")
    return np.asarray(pairs).T


def _accuracy(difference, prompts):
    return share(0.5 * (1 + np.sign(difference)), prompts)
