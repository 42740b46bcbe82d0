"""What continued pretraining and domain SFT forget, by how much of the old is replayed: a sweep of the two recipes.

    python experiments/forgetting/run.py --workdir=runs/forgetting

First the chain of configs/first_light.py as far as its SFT model, on books alone; then configs/adapt.py and
configs/domain_sft.py from it, once for each share. What is finished is not made again. `--tasks=code,wiki`, `--shares=0,0.25`
run some alone. `--out=experiments/forgetting` writes result.json, the charts and the tables of README.md there; without it they go
into the workdir.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from jaxalign import config as configs
from jaxalign.data.pipeline import batches
from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.evaluate.statistics import bootstrap_ratio
from jaxalign.huge_pages import ask_for_huge_pages
from jaxalign.pipeline import run_pipeline
from jaxalign.report.bands import chart
from jaxalign.stages import train_stage

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "configs"
TASKS = {"code": ("adapt", "pretrain"), "wiki": ("adapt", "pretrain"), "code_sft": ("domain_sft", "sft")}
SHARES = (0.0, 0.05, 0.25, 0.5)
GENTLE = 0.25  # what one more run without replay multiplies the rate by: the other way to forget less
FIGURES = {"nll": "nats a token", "bits_per_byte": "bits a byte", "accuracy": "next token right"}


def start(workdir, changes):
    """Trains, or finds, what all runs start from: {"pretrain": folder, "sft": folder}."""
    chain = configs.load(RECIPES / "first_light.py")
    chain.chain = ("tokenizer", "pretrain", "sft")
    stages = chain.stages
    for data, split in ((stages.pretrain.data, "train"), (stages.pretrain.data, "dev"), (stages.tokenizer.data, "train")):
        data[split] = [{**source, "share": None} for source in data[split] if "books" in source["path"]]
    stages.sft.data.train = [source for source in stages.sft.data.train if not source["path"].startswith("@")]
    for name in ("tokenizer", "pretrain", "sft"):
        stages[name].update(changes.get(name, {}))
    run_pipeline(chain, workdir / "start")
    return {name: workdir / "start" / name for name in ("pretrain", "sft")}


def config_of(task, share, rate, begin, changes=None):
    """The recipe of a task.

    Args:
      task: a key of `TASKS`.
      share: of the tokens that are old ones, 0 to below 1, the rest new.
      rate: what the recipe's learning rate is multiplied by.
      begin: folders of `start`.
      changes: settings that override.
    """
    recipe, parent = TASKS[task]
    made = configs.load(RECIPES / f"{recipe}.py")
    new, *replay = made.data.train
    if task == "wiki":
        new = dict(path=str(pathlib.Path(new["path"]).parents[1] / "pretrain" / "wiki_demo.txt"), shape="text",
                   documents="line", holdout=0.1, split="train")
        made.data.dev = [new | {"split": "dev"}]
    whole = sum(source["share"] for source in replay)
    made.data.train = [new | {"share": 1 - share}] + [
        source | {"share": share * source["share"] / whole} for source in replay if share]
    made.optimizer.peak_lr *= rate
    made.update(dict(init_from=str(begin[parent]), preview=False) | (changes or {}))
    return made


def nats(checkpoint, sources, length):
    """(nats, tokens) of every row of the sources' targets."""
    assistant = Assistant.load(checkpoint)
    rows = batches(sources, assistant.tokenizer, kind="tokens", batch_size=32, length=length, shuffle=False, repeat=False,
                   on_bad_row="skip")
    parts = [(np.where(batch["mask_BT"] > 0, -assistant.logp(batch), 0.0).sum(1), batch["mask_BT"].sum(1)) for batch in rows]
    return [np.concatenate(part).astype(np.float64) for part in zip(*parts)]


def outcome(task, share, rate, begin, workdir, changes, known):
    """What one run shows, as JSON; trained and measured unless it stands in its folder."""
    folder = workdir / f"{task}-replay{share:g}-rate{rate:g}"
    file = folder / "outcome.json"
    if file.is_file():
        print(f"── {folder.name} ── done, skipped", flush=True)
        return json.loads(file.read_text())
    print(f"\n── {folder.name} ──", flush=True)
    config = config_of(task, share, rate, begin, changes.get(TASKS[task][0]))
    done = train_stage(config, folder)
    parent = begin[TASKS[task][1]]
    old = configs.from_json((parent / "config.json").read_text()).data.dev
    made = {"task": task, "replay": share, "rate": rate, "steps": done["steps"], "tokens": done["tokens"],
            "seconds": round(done["seconds"], 1)}
    for domain, at, sources in (("old", "old/", list(old)), ("new", "", list(config.data.dev))):
        key = task, domain  # of one task all runs have the same start
        if key not in known:
            known[key] = nats(parent, sources, config.length)
        (before, tokens), (after, _) = known[key], nats(folder, sources, config.length)
        change, low, high = bootstrap_ratio(after - before, tokens)
        figures = {name: {when: done[when][at + name] for when in ("before", "after")} for name in FIGURES}
        made[domain] = figures | {"change": {"value": change, "n": int(tokens.sum()), "ci95": (low, high)}}
    file.write_text(json.dumps(made))
    return json.loads(file.read_text())


def lines_of(outcomes, domain):
    """{task: change of the loss over the share of replay, with its interval}, of runs at the recipe's rate."""
    lines = {}
    for task in dict.fromkeys(each["task"] for each in outcomes):
        runs = sorted((each for each in outcomes if each["task"] == task and each["rate"] == 1), key=lambda e: e["replay"])
        changes = [run[domain]["change"] for run in runs]
        lines[task] = {"x": [run["replay"] for run in runs], "mean": [change["value"] for change in changes],
                       "low": [change["ci95"][0] for change in changes], "high": [change["ci95"][1] for change in changes]}
    return lines


def table(outcomes):
    """Markdown: a row a run, of each domain the change of its loss with its interval, and all figures after it."""
    names = list(FIGURES.values())
    head = ["replay", "rate"] + [f"{domain}: {name}" for domain in ("old", "new") for name in ("change, nats a token", *names[1:])]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def cells(run, when):
        for domain in ("old", "new"):
            change = run[domain]["change"]
            yield "" if when == "before" else (
                f"{change['value']:+.3f} ({change['ci95'][0]:+.3f} … {change['ci95'][1]:+.3f})".replace("-", "−"))
            yield from (f"{run[domain][name][when]:.3f}" for name in list(FIGURES)[1:])

    rows.append("| the start | | " + " | ".join(cells(outcomes[0], "before")) + " |")
    for run in outcomes:
        rows.append(f"| {run['replay']:g} | {'' if run['rate'] == 1 else '× '}{run['rate']:g} | " + " | ".join(cells(run, "after")) + " |")
    return "\n".join(rows)


def write(outcomes, out):
    """result.json, the charts, and the README's part after its heading "Figures"."""
    out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0].device_kind
    (out / "result.json").write_text(json.dumps({"device": device, "jax": jax.__version__, "runs": outcomes}, indent=1) + "\n")
    for domain, words in (("old", "what was learned before"), ("new", "the new domain")):
        (out / f"{domain}.svg").write_text(chart(
            lines_of(outcomes, domain), x_label="share of replay", y_label="change of the loss, nats a token",
            title=f"{words}: change of the loss by the share of replay"))
    text = ["What it cost, on the old domain's dev data:\n\n![old domain](old.svg)",
            "What it brought, on the new domain's:\n\n![new domain](new.svg)"]
    for task in dict.fromkeys(each["task"] for each in outcomes):
        runs = [each for each in outcomes if each["task"] == task]
        sizes = ", ".join(f"{runs[0][domain]['change']['n']:,} {domain} tokens" for domain in ("old", "new"))
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        text.append(f"### {task}\n\n{runs[0]['steps']} steps, {runs[0]['tokens']:,} tokens, {seconds:.0f} s a run; measured on "
                    f"{sizes}.\n\n{table(runs)}")
    readme = out / "README.md"
    before = (readme if readme.exists() else pathlib.Path(__file__).with_name("README.md")).read_text()
    readme.write_text(before.split("## Figures\n")[0] + "## Figures\n\n" + "\n\n".join(text) + "\n")


def main(workdir, *, tasks=(), shares=SHARES, out=None, changes=None):
    """Makes what is not there yet, writes what is known so far after each run; returns the outcomes.

    Args:
      changes: {"tokenizer", "pretrain", "sft", "adapt" or "domain_sft": settings that override}.
    """
    workdir, changes = pathlib.Path(workdir), changes or {}
    for task in tasks:
        if task not in TASKS:
            raise ConfigError(f"--tasks has {task!r}; there are: {', '.join(TASKS)}")
    if not all(0 <= share < 1 for share in shares):
        raise ConfigError(f"--shares={','.join(map(str, shares))}: expected numbers from 0 to below 1")
    begin, outcomes, known = start(workdir, changes), [], {}
    for task in tasks or TASKS:
        for share, rate in [*((share, 1) for share in shares), (0.0, GENTLE)]:
            outcomes.append(outcome(task, share, rate, begin, workdir, changes, known))
            write(outcomes, pathlib.Path(out or workdir))
    return outcomes


if __name__ == "__main__":
    ask_for_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--tasks", default="", help="all if empty")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--out", default=None)
    flags = parser.parse_args()
    main(flags.workdir, tasks=[name for name in flags.tasks.split(",") if name],
         shares=[float(share) for share in flags.shares.split(",")], out=flags.out)
