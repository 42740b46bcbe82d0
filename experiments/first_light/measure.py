"""Every checkpoint of configs/first_light.py on the dev sets: writes result.json and prints the table of README.md.

    python experiments/first_light/measure.py runs/first_light
"""

import json
import pathlib
import sys

from jaxalign import config as configs
from jaxalign.evaluate import evaluate_checkpoint
from jaxalign.evaluate.statistics import wilson
from jaxalign.train.checkpoint import read_meta

HERE = pathlib.Path(__file__).resolve().parent
POLICIES = ("pretrain", "sft", "dpo", "ppo", "grpo")
JUDGES = ("reward_pairs", "reward")
LENGTH = {"OASST rankings": 448, "fine-grained QA": 448}  # as the K-way stage trained
DRAWN = dict(best_of=1, answers=True, max_new_tokens=64)  # one answer a prompt, at temperature 1, as PPO draws them


def sources(workdir, config):
    """name → (checkpoints, source); the dev sets are those of the config."""
    data = {name: [dict(source) for source in config.stages[name].data.dev] for name in ("pretrain", "sft", "reward")}
    root = pathlib.Path(data["pretrain"][0]["path"]).parents[1]
    named = {"books": data["pretrain"][0], "TinyStories": data["pretrain"][1]}
    chats = {f"{pathlib.Path(source['path']).stem}": source for source in data["sft"]}
    pairs = {"hh_harmless": {"path": str(root / "preference" / "hh_harmless.dev.jsonl.gz"), "shape": "pairs"}}
    rankings = dict(zip(("OASST rankings", "fine-grained QA"), data["reward"], strict=True))
    sums = {"sums": {"path": str(workdir / "reasoning" / "dev.jsonl"), "shape": "prompts"}}
    requests = {"XSTest": {"path": str(root / "safety" / "xstest_prompts.csv"), "shape": "prompts"}}
    return {name: (POLICIES, source) for name, source in (named | chats | sums | requests).items()} | {
        name: (JUDGES + ("sft", "dpo"), source) for name, source in pairs.items()} | {
        name: (JUDGES, source) for name, source in rankings.items()}


def main(workdir):
    workdir = pathlib.Path(workdir)
    report = json.loads((workdir / "report.json").read_text())
    plan = sources(workdir, configs.load(HERE.parents[1] / "configs" / "first_light.py"))
    figures = {}
    for name, (checkpoints, source) in plan.items():
        for checkpoint in checkpoints:
            options = {"length": LENGTH.get(name, 256), "max_new_tokens": 16 if name == "sums" else 64}
            measured = evaluate_checkpoint(workdir / checkpoint, [source], options)
            figures.setdefault(name, {})[checkpoint] = next(iter(measured.values()))
            print(name, checkpoint, file=sys.stderr)
    # What PPO is after, on prompts that it never saw: the score that its reward model gives to one answer each.
    pairs = dict(plan["hh_harmless"][1])
    for checkpoint in ("sft", "dpo", "ppo"):
        measured = evaluate_checkpoint(workdir / checkpoint, [pairs], DRAWN | {"reward_model": workdir / "reward_pairs"})
        score = next(iter(measured.values()))["score"]["drawn"]
        figures.setdefault("hh_harmless prompts", {})[checkpoint] = {"the reward model's score": score}
    figures["hh_harmless, implicit reward"] = {"dpo": {"pairs in order": implicit(report)}}
    stages = [{key: value for key, value in stage.items() if key != "checkpoint"} for stage in report["stages"]]
    _, meta = read_meta(workdir / "sft")
    result = {"figures": figures, "stages": stages, "wall_seconds": report["wall_seconds"], "model": meta["model"],
              "peak_rss_gib": report["peak_rss_gib"], "versions": report["versions"], "device": report["device"]}
    root = pathlib.Path(plan["books"][1]["path"]).parents[1]  # of one machine alone
    written = json.dumps(result, indent=1, default=float).replace(f"{root}/", "")
    (HERE / "result.json").write_text(written + "\n", encoding="utf-8")
    for name, by_checkpoint in figures.items():
        for figure in dict.fromkeys(figure for each in by_checkpoint.values() for figure in leaves(each)):
            print(f"\n{name}: {figure}")
            for checkpoint, each in by_checkpoint.items():
                if leaf := leaves(each).get(figure):
                    interval = " … ".join(f"{x:.3f}" for x in leaf.get("ci95", ()))
                    print(f"  {checkpoint:<13} {leaf['value']:8.3f}  n={leaf['n']}  {interval}")


def implicit(report):
    """The dev pairs that DPO's policy has in order by its log-probability relative to the reference's; 0.5 before."""
    stage = next(stage for stage in report["stages"] if stage["name"] == "dpo")
    share, n = stage["after"]["accuracy"], stage["data"]["dev"]["rows"]
    return {"value": share, "n": n, "ci95": wilson(share * n, n)}


def leaves(figures, at=""):
    """{name: {"value", "n", …}}; what a figure consists of, such as the bins of a calibration, has no value of its own."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= {at + name: value} if "value" in value else leaves(value, f"{at}{name} ")
    return found


if __name__ == "__main__":
    main(sys.argv[1])
