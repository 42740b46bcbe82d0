"""One batch row as text with its loss mask, so that a wrong mask is seen before the first step."""

from rich.text import Text


def preview_row(tokens, mask, tokenizer, console, *, targets=None, limit=600):
    """Prints one row of a batch as text, what counts in the loss in colour (or in ⟦brackets⟧).

    Args:
      tokens: (T,) input ids, one row of tokens_BT.
      mask: (T,) the row's loss mask; mask[t] speaks of target t, which is the token after input t.
      tokenizer: Tokenizer.
      console: rich.console.Console.
      targets: (T,) ids of targets_BT; None: the inputs moved by one, right for a row that is not packed.
      limit: positions shown.
    """
    targets = [*tokens[1:], None] if targets is None else targets
    spans, shown = [], 0
    previous = None
    for token, target, weight in zip(tokens, targets, mask):
        token = int(token)
        if shown >= limit:
            break
        if token == tokenizer.pad_id and (target is None or int(target) == tokenizer.pad_id) and not weight:
            continue
        shown += 1
        if previous != token:  # the start of a document: its first token is nobody's target
            spans.append((token, False))
        if target is not None:
            spans.append((int(target), bool(weight)))
        previous = None if target is None else int(target)
    console.print(_styled(spans, tokenizer, console), soft_wrap=True, highlight=False)
    counted = int(sum(1 for w in mask if w))
    cut = f"; the first {limit} positions" if shown >= limit else ""
    console.print(f"{counted} of {len(mask)} positions count in the loss{cut}", style="dim", highlight=False)


def _styled(spans, tokenizer, console):
    colour = console.is_terminal and console.color_system is not None
    out, i = Text(), 0
    while i < len(spans):
        j = i
        while j < len(spans) and spans[j][1] == spans[i][1]:
            j += 1
        counted = spans[i][1]
        piece = tokenizer.spell([token for token, _ in spans[i:j]])
        if counted and not colour:
            piece = f"⟦{piece}⟧"
        out.append(piece, style=("bold black on green" if counted else "dim") if colour else "")
        i = j
    return out
