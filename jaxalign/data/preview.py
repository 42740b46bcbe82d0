"""One batch row as text with its loss mask, so that a wrong mask is seen before the first step."""

import numpy as np
from rich.text import Text

_UNKNOWN = -1


def preview_row(tokens, mask, tokenizer, console, *, targets=None, limit=600, note=None):
    """Prints one row of a batch as text, what counts in the loss in colour (or in ⟦brackets⟧).

    Args:
      tokens: (T,) input ids, one row of tokens_BT.
      mask: (T,) the row's loss mask; mask[t] speaks of target t, which is the token after input t.
      tokenizer: Tokenizer.
      console: rich.console.Console.
      targets: (T,) ids of targets_BT. None takes the inputs moved by one, which is right for a row of one document but
        for its last target: that one is not in the inputs and is shown as ….
      limit: positions shown.
      note: said below instead of how many positions count.
    """
    if targets is None:
        targets = [_UNKNOWN if w and n == tokenizer.pad_id else n for n, w in zip([*tokens[1:], _UNKNOWN], mask)]
    spans, shown = [], 0
    previous = None
    for token, target, weight in zip(tokens, targets, mask):
        token = int(token)
        if shown >= limit:
            break
        if token == tokenizer.pad_id and not weight:
            continue
        shown += 1
        if previous != token:  # the start of a document: its first token is nobody's target
            spans.append((token, False))
        if weight or int(target) not in (tokenizer.pad_id, _UNKNOWN):
            spans.append((int(target), bool(weight)))
        previous = int(target)
    console.print(_styled(spans, tokenizer, console), soft_wrap=True, highlight=False)
    counted = int(sum(1 for w in mask if w))
    cut = f"; the first {limit} positions" if shown >= limit else ""
    said = note or f"{counted} of {len(mask)} positions count in the loss"
    console.print(f"{said}{cut}", style="dim", highlight=False)


def preview_batch(batch, tokenizer, console):
    """The first row of a batch of any kind; of compared answers all that it holds."""
    if "tokens_BP" in batch:  # no target yet: the answer is drawn
        tokens_P = batch["tokens_BP"][0]
        preview_row(tokens_P, np.zeros(len(tokens_P)), tokenizer, console,
                    note="a prompt: what counts in the loss is drawn later")
    elif "tokens_BT" in batch:
        preview_row(batch["tokens_BT"][0], batch["mask_BT"][0], tokenizer, console, targets=batch["targets_BT"][0])
    else:
        for r in np.flatnonzero(batch["answer_mask_BR"][0]):
            preview_row(batch["tokens_BRT"][0, r], batch["mask_BRT"][0, r], tokenizer, console,
                        targets=batch["targets_BRT"][0, r])


def _styled(spans, tokenizer, console):
    colour = console.is_terminal and console.color_system is not None
    out, i = Text(), 0
    while i < len(spans):
        j = i
        while j < len(spans) and spans[j][1] == spans[i][1]:
            j += 1
        counted = spans[i][1]
        known = [token for token, _ in spans[i:j] if token != _UNKNOWN]
        piece = tokenizer.spell(known) + "…" * (j - i - len(known))
        if counted and not colour:
            piece = f"⟦{piece}⟧"
        out.append(piece, style=("bold black on green" if counted else "dim") if colour else "")
        i = j
    return out
