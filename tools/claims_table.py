"""Prints the claims of one or more quickstart runs as Markdown, with their spread over the runs.

    python tools/claims_table.py runs/seed0 runs/seed1 runs/seed2
"""

import json
import pathlib
import sys


def main(folders):
    reports = [json.loads((pathlib.Path(folder) / "report.json").read_text()) for folder in folders]
    print(_claims(reports))
    print()
    print(_stages(reports))


def _claims(reports):
    lines = ["| claim | target | value | 95 % interval, first run | baseline | n | holds |", "|---|---|---|---|---|---|---|"]
    for rows in zip(*(report["claims"] for report in reports), strict=True):
        values = [row["value"] for row in rows]
        shown = f"{sum(values) / len(values):.3f}"
        if len(values) > 1:
            shown += f" ({min(values):.3f} … {max(values):.3f})"
        low, high = rows[0]["ci95"]
        baseline = "" if rows[0]["baseline"] is None else f"{rows[0]['baseline']:.3f}"
        held = sum(row["holds"] for row in rows)
        verdict = ("yes" if held else "**no**") if len(rows) == 1 else f"{held} of {len(rows)}"
        name = rows[0]["name"].replace("|", "\\|")  # or it would end the cell
        lines.append(f"| {name} | {rows[0]['target']} | {shown} | {low:.3f} … {high:.3f} | {baseline} | "
                     f"{rows[0]['n']} | {verdict} |")
    return "\n".join(lines)


def _stages(reports):
    lines = ["| stage | seconds | steps | tokens |", "|---|---|---|---|"]
    for stages in zip(*(report["stages"] for report in reports), strict=True):
        seconds = " / ".join(f"{stage['seconds']:.0f}" for stage in stages)
        lines.append(f"| {stages[0]['name']} | {seconds} | {stages[0]['steps']} | {stages[0]['tokens']:,} |")
    totals = " / ".join(f"{report['wall_seconds']:.0f}" for report in reports)
    memory = " / ".join(f"{report['peak_rss_gib']:.2f}" for report in reports)
    return "\n".join([*lines, f"| all | {totals} | | |", "", f"Peak memory: {memory} GiB."])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python tools/claims_table.py RUN [RUN ...]   (folders that hold a report.json)")
    main(sys.argv[1:])
