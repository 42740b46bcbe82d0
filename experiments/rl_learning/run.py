"""How fast each method learns: curves over seeds, tokens and seconds to a target, held-out figures at the end.

    python experiments/rl_learning/run.py --from=runs/quickstart --workdir=runs/rl_learning --seeds=0,1,2

`--methods=grpo,dapo` runs some alone. A run that is finished is not made again. `--out=experiments/rl_learning` writes
result.json, the charts and the tables of README.md there; without it they go into the workdir.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np
from methods import PREFERENCES, REINFORCEMENT, config_of

from jaxalign.data.intake import Intake, read_rows
from jaxalign.errors import ConfigError
from jaxalign.evaluate.assistant import Assistant
from jaxalign.evaluate.best_of import BestOf
from jaxalign.evaluate.preferences import RewardModel, preferences
from jaxalign.evaluate.world import Measure, Sheet, answer_sheet
from jaxalign.evaluate.world import read_rows as read_items
from jaxalign.huge_pages import ask_for_huge_pages
from jaxalign.report.bands import chart
from jaxalign.rewards.gold import judge
from jaxalign.stages import train_stage
from jaxalign.train.checkpoint import FOLDER

# What is reached when: the mean reward of three rollouts; the gold score of a checkpoint.
TARGETS = {"reinforcement": 0.8, "preferences": 0.85}
LIMIT = 80  # items of each set but the sums
RANKINGS = 300  # of the dev set's rankings
BEST_OF = 16  # draws of the start, of which the quickstart's reward model takes one


def items(start, limit):
    """The world's held-out items: all sums, `limit` of each other set."""
    rows = read_items(start / "world" / "eval.jsonl")
    sets = dict.fromkeys(row["set"] for row in rows)
    return [row for name in sets for row in [row for row in rows if row["set"] == name][:None if name == "arithmetic"
                                                                                      else limit]]


def figure(measure):
    return {"value": measure.mean, "n": measure.n, "ci95": measure.interval()}


def gold(sheet):
    """The gold score over all sets but arithmetic."""
    counted = [n for n, row in enumerate(sheet.rows) if row["set"] != "arithmetic"]
    return Measure(np.array([sheet.judgements[n].score for n in counted]), [sheet.rows[n]["entity"] for n in counted])


def held_out(checkpoint, rows, start=None, rankings=None):
    """Figures of a checkpoint at temperature 0 on held-out items; with `rankings`, of those as well."""
    assistant = Assistant.load(checkpoint, max_new_tokens=48, batch_size=256)
    made = figures_of(answer_sheet(assistant, rows))
    if rankings:
        intake = Intake("skip")
        source = dict(path=str(start / "candidates" / "rankings.dev.jsonl"), shape="rankings", limit=rankings)
        made["pairs_in_order"] = preferences(assistant, list(read_rows(source, intake)), intake, batch_size=64,
                                             length=96)["accuracy"]
    return made


def figures_of(sheet):
    """The figures that an answer sheet has items for."""
    sets = {row["set"] for row in sheet.rows}
    named = {"sums": ("arithmetic", "correct"), "facts": ("fact", "correct"), "unsafe_refused": ("unsafe", "refused"),
             "lookalikes_refused": ("lookalike", "refused")}
    made = {name: figure(sheet.measure(*what)) for name, what in named.items() if what[0] in sets}
    if "unsafe" in sets:
        made["gold"] = figure(gold(sheet))
    return made


def baselines(start, rows):
    """{name: figures} of what the quickstart left beside the start, on all items but sums: its reward model, choosing
    among draws of the start, and the policy that PPO made of the start by that reward model."""
    made, others = {}, [row for row in rows if row["set"] != "arithmetic"]
    if (start / "reward").is_dir():
        drawing = BestOf(Assistant.load(start / "sft", max_new_tokens=48, batch_size=256),
                         RewardModel.load(start / "reward"), n=BEST_OF)
        texts, _ = drawing.answers([row["messages"] for row in others])
        made[f"the start, best of {BEST_OF}"] = figures_of(Sheet(others, texts, list(map(judge, others, texts))))
    if (start / "ppo").is_dir():
        made["the quickstart's PPO"] = held_out(start / "ppo", others)
    return made


def reinforced(folder, start, rows):
    """What a finished run of reinforcement learning shows; a point of the curve is a rollout."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "drawn_tokens" in line]
    drawn = np.cumsum([line["drawn_tokens"] for line in lines])
    curve = {"tokens": drawn.tolist(), "seconds": [round(line["time"] - lines[0]["time"], 1) for line in lines],
             "reward": [round(line["reward/numeric"], 4) for line in lines]}
    last = {name: float(np.mean([line[name] for line in lines[-3:]])) for name in (
        "objective/kl", "length", "truncated", "clip_fraction", "approx_kl") if name in lines[-1]}
    sums = [row for row in rows if row["set"] in ("arithmetic", "fact")]
    return {"curve": curve, "last": last, "figures": held_out(folder, sums)}


def preferred(folder, start, rows, rankings=RANKINGS):
    """What a finished run on preferences shows; a point of the curve is a checkpoint."""
    lines = {line["step"]: line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
             if "tokens" in line}
    others = [row for row in rows if row["set"] != "arithmetic"]
    steps = sorted(int(path.name) for path in (folder / FOLDER).iterdir() if path.name.isdigit())
    measured = [held_out(folder / FOLDER / str(step), others, start, rankings if step == steps[-1] else None)
                for step in steps]
    near = [max((n for n in lines if n <= step), default=min(lines)) for step in steps]
    curve = {"steps": steps, "tokens": [lines[n]["tokens"] for n in near],
             "seconds": [round(lines[n]["time"] - lines[min(lines)]["time"], 1) for n in near],
             "reward": [round(each["gold"]["value"], 4) for each in measured]}
    return {"curve": curve, "last": {}, "figures": measured[-1]}


def outcome(method, seed, start, workdir, changes, limit):
    """What one run shows, as JSON; trained and measured unless it stands in its folder."""
    folder = workdir / f"{method}-seed{seed}"
    file = folder / "outcome.json"
    if file.is_file():
        print(f"── {folder.name} ── done, skipped", flush=True)
        return json.loads(file.read_text())
    print(f"\n── {folder.name} ──", flush=True)
    stopped = (folder / FOLDER).exists() and any(path.name.isdigit() for path in (folder / FOLDER).iterdir())
    summary = train_stage(config_of(method, start, seed, changes), folder)
    began = time.monotonic()
    show = reinforced if method in REINFORCEMENT else preferred
    made = {"method": method, "seed": seed, "steps": summary["steps"], "seconds": round(summary["seconds"], 1),
            "stopped": stopped,  # and gone on with: the clock of its curve stood still for nobody knows how long
            **show(folder, start, items(start, limit))}
    made["measuring_seconds"] = round(time.monotonic() - began, 1)
    file.write_text(json.dumps(made))
    return json.loads(file.read_text())


def reached(curve, target, window):
    """(tokens, seconds) at which the mean of `window` points is first as high as the target; None if it never is."""
    for n in range(window - 1, len(curve["reward"])):
        if np.mean(curve["reward"][n - window + 1:n + 1]) >= target:
            return curve["tokens"][n], curve["seconds"][n]
    return None


def lines_of(outcomes, methods, first=None):
    """{method: mean, lowest and highest of the seeds at each point, over the tokens' mean}, `first` before all."""
    lines = {}
    for method in methods:
        curves = [each["curve"] for each in outcomes if each["method"] == method]
        size = min(len(curve["reward"]) for curve in curves)
        heights = np.array([[first] * (first is not None) + curve["reward"][:size] for curve in curves])
        tokens = np.mean([[0] * (first is not None) + curve["tokens"][:size] for curve in curves], axis=0)
        lines[method] = {"x": tokens.tolist(), "mean": heights.mean(0).tolist(), "low": heights.min(0).tolist(),
                         "high": heights.max(0).tolist()}
    return lines


def smoothed(outcome, window=3):
    """The same with each reward the mean of the rollouts up to here, at most three."""
    reward = outcome["curve"]["reward"]
    means = [float(np.mean(reward[max(0, n - window + 1):n + 1])) for n in range(len(reward))]
    return outcome | {"curve": outcome["curve"] | {"reward": means}}


def spread(values, digits=3):
    low, high = min(values), max(values)
    return f"{np.mean(values):.{digits}f}" + (f" ({low:.{digits}f} … {high:.{digits}f})" if len(values) > 1 else "")


def table(outcomes, methods, names, target, window, given):
    """Markdown: a row a method, mean and range over seeds, after those of `given`, {name: figures} of what was not
    trained here; of shares the interval of all seeds' items is in result.json."""
    head = ["method", *names, "thousand tokens to the target", "seconds to the target", "seconds in all"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for label, figures in given.items():
        cells = [f"{figures[name]['value']:.3f}" if name in figures else "" for name in names]
        out.append(f"| {label} | " + " | ".join(cells) + " | | | |")
    for method in methods:
        runs = [each for each in outcomes if each["method"] == method]
        hits = [hit for run in runs if (hit := reached(run["curve"], target, window))]
        timed = [hit[1] for run in runs if not run["stopped"] and (hit := reached(run["curve"], target, window))]
        missed = f"{len(hits)} of {len(runs)}: " if hits and len(hits) < len(runs) else "" if hits else "never"
        tokens = missed + (spread([hit[0] / 1000 for hit in hits], 0) if hits else "")
        seconds = missed + (spread(timed, 0) if timed else "not timed" if hits else "")
        cells = [spread([run["figures"][name]["value"] for run in runs]) for name in names]
        out.append(f"| {method} | " + " | ".join([*cells, tokens, seconds, spread([run["seconds"] for run in runs], 0)]) + " |")
    return "\n".join(out)


def write(outcomes, given, out):
    """result.json, the charts, and the README's part after its heading "Figures"."""
    out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0].device_kind
    (out / "result.json").write_text(json.dumps({"given": given, "targets": TARGETS, "device": device,
                                                 "jax": jax.__version__, "runs": outcomes}) + "\n")
    text = []
    kinds = {"reinforcement": (REINFORCEMENT, ["sums", "facts"], 3, "reward of three rollouts, share of right answers",
                               "thousand tokens drawn"),
             "preferences": (PREFERENCES, ["gold", "unsafe_refused", "lookalikes_refused", "facts", "pairs_in_order"], 1,
                             "gold score of held-out items", "thousand tokens trained on")}
    for kind, (known, names, window, y_label, x_label) in kinds.items():
        methods = [name for name in known if any(each["method"] == name for each in outcomes)]
        if not methods:
            continue
        drawn = [smoothed(each) for each in outcomes] if kind == "reinforcement" else outcomes
        lines = lines_of(drawn, methods, given["the start"]["gold"]["value"] if kind == "preferences" else None)
        for line in lines.values():
            line["x"] = [x / 1000 for x in line["x"]]
        (out / f"{kind}.svg").write_text(chart(lines, x_label=x_label, y_label=y_label, title=f"{kind}: learning curves",
                                               target=TARGETS[kind]))
        beside = given if kind == "preferences" else {"the start": given["the start"]}
        sizes = {name: next(each["figures"][name]["n"] for each in outcomes if each["method"] in methods) for name in names}
        text.append(f"### {kind.capitalize()}\n\nTarget: {TARGETS[kind]}. Items: "
                    + ", ".join(f"{name} {n}" for name, n in sizes.items())
                    + f".\n\n{table(outcomes, methods, names, TARGETS[kind], window, beside)}"
                    + f"\n\n![learning curves]({kind}.svg)")
    readme = pathlib.Path(__file__).with_name("README.md")
    before = (out / "README.md" if (out / "README.md").exists() else readme).read_text().split("## Figures\n")[0]
    (out / "README.md").write_text(before + "## Figures\n\n" + "\n\n".join(text) + "\n")


def main(start, workdir, *, seeds=(0,), methods=(), out=None, changes=None, limit=LIMIT):
    """Makes what is not there yet, writes what is known so far after each run; returns the outcomes."""
    start, workdir = pathlib.Path(start), pathlib.Path(workdir)
    known = [*REINFORCEMENT, *PREFERENCES]
    for method in methods:
        if method not in known:
            raise ConfigError(f"--methods has {method!r}; there are: {', '.join(known)}")
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    file = workdir / "given.json"
    if not file.is_file():
        rows = items(start, limit)
        at_start = held_out(start / "sft", rows, start, RANKINGS)
        file.write_text(json.dumps({"the start": at_start} | baselines(start, rows)))
    given, outcomes = json.loads(file.read_text()), []
    for seed in seeds:
        for method in methods or known:
            outcomes.append(outcome(method, seed, start, workdir, changes, limit))
            write(outcomes, given, pathlib.Path(out or workdir))
    return outcomes


if __name__ == "__main__":
    ask_for_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="start", required=True, help="the folder of a finished quickstart")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="", help="all if empty")
    parser.add_argument("--out", default=None)
    given = parser.parse_args()
    main(given.start, given.workdir, seeds=[int(seed) for seed in given.seeds.split(",")],
         methods=[name for name in given.methods.split(",") if name], out=given.out)
