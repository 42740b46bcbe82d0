"""What each command does once its flags are read."""

import json
import os
import pathlib

from jaxalign.cli.flags import Command, Flag, nearest
from jaxalign.cli.sample import sample
from jaxalign.errors import CheckpointError, ConfigError


def train(values, config, _):
    from jaxalign import stages

    done = stages.train_stage(config, values.workdir)
    steps = f"{done['steps']} steps, " if done["steps"] else ""
    print(f"{done['stage']}: done, {steps}{done['seconds']:.0f} s; wrote {done['checkpoint']}")


def pipeline(values, config, _):
    # The module and not `from jaxalign import pipeline`, which this function's name would hide.
    from jaxalign.pipeline import run_pipeline

    done = run_pipeline(config, values.workdir)
    claims = done["claims"]
    held = f", {sum(claim['holds'] for claim in claims)} of {len(claims)} claims hold" if claims else ""
    print(f"\nwrote {os.path.join(values.workdir, 'report.html')} and report.json{held}")


def tokenizer(values, config, _):
    from jaxalign import stages

    if config.get("stage") != "tokenizer":
        raise ConfigError(f"jaxalign tokenizer trains tokenizers, the config's stage is {config.get('stage')!r}; run "
                          "it with jaxalign train")
    done = stages.train_stage(config, values.workdir)
    print(f"wrote {done['checkpoint']}: {done['after']['vocab_size']} pieces")


def evaluate(values, _, sources):
    """Figures of one checkpoint on any number of PATH:SHAPE sources, as a table and, with --json, a file."""
    sources = [*(values.data or []), *sources]
    if not sources:
        raise ConfigError(
            "jaxalign evaluate needs data: one or more PATH:SHAPE, e.g. dev.jsonl:messages or pairs.jsonl:pairs"
        )
    need_checkpoint(values.checkpoint)
    from jaxalign.evaluate import evaluate_checkpoint

    if values.json and not pathlib.Path(values.json).absolute().parent.is_dir():
        raise ConfigError(f"--json={values.json}: no such folder to write to")
    options = {name: values[name].value for name in EVALUATE_OPTIONS if values[name].value is not None}
    short = [source.rsplit("/", 1)[-1] for source in sources]

    def tell(result):
        if values.json:
            pathlib.Path(values.json).write_text(json.dumps(result, indent=2, default=float) + "\n", encoding="utf-8")
        source, figures = list(result.items())[-1]
        # Long paths would break every line: the file's name is enough where it is the only one of that name.
        _print_table(source.rsplit("/", 1)[-1] if len(set(short)) == len(short) else source, figures)
        if first := figures.get("rows_skipped", {}).get("first"):
            print(f"{figures['rows_skipped']['value']} rows of {source} were skipped, the first: {first}")

    evaluate_checkpoint(values.checkpoint, sources, options, tell)


def import_(values, _, __):
    from jaxalign.exchange import import_adapters, import_model

    source = values["from"].value
    if values.base:
        need_checkpoint(values.base, "base")
    done = import_adapters(source, values.to, values.base) if values.base else import_model(source, values.to)
    template = "its own chat template" if done["template"] else "no chat template, so a plain one"
    print(f"wrote {values.to}: {done['family']}, {done['parameters']:,} parameters from {done['dtype']}, {template}")
    rows, tokens = done.get("vocab_size", 0), done.get("tokens", 0)
    if rows - tokens > 0.05 * rows:
        print(f"the tokenizer has {tokens:,} tokens, the embedding {rows:,} rows; where that is more than padding, one "
              "of the two is another model's")


def export(values, _, __):
    need_checkpoint(values.checkpoint)
    from jaxalign.exchange import export_adapters, export_model

    if values.adapters and values.dtype:
        raise ConfigError(f"--dtype={values.dtype} is of whole models; --adapters writes float32")
    done = export_adapters(values.checkpoint, values.to) if values.adapters else export_model(
        values.checkpoint, values.to, dtype=values.dtype)
    print(f"wrote {values.to}: {done['family']}, {done['parameters']:,} parameters in {done['dtype']}")


def report(values, _, __):
    if not os.path.isdir(values.workdir):
        raise ConfigError(f"--workdir={values.workdir}: no such folder; give the one that jaxalign pipeline wrote")
    from jaxalign.report import write_report

    print(f"wrote {write_report(values.workdir)}")


def need_checkpoint(path, flag="checkpoint"):
    if not os.path.isdir(path):
        raise CheckpointError(f"--{flag}={path}: no such folder; give the workdir of a stage's run")


def _print_table(title, figures):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "value", "n", "95 % interval", box=None, header_style="bold")
    table.columns[0].header = Text(title)
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for name, leaf in _leaves(figures):
        leaf = leaf if isinstance(leaf, dict) else {"value": leaf}
        interval = leaf.get("ci95")
        table.add_row(Text(f"  {name}"), _figure(leaf["value"]), str(leaf.get("n", "")),
                      f"{_figure(interval[0])} … {_figure(interval[1])}" if interval else "")
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a file has no edge
    console.print(table)


def _leaves(result, at=""):
    for key, value in result.items():
        name = f"{at} · {key}" if at else str(key)
        if isinstance(value, dict) and "value" not in value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _figure(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def find(name) -> Command:
    """The command of that name; ConfigError with the nearest for any other."""
    if name in COMMANDS:
        return COMMANDS[name]
    near = nearest(name, COMMANDS)
    cure = f"did you mean jaxalign {near}?" if near else f"there are: {', '.join(COMMANDS)}"
    raise ConfigError(f"no command {name!r}; {cure}")


EVALUATE_OPTIONS = ("limit", "batch_size", "length", "max_new_tokens", "answers", "seed", "best_of", "reward_model",
                    "temperature")
WORKDIR = Flag("workdir", "dir", None, "the folder of the run; the same call again goes on where it stopped", True)
CHECKPOINT = Flag("checkpoint", "dir", None, "the folder of a stage's run, or of one of its checkpoints", True)

COMMANDS = {
    "train": Command(
        "train", "Train one stage (the same call again resumes)", train, [WORKDIR],
        ["jaxalign train --config=configs/sft.py --workdir=runs/sft",
         "jaxalign train --config=configs/sft.py --workdir=runs/sft --config.optimizer.peak_lr=1e-4",
         "jaxalign train --config=configs/sft.py --workdir=runs/sft '--config.data.train[0].path=my.jsonl'"],
        takes_config=True,
    ),
    "pipeline": Command(
        "pipeline", "Run a chain of stages and write its report (finished stages are skipped)", pipeline, [WORKDIR],
        ["jaxalign pipeline --config=configs/quickstart.py --workdir=runs/quickstart",
         "jaxalign pipeline --config=configs/quickstart.py --workdir=runs/seed1 --config.seed=1"],
        takes_config=True,
    ),
    "sample": Command(
        "sample", "Talk to a checkpoint: one prompt, a file of them, or a chat that keeps its turns", sample,
        [CHECKPOINT,
         Flag("prompt", "text", None, "answer this and end; without it (and without --prompts_file) a chat starts"),
         Flag("prompts_file", "file", None, "one prompt a line, or JSONL with a prompt or messages; answers as JSONL"),
         Flag("system", "text", None, "a system message before every conversation"),
         Flag("raw", "bool", False, "go on with the text as it is, without the chat template (for a base model)"),
         Flag("temperature", "float", 1.0, "0 takes the likeliest token", least=0),
         Flag("top_k", "int", 0, "draw from the k likeliest tokens only; 0 for all", least=0),
         Flag("top_p", "float", 1.0, "draw from the likeliest tokens that hold this share together; 1 for all",
              least=0, most=1),
         Flag("min_p", "float", 0.0, "draw from tokens at least so likely, as a share of the likeliest; 0 for all",
              least=0, most=1),
         Flag("stop", "text", None, "end an answer where this text is complete, beside the end-of-turn token"),
         Flag("max_new_tokens", "int", 256, "the longest answer", least=1),
         Flag("batch_size", "int", 32, "prompts of a file answered at a time", least=1),
         Flag("seed", "int", 0, "the same seed draws the same answers")],
        ["jaxalign sample --checkpoint=runs/quickstart/ppo",
         "jaxalign sample --checkpoint=runs/sft --prompt='What is the capital of Peru?' --temperature=0",
         "jaxalign sample --checkpoint=runs/pretrain --raw --prompt='Once upon a time'",
         "jaxalign sample --checkpoint=runs/sft --prompts_file=prompts.txt > answers.jsonl"],
    ),
    "evaluate": Command(
        "evaluate", "Measure a checkpoint on data of any shape", evaluate,
        [CHECKPOINT,
         Flag("data", "path:shape", None, "PATH:SHAPE; may be repeated, and stand without the flag's name"),
         Flag("json", "file", None, "write the figures to this file too"),
         Flag("limit", "int", None, "the most rows of each source", least=1),
         Flag("batch_size", "int", None, "rows at a time", least=1),
         Flag("length", "int", None, "tokens a row", least=1),
         Flag("max_new_tokens", "int", None, "the longest generated answer", least=1),
         Flag("answers", "bool", None, "answer conversations, and what was compared or liked, too"),
         Flag("seed", "int", None, "for whatever is sampled"),
         Flag("best_of", "int", None, "answers drawn a prompt, of which the best by --reward_model counts", least=1),
         Flag("reward_model", "dir", None, "the folder of a reward stage's run, for --best_of"),
         Flag("temperature", "float", None, "of what --best_of draws, 1 if not given", least=0)],
        ["jaxalign evaluate --checkpoint=runs/sft dev.jsonl:messages",
         "jaxalign evaluate --checkpoint=runs/sft --best_of=16 --reward_model=runs/reward dev.jsonl:prompts",
         "jaxalign evaluate --checkpoint=runs/reward pairs.jsonl:pairs --limit=500 --json=figures.json"],
        positional="PATH:SHAPE ...",
    ),
    "import": Command(
        "import", "Make a checkpoint of a published model: a folder as transformers writes it, or a GGUF file", import_,
        [Flag("from", "dir", None, "the model's folder (safetensors), or a .gguf file", True),
         Flag("to", "dir", None, "the checkpoint's folder, for init_from and --checkpoint", True),
         Flag("base", "dir", "", "for a folder of PEFT's adapters: the checkpoint of the model they are of")],
        ["jaxalign import --from=downloads/SmolLM2-135M-Instruct --to=runs/smollm2",
         "jaxalign import --from=downloads/adapter --base=runs/smollm2 --to=runs/adapter"],
    ),
    "export": Command(
        "export", "Write a checkpoint as a folder that transformers and model servers read", export,
        [CHECKPOINT, Flag("to", "dir", None, "the folder to write", True),
         Flag("dtype", "text", "", "float32, float16 or bfloat16; without it as imported, else float32"),
         Flag("adapters", "bool", False, "of a run with LoRA the adapters alone, in PEFT's layout; without it merged")],
        ["jaxalign export --checkpoint=runs/sft --to=exported",
         "jaxalign export --checkpoint=runs/lora --to=adapter --adapters"],
    ),
    "report": Command(
        "report", "Write report.html from what a pipeline left in its folder", report,
        [Flag("workdir", "dir", None, "the folder that jaxalign pipeline wrote", True)],
        ["jaxalign report --workdir=runs/quickstart"],
    ),
    "tokenizer": Command(
        "tokenizer", "Train a tokenizer", tokenizer, [WORKDIR],
        ["jaxalign tokenizer --config=configs/tokenizer.py --workdir=runs/tok '--config.data.train[0].path=*.txt'"],
        takes_config=True,
    ),
}  # fmt: skip
