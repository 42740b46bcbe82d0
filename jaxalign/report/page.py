"""`write_report`: from what a pipeline left in its folder to one HTML file without scripts or outside files."""

import html
import json
import pathlib
import re

from jaxalign.errors import ConfigError, DataError
from jaxalign.report import claims, curves, judge, lineage, plots

COLOURS = 8  # classes c0 … c7 of report.css
CHARTS_SHOWN = 3  # of each stage; the others are folded away
CHANGES_SHOWN = 4  # of a stage's figures before and after it
PROMPTS_SHOWN = 6  # of each kind
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # what HTML cannot hold and an untrained model says


def write_report(workdir) -> pathlib.Path:
    """Writes `workdir/report.html` and returns its path.

    Reads `report.json` (claims, stages, versions …), each stage's `metrics.jsonl` in the folder of its name, and
    `answers.jsonl` (`{"prompt", "kind", "answers": {stage: text}}`; a prompt is text or a list of messages). What is
    missing is said in its place. A claim "title: text" starts a group, "… text" goes on with it. Optional are
    `lineage` ([{"name", "from": stage or list of them}]; else what the stages' `config.json` name), and of a claim
    `measure`, shown under its name, and `difference`, whether the value is one (else guessed from the name).

    Raises:
      ConfigError: no `report.json`.
      DataError: a file that is no JSON, with its line.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "report.json"
    if not path.is_file():
        raise ConfigError(f"{path} not found: jaxalign pipeline writes it after each of its stages; name the folder of "
                          "a pipeline")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, getattr(error, "lineno", None), "JSON", str(error)) from None
    stages = report.get("stages") or []
    trained = [stage["name"] for stage in stages if stage.get("steps")]
    colours = {stage["name"]: "plainly" for stage in stages}
    colours |= {name: f"c{index % COLOURS}" for index, name in enumerate(trained)}
    sections = [
        _headline(report, stages),
        claims.section(report.get("claims") or []),
        _timeline(stages, colours),
        _learning_curves(workdir, stages, colours),
        _answers(workdir / "answers.jsonl", colours),
        _lineage(workdir, report, stages, colours),
        _versions(report),
    ]
    style = (pathlib.Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>jaxalign · {_text(workdir.resolve().name)}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )
    target = workdir / "report.html"
    target.write_text(page, encoding="utf-8")
    return target


def _headline(report, stages):
    listed = report.get("claims") or []
    holding = sum(bool(claim.get("holds")) for claim in listed)
    if not listed:
        title = "A run without measured claims"
    elif holding == len(listed):
        title = f"All {len(listed)} claims hold"
    else:
        title = f"{holding} of {len(listed)} claims hold"
    tokens = sum(stage.get("tokens") or 0 for stage in stages)
    facts = [
        (duration(report.get("wall_seconds")), "in stages"),
        (str(len(stages)), "stages"),
        (plots.number(tokens), "tokens trained on"),
        (f"{plots.number(report.get('peak_rss_gib'))} GiB", "of memory at most"),
        (plots.number(report.get("seed")), "seed"),
        (str(report.get("device") or "—"), "device"),
    ]
    cells = "".join(f"<div><b>{_text(value)}</b><span>{_text(label)}</span></div>" for value, label in facts)
    trained = [stage for stage in stages if stage.get("steps")]
    chain = " · ".join(_text(stage["name"]) for stage in trained or stages)
    return (
        f'<header><p class="brand">jaxalign</p><h1>{title}</h1>'
        f'<p class="lead">From random weights to an assistant, measured at every step: {chain}.</p>'
        f'<div class="facts">{cells}</div></header>'
    )


def _timeline(stages, colours):
    if not stages:
        return _section("Stages", '<p class="note">report.json lists no stages.</p>')
    whole = sum(stage.get("seconds") or 0 for stage in stages) or 1
    rows, start = [], 0.0
    for stage in stages:
        seconds, tokens = stage.get("seconds") or 0, stage.get("tokens") or 0
        left, width = 100 * start / whole, 100 * seconds / whole
        start += seconds
        counts = [f"{plots.number(stage['steps'])} steps"] if stage.get("steps") else []
        counts += [f"{plots.number(tokens)} tokens"] if tokens else []
        counts += [f"{plots.number(round(tokens / seconds))} tokens/s"] if tokens and seconds else []
        counts += _lost(stage.get("data"))
        colour = colours[stage["name"]]
        rows.append(
            f'<div class="stage"><div class="who"><b class="{colour}">{_text(stage["name"])}</b>'
            f"<span>{duration(seconds)}</span></div>"
            f'<div class="track"><i class="fill {colour}" style="left:{left:.2f}%;width:{width:.2f}%"></i></div>'
            f'<div class="what"><span>{_text(" · ".join(counts))}</span>'
            f"<div>{_changes(stage.get('before'), stage.get('after'))}</div></div></div>"
        )
    note = f"{duration(whole)} of training and measuring"
    return _section("Stages", f'<div class="timeline">{"".join(rows)}</div>', note)


def _lost(data):
    """What did not reach the training: rows that were skipped as bad, rows that were cut."""
    train = data.get("train") if isinstance(data, dict) else None
    bad, cut = (train.get("bad"), train.get("truncated")) if isinstance(train, dict) else (0, 0)
    counts = [f"{plots.number(bad)} bad row{'s' * (bad > 1)} skipped"] if bad else []
    return counts + ([f"{cut:.1%} of the rows cut"] if cut else [])


def _changes(before, after):
    """Figures before and after a stage: two numbers, or two mappings of names to numbers. Those of what was learned
    before the stage, where it has them, on a line of their own."""
    before = before if isinstance(before, dict) else {"": before}
    after = after if isinstance(after, dict) else {"": after}
    at = "old/"
    olds = [{name[len(at):]: figure for name, figure in figures.items() if name.startswith(at)} for figures in (before, after)]
    if any(olds):
        news = [{name: figures[name] for name in old if name in figures} for figures, old in zip((before, after), olds)]
        return "".join(f'<div class="domain"><span class="change">{words} domain:</span>{_changes(*figures)}</div>'
                       for words, figures in (("old", olds), ("new", news)) if any(figures))
    parts = {}
    for name in sorted({**before, **after}, key=curves.rank):
        old, new = before.get(name), after.get(name)
        # Terms that are the loss under another name would say the same again.
        if (old, new) == (None, None) or (old, new) in parts or curves.rank(name)[0] > 1:
            continue
        came_from = "" if old is None else f"{_text(plots.number(old))} → "
        shown = f"{_text(name.replace('_', ' '))} {came_from}<b>{_text(plots.number(new))}</b>"
        parts[old, new] = f'<span class="change">{shown}</span>'
    return "".join(list(parts.values())[:CHANGES_SHOWN])


def _learning_curves(workdir, stages, colours):
    blocks, silent = [], []
    for stage in stages:
        name = stage["name"]
        path = workdir / name / "metrics.jsonl"
        drawn, constant = curves.charts(curves.read_metrics(path)) if path.is_file() else ({}, {})
        if not drawn and not constant:
            silent.append(name)
            continue
        figures = {key: _figure(name, key, lines, colours[name]) for key, lines in drawn.items()}
        body = f'<div class="grid">{"".join(figures.pop(key) for key in list(drawn)[:CHARTS_SHOWN])}</div>'
        if figures:
            names = _text(", ".join(key.replace("_", " ") for key in figures))
            body += f'<details><summary>{names}</summary><div class="grid">{"".join(figures.values())}</div></details>'
        if constant:
            listed = " · ".join(f"{key.replace('_', ' ')} {plots.number(value)}" for key, value in constant.items())
            body += f'<p class="note">the same all along: {_text(listed)}</p>'
        body += judge.figures(name, stage.get("findings"), colours[name])
        blocks.append(f'<div class="curves"><h3><i class="chip {colours[name]}"></i>{_text(name)}</h3>{body}</div>')
    if silent:
        blocks.append(f'<p class="note">no metrics.jsonl with figures: {_text(", ".join(silent))}</p>')
    return _section("Learning curves", "".join(blocks), "faint: every logged step; bold: its running mean")


def _figure(stage, name, lines, colour):
    legend = ""
    if len(lines) > 1 or lines[0].name != "train":
        styles = [f"{plots.STYLES[min(index, 2)]} {colour}".strip() for index in range(len(lines))]
        pairs = zip(styles, lines, strict=True)
        legend = "".join(f'<span class="{style}">{_text(line.name)}</span>' for style, line in pairs)
    ends = [next((v for v in reversed(line.values) if v is not None), None) for line in lines]
    last = ", ".join(plots.number(end) for end in ends)
    title = f"{stage}: {name} over steps, last {last}"
    chart = plots.line_chart(lines, x_label="step", y_label=curves.unit(name, stage), colour=colour, title=title)
    return (
        f'<figure><figcaption><b>{_text(name.replace("_", " "))}</b><span class="legend">{legend}</span>'
        f'<span class="last">{_text(last)}</span></figcaption>{chart}</figure>'
    )


def _answers(path, colours):
    if not path.is_file():
        return _section("The same prompts, answered by every stage", '<p class="note">no answers.jsonl in this run</p>')
    kinds: dict[str, list] = {}
    # Not `splitlines`: an answer may hold one of the rarer characters that end a line to Python.
    for line_number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            row["prompt"], row["answers"].items()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(path, line_number, '{"prompt", "kind", "answers": {stage: text}}', line[:60]) from None
        kinds.setdefault(str(row.get("kind") or "prompts"), []).append(row)
    blocks = []
    for kind, rows in kinds.items():
        cards = "".join(_card(row, colours) for row in rows[:PROMPTS_SHOWN])
        if rows[PROMPTS_SHOWN:]:
            more = "".join(_card(row, colours) for row in rows[PROMPTS_SHOWN:])
            cards += f"<details><summary>{len(rows) - PROMPTS_SHOWN} more</summary>{more}</details>"
        blocks.append(f"<h3>{_text(kind.replace('_', ' '))}</h3>{cards}")
    return _section("The same prompts, answered by every stage", "".join(blocks))


def _card(row, colours):
    prompt = row["prompt"]
    if isinstance(prompt, list):
        said = [(_text(turn.get("role")), _text(turn.get("content"))) for turn in prompt]
        turns = "".join(f'<span class="turn"><em>{role}</em> {content}</span>' for role, content in said)
    else:
        turns = f'<span class="turn">{_text(prompt)}</span>'
    cells = "".join(
        f'<div class="answer"><b class="{colours.get(stage, "")}">{_text(stage)}</b>'
        f"<p>{_text(_CONTROL.sub(chr(0xFFFD), str(text))) if str(text).strip() else '<i>(nothing)</i>'}</p></div>"
        for stage, text in row["answers"].items()
    )
    return f'<div class="card"><div class="prompt">{turns}</div><div class="answers">{cells}</div></div>'


def _lineage(workdir, report, stages, colours):
    parents = lineage.parents_of(workdir, report)
    note = "which stage started from which, or used what it left"
    if not parents:
        names = [stage["name"] for stage in stages]
        parents = {name: names[:index][-1:] for index, name in enumerate(names)}
        note = "in the order they ran; the run holds no lineage of its own"
    if not parents:
        return _section("Lineage", '<p class="note">no stages</p>')
    notes = {stage["name"]: f"{plots.number(stage['steps'])} steps" for stage in stages if stage.get("steps")}
    where = [(_text(stage["name"]), _text(stage.get("checkpoint") or "—")) for stage in stages]
    rows = "".join(f"<tr><td>{name}</td><td><code>{path}</code></td></tr>" for name, path in where)
    graph = f'<div class="scroll">{lineage.graph(parents, colours, notes)}</div>'
    table = f'<div class="scroll"><table class="plain">{rows}</table></div>'
    return _section("Lineage", f"{graph}<details><summary>checkpoints</summary>{table}</details>", note)


def _versions(report):
    versions = report.get("versions") or {}
    cells = "".join(f"<span><b>{_text(name)}</b> {_text(version)}</span>" for name, version in versions.items())
    return f"<footer>{cells or 'no versions recorded'}</footer>"


def _section(title, body, note=""):
    note = f'<p class="sub">{_text(note)}</p>' if note else ""
    return f"<section><h2>{_text(title)}</h2>{note}{body}</section>"


def duration(seconds) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 1 h 20 min."""
    if seconds is None:
        return "—"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _text(value) -> str:
    return html.escape("" if value is None else str(value))
