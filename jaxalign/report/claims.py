"""The table of claims: what was promised, what was measured, how sure that is, and whether it holds."""

import html
import re

from jaxalign.report.plots import interval_bar, number

SIGNS = {">=": "≥", "<=": "≤", ">": "≥", "<": "≤", "≥": "≥", "≤": "≤"}


def section(claims: list[dict]) -> str:
    """HTML of the claims; keys of a claim: name, value, baseline, target, n, ci95, holds, optionally measure."""
    if not claims:
        return '<section><h2>Claims</h2><p class="note">report.json lists no claims.</p></section>'
    rows = "".join(_row(claim) for claim in claims)
    head = "".join(f'<th class="num">{name}</th>' for name in ("baseline", "value", "target", "n"))
    return (
        "<section><h2>Claims</h2>"
        '<p class="sub">Point estimates against their targets on held-out items. Dot: value; bar: 95 % interval; '
        "upright line: target, its good side shaded; ring: baseline.</p>"
        f'<table class="claims"><thead><tr><th>claim</th>{head}<th>95 % interval</th><th></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def target_of(claim: dict) -> tuple[float | None, str | None]:
    """(number, "≥" or "≤" or None) of a claim's target, which is a number or text such as "≤ 0.40 → ≥ 0.95"."""
    target = claim.get("target")
    if isinstance(target, (int, float)) and not isinstance(target, bool):
        value = claim.get("value")
        if not _is_number(value):
            return float(target), None
        # A bare number does not say which side is good, but together with `holds` it does.
        above = value >= target
        return float(target), "≥" if above == bool(claim.get("holds")) else "≤"
    found = re.findall(r"(>=|<=|≥|≤|>|<)\s*(-?\d+(?:\.\d+)?)", str(target or ""))
    if found:
        sign, value = found[-1]  # the last one: "from at most … to at least …"
        return float(value), SIGNS[sign]
    return None, None


def _row(claim):
    value, baseline, interval = claim.get("value"), claim.get("baseline"), claim.get("ci95")
    target, direction = target_of(claim)
    holds = bool(claim.get("holds"))
    shown = claim.get("target")
    if _is_number(shown):
        shown = f"{direction or ''} {number(shown)}"
    bar = '<span class="note">not measured</span>'
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))):
        interval = None
    if _is_number(value):
        bar = interval_bar(value, interval, target, direction, baseline if _is_number(baseline) else None, holds)
        if interval:
            bar += f'<span class="ends">{number(interval[0])} … {number(interval[1])}</span>'
    state, verdict = ("holds", "✓ holds") if holds else ("fails", "✗ does not hold")
    measure = claim.get("measure") or claim.get("note") or ""
    measure = f'<span class="measure">{html.escape(str(measure))}</span>' if measure else ""
    return (
        f'<tr><th scope="row">{html.escape(str(claim.get("name")))}{measure}</th>'
        f'<td class="num" data-label="baseline">{_figure(baseline)}</td>'
        f'<td class="num strong" data-label="value">{_figure(value)}</td>'
        f'<td class="num" data-label="target">{html.escape(str(shown if shown is not None else "—"))}</td>'
        f'<td class="num" data-label="n">{_figure(claim.get("n"))}</td>'
        f'<td class="span">{bar}</td><td class="verdict"><span class="badge {state}">{verdict}</span></td></tr>'
    )


def _figure(value):
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(str(key))} {html.escape(number(item))}" for key, item in value.items())
    return html.escape(number(value))


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
