"""A reward model's findings in the report: calibration and accuracy by length, drawn and said."""

import json
import re

from test_report import checked, metrics, run_folder

from jaxalign.evaluate.calibration import by_length, calibration
from jaxalign.report import judge

FINDINGS = calibration([0.1, -0.2, 3.0, 2.5, 1.0], [0, 1, 2, 3, 4]) | by_length(
    [0.1, -0.2, 3.0, 2.5, 1.0], [9, 4, 6, 6, 2], [3, 9, 6, 6, 2], [0, 1, 2, 3, 4])


def stages(**findings):
    return [{"name": name, "seconds": 5.0, "steps": 2, "tokens": 10, "before": {"accuracy": 0.5}, "checkpoint": name,
             "after": {"accuracy": 0.8}} | ({"findings": findings} if findings and name == "reward" else {})
            for name in ("sft", "reward")]


def report_of(folder, **findings):
    run = run_folder(folder)
    report = json.loads((run / "report.json").read_text()) | {"stages": stages(**findings)}
    (run / "report.json").write_text(json.dumps(report))
    for name in ("sft", "reward"):
        metrics(run / name, [{"step": step, "loss": 1.0 / step} for step in (1, 2)])
    return checked(run)


def test_a_reward_models_calibration_and_accuracy_by_length_are_shown(tmp_path):
    page = report_of(tmp_path / "run", **FINDINGS)
    error = FINDINGS["calibration_error"]["value"]
    assert f"error {error:.3f}" in page.text and "share of 5 pairs" in page.text
    text = re.sub(r"\s+", " ", page.text)
    for name, value, n in (("under half", "0", 1), ("alike", "1", 3), ("over twice", "1", 1)):
        assert re.search(rf"{name}.*?{value} of {n}", text), name
    assert "shorter" not in text  # no pair is in it
    assert text.count("ideal") == 1


def test_the_calibration_chart_has_a_dot_a_bin_and_the_diagonal():
    drawn = judge.figures("reward", FINDINGS, "c1")
    assert len(FINDINGS["calibration"]) == 3 and drawn.count('<circle class="dot c1"') == 1 * 3 + 3
    assert drawn.count('<path class="line c1') == 2 and drawn.count('class="interval holds"') == 3


def test_a_stage_without_findings_has_no_such_figures(tmp_path):
    assert "calibration" not in report_of(tmp_path / "run").text and judge.figures("sft", None, "c0") == ""
