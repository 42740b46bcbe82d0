"""The figures of a run: on disk, after a resume, in a terminal, in a pipe."""

import io
import json
import math
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from jaxalign.errors import DataError
from jaxalign.train.metrics import MetricsWriter


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_steps(folder, steps, total=10, resume_step=0, console=None):
    with MetricsWriter(
        folder, name="sft", total_steps=total, resume_step=resume_step, console=console or plain()
    ) as metrics:
        for step in steps:
            metrics.write(step, {"loss": 1 / step, "truncated": 0.25}, tokens=100)


def test_a_line_holds_step_time_speed_and_scalars(tmp_path):
    with MetricsWriter(tmp_path / "new", name="sft", total_steps=2, console=plain()) as metrics:
        metrics.write(1, {"loss": np.float32(0.5), "dev/accuracy": np.array(1)}, tokens=100)
        metrics.write(2, {"dev/loss": 2})
    first, second = rows(tmp_path / "new")
    assert first["step"] == 1 and first["loss"] == 0.5 and first["dev/accuracy"] == 1.0
    assert first["tokens"] == 100 and first["tokens_per_second"] > 0 and first["time"] > 1e9
    assert second["dev/loss"] == 2.0 and "tokens_per_second" not in second


def test_a_resumed_run_leaves_the_steps_of_an_uninterrupted_one(tmp_path):
    write_steps(tmp_path / "whole", range(1, 11))
    write_steps(tmp_path / "cut", range(1, 8))
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # killed in the middle of a line
    write_steps(tmp_path / "cut", range(6, 11), resume_step=5)
    timeless = ("time", "tokens_per_second")
    whole, cut = (
        [{k: v for k, v in row.items() if k not in timeless} for row in rows(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert cut == whole and cut[-1]["tokens"] == 1000


def test_a_fresh_run_drops_the_old_lines(tmp_path):
    write_steps(tmp_path, [1, 2])
    write_steps(tmp_path, [1])
    assert [row["step"] for row in rows(tmp_path)] == [1]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:2: expected a JSON object"):
        MetricsWriter(tmp_path, name="sft", total_steps=2, resume_step=2, console=plain())


def test_nan_is_written_as_null_and_warned_of_once(tmp_path):
    console = plain()
    with MetricsWriter(tmp_path, name="sft", total_steps=3, console=console) as metrics:
        for step in (1, 2):
            metrics.write(step, {"loss": math.nan, "norm": math.inf, "ok": 1.0})
    assert [(row["loss"], row["norm"], row["ok"]) for row in rows(tmp_path)] == [(None, None, 1.0)] * 2
    text = console.file.getvalue()
    assert text.count("loss is nan") == 1 and text.count("norm is inf") == 1 and "WARNING sft: step 1" in text


def test_nearly_all_rows_cut_is_said_loudly_on_the_way_up(tmp_path):
    console = plain()
    with MetricsWriter(tmp_path, name="grpo", total_steps=9, console=console) as metrics:
        for step, share in enumerate((0.5, 0.95, 0.99, 0.2, 0.97), 1):
            metrics.write(step, {"truncated": share})
    assert console.file.getvalue().count("of the rows are cut off") == 2


def test_piped_lines_are_plain_whole_and_few(tmp_path):
    console = plain()
    write_steps(tmp_path, range(1, 11), console=console)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2 and "\x1b" not in console.file.getvalue()
    assert (
        lines[0].startswith("sft  1/10  loss 1  ") and "tokens/s" in lines[0] and lines[0].endswith("truncated 25.0%")
    )
    assert "ETA" in lines[0] and lines[1].startswith("sft  10/10  loss 0.1  ") and "ETA" not in lines[1]


def test_evaluations_are_always_shown(tmp_path):
    console = plain()
    with MetricsWriter(tmp_path, name="sft", total_steps=10, console=console) as metrics:
        metrics.write(1, {"loss": 1}, tokens=10)
        metrics.write(1, {"dev/loss": 2.5, "dev/accuracy": 0.5})
    assert console.file.getvalue().splitlines()[1] == "sft  1/10  dev/loss 2.5  dev/accuracy 0.5"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_live_line_is_one_line_at_any_width(tmp_path, width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with MetricsWriter(tmp_path, name="pretrain", total_steps=15_000, console=console) as metrics:
        metrics.write(12_000, {"loss": 1.2345, "truncated": 0.5}, tokens=100_000)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", console.file.getvalue())
    assert {line.strip().split()[0] for line in shown.splitlines() if line.strip()} <= {*"⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "pretrain"}


def test_the_last_figures_are_shown_when_a_run_ends_early(tmp_path):
    console = plain()
    write_steps(tmp_path, range(1, 4), total=100, console=console)
    assert console.file.getvalue().splitlines()[-1].startswith("sft  3/100")


def test_a_terminal_gets_one_live_line_with_everything(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="truecolor")
    with MetricsWriter(tmp_path, name="sft", total_steps=10, console=console) as metrics:
        metrics.write(3, {"loss": 1.25, "truncated": 0.5}, tokens=100)
        metrics.write(3, {"dev/loss": 2.5})
        metrics.warn("look here")
    text = console.file.getvalue()
    for part in ("sft", "3/10", "loss 1.25", "tokens/s", "ETA", "truncated 50.0%", "dev/loss 2.5", "look here"):
        assert part in text
    assert text.endswith("\x1b[?25h")  # the cursor is shown again


def events_of(data):
    """The events of a file: protobufs in TFRecord frames, each with its checksums."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(body)
        yield event_pb2.Event.FromString(body)
        data = data[16 + length :]


def scalars_of(folder):
    """(step, tag, value) of every scalar in the event files."""
    files = sorted((folder / "tensorboard").glob("events*"))
    return [(event.step, value.tag, round(value.simple_value, 4)) for file in files
            for event in events_of(file.read_bytes()) for value in event.summary.value]


def test_event_files_hold_the_scalars(tmp_path):
    with MetricsWriter(tmp_path, name="sft", total_steps=2, console=plain()) as metrics:
        metrics.write(1, {"loss": 0.5, "bad": math.nan})
        metrics.write(2, {"loss": 0.25})
        assert scalars_of(tmp_path) == [(1, "loss", 0.5), (2, "loss", 0.25)]  # at once: the run may be killed
    # A resumed run writes a file of its own, behind the first in the order of the names, that hides the lost steps.
    with MetricsWriter(tmp_path, name="sft", total_steps=3, resume_step=1, console=plain()) as metrics:
        metrics.write(2, {"loss": 0.125})
    assert scalars_of(tmp_path)[2:] == [(2, "loss", 0.125)]
    last = sorted((tmp_path / "tensorboard").iterdir())[-1].read_bytes()
    starts = [event.step for event in events_of(last) if event.session_log.status]
    assert starts == [2]


def test_imports_give_no_warning_and_event_files_are_imported_late():
    code = "import sys, jaxalign.train.metrics; assert 'tensorboardX' not in sys.modules; import tensorboardX"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_closing_twice_and_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), MetricsWriter(tmp_path, name="x", total_steps=1, console=plain()) as metrics:
        metrics.write(1, {"loss": 1})
        raise ZeroDivisionError
    metrics.close()
    assert len(rows(tmp_path)) == 1


def test_the_time_of_a_step_ends_when_its_figures_are_there(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class OnItsWay:  # of a step that was dispatched and takes two seconds
        def __float__(self):
            clock[0] += 2.0
            return 1.0

    with MetricsWriter(tmp_path, name="sft", total_steps=2, console=plain()) as metrics:
        for step in (1, 2):
            metrics.write(step, {"loss": OnItsWay()}, tokens=100)
    assert [row["tokens_per_second"] for row in rows(tmp_path)] == [50.0, 50.0]


def test_the_time_left_leaves_the_compiling_out(tmp_path, monkeypatch):
    clock, console = [0.0], plain()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with MetricsWriter(tmp_path, name="sft", total_steps=100, resume_step=10, seconds_between_lines=0,
                       console=console) as metrics:
        metrics.say("10/100  found a checkpoint: goes on from step 10")
        for step, seconds in ((20, 60), (30, 61), (50, 63)):  # a minute of compiling, then ten steps a second
            clock[0] = seconds
            metrics.write(step, {"loss": 1.0}, tokens=1)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "sft  10/100  found a checkpoint: goes on from step 10"
    assert re.findall(r"ETA (.*)", console.file.getvalue()) == ["8 min 00 s", "7 s", "5 s"]
