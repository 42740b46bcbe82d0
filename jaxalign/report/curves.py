"""Which of a stage's figures are drawn, together with what, and in what unit."""

import json
import pathlib

from jaxalign.errors import DataError
from jaxalign.report.plots import Series

# Before these names' slash stands the data they were measured on, so `loss` and `dev/loss` share a chart.
SPLITS = ("train", "dev", "old", "eval", "valid", "heldout")
NO_FIGURES = ("step", "time", "tokens")
FIRST = ("nll", "score", "reward", "gold", "accuracy", "calibration_error", "exact_match", "kl", "loss", "length",
         "entropy", "truncated")
LAST = ("tokens_per_second", "learning_rate", "lr", "grad_norm", "z_loss")
UNITS = {
    "loss": "nats / token", "nll": "nats / token", "cross_entropy": "nats / token",
    "kl": "nats", "entropy": "nats", "tokens_per_second": "tokens / s",
    "truncated": "share of rows", "accuracy": "share", "exact_match": "share", "length": "tokens",
    "bits_per_byte": "bits / byte", "margin": "reward", "perplexity": "e^nats",
}  # fmt: skip


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The lines of one `metrics.jsonl`; a torn last line is left out. Raises DataError for a broken one before it."""
    rows, lines = [], path.read_text(encoding="utf-8").splitlines()
    for line_number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, TypeError, KeyError):
            if line_number == len(lines):
                break
            raise DataError(path, line_number, 'a JSON object with "step"', line[:40]) from None
        rows.append(row)
    return rows


def charts(rows: list[dict]) -> tuple[dict[str, list[Series]], dict[str, float]]:
    """({name: lines that share a chart}, most telling first, {name: value} of what never changed) of one stage."""
    lines: dict[str, dict[str, list]] = {}
    for row in rows:
        for key, value in row.items():
            if key in NO_FIGURES or isinstance(value, (str, bool, list, dict)):
                continue
            # What a stage measures of what was learned before it.
            split, _, rest = key.replace("dev/old/", "old/", 1).partition("/")
            name, label = (rest, split) if rest and split in SPLITS else (key, "train")
            lines.setdefault(name, {}).setdefault(label, []).append((row["step"], value))
    drawn, constant = {}, {}
    for name in sorted(lines, key=rank):
        seen = {value for line in lines[name].values() for _, value in line if value is not None}
        if len(seen) > 1:
            chart = [Series(label, *map(list, zip(*lines[name][label], strict=True)))
                     for label in sorted(lines[name], key=SPLITS.index)]  # not as they came: dev data are measured first
            # One figure often has several names (the loss, its only term): once is enough.
            if not any(all(line in other for line in chart) for other in drawn.values()):
                drawn[name] = chart
        elif seen:
            constant[name] = seen.pop()
    return drawn, constant


def unit(name: str, stage: str) -> str:
    """What a figure counts, for the axis; nothing where the name says it, or where nobody knows."""
    leaf = name.rsplit("/", 1)[-1]
    if leaf in ("loss", "nll") and not any(kind in stage for kind in ("pretrain", "sft")):
        return ""  # only cross-entropy is in nats a token
    return UNITS.get(leaf, "")


def rank(name: str) -> tuple[int, int]:
    """Sorts figures by how much they tell of what was learned."""
    parts = name.split("/")
    if parts[-1] in LAST:
        return 2, LAST.index(parts[-1])
    return min(((0, FIRST.index(part)) for part in parts if part in FIRST), default=(1, 0))
