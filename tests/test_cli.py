"""The command line: its flags reach one function; a user's mistake is one message and exit code 2."""

import errno
import gzip
import io
import json
import os
import subprocess
import sys
import time
import types

import pytest

import jaxalign
from jaxalign.cli import main
from jaxalign.errors import DataError

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    data = {"train": [{"path": "a", "shape": "text"}]}
    return ConfigDict({"stage": "sft", "steps": 10, "optimizer": {"peak_lr": 1e-3}, "data": data,
                       "betas": (0.9, 0.95)})
"""
DONE = {"stage": "sft", "steps": 10, "seconds": 61.4, "checkpoint": "runs/x", "after": {"vocab_size": 512}}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "sft.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def fake(monkeypatch):
    """Puts modules of plain functions in place of the heavy ones; returns the list of calls."""

    def put(name, **functions):
        module = types.ModuleType(f"jaxalign.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, f"jaxalign.{name}", module)
        monkeypatch.setattr(jaxalign, name, module, raising=False)

    return put


def wrong(capsys, *argv):
    """The message of a call that must end with exit code 2, no traceback, and nothing on standard output."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err and err.count("\n") == 1
    return err


def test_train_gets_the_config_with_its_overrides(config, fake, capsys):
    seen = []
    fake("stages", train_stage=lambda *arguments: seen.append(arguments) or DONE)
    code = main(
        ["train", "--config", str(config), "--workdir=runs/x", "--config.optimizer.peak_lr=1e-4",
         "--config.data.train[0].path=b.jsonl"]
    )  # fmt: skip
    ((got, workdir),) = seen
    assert code == 0 and workdir == "runs/x" and got.steps == 10 and got.is_locked
    assert capsys.readouterr().out == "sft: done, 10 steps, 61 s; wrote runs/x\n"
    assert got.optimizer.peak_lr == 1e-4 and got.data.train[0]["path"] == "b.jsonl"


def test_pipeline_and_report_get_their_folder(config, fake, tmp_path, capsys):
    seen = []
    report = {"claims": [{"holds": True}, {"holds": False}]}
    fake("pipeline", run_pipeline=lambda config, workdir: seen.append((config.steps, workdir)) or report)
    fake("report", write_report=lambda workdir: f"{workdir}/report.html")
    assert main(["pipeline", f"--config={config}", "--workdir=v", "--workdir=w", "--config.steps=3"]) == 0
    assert main(["report", f"--workdir={tmp_path}"]) == 0
    said = "\nwrote w/report.html and report.json, 1 of 2 claims hold\n"
    assert seen == [(3, "w")] and capsys.readouterr().out == f"{said}wrote {tmp_path}/report.html\n"


def test_a_tokenizer_is_a_stage_that_says_what_it_wrote(config, fake, capsys):
    fake("stages", train_stage=lambda config, workdir: DONE)
    assert main(["tokenizer", f"--config={config}", "--workdir=w", "--config.stage=tokenizer"]) == 0
    assert capsys.readouterr().out == "wrote runs/x: 512 pieces\n"
    assert "the config's stage is 'sft'; run it with jaxalign train" in wrong(
        capsys, "tokenizer", f"--config={config}", "--workdir=w")


def test_functions_beside_the_config_can_be_imported(config, fake):
    (config.parent / "own_objective_for_cli.py").write_text("x = 3")
    fake("stages", train_stage=lambda *_: __import__("own_objective_for_cli") and DONE)
    assert main(["train", f"--config={config}", "--workdir=w"]) == 0


def test_mistakes_name_the_nearest_right_name(config, capsys, tmp_path):
    train = ("train", f"--config={config}", "--workdir=w")
    assert "did you mean optimizer.peak_lr?" in wrong(capsys, *train, "--config.optimizer.peek_lr=1")
    assert "--config.steps: expected int, got 'many'" in wrong(capsys, *train, "--config.steps=many")
    assert "--config.data.train: expected list, got 'a.jsonl'" in wrong(capsys, *train, "--config.data.train=a.jsonl")
    assert "--config.data.train: expected list, got '3'" in wrong(capsys, *train, "--config.data.train=3")
    assert "config key optimizer is a group of keys; set one of them: optimizer.peak_lr" in wrong(
        capsys, *train, "--config.optimizer=adamw")
    assert "--config.betas: expected tuple, got '(0.9,'" in wrong(capsys, *train, "--config.betas=(0.9,")
    assert "expected float, got 'high'" in wrong(capsys, *train, "--config.optimizer.peak_lr=high")
    assert "the list data.train has 1 entries" in wrong(capsys, *train, "--config.data.train[1].path=x")
    assert "did you mean --workdir?" in wrong(capsys, *train, "--workdri=x")
    assert "did you mean --config?" in wrong(capsys, "train", f"--confg={config}")
    assert "did you mean jaxalign train?" in wrong(capsys, "trian")
    assert "there are: train, pipeline" in wrong(capsys, "xyzzy")
    assert f"did you mean {config}?" in wrong(capsys, "train", f"--config={tmp_path}/stf.py", "--workdir=w")
    assert "needs --config=FILE" in wrong(capsys, "train", "--workdir=w")
    assert "needs --workdir" in wrong(capsys, "train", f"--config={config}")
    assert "takes flags only, got 'extra'" in wrong(capsys, *train, "extra")
    assert "--seed: expected int, got 'x'" in wrong(capsys, "sample", "--checkpoint=c", "--seed=x")
    assert "takes no config" in wrong(capsys, "sample", "--checkpoint=c", "--config.steps=1")
    assert "no such folder" in wrong(capsys, "sample", f"--checkpoint={tmp_path}/none", "--prompt=x")
    assert "no such folder" in wrong(capsys, "report", f"--workdir={tmp_path}/none")
    assert "PATH:SHAPE" in wrong(capsys, "evaluate", f"--checkpoint={tmp_path}")
    assert "give one of them" in wrong(capsys, "sample", f"--checkpoint={tmp_path}", "--prompt=a", "--prompts_file=b")
    assert "no such file" in wrong(capsys, "sample", f"--checkpoint={tmp_path}", "--prompts_file=none.txt")
    talk = ("sample", "--checkpoint=c")
    assert "--max_new_tokens: expected 1 or more, got 0" in wrong(capsys, *talk, "--max-new-tokens=0")
    assert "--temperature: expected 0 or more, got nan" in wrong(capsys, *talk, "--temperature=nan")
    assert "--top_p: expected 0 to 1, got 1.5" in wrong(capsys, *talk, "--top_p=1.5")
    assert "--batch_size: expected 1 or more, got 0" in wrong(capsys, *talk, "--batch_size=0")
    assert "--limit: expected 1 or more, got -1" in wrong(capsys, "evaluate", "--checkpoint=c", "x:text", "--limit=-1")
    assert "--prompt: expected UTF-8 text, got '\\udcff' at character 2" in wrong(
        capsys, *talk, "--prompt=a\udcff")


def test_errors_of_the_package_are_one_message_and_debug_shows_where(config, fake, capsys):
    def fail(*_):
        raise DataError("a.jsonl", 3, "a JSON object", "a list")

    fake("stages", train_stage=fail)
    train = ("train", f"--config={config}", "--workdir=w")
    assert wrong(capsys, *train) == "error: a.jsonl:3: expected a JSON object, got a list\n"
    assert main([*train, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_file_and_ctrl_c_are_no_tracebacks(config, fake, capsys):
    train = ("train", f"--config={config}", "--workdir=w")
    fake("stages", train_stage=lambda *_: open("no/such/file"))
    assert wrong(capsys, *train) == "error: no/such/file: No such file or directory\n"

    def interrupt(*_):
        raise KeyboardInterrupt

    fake("stages", train_stage=interrupt)
    assert main(train) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_a_full_disk_is_one_message(config, fake, capsys):
    def orbax(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("the save failed")

    def tensorstore(*_):
        raise ValueError('RESOURCE_EXHAUSTED: Error writing local file "x": No space left on device')

    def python(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x/metrics.jsonl")

    for fail in (orbax, tensorstore, python):
        fake("stages", train_stage=fail)
        assert "the disk is full; free some space and give the same command again" in wrong(
            capsys, "train", f"--config={config}", "--workdir=w")


def test_a_fault_of_ours_is_not_hidden(config, fake):
    fake("stages", train_stage=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", f"--config={config}", "--workdir=w"])


def test_evaluate_prints_a_table_and_writes_json_source_by_source(fake, tmp_path, capsys):
    seen, target = [], tmp_path / "figures.json"

    def evaluate_checkpoint(checkpoint, sources, options, tell):
        seen.append((checkpoint, sources, options))
        figures = {"exact_match": {"value": 0.875, "n": 500, "ci95": [0.84, 0.9]}, "rows": 3}
        figures["accuracy_by_length"] = {"over twice as long [as the other]" * 2: {"value": 0.5, "n": 2, "ci95": [0, 1]}}
        tell({"far/dev.jsonl": figures})
        assert json.loads(target.read_text())["far/dev.jsonl"]["rows"] == 3
        tell({"far/dev.jsonl": figures, "x": {"rows_skipped": {"value": 2, "first": "x:3"}}})
        raise DataError("y", None, "rows", "none", "cure")  # what was measured before stays

    fake("evaluate", evaluate_checkpoint=evaluate_checkpoint)
    code = main(["evaluate", f"--checkpoint={tmp_path}", "far/dev.jsonl:messages", "--limit=5", "--data=x:text",
                 f"--json={target}"])
    out = capsys.readouterr().out
    assert code == 2 and seen == [(str(tmp_path), ["x:text", "far/dev.jsonl:messages"], {"limit": 5})]
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:4] == ["dev.jsonl", "value", "n", "95"] and rows[1] == ["exact_match", "0.875", "500", "0.84", "…", "0.9"]
    assert len(rows) == 4 + 3  # however long a name is
    assert "2 rows of x were skipped, the first: x:3" in out and set(json.loads(target.read_text())) == {"far/dev.jsonl", "x"}


class Assistant:
    """Answers with what it was asked, so that tests see it."""

    def __init__(self, fail_on=None):
        self.seen, self.fail_on = [], fail_on

    def reply(self, messages_list, **options):
        self.seen.append((messages_list, options))
        if isinstance(self.fail_on, type) and len(self.seen) == 1:
            raise self.fail_on("too long") if self.fail_on is not KeyboardInterrupt else KeyboardInterrupt
        return [f"{len(messages)}:{messages[-1]['content']}!" for messages in messages_list]

    def complete(self, texts, **options):
        self.seen.append((texts, options))
        return [f"{text} …" for text in texts]


@pytest.fixture
def sample(fake, tmp_path, capsys, monkeypatch):
    def run(*flags, stdin="", assistant=None):
        assistant = assistant or Assistant()
        fake("stages", load_assistant=lambda checkpoint: assistant)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        assert main(["sample", f"--checkpoint={tmp_path}", *flags]) == 0
        return capsys.readouterr().out, assistant.seen

    return run


def test_sample_one_prompt_with_every_flag(sample):
    out, seen = sample(
        "--prompt=hi",
        "--system=be brief",
        "--temperature=0",
        "--top-k=5",
        "--top_p=0.9",
        "--min_p=0.1",
        "--stop=\n\n",
        "--max-new-tokens=7",
        "--seed=3",
    )
    assert out == "2:hi!\n"
    assert seen == [
        ([[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]],
         {"temperature": 0.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "max_new_tokens": 7, "stop_strings": ("\n\n",), "seed": 3})
    ]  # fmt: skip


def test_sample_raw_text(sample):
    out, seen = sample("--prompt=Once", "--raw")
    assert out == "Once …\n" and seen[0][0] == ["Once"]


def test_sample_a_file_of_prompts_in_batches(sample, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}] * 3}, {"prompt": "c"}]
    file.write_text("\n\n".join(map(json.dumps, rows)))
    out, seen = sample(f"--prompts_file={file}", "--batch_size=2")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["answer"] for a in answers] == ["1:a!", "3:b!", "1:c!"] and answers[0]["prompt"] == "a"
    assert [len(batch) for batch, _ in seen] == [2, 1] and seen[0][1]["seed"] != seen[1][1]["seed"]
    plain = tmp_path / "prompts.txt"
    plain.write_text("first\nsecond\n")
    assert [json.loads(line)["prompt"] for line in sample(f"--prompts_file={plain}")[0].splitlines()] == [
        "first",
        "second",
    ]


def test_a_file_of_prompts_may_be_compressed_and_hold_any_character(sample, tmp_path):
    rows = [{"prompt": "one\u2028line"}, {"prompt": "two"}]
    packed = gzip.compress("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    (tmp_path / "prompts.jsonl.gz").write_bytes(packed)
    out, seen = sample(f"--prompts_file={tmp_path / 'prompts.jsonl.gz'}")
    assert [messages[0]["content"] for messages in seen[0][0]] == ["one\u2028line", "two"]


@pytest.mark.parametrize("line", [
    '{"prompt": 3}', '{"promt": "x"}', '{"prompt": "x"', "[]", '{"messages": []}', '{"messages": [3]}', "\udcff",
    '{"messages": [{"role": "boss", "content": "x"}]}', '{"messages": [{"role": "user", "content": 3}]}',
])  # fmt: skip
def test_a_broken_prompts_file_names_its_line(sample, tmp_path, capsys, line):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n' + line.encode(errors="surrogateescape"))
    assert f"{file}:2: expected" in wrong(capsys, "sample", f"--checkpoint={tmp_path}", f"--prompts_file={file}")


def test_a_chat_keeps_its_turns_until_reset(sample):
    out, seen = sample(stdin="one\ntwo\n\n/reset\nthree\n/help\n/exit\nnever\n")
    assert [line for line in out.splitlines() if line.endswith("!")] == ["1:one!", "3:two!", "1:three!"]
    assert "a new conversation" in out and "/reset starts over" in out and "never" not in out
    assert len({options["seed"] for _, options in seen}) == 3


@pytest.mark.parametrize("failure", [KeyboardInterrupt, jaxalign.errors.ConfigError])
def test_a_stopped_or_failed_answer_takes_its_turn_back(sample, failure):
    out, _ = sample(stdin="one\ntwo\n", assistant=Assistant(failure))
    assert "the turn is taken back" in out and "1:two!" in out


def test_bytes_that_are_no_text_cost_one_turn_of_a_chat(fake, tmp_path, capsys, monkeypatch):
    assistant = Assistant()
    fake("stages", load_assistant=lambda checkpoint: assistant)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\nt\xffo\nthree\n"), encoding="utf-8"))
    assert main(["sample", f"--checkpoint={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "expected UTF-8 text, got '\\udcff' at character 2; the turn is taken back" in out
    assert [line for line in out.splitlines() if line.endswith("!")] == ["1:one!", "3:three!"]


def test_a_terminal_that_lacks_a_character_ends_no_run(tmp_path):
    code = f"from jaxalign.cli import main; main(['nö → such']); main(['report', '--workdir={tmp_path}'])"
    environment = {key: value for key, value in os.environ.items()} | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "no command" in done.stderr


def test_help_names_every_flag_and_shows_examples(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("train", "pipeline", "sample", "evaluate", "report", "tokenizer"):
        assert f"\n  {command} " in text
        assert main([command, "--help"]) == 0
        assert f"jaxalign {command} --" in capsys.readouterr().out
    assert main(["help", "train"]) == 0 and "--config=" in capsys.readouterr().out
    assert main([]) == 2 and "Commands" in capsys.readouterr().out
    assert main(["--version"]) == 0 and jaxalign.__version__ in capsys.readouterr().out


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from jaxalign.cli import main; main(['train', '--help']); "
        "assert not {'jax', 'numpy', 'ml_collections', 'rich'} & set(sys.modules)"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)
    assert time.monotonic() - start < 2.0  # 0.1 s on an idle machine


def test_python_m_jaxalign():
    done = subprocess.run([sys.executable, "-m", "jaxalign", "smaple"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean jaxalign sample?" in done.stderr and "Traceback" not in done.stderr
