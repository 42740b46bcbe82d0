"""SmolLM2-135M-Instruct on two cores, LoRA: SFT, DPO, a reward model, GRPO on sums that it gets wrong and on GSM8K, export.

    python experiments/smollm2/run.py --model=runs/smollm2 --workdir=runs/smollm2_tuned --out=experiments/smollm2

`--model` is a checkpoint that `jaxalign import` made. `--parts=d,x` runs some alone: a SFT, b DPO, c reward model, d sums,
e GSM8K, x the sums' policy through transformers. What is finished is not made again, what was stopped goes on from its checkpoint.
"""

import argparse
import json
import pathlib

import parts as recipes
from measures import answered, gsm8k, in_transformers, losses, same_answers

from jaxalign.errors import ConfigError
from jaxalign.evaluate.statistics import bootstrap_mean, bootstrap_ratio, wilson
from jaxalign.exchange import export_model
from jaxalign.huge_pages import ask_for_huge_pages
from jaxalign.report.bands import chart
from jaxalign.rewards.reasoning import ReasoningScore
from jaxalign.stages import train_stage

LIMITS = dict(sums=None, gsm8k=200, same=64)  # of the held-out problems
WINDOW = 5  # rollouts that a point of the learning curve is the mean of


def once(file, make):
    """What `make()` returns, as JSON; made unless it stands in `file`."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()))
    return json.loads(file.read_text())


def trained(config, folder, changes):
    config.update(changes.get(folder.name, {}))
    return train_stage(config, folder)


def entry(name, before, after, n, ci95, done, **more):
    """`ci95` is that of after − before."""
    return {"name": name, "before": before, "after": after, "n": n, "ci95": ci95, "minutes": round(done["seconds"] / 60, 1),
            "steps": done["steps"], **more}


def shares(name, before, after, done, **more):
    """An entry of two lists of 0 and 1 over the same items; the change has the interval of a bootstrap over items."""
    n, (_, *ci95) = len(before), bootstrap_mean([b - a for a, b in zip(before, after, strict=True)])
    return entry(name, sum(before) / n, sum(after) / n, n, ci95, done, before_ci95=wilson(sum(before), n),
                 after_ci95=wilson(sum(after), n), **more)


def sums(start, workdir, changes, limits):
    """Part d's runs: (held-out problems, {when: their answers}, summary of the cold start, of GRPO)."""
    data, cold, folder = workdir / "sums", workdir / "sums_sft", workdir / "grpo_sums"
    if not (data / "done.json").is_file():
        trained(recipes.sums(), data, changes)
    rows = {split: [asked(json.loads(line)) for line in (data / f"{split}.jsonl").read_text().splitlines()]
            for split in ("sft", "train", "dev")}
    solved = [{"messages": [*row["messages"], {"role": "assistant", "content": row["answer"]}]} for row in rows["sft"]]
    files = {"sft": solved, "train": rows["train"]}
    for split, made in files.items():
        (data / f"{split}.asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    held_out = rows["dev"][:limits["sums"]]

    def answers(when, checkpoint):
        return once(workdir / f"sums_{when}.json", lambda: answered(checkpoint, held_out, ReasoningScore(), 32))

    sides = {"before": answers("before", start)}
    begun = trained(recipes.sft_sums(start, data / "sft.asked.jsonl"), cold, changes)
    sides["cold"] = answers("mid", cold)
    done = trained(recipes.grpo_sums(cold, data / "train.asked.jsonl"), folder, changes)
    return held_out, sides | {"after": answers("after", folder)}, begun, done


def asked(row):
    """A problem as a conversation."""
    return row | {"messages": [{"role": "system", "content": recipes.SYSTEM}, {"role": "user", "content": row["prompt"]}]}


def part_sums(start, workdir, changes, limits, out):
    """Exact match of held-out sums by reasoning-gym's score, over both runs, and what of that is GRPO's alone."""
    held_out, sides, begun, done = sums(start, workdir, changes, limits)
    lines = [json.loads(line) for line in (workdir / "grpo_sums" / "metrics.jsonl").read_text().splitlines()]
    (out / "sums.svg").write_text(chart(curves(lines), x_label="optimizer steps", y_label="share of responses drawn",
                                        title="GRPO on sums: what the responses drawn earn"))
    (out / "transcripts.md").write_text(transcripts(held_out, sides))
    both = {**done, "seconds": begun["seconds"] + done["seconds"], "steps": begun["steps"] + done["steps"]}

    def compared(name, figure, since, summary, chosen=range(len(held_out))):
        return shares(name, *([sides[when][n][figure] for n in chosen] for when in (since, "after")), summary)

    yield compared("sums, exact match", "right", "before", both)
    yield compared("sums, exact match, by GRPO after the cold start", "right", "cold", done)
    yield compared("sums, last number right", "numeric", "before", both)
    for digits in (1, 2):
        chosen = [n for n, row in enumerate(held_out) if f'"num_digits": {digits},' in row["metadata"]]
        if chosen:
            yield compared(f"sums, exact match, terms of {digits} digit{'s' * (digits > 1)}", "right", "before", both, chosen)


def curves(lines):
    """{what is rewarded: mean of `WINDOW` rollouts, lowest and highest of them, over the steps}."""
    # A rollout's figures stand beside each of its steps.
    drawn = [line for n, line in enumerate(lines) if "drawn_tokens" in line and any(
        n == 0 or line[name] != lines[n - 1].get(name) for name in ("drawn_tokens", "reward/reasoning_gym", "entropy"))]
    windows = [[line["reward/reasoning_gym"] for line in drawn[max(0, n + 1 - WINDOW):n + 1]] for n in range(len(drawn))]
    return {"exact match": {"x": [line["step"] for line in drawn], "mean": [sum(w) / len(w) for w in windows],
                            "low": list(map(min, windows)), "high": list(map(max, windows))}}


def transcripts(rows, sides, count=30):
    """The first held-out problems with their answers, as a table."""
    def cell(each):
        return ("✓ " if each["right"] else "✗ ") + each["text"].replace("|", "\\|").replace("\n", " ⏎ ")

    names = {"before": "as published", "cold": "after the cold start", "after": "after GRPO"}
    lines = ["# Held-out sums, the first in the file's order", "", f"System message: {recipes.SYSTEM} Temperature 0, 32 tokens "
             "at most. ✓: reasoning-gym's score is 1.", "", f"| question | answer | {' | '.join(names.values())} |",
             "|" + "---|" * (2 + len(names))]
    lines += [f"| {row['prompt']} | {row['answer']} | {' | '.join(cell(sides[when][n]) for when in names)} |"
              for n, row in enumerate(rows[:count])]
    return "\n".join(lines) + "\n"


def part_sft(start, workdir, changes, limits, out):
    folder, config = workdir / "sft", recipes.sft(start)
    done = trained(config, folder, changes)
    sides = once(workdir / "sft_losses.json", lambda: [losses(path, config) for path in (start, folder)])
    (before, tokens), (after, _) = sides
    _, *ci95 = bootstrap_ratio([b - a for a, b in zip(before, after)], tokens)
    yield entry("SFT, dev loss, nats a token", sum(before) / sum(tokens), sum(after) / sum(tokens), int(sum(tokens)), ci95, done)


def part_dpo(start, workdir, changes, limits, out):
    """A policy that is its own reference prefers neither answer: before is one half by definition."""
    done = trained(recipes.dpo(start), workdir / "dpo", changes)
    yield one_sided("DPO, dev pairs whose better answer became likelier", done, done["before"]["accuracy"])


def part_reward(start, workdir, changes, limits, out):
    if not (workdir / "dpo" / "done.json").is_file():
        raise ConfigError("--parts has c, whose reward model starts from the policy of part b; run that before, or both: "
                          "--parts=b,c")
    done = trained(recipes.reward(workdir / "dpo"), workdir / "reward", changes)
    yield one_sided("reward model, hh_harmless dev pairs in order", done, done["before"]["accuracy"])


def one_sided(name, done, before):
    """An entry of a stage's own dev accuracy; before, there is nothing learned: the interval is that of after."""
    n, after = done["data"]["dev"]["rows"], done["after"]["accuracy"]
    low, high = wilson(after * n, n)
    return entry(name, before, after, n, (low - before, high - before), done, after_ci95=(low, high))


def part_gsm8k(start, workdir, changes, limits, out):
    config, folder = recipes.grpo_gsm8k(start), workdir / "grpo_gsm8k"
    rows = gsm8k(recipes.DATA / "verifiable" / "gsm8k.dev.jsonl", limits["gsm8k"])
    before = once(workdir / "gsm8k_before.json", lambda: answered(start, rows, None, 160))
    done = trained(config, folder, changes)
    after = once(workdir / "gsm8k_after.json", lambda: answered(folder, rows, None, 160))
    yield shares("GSM8K dev, last number right", *([each["numeric"] for each in side] for side in (before, after)), done)


def part_export(start, workdir, changes, limits, out):
    """How many of this package's answers, before, are transformers' too, after: all, if the export is exact."""
    held_out, _, _, done = sums(start, workdir, changes, limits)
    exported, rows = workdir / "exported", held_out[:limits["same"]]
    if not exported.is_dir():
        export_model(workdir / "grpo_sums", exported, dtype="float32")
    ours = once(workdir / "same_ours.json", lambda: answered(workdir / "grpo_sums", rows, ReasoningScore(), 16))
    theirs = once(workdir / "same_theirs.json", lambda: in_transformers(exported, rows, 16))
    same = same_answers(ours, theirs)
    yield shares("export, answers equal to transformers'", [1.0] * len(rows), same, done)


def table(entries):
    """Markdown: a row an entry."""
    def number(value, sign=""):
        return f"{value:{sign}.3f}".replace("-", "−")

    lines = ["| measured | before | after | change, 95 % | n | steps | minutes |", "|" + "---|" * 7]
    for each in entries:
        low, high = each["ci95"]
        change = f"{number(each['after'] - each['before'], '+')} ({number(low, '+')} … {number(high, '+')})"
        lines.append(f"| {each['name']} | {number(each['before'])} | {number(each['after'])} | {change} | {each['n']:,} | "
                     f"{each['steps']} | {each['minutes']:g} |")
    return "\n".join(lines)


def write(entries, out):
    """result.json, and the README's part after its heading "Figures"."""
    (out / "result.json").write_text(json.dumps(entries, indent=1) + "\n")
    readme = out / "README.md"
    before = (readme if readme.exists() else pathlib.Path(__file__).with_name("README.md")).read_text()
    pictures = ["![learning curve](sums.svg)\n\nAnswers before and after: [transcripts.md](transcripts.md)."
                ] if (out / "sums.svg").exists() else []
    readme.write_text("\n\n".join([before.split("## Figures\n")[0] + "## Figures", table(entries), *pictures]) + "\n")


PARTS = {"a": part_sft, "b": part_dpo, "c": part_reward, "d": part_sums, "e": part_gsm8k, "x": part_export}


def main(model, workdir, *, parts=(), out=None, changes=None, limits=None):
    """Makes what is not there yet, writes what is known so far after each part; returns the entries of result.json.

    Args:
      changes: {"sums", "sums_sft", "sft", "dpo", "reward", "grpo_sums" or "grpo_gsm8k": settings that override}.
      limits: of `LIMITS`, others than those.
    """
    model, workdir = pathlib.Path(model).absolute(), pathlib.Path(workdir).absolute()
    out = pathlib.Path(out or workdir)
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"--parts has {part!r}; there are: {', '.join(PARTS)}")
    for folder in (workdir, out):
        folder.mkdir(parents=True, exist_ok=True)
    file = out / "result.json"
    known = {each["name"]: each for each in json.loads(file.read_text())} if file.is_file() else {}
    for part in parts or PARTS:
        print(f"\n── part {part} ──", flush=True)
        for each in PARTS[part](model, workdir, changes or {}, LIMITS | (limits or {}), out):
            known[each["name"]] = each
            print(json.dumps(each), flush=True)
        write(list(known.values()), out)
    return json.loads(file.read_text())


if __name__ == "__main__":
    ask_for_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--parts", default="", help="all if empty")
    parser.add_argument("--out", default=None)
    flags = parser.parse_args()
    main(flags.model, flags.workdir, parts=[name for name in flags.parts.split(",") if name], out=flags.out)
