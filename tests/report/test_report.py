"""The report: what it says, what it does with missing pieces, and that text stays text."""

import html.parser
import json
import math
import re

import pytest

from jaxalign.errors import ConfigError, DataError
from jaxalign.report import claims, curves, lineage, plots, write_report
from jaxalign.report.page import duration

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;'


def run_folder(folder, stages=("pretrain", "ppo"), name_of=lambda name: name, **changes):
    report = {
        "claims": [
            {"name": name_of("knows facts"), "value": 0.9, "baseline": 0.06, "target": "≥ 0.80", "n": 640,
             "ci95": [0.875, 0.92], "holds": True},
            {"name": "pairs", "value": 0.88, "baseline": None, "target": 0.9, "n": 500,
             "ci95": [0.85, 0.905], "holds": False},
        ],
        "stages": [
            {"name": name_of(stage), "seconds": 61.5, "steps": 100, "tokens": 200_000, "before": {"loss": 6.5},
             "after": {"loss": 1.25}, "checkpoint": f"runs/x/{stage}"}
            for stage in stages
        ],
        "wall_seconds": 130, "peak_rss_gib": 1.5, "versions": {"jax": "9.9.9"}, "device": "cpu", "seed": 3,
    } | changes  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def metrics(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Checker(html.parser.HTMLParser):
    """Collects tags, attributes and text; every opened element must be closed in order."""

    VOID = {"meta", "br", "img", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""


def checked(folder):
    source = write_report(folder).read_text()
    page = Checker()
    page.feed(source)
    assert not page.open
    # Self-contained: no scripts, nothing loaded from anywhere.
    assert not {"script", "img", "iframe", "link", "object"} & set(page.tags)
    assert not {name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")}
    assert "http://" not in source and "https://" not in source and "@import" not in source and "url(" not in source
    return page


def test_the_whole_story(tmp_path):
    run = run_folder(tmp_path / "run", lineage=[{"name": "pretrain"}, {"name": "ppo", "from": "pretrain"}])
    metrics(run / "pretrain", [{"step": s, "loss": 7 / s, "truncated": 0.0} for s in range(1, 201)])
    metrics(run / "ppo", [{"step": s, "loss": 0.1 * s, "reward": s, "kl": None if s == 2 else s} for s in range(1, 5)])
    rows = [
        {"prompt": "Capital of Velmora?", "kind": "facts", "answers": {"pretrain": "The capital is", "ppo": "Tarsin."}},
        {"prompt": [{"role": "user", "content": "And its flag?"}], "kind": "follow_up", "answers": {"ppo": ""}},
    ]
    (run / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = checked(run)
    for part in (
        "1 of 2 claims hold", "knows facts", "✓ holds", "✗ does not hold", "0.875 … 0.92", "≥ 0.9", "2 min 10 s",
        "1.5 GiB",
        "400k", "pretrain", "nats / token", "the same all along: truncated 0", "Capital of Velmora?", "Tarsin.",
        "user And its flag?", "follow up", "(nothing)", "which stage started from which", "jax 9.9.9",
        "loss 6.5 → 1.25", "runs/x/ppo",
    ):  # fmt: skip
        assert part in page.text, part
    assert page.tags.count("figure") == 4 and page.tags.count("table") == 2
    assert "prefers-color-scheme: dark" in (run / "report.html").read_text()


def test_text_from_the_run_stays_text(tmp_path):
    run = run_folder(
        tmp_path / "run", stages=("a",), name_of=lambda name: EVIL, versions={EVIL: EVIL}, device=EVIL, seed=EVIL,
        lineage=[{"name": EVIL, "from": [EVIL + "2"]}],
    )  # fmt: skip
    (run / "answers.jsonl").write_text(json.dumps({"prompt": EVIL, "kind": EVIL, "answers": {EVIL: EVIL}}) + "\n")
    page = checked(run)
    assert page.text.count(EVIL) >= 8


def test_a_metric_with_an_evil_name_stays_text(tmp_path):
    run = run_folder(tmp_path / "run", stages=("a",))
    metrics(run / "a", [{"step": s, EVIL: s, "dev/" + EVIL: s, EVIL + "constant": 1} for s in (1, 2, 3)])
    assert EVIL.replace("_", " ") in checked(run).text


def test_missing_pieces_are_said_in_their_place(tmp_path):
    run = run_folder(tmp_path / "run")
    metrics(run / "ppo", [{"step": 1, "reward": 1.0}, {"step": 2, "reward": 2.0}])
    text = checked(run).text
    assert "no answers.jsonl in this run" in text and "no metrics.jsonl with figures: pretrain" in text
    assert "the run holds no lineage of its own" in text


def test_an_empty_report_is_still_a_page(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    text = checked(tmp_path).text
    assert "report.json lists no claims" in text and "report.json lists no stages" in text


@pytest.mark.parametrize(
    "claim",
    [
        {"value": None, "target": "≥ 0.8", "ci95": None, "n": None, "holds": False, "baseline": None},
        {"value": 0, "target": 0, "ci95": [0, 0], "n": 0, "holds": True, "baseline": 0},
        {"value": 7.2, "target": "≤ 12", "ci95": [6.8, 7.6], "n": 5, "holds": True, "baseline": 0.0},
        {"value": -1.5, "target": "up", "ci95": [-2, -1], "n": 5, "holds": False, "baseline": {"sft": -2.0}},
        {"value": {"ppo": 0.9}, "target": None, "ci95": [], "n": {"a": 1}, "holds": True},
        {},
    ],
)
def test_claims_of_every_form_are_drawn(tmp_path, claim):
    checked(run_folder(tmp_path / "run", claims=[{"name": "c", **claim}]))


def test_errors_name_file_and_line(tmp_path):
    with pytest.raises(ConfigError, match="jaxalign pipeline writes it after each of its stages"):
        write_report(tmp_path)
    (tmp_path / "report.json").write_text('{"claims": [\n}')
    with pytest.raises(DataError, match="report.json:2: expected JSON"):
        write_report(tmp_path)
    run = run_folder(tmp_path / "run")
    (run / "answers.jsonl").write_text('{"prompt": "a", "answers": {}}\n{"prompt": 1}\n')
    with pytest.raises(DataError, match="answers.jsonl:2: expected"):
        write_report(run)
    (run / "answers.jsonl").unlink()
    (run / "ppo").mkdir()
    (run / "ppo" / "metrics.jsonl").write_text('broken\n{"step": 1}\n')
    with pytest.raises(DataError, match="metrics.jsonl:1: expected"):
        write_report(run)


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ({"target": "≥ 0.80"}, (0.8, "≥")),
        ({"target": ">= 0.80 against <= 0.2"}, (0.2, "≤")),
        ({"target": "≤ 0.20 → ≥ 0.95"}, (0.95, "≥")),
        ({"target": "within 3 points"}, (None, None)),
        ({"target": 0.9, "value": 0.95, "holds": True}, (0.9, "≥")),
        ({"target": 0.9, "value": 0.85, "holds": False}, (0.9, "≥")),
        ({"target": 0.05, "value": 0.02, "holds": True}, (0.05, "≤")),
        ({"target": 0.05, "value": 0.2, "holds": False}, (0.05, "≤")),
        ({"target": True}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_targets_are_read(claim, expected):
    assert claims.target_of(claim) == expected


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ({"name": "accuracy, SFT → PPO", "target": "≥ -0.03"}, True),
        ({"name": "gain over PPO", "target": "≥ 0.25"}, False),
        ({"name": "gain over PPO", "target": "≥ 0.25", "difference": True}, True),
        ({"name": "gold score", "target": "> 0"}, True),
        ({"name": "refused", "target": "≤ 0.20 → ≥ 0.95"}, False),
        ({"name": "a → b", "target": "≤ 3", "difference": False}, False),
    ],
)
def test_differences_are_told_from_levels(claim, expected):
    assert claims.is_difference(claim) == expected


def test_claims_are_grouped_by_their_titles(tmp_path):
    named = ("PPO aligns: refused", "… wrongly refused", "PPO aligns: accuracy", "GRPO")
    page = checked(
        run_folder(
            tmp_path / "run",
            claims=[
                {"name": name, "value": -0.01, "baseline": 0.9, "target": "≥ -0.03", "holds": True} for name in named
            ],
        )
    )
    kinds = [value for name, value in page.attributes if name == "class" and value in ("starts", "goes-on")]
    assert kinds == ["starts", "goes-on", "goes-on", "starts"] and page.text.count("PPO aligns") == 1
    # The level that a difference starts from is no point on its axis.
    assert "baseline" not in [value for name, value in page.attributes if name == "class"]


def test_figures_under_two_names_are_drawn_once():
    rows = [
        {"step": s, "nll": 1 / s, "loss": 1 / s, "dev/nll": 2 / s, "reward/numeric": s, "lr": 1 / s} for s in (1, 2)
    ]
    assert list(curves.charts(rows)[0]) == ["nll", "reward/numeric"]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.31, 0.97), (1, 1500), (-3, 4), (5, 5), (0, 0), (1e-9, 3e-9), (4.5e-14, 5e-14), (-2e9, 3e9), (0.999, 1.0)],
)
def test_ticks_are_round_and_cover(low, high):
    marks = plots.ticks(low, high, 5)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12 and 2 <= len(marks) <= 8
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(leading - k) for k in (1, 2, 5)) < 1e-6


def test_a_line_breaks_at_gaps_and_stays_within_the_chart():
    series = [plots.Series("train", [1, 2, 3, 4], [1.0, None, 3.0, -2.0])]
    svg = plots.line_chart(series, x_label="step", y_label="nats", colour="c0", title="t")
    (path,) = re.findall(r'class="line c0" d="([^"]+)"', svg)
    assert path.count("M") == 2
    for x, y in re.findall(r"[ML]([\d.]+),([\d.]+)", path):
        assert (
            plots.LEFT <= float(x) <= plots.WIDTH - plots.RIGHT and plots.TOP <= float(y) <= plots.HEIGHT - plots.BOTTOM
        )


def test_long_runs_make_small_drawings_that_keep_their_start():
    steps = list(range(1, 100_001))
    noisy = [10 / step**0.5 + (0.3 if step % 2 else -0.3) for step in steps]
    svg = plots.line_chart([plots.Series("train", steps, noisy)], x_label="", y_label="", colour="c0", title="")
    assert len(svg) < 20_000


def test_noise_is_smoothed_and_smooth_curves_are_left_alone():
    steps = list(range(200))
    smooth = plots.line_chart(
        [plots.Series("a", steps, [s**2 for s in steps])], x_label="", y_label="", colour="c0", title=""
    )
    noisy = plots.line_chart(
        [plots.Series("a", steps, [s % 2 for s in steps])], x_label="", y_label="", colour="c0", title=""
    )
    assert "faint" not in smooth and "faint" in noisy


def test_splits_share_a_chart_and_constants_are_listed():
    rows = [
        {"step": s, "time": s, "loss": 1 / s, "dev/loss": 2 / s, "truncated": 0, "pairs/accuracy": s} for s in (1, 2)
    ]
    drawn, constant = curves.charts(rows)
    assert [line.name for line in drawn["loss"]] == ["train", "dev"] and drawn["loss"][1].values == [2, 1]
    assert list(drawn) == ["pairs/accuracy", "loss"] and constant == {"truncated": 0}


def test_a_torn_last_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert curves.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_lineage_is_read_from_the_configs_of_the_stages(tmp_path):
    names = ("world", "tokenizer", "pretrain", "sft", "reward", "ppo", "claims")
    run = run_folder(tmp_path / "run", stages=names, lineage={"sft": [{"stage": "sft"}]})
    configs = {
        "world": {"init_from": "ppo"},  # a word that is a later stage's name is no path to it
        "tokenizer": {"data": {"train": [{"path": f"{run}/world/text.jsonl"}]}},
        "pretrain": {"tokenizer": f"{run}/tokenizer/t.model", "data": {"train": [{"path": f"{run}/world/a.jsonl"}]}},
        "sft": {"tokenizer": f"{run}/tokenizer/t.model", "init_from": f"{run}/pretrain"},
        "reward": {"init_from": f"{run}/sft/checkpoints/40"},
        "ppo": {"init_from": f"{run}/sft", "reward_model": f"{run}/reward", "data": [f"{run}/world/b.jsonl"]},
        "claims": {"sft": f"{run}/sft", "ppo": f"{run}/ppo"},
    }
    report = json.loads((run / "report.json").read_text())
    report["stages"][-1]["steps"] = report["stages"][0]["steps"] = 0  # claims measures, world is used
    (run / "report.json").write_text(json.dumps(report))
    for name, config in configs.items():
        (run / name).mkdir()
        (run / name / "config.json").write_text(json.dumps(config))
    assert lineage.parents_of(run, report) == {
        "world": [], "tokenizer": ["world"], "pretrain": ["tokenizer"], "sft": ["pretrain"], "reward": ["sft"],
        "ppo": ["sft", "reward"],
    }  # fmt: skip
    page = checked(run)
    assert "which stage started from which" in page.text
    assert [value for name, value in page.attributes if name == "class"].count("edge") == 6


def test_lineage_draws_every_box_and_arrow_and_survives_a_loop():
    parents = {"sft": ["pretrain"], "reward": ["sft"], "ppo": ["sft", "reward"]}
    svg = lineage.graph(parents, {}, {})
    assert svg.count("<rect") == 4 and svg.count('class="edge"') == 4
    # The long arrow, from sft to ppo, keeps clear of the reward model's box between them.
    assert lineage._lane([2], 0, {(1, 0): "sft", (2, 0): "reward", (3, 0): "ppo"}) == 1
    assert lineage._lane([2], 0, {(1, 0): "sft", (2, 0): "reward", (2, 1): "dpo", (3, 0): "ppo"}) == -1
    assert lineage.graph({"a": ["b"], "b": ["a"]}, {}, {}).count("<rect") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.953, "0.953"), (0.9, "0.9"), (12, "12"), (1234, "1,234"), (12_345, "12.3k"), (6_100_000, "6.1M"),
     (1.2e-5, "1.2e-05"), (None, "—"), (float("nan"), "nan"), (0.0, "0"), (-0.25, "−0.25"), (-12, "−12"), (2e9, "2G"), ("x", "x")],
)  # fmt: skip
def test_figures_are_written_as_people_do(value, text):
    assert plots.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.24, "4.2 s"), (42, "42 s"), (125, "2 min 05 s"), (4800, "1 h 20 min"), (None, "—")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_answers_of_any_characters_are_shown(tmp_path):
    run = run_folder(tmp_path / "run")
    text = "line\u2028end \x85 and\x0c \x00 bell\x07 café"
    row = {"prompt": "say it", "kind": "x", "answers": {"day zero": text}}
    (run / "answers.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    page = checked(run)
    assert "line\u2028end \ufffd and\ufffd \ufffd bell\ufffd café" in page.text


def test_what_did_not_reach_the_training_is_said(tmp_path):
    run = run_folder(tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    report["stages"][0]["data"] = {"train": {"rows": 90, "bad": 3, "truncated": 0.025}, "dev": {"bad": 9}}
    report["stages"][1]["data"] = {"train": {"rows": 90, "bad": 0, "truncated": 0.0}}
    (run / "report.json").write_text(json.dumps(report))
    text = checked(run).text
    assert text.count("3 bad rows skipped · 2.5% of the rows cut") == 1 and text.count("bad row") == 1
