"""The table of claims: what was promised, what was measured, how sure that is, and whether it holds."""

import html
import re

from jaxalign.report.plots import interval_bar, number

SIGNS = {">=": "≥", "<=": "≤", ">": "≥", "<": "≤", "≥": "≥", "≤": "≤"}


def section(claims: list[dict]) -> str:
    """HTML of the claims; keys of a claim: name, value, baseline, target, n, ci95, holds, optionally measure."""
    if not claims:
        return '<section><h2>Claims</h2><p class="note">report.json lists no claims.</p></section>'
    rows, title = "", None
    for claim in claims:
        before, title, text = title, *_split(str(claim.get("name")))
        title = before if title is None else title
        rows += _row(claim, title if title != before or not text else None, text)
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


def _split(name):
    """(title, text) of "title: text"; the title of "… text" is None: it goes on with the claim before."""
    if name.startswith("…"):
        return None, name[1:].strip()
    title, _, text = name.partition(": ")
    return title, text


def is_difference(claim: dict) -> bool:
    """Whether the value is a change and the baseline the level it starts from: as the claim says, else by its name."""
    name, target = str(claim.get("name")), str(claim.get("target"))
    signed = re.search(r"[-−]\s*\d", target) or re.fullmatch(r"\s*[<>]\s*0(\.0*)?\s*", target)
    return bool(claim.get("difference", signed or " → " in name))


def _row(claim, title, text):
    value, baseline, interval = claim.get("value"), claim.get("baseline"), claim.get("ci95")
    target, direction = target_of(claim)
    holds = bool(claim.get("holds"))
    shown = claim.get("target")
    if _is_number(shown):
        shown = f"{direction or ''} {number(shown)}"
    shown = "—" if shown is None else re.sub(r"-(?=\d)", "−", str(shown))
    bar = '<span class="note">not measured</span>'
    if not (isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))):
        interval = None
    difference = is_difference(claim)
    if _is_number(value):
        # The baseline of a difference is the level it starts from: no point on the difference's own axis.
        ring = baseline if _is_number(baseline) and not difference else None
        bar = interval_bar(value, interval, target, direction, ring, holds, difference)
        if interval:
            bar += f'<span class="ends">{number(interval[0])} … {number(interval[1])}</span>'
    state, verdict = ("holds", "✓ holds") if holds else ("fails", "✗ does not hold")
    words = [text, str(claim.get("measure") or claim.get("note") or "")]
    measure = "".join(f'<span class="measure">{html.escape(part)}</span>' for part in words if part)
    sign = "+" if difference and _is_number(value) and value > 0 else ""
    return (
        f'<tr class="{"goes-on" if title is None else "starts"}">'
        f'<th scope="row">{html.escape(title or "")}{measure}</th>'
        f'<td class="num" data-label="baseline">{_figure(baseline)}</td>'
        f'<td class="num strong" data-label="value">{sign}{_figure(value)}</td>'
        f'<td class="num" data-label="target">{html.escape(shown)}</td>'
        f'<td class="num" data-label="n">{_figure(claim.get("n"))}</td>'
        f'<td class="span">{bar}</td><td class="verdict"><span class="badge {state}">{verdict}</span></td></tr>'
    )


def _figure(value):
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(str(key))} {html.escape(number(item))}" for key, item in value.items())
    return html.escape(number(value))


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
