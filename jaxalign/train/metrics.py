"""Where a run's figures go: `metrics.jsonl`, TensorBoard event files, and a line for the person who watches.

with MetricsWriter(workdir, name="sft", total_steps=1000, resume_step=start) as metrics:
    metrics.write(step, {"loss": loss, "truncated": share}, tokens=batch_tokens)
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Column
from rich.text import Text

from jaxalign.errors import DataError
from jaxalign.train.events import EventFile

TRUNCATED_WARNING = 0.9  # from this share of cut rows on, a run hardly learns from whole answers


class MetricsWriter:
    """Appends one stage's figures to `workdir/metrics.jsonl` and event files, and shows them.

    Every line of `metrics.jsonl` is one object: `step`, `time` (Unix seconds), `tokens` (so far),
    `tokens_per_second` (since the line before it; absent where `write` got no tokens), and the scalars.
    A resumed run drops the lines after `resume_step` first, so the file's steps equal an uninterrupted run's.

    Args:
      workdir: the stage's folder; made if absent.
      name: the stage's name, shown before each line.
      total_steps: the last step, for the progress bar and the time left.
      resume_step: the step of the checkpoint that the run goes on from; 0 starts anew and drops every line.
      seconds_between_lines: where the output is no terminal, at most one line in this time; evaluations (`write`
        without tokens) and the last step are always shown.
      console: a rich Console; standard output by default.
    """

    def __init__(
        self, workdir, *, name, total_steps, resume_step=0, seconds_between_lines=5.0, console: Console | None = None
    ):
        self.workdir = pathlib.Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.path = self.workdir / "metrics.jsonl"
        self.name, self.total_steps, self._resume_step = name, int(total_steps), int(resume_step)
        self._tokens = _keep_up_to(self.path, self._resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._console = console or Console()
        self._seconds_between_lines = seconds_between_lines
        self._start = self._last_write = time.monotonic()
        self._last_line = -math.inf
        self._first_write = None  # (time, step): compiling is done by then
        self._events = None
        self._progress = self._task = None
        self._warned: set[str] = set()
        self._cut = False
        self._unshown = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, step: int, scalars: Mapping[str, float], tokens: int | None = None) -> None:
        """Records figures of one step.

        Args:
          step: the optimizer step they belong to.
          scalars: names to numbers (0-d arrays too, which waits for the device). NaN and infinity are written as
            null, with a warning the first time for each name.
          tokens: tokens trained on since the last `write` with tokens.
        """
        # First, as it waits for the device: steps that are only on their way have taken no time yet.
        values = {key: float(value) for key, value in scalars.items()}
        now = time.monotonic()
        row = {"step": int(step), "time": round(time.time(), 3)}
        if tokens is not None:
            self._tokens += int(tokens)
            row["tokens"] = self._tokens
            row["tokens_per_second"] = round(int(tokens) / max(now - self._last_write, 1e-9), 1)
            self._last_write = now
            self._first_write = self._first_write or (now, int(step))
        for key, value in values.items():
            row[key] = value if math.isfinite(value) else None
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._write_events(row)
        self._show(row)
        for key, value in values.items():
            if not math.isfinite(value) and key not in self._warned:
                self._warned.add(key)
                self.warn(f"step {step}: {key} is {value}; written as null from here on without another warning")
        self._watch_truncation(step, values)

    def say(self, message: str) -> None:
        """A line above the progress line."""
        self._print(f"{self.name}  {message}")

    def warn(self, message: str) -> None:
        """A line that cannot be overlooked, above the progress line, on the same output."""
        text = f"WARNING {self.name}: {message}"
        self._print(Text(text, style="bold black on yellow") if self._console.is_terminal else text)

    def close(self) -> None:
        """Shows the last figures and closes the files. Calling it twice is fine."""
        if self._file.closed:
            return
        with self._file, contextlib.closing(self._events) if self._events else contextlib.nullcontext():
            if self._unshown is not None:
                self._print(self._unshown)
            if self._progress is not None:
                self._progress.stop()

    def _watch_truncation(self, step, values):
        share = values.get("truncated")
        if share is None or not math.isfinite(share):
            return
        # Warn on the way up only: a run that stays there would bury its other lines.
        if share >= TRUNCATED_WARNING and not self._cut:
            self.warn(f"step {step}: {share:.0%} of the rows are cut off; raise the length (max_new_tokens where "
                      "responses are drawn), or look at the data")
        self._cut = share >= TRUNCATED_WARNING

    def _write_events(self, row):
        if self._events is None:
            # TensorBoard then hides what an earlier run wrote from this step on.
            purge_step = self._resume_step + 1 if self._resume_step else 0
            self._events = EventFile(self.workdir / "tensorboard", purge_step)
        scalars = {key: value for key, value in row.items() if key not in ("step", "time") and value is not None}
        self._events.write(row["step"], row["time"], scalars)

    def _show(self, row):
        if self._console.is_terminal:
            self._show_live(row)
            return
        line = self._line(row)
        now = time.monotonic()
        # An evaluation is rare and never left out.
        rare = "tokens_per_second" not in row
        if rare or now - self._last_line >= self._seconds_between_lines or row["step"] >= self.total_steps:
            self._print(line)
            self._last_line, self._unshown = now, None
        else:
            self._unshown = line

    def _line(self, row):
        scalars = {key: row[key] for key in row if key not in _ALWAYS}
        parts = [f"{self.name}  {row['step']}/{self.total_steps}"]
        loss = {"loss": scalars["loss"]} if "loss" in scalars else dict(list(scalars.items())[:6])
        parts += [f"{key} {_number(value)}" for key, value in loss.items()]
        if "tokens_per_second" in row:
            parts.append(f"{_short(row['tokens_per_second'])} tokens/s")
            left = self._seconds_left(row["step"])
            parts += [f"ETA {_duration(left)}"] if left else []
        if row.get("truncated") is not None:
            parts.append(f"truncated {row['truncated']:.1%}")
        parts += [f"{key} {_number(value)}" for key, value in scalars.items() if key.endswith("/failed") and value]
        return "  ".join(parts)

    def _show_live(self, row):
        if self._progress is None:
            # The figures matter more than the bar: a narrow terminal gets them alone, and always on one line.
            bar = [BarColumn(bar_width=20)] if self._console.width >= 110 else []
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                *bar,
                _Figures(table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._progress.add_task(self.name, total=self.total_steps, figures="")
            self._progress.start()
        if "tokens_per_second" not in row:
            self._print(self._line(row))  # an evaluation: stays on the screen, above the line that changes
            return
        figures = self._line(row).split("  ", 1)[1]
        self._progress.update(self._task, completed=row["step"], figures=figures)

    def _seconds_left(self, step):
        # The first line's time is mostly compiling, which happens once: the others are judged by what came after it.
        since, first = self._first_write
        if step == first:
            since, first = self._start, self._resume_step
        done = step - first
        if done <= 0 or step >= self.total_steps:
            return None
        return (time.monotonic() - since) / done * (self.total_steps - step)

    def _print(self, text):
        # soft_wrap: a piped line stays one line whatever the width.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        if not self._console.is_terminal and self._console.file is sys.stdout:
            sys.stdout.flush()


class NoMetrics:
    """A `MetricsWriter` that says and writes nothing, for processes whose figures are those of another."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, step, scalars, tokens=None):
        pass

    def say(self, message):
        pass

    warn = say


class _Figures(ProgressColumn):
    def render(self, task):
        return Text(task.fields["figures"])


_ALWAYS = ("step", "time", "tokens", "tokens_per_second", "truncated")


def _keep_up_to(path, step) -> int:
    """Drops the lines after `step` (all of them where it is 0); returns the tokens counted by then."""
    if not path.exists():
        return 0
    kept, tokens = [], 0
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines if step else [], 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):  # the run was killed in the middle of a line
                break
            raise DataError(path, number, "a JSON object", line[:40], "delete the line, or the file") from None
        if row["step"] <= step:
            kept.append(line + "\n")
            tokens = row.get("tokens", tokens)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
    return tokens


def _number(value):
    return "null" if value is None else f"{value:.4g}"


def _short(value):
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
