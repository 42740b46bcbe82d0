"""One chart of several lines, each with a band around it, as an SVG that stands alone: what experiments draw."""

import html

from jaxalign.report.plots import label, number, ticks

FEW = 12  # points of a line that are worth a dot each
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 56, 150, 16, 46
# Distinct in light and in dark, and for most colour-blind readers in the order given.
COLOURS = ("#3566c9", "#c2571a", "#0f8a72", "#8a4fc4", "#b5356b", "#6b7a12", "#1381a8", "#9a6a1f")
STYLE = ("<style>svg{font:12px system-ui,sans-serif}.tick,.label,.name{fill:#5b6776}.grid{stroke:#8886;stroke-width:.6}"
         ".target{stroke:#888;stroke-dasharray:4 4}.line{fill:none;stroke-width:2}.band{opacity:.14}</style>")


def chart(lines, *, x_label, y_label, title, target=None):
    """An SVG: a line through the means, a band from low to high, a dot a point where these are few.

    Args:
      lines: {name: {"x": [...], "mean": [...], "low": [...], "high": [...]}}, x ascending.
      target: a height to be marked, or None.
    """
    xs = [x for line in lines.values() for x in line["x"]]
    heights = [y for line in lines.values() for name in ("low", "high") for y in line[name]] + [target] * (target is not None)
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6), ticks(min(heights), max(heights), 6)
    x_low, x_high, y_low, y_high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at(x, y):
        return (LEFT + (x - x_low) / (x_high - x_low) * (right - LEFT),
                bottom - (y - y_low) / (y_high - y_low) * (bottom - TOP))

    def path(points):
        return " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)

    body = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for y in y_ticks:
        height = at(x_low, y)[1]
        body += [f'<path class="grid" d="M{LEFT} {height:.1f}H{right}"/>', label("tick", LEFT - 8, height + 4, number(y), "end")]
    body += [label("tick", at(x, y_low)[0], bottom + 18, number(x), "middle") for x in x_ticks]
    body += [label("label", right, HEIGHT - 8, x_label, "end"), label("label", LEFT, HEIGHT - 8, y_label, "start")]
    if target is not None:
        body.append(f'<path class="target" d="M{LEFT} {at(x_low, target)[1]:.1f}H{right}"/>')
    for n, (name, line) in enumerate(lines.items()):
        colour = COLOURS[n % len(COLOURS)]
        ring = [*zip(line["x"], line["low"]), *reversed([*zip(line["x"], line["high"])])]
        body.append(f'<polygon class="band" fill="{colour}" points="{path(ring)}"/>')
        body.append(f'<polyline class="line" stroke="{colour}" points="{path(zip(line["x"], line["mean"]))}"/>')
        if len(line["x"]) <= FEW:
            for x, y in map(at, line["x"], line["mean"]):
                body.append(f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
        height = TOP + 14 + 20 * n
        body.append(f'<path stroke="{colour}" stroke-width="3" d="M{right + 14} {height - 4}h18"/>')
        body.append(label("name", right + 38, height, name, "start"))
    title = html.escape(title)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
            f"<title>{title}</title>{STYLE}{''.join(body)}</svg>\n")
