"""How well a model predicts text: nats per target token, perplexity, bits per byte."""

import math

import numpy as np

from jaxalign.data.pipeline import batches
from jaxalign.evaluate.statistics import bootstrap_ratio

_BLOCKS = 1000  # groups that an interval is bootstrapped over: enough for it, and little memory however long the text


def perplexity(assistant, source, intake, *, batch_size, length, truncate=None):
    """Loss over the targets of a source: every token of a text, the assistant's turns of a conversation.

    Bits per byte are those of the targets' own text: what special tokens (end of turn, end of text) cost is in the
    numerator, their zero bytes in the denominator, so that tokenizers can be compared. A text longer than a row is cut
    into pieces, each predicted from its own beginning: longer rows give lower figures.

    Args:
      assistant: an `Assistant`.
      source: one source as in a config; its bad rows were met by `intake` already.
      intake: an `Intake`, whose report is told what was truncated.
      batch_size, length: rows at a time and positions a row.
      truncate: which end of a conversation that is longer goes, as in `data.pipeline.batches`.
    Returns:
      {"nats_per_token", "perplexity", "bits_per_byte"}, each {"value", "n", "ci95"}; intervals bootstrapped over rows.
      n is tokens for the first two, bytes for the third, which is left out where the tokenizer met text it can't write.
    """
    tokenizer = assistant.tokenizer
    sizes = piece_sizes(tokenizer)
    iterator = batches(source, tokenizer, kind="tokens", batch_size=batch_size, length=length, shuffle=False,
                       repeat=False, truncate=truncate, on_bad_row="skip")
    report = iterator.report
    intake.report.truncated, intake.report.bad, intake.report.rows = report.truncated, report.bad, report.rows
    nats, tokens, text_bytes, unknown = [], [], [], False
    for batch in iterator:
        mask_BT, targets_BT = batch["mask_BT"], batch["targets_BT"]
        nats.append(-(np.where(mask_BT > 0, assistant.logp(batch), 0.0)).sum(1, dtype=np.float64))
        tokens.append(mask_BT.sum(1))
        text_bytes.append((target_bytes(batch["tokens_BT"], targets_BT, *sizes) * mask_BT).sum(1))
        unknown |= bool(((targets_BT == tokenizer.unk_id) & (mask_BT > 0)).any())
    nats, tokens, text_bytes = (_blocks(np.concatenate(x)) for x in (nats, tokens, text_bytes))
    loss, low, high = bootstrap_ratio(nats, tokens)
    n = int(tokens.sum())
    figures = {"nats_per_token": {"value": loss, "n": n, "ci95": (low, high)},
               "perplexity": {"value": math.exp(loss), "n": n, "ci95": (math.exp(low), math.exp(high))}}
    if not unknown and text_bytes.sum():
        value, low, high = bootstrap_ratio(nats / math.log(2), text_bytes)
        figures["bits_per_byte"] = {"value": value, "n": int(text_bytes.sum()), "ci95": (low, high)}
    return figures


def piece_sizes(tokenizer):
    """What `target_bytes` has to know of a tokenizer."""
    begins_V = np.zeros(tokenizer.vocab_size, bool)
    begins_V[list(tokenizer.special_ids)] = True
    return piece_bytes(tokenizer), begins_V, int(tokenizer.spell(tokenizer.encode("a")[:1]).startswith(" "))


def target_bytes(tokens_BT, targets_BT, size_V, begins_V, prefix):
    """UTF-8 bytes of each target in its own text, (B, T); special tokens have none.

    A tokenizer that puts a space before the first word counts it where a text begins, which is after a special token.

    Args:
      tokens_BT, targets_BT: ids, numpy's or JAX's, as the arrays after them are.
      size_V, begins_V, prefix: of `piece_sizes`.
    """
    return size_V[targets_BT] - prefix * (begins_V[tokens_BT] & ~begins_V[targets_BT])


def piece_bytes(tokenizer):
    """UTF-8 bytes that each id stands for in a text, (V,); 0 for special tokens."""
    return np.array([len(tokenizer.piece_bytes(i)) for i in range(tokenizer.vocab_size)], np.int64)


def _blocks(values):
    """Sums of every `_BLOCKS`th row: rows that stand side by side, and may be of one text, come into different sums."""
    return np.bincount(np.arange(len(values)) % _BLOCKS, values) if len(values) > _BLOCKS else values.astype(float)
