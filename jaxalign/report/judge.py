"""What a reward model's stage found out about its scores: whether it means them, and whether it likes length."""

import html

from jaxalign.report import plots
from jaxalign.report.plots import Series


def figures(stage: str, findings: dict | None, colour: str) -> str:
    """Two figures of a stage's `findings` (`evaluate.calibration`); nothing for a stage that has none."""
    if not findings:
        return ""
    bins, error = findings["calibration"].values(), findings["calibration_error"]
    sure = [each["predicted"] for each in bins]
    lines = [Series("observed", sure, [each["observed"]["value"] for each in bins]), Series("calibrated", sure, sure)]
    said, pairs = f"error {plots.number(error['value'])}", plots.number(error["n"])
    chart = plots.line_chart(lines, x_label="how sure the model is", y_label=f"share of {pairs} pairs in order",
                             colour=colour, title=f"{stage}: calibration {said}")
    legend = f'<span class="{colour}">observed</span><span class="second {colour}">ideal</span>'
    rows = "".join(
        f'<tr><td class="num">{html.escape(name)}</td>'
        f"<td>{plots.interval_bar(each['value'], each['ci95'], None, None, None, True)}</td>"
        f'<td class="num">{plots.number(each["value"])} of {plots.number(each["n"])}</td></tr>'
        for name, each in findings["accuracy_by_length"].items())
    return (
        '<div class="grid"><figure><figcaption><b>calibration</b><span class="legend">' + legend
        + f'</span><span class="last">{said}</span></figcaption>{chart}</figure>'
        '<figure><figcaption><b>accuracy by length</b><span class="last">preferred beside other</span>'
        f'</figcaption><table class="plain">{rows}</table></figure></div>'
    )
