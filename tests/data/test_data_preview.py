"""The preview of a batch row: what counts is seen."""

import io

from rich.console import Console

from jaxalign.data.pipeline import batches
from jaxalign.data.preview import preview_row

SOURCE = {"records": [{"prompt": "is it [bold]?", "answer": "yes, a fox"}, {"prompt": "and?", "answer": "no"}],
          "shape": "prompt_response"}


def shown(tokenizer, packing="best_fit", **options):
    batch = next(batches(SOURCE, tokenizer, kind="tokens", batch_size=1, length=64, shuffle=False, packing=packing))
    out = io.StringIO()
    console = Console(file=out, width=300, **options)
    row = {name: array[0] for name, array in batch.items()}
    preview_row(row["tokens_BT"], row["mask_BT"], tokenizer, console,
                targets=row["targets_BT"] if packing == "best_fit" else None)
    return out.getvalue(), int(row["mask_BT"].sum())


def test_without_a_terminal_what_counts_stands_in_brackets(tokenizer):
    text, counted = shown(tokenizer)
    assert ("<s><|user|> is it [bold]?<|end|><|assistant|>⟦ yes, a fox<|end|>⟧<s><|user|> and?<|end|><|assistant|>"
            "⟦ no<|end|>⟧\n") in text
    assert f"{counted} of 64 positions count" in text and "\x1b" not in text


def test_without_targets_the_last_one_is_not_guessed(tokenizer):
    text, _ = shown(tokenizer, packing="none")
    assert text.startswith("<s><|user|> is it [bold]?<|end|><|assistant|>⟦ yes, a fox…⟧\n")


def test_in_a_terminal_what_counts_is_coloured(tokenizer):
    text, _ = shown(tokenizer, force_terminal=True, color_system="standard")
    assert "⟦" not in text and "\x1b[1;30;42m yes, a fox<|end|>\x1b[0m" in text
    assert "\x1b[2m<s><|user|> is it [bold]?<|end|><|assistant|>\x1b[0m" in text
