"""Small SVG drawings without scripts: line charts and interval bars.

Colours are CSS classes (`report.css`), so one drawing serves light and dark. All text is escaped here.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 40
STYLES = ("", " second", " third")  # classes of a chart's lines
POINTS = 300  # more would only make the file larger: a chart is 316 units wide


class Series(NamedTuple):
    """One line: `steps` ascending, `values` numbers or None (a gap)."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, colour: str, title: str) -> str:
    """An SVG chart of one or more lines over steps; the second is dashed, further ones dotted, both with dots.

    A noisy line of more than 60 points is drawn faint, with its running mean over it.
    """
    points = [(x, y) for line in series for x, y in zip(line.steps, line.values, strict=True) if y is not None]
    if not points:
        return '<p class="note">no figures to draw</p>'
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), 5)
    y_ticks = ticks(*_margin([y for _, y in points]), 5)
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high, bottom = y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM

    def at(x, y):
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM),
        )

    body = []
    for y in y_ticks:
        height = at(x_low, y)[1]
        body.append(_line("grid", LEFT, height, WIDTH - RIGHT, height))
        body.append(label("tick", LEFT - 7, height + 3.5, number(y), "end"))
    for x in x_ticks:
        if x_low <= x <= x_high:
            across = at(x, y_low)[0]
            body.append(_line("axis", across, bottom, across, bottom + 4))
            text = number(x)
            at_end = across + 3 * len(text) > WIDTH  # half of it would be cut off
            body.append(label("tick", WIDTH if at_end else across, bottom + 16, text, "end" if at_end else "middle"))
    body.append(_line("axis", LEFT, bottom, WIDTH - RIGHT, bottom))
    body.append(label("label", WIDTH - RIGHT, HEIGHT - 6, x_label, "end"))
    body.append(label("label", LEFT, HEIGHT - 6, y_label, "start"))
    for index, line in enumerate(series):
        style = f"line {colour}{STYLES[min(index, 2)]}"
        xs, ys = _thinned(line.steps, line.values)
        if len(xs) > 60 and _noise(ys) > 0.01 * (y_high - y_low):
            body.append(_path(xs, ys, at, style + " faint"))
            ys = _running_mean(ys)
        body.append(_path(xs, ys, at, style))
        drawn = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None]
        for x, y in drawn if index or len(xs) <= 25 else drawn[-1:]:
            body.append(_dot(f"dot {colour}", *at(x, y), 2.5))
    title = html.escape(title)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'
        + "".join(body) + "</svg>"
    )  # fmt: skip


def interval_bar(
    value: float,
    interval: Sequence[float] | None,
    target: float | None,
    direction: str | None,
    baseline: float | None,
    holds: bool,
    difference: bool = False,
) -> str:
    """A value with its interval on a line, the target as a tick with its good side shaded, the baseline as a ring.

    Shares are drawn from 0 to 1 and small differences from −0.1 to 0.1, so that the bars of a table can be compared;
    what lies outside on its own range.
    """  # fmt: skip
    marks = [x for x in (value, *(interval or ()), target, baseline) if x is not None]
    if difference:
        low, high = (-0.1, 0.1) if max(map(abs, marks)) <= 0.1 else _margin([*marks, 0.0])
    else:
        low, high = (0.0, 1.0) if min(marks) >= 0 and max(marks) <= 1 else _margin([*marks, 0.0])
    width, height, pad = 250, 26, 6

    def at(x):
        return pad + (x - low) / (high - low) * (width - 2 * pad)

    body = [_line("axis", pad, 13, width - pad, 13)]
    if difference:
        body.append(_line("axis", at(0.0), 8, at(0.0), 18))
    if target is not None:
        if direction:
            start, end = (at(target), at(high)) if direction == "≥" else (at(low), at(target))
            size = max(end - start, 1.5)
            body.append(f'<rect class="good" x="{start:.1f}" y="5" width="{size:.1f}" height="16" rx="2"/>')
        body.append(_line("target", at(target), 2, at(target), 24))
    if baseline is not None:
        body.append(_dot("baseline", at(baseline), 13, 3.5))
    state = "holds" if holds else "fails"
    text = f"value {number(value)}"
    if interval:
        body.append(_line(f"interval {state}", at(interval[0]), 13, at(interval[1]), 13))
        text += f", 95 % interval {number(interval[0])} to {number(interval[1])}"
    body.append(_dot(f"value {state}", at(value), 13, 4))
    text += f", target {direction or ''} {number(target)}" if target is not None else ""
    title = f"<title>{html.escape(text)}</title>"
    return f'<svg class="bar" viewBox="0 0 {width} {height}" role="img">{title}{"".join(body)}</svg>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover `low` to `high`, about `count` of them."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    size = 10 ** math.floor(math.log10((high - low) / count))
    step = next(size * k for k in (1, 2, 5, 10) if (high - low) / (size * k) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # To 12 digits, not 12 decimals: a divergence of 1e-14 has an axis too.
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def number(value) -> str:
    """A figure as people write it: 0.953, −12, 1,234, 32k, 1.2e-05."""
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    text = _number(value)
    return f"−{text[1:]}" if text.startswith("-") else text


def _number(value):
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) < 1e-3 or abs(value) >= 1e12):
        return f"{value:.2g}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3f}".rstrip("0").rstrip(".")


def _line(style, x1, y1, x2, y2):
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(style, x, y, radius):
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def label(style, x, y, text, anchor) -> str:
    """An SVG text, escaped."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _margin(values):
    low, high = min(values), max(values)
    if low == high:
        return low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    return low, high


def _path(xs, ys, at, style):
    parts, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            pen = "M"
            continue
        across, down = at(x, y)
        parts.append(f"{pen}{across:.1f},{down:.1f}")
        pen = "L"
    return f'<path class="{style}" d="{"".join(parts)}"/>'


def _thinned(xs, ys):
    """At most POINTS points, each the mean of its neighbours."""
    if len(xs) <= POINTS:
        return list(xs), list(ys)
    size = math.ceil(len(xs) / POINTS)
    means = []
    for start in range(0, len(xs), size):
        there = [y for y in ys[start : start + size] if y is not None]
        means.append(sum(there) / len(there) if there else None)
    return [xs[min(start + size // 2, len(xs) - 1)] for start in range(0, len(xs), size)], means


def _noise(ys):
    """Mean distance of a point from the middle of its two neighbours: small for any smooth curve, however steep."""
    triples = [(a, b, c) for a, b, c in zip(ys, ys[1:], ys[2:], strict=False) if None not in (a, b, c)]
    return sum(abs(b - (a + c) / 2) for a, b, c in triples) / max(len(triples), 1)


def _running_mean(ys):
    widest = max(2, len(ys) // 25)
    means = []
    for i, here in enumerate(ys):
        # Narrower towards both ends, or the steep start of a loss would be drawn too low.
        reach = max(min(widest, i, len(ys) - 1 - i), 2)
        near = [y for y in ys[max(0, i - reach) : i + reach + 1] if y is not None]
        means.append(sum(near) / len(near) if here is not None else None)
    return means
