"""Sources → rows, with every bad row raised or counted, and every truncation on record."""

import contextlib
import dataclasses
import difflib
import json
import math
import pathlib

from jaxalign.data import sources as files
from jaxalign.data.rows import Chat, Prompt, Ranking, Text, Unpaired
from jaxalign.data.shapes import FIELDS, SHAPES
from jaxalign.data.turns import strip_end
from jaxalign.errors import ConfigError, DataError

# What a source may say: key → (types of the value, what they are called). None is as good as leaving a key out.
_KEYS = {"path": ((str, pathlib.PurePath, list, tuple), "a path or a list of paths"),
         "records": ((list, tuple), "a list of dicts"), "shape": (str, "a name"), "weight": ((int, float), "a number"),
         "share": ((int, float), "a number"), "fields": (dict, "a dict of names"), "split": (str, "'train' or 'dev'"),
         "holdout": ((int, float), "a share between 0 and 1"), "where": (dict, "a dict of values"),
         "limit": (int, "a whole number"), "documents": (str, "'file', 'line' or 'paragraph'"),
         "strip_end": (str, "the text to take off")}
# Endings of other tokenizers that data sets leave in their text: learned as letters if nobody takes them off.
_MARKERS = ("###eos_token###", "<|endoftext|>", "<|im_end|>", "</s>", "<eos>", "[EOS]")


@dataclasses.dataclass
class Report:
    """What went into the batches and what did not; nothing is cut or skipped without showing up here."""

    rows: int = 0  # rows read, good ones
    bad: list = dataclasses.field(default_factory=list)  # {"path", "line", "expected", "got", "error"} of each skipped
    truncated: dict = dataclasses.field(default_factory=lambda: {"left": 0, "right": 0})  # sequences cut on that side
    cut_tokens: int = 0
    dropped_answers: int = 0  # beyond max_answers
    chunked: int = 0  # documents longer than a row, cut into pieces with nothing lost
    markers: dict = dataclasses.field(default_factory=dict)  # literal end markers found at the end of rows
    sequences: int = 0
    tokens: int = 0  # positions in an epoch, source weights counted
    targets: int = 0  # those that count in the loss
    text_bytes: int = 0  # UTF-8 bytes of text documents, for bits per byte
    batch_rows: int = 0  # rows of the first epoch's batches
    fill: float = 0.0  # share of their positions that hold a token
    sources: list = dataclasses.field(default_factory=list)  # per source: path, shape, rows, bad, weight, tokens

    @property
    def truncated_share(self):
        """Which part of the sequences lost something."""
        return sum(self.truncated.values()) / max(1, self.sequences)

    def summary(self):
        """One line for the log."""
        parts = [f"{self.rows:,} rows, {self.tokens:,} tokens ({self.targets:,} targets) in {self.batch_rows:,} batch "
                 f"rows, {self.fill:.1%} full"]
        if self.bad:
            parts.append(f"{len(self.bad):,} bad row{'s' * (len(self.bad) > 1)} skipped")
        if self.chunked:
            parts.append(f"{self.chunked:,} texts longer than a row, cut into pieces with nothing lost")
        if sum(self.truncated.values()):
            parts.append(f"truncated {self.truncated['right']} right, {self.truncated['left']} left "
                         f"({self.cut_tokens:,} tokens cut)")
        if self.dropped_answers:
            parts.append(f"{self.dropped_answers} answers beyond max_answers dropped")
        if self.markers:
            parts.append("literal end markers in the text, take them off with strip_end: "
                         + ", ".join(f"{m!r} in {n} rows" for m, n in self.markers.items()))
        return "; ".join(parts)


class Intake:
    """Decides what happens to a bad row: "error" raises the first, "skip" counts it and writes it to a file."""

    def __init__(self, on_bad_row="error", bad_rows_path=None):
        if on_bad_row not in ("error", "skip"):
            raise ConfigError(f"on_bad_row={on_bad_row!r}; expected 'error' or 'skip'")
        self.on_bad_row, self.bad_rows_path, self.report = on_bad_row, bad_rows_path, Report()

    def bad(self, error):
        if self.on_bad_row == "error":
            raise error
        self.report.bad.append({"path": error.path, "line": error.line, "expected": error.expected, "got": error.got,
                                "error": str(error)})

    def close(self):
        """Writes the list of bad rows, also an empty one, so that a stale file never speaks for this run."""
        if self.bad_rows_path is not None and self.on_bad_row == "skip":
            path = pathlib.Path(self.bad_rows_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in self.report.bad), encoding="utf-8")


def check_sources(sources):
    """One source or several, as dicts or ConfigDicts → list of plain dicts with known keys. Raises ConfigError."""
    sources = [sources] if hasattr(sources, "keys") else list(sources)
    checked = []
    for source in sources:
        if not hasattr(source, "keys"):
            raise ConfigError(f"a data source is a dict such as {{'path': 'data.jsonl', 'shape': 'messages'}}, got "
                              f"{type(source).__name__} {source!r}")
        source = source.to_dict() if hasattr(source, "to_dict") else dict(source)
        _known("data source has no key", source, _KEYS)
        source = {key: value for key, value in source.items() if value is not None}
        for key, value in source.items():
            _check_value(key, value, source.get("path", "records"))
        if ("path" in source) == ("records" in source):
            raise ConfigError("a data source needs either 'path' or 'records' (a list of dicts)")
        if source.get("shape") not in SHAPES:
            near = difflib.get_close_matches(str(source.get("shape")), SHAPES, 1)
            raise ConfigError(f"shape={source.get('shape')!r} of {source.get('path', 'records')}; expected one of "
                              f"{', '.join(SHAPES)}" + (f"; did you mean {near[0]!r}?" if near else ""))
        checked.append(source)
    if not checked:
        raise ConfigError("no data source; expected at least one {'path', 'shape'}")
    return checked


def _known(message, given, names):
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            raise ConfigError(f"{message} {name!r}; " + (f"did you mean {near[0]!r}?" if near else
                              f"known: {', '.join(sorted(names))}"))


def _check_value(key, value, path):
    types, expected = _KEYS[key]
    ok = isinstance(value, types) and not isinstance(value, bool)
    if ok and key in ("weight", "share"):
        ok, expected = math.isfinite(value) and value >= 0, "a number, 0 or above"
    elif ok and key == "limit":
        ok, expected = value >= 1, "1 or more"
    elif ok and key == "holdout":
        ok = 0 <= value <= 1
    if not ok:
        raise ConfigError(f"data source {path}: {key}={value!r}; expected {expected}")
    if key == "fields":
        _known(f"data source {path}: fields names no", value, FIELDS)
        if not isinstance(value.get("roles", {}), dict):
            raise ConfigError(f"data source {path}: fields['roles']={value['roles']!r}; expected a dict of names")


def read_rows(source, intake=None):
    """Yields the rows of one checked source; bad records go to `intake` (none: they raise)."""
    intake = intake or Intake()
    reader, fields, limit = SHAPES[source["shape"]], dict(source.get("fields") or {}), source.get("limit")
    taken = 0
    for record in _records(source):
        if limit is not None and taken >= limit:
            return
        try:
            if record.error is not None:
                raise record.error
            if not files.keep(record, split=source.get("split"), holdout=source.get("holdout", 0.05),
                              where=source.get("where")):
                continue
            rows = reader(record, fields)
        except DataError as error:
            intake.bad(error)
            continue
        taken += 1
        for row in rows:
            if source.get("strip_end"):
                _strip(row, source["strip_end"])
            _note_markers(row, intake.report)
            yield row


def _records(source):
    if "path" in source:
        return files.read(source["path"], documents=source.get("documents", "file"))
    return (files.Record("records", line, value, None if isinstance(value, dict) else DataError(
        "records", line, "a dict", type(value).__name__)) for line, value in enumerate(source["records"], 1))


def _strip(row, ending):
    if isinstance(row, Text):
        row.text = row.text.rstrip().removesuffix(ending)
    else:
        row.messages = strip_end(row.messages, ending)
        if isinstance(row, Ranking):
            row.answers = [strip_end(a, ending) for a in row.answers]
        if isinstance(row, Unpaired):
            row.answer = strip_end(row.answer, ending)


def _note_markers(row, report):
    last = row.text if isinstance(row, Text) else row.messages[-1]["content"] if row.messages else ""
    if isinstance(row, Ranking):
        last = row.answers[0][-1]["content"]
    elif isinstance(row, Unpaired):
        last = row.answer[-1]["content"]
    if isinstance(last, str) and (last := last.rstrip()).endswith(_MARKERS):
        marker = next(m for m in _MARKERS if last.endswith(m))
        report.markers[marker] = report.markers.get(marker, 0) + 1


def check_readable(source, kind, on_bad_row="error"):
    """Raises the DataError of a checked source that has no row for a kind of batch, or whose first is none: what would
    stop a stage at once, without reading all of it.

    Args:
      kind: a key of `KINDS`, or None for any row.
      on_bad_row: "skip" looks on for the first good one.
    """
    intake = Intake(on_bad_row)
    with contextlib.closing(read_rows(source, intake)) as rows:
        for row in rows:
            try:
                return KINDS[kind](row) if kind else row
            except DataError as error:
                intake.bad(error)
    bad = intake.report.bad
    raise DataError(source.get("path", "records"), None, "at least one usable row", f"none, {len(bad)} bad ones",
                    f"the first: {bad[0]['error']}" if bad else "look at the file, `where` and `split`")


def texts_of(sources, intake=None):
    """Yields every text of the sources' rows, for training a tokenizer on any shape; bad ones as `read_rows` does."""
    for source in check_sources(sources):
        for row in read_rows(source, intake):
            if isinstance(row, Text):
                yield row.text
            else:
                yield from (m["content"] for m in row.messages)
            if isinstance(row, Ranking):
                yield from (m["content"] for answer in row.answers for m in answer)
            elif isinstance(row, Unpaired):
                yield from (m["content"] for m in row.answer)


def as_chat(row):
    """The conversation to learn from: of a ranking, with its best answer (supervised learning on what was chosen)."""
    if isinstance(row, Unpaired):
        if not row.desirable:
            raise DataError(row.path, row.line, "an answer worth learning", "one that was not liked",
                            "where={'label': True}, or on_bad_row='skip'")
        return Chat(row.path, row.line, [*[{**m, "train": False} for m in row.messages], *row.answer])
    if isinstance(row, Ranking):
        best = row.answers[min(range(len(row.ranks)), key=row.ranks.__getitem__)]
        return Chat(row.path, row.line, [*[{**m, "train": False} for m in row.messages], *best])
    if isinstance(row, Prompt):
        raise DataError(row.path, row.line, "rows with an answer to learn", "prompts to be answered",
                        "use shape='prompt_response', or kind='prompts'")
    return row


def as_prompt(row):
    """What is to be answered: of a conversation, all before its last assistant turn, whose text is the answer."""
    if isinstance(row, Prompt):
        return row
    if isinstance(row, (Ranking, Unpaired)):
        return Prompt(row.path, row.line, row.messages, None, row.record)
    if isinstance(row, Chat):
        last = max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=None)
        if not last:
            raise DataError(row.path, row.line, "an assistant turn after a prompt", "none")
        return Prompt(row.path, row.line, row.messages[:last], row.messages[last]["content"], row.record)
    raise DataError(row.path, row.line, "a conversation to be answered", "a plain text", "choose a chat shape")


def as_ranking(row):
    """Answers that were compared."""
    if not isinstance(row, Ranking):
        raise DataError(row.path, row.line, "answers to compare", type(row).__name__.lower(),
                        "choose the shape 'pairs' or 'rankings'")
    return row


def as_judged(row):
    """An answer that was liked or not, or answers that were compared."""
    if not isinstance(row, (Unpaired, Ranking)):
        raise DataError(row.path, row.line, "answers that were liked or not", type(row).__name__.lower(),
                        "choose the shape 'unpaired', 'pairs' or 'rankings'")
    return row


# Kind of batch → what it makes of a row, or the DataError that says why it is none for it.
KINDS = {"tokens": lambda row: row if isinstance(row, Text) else as_chat(row), "prompts": as_prompt,
         "rankings": as_ranking, "pairs": as_ranking, "unpaired": as_judged}
