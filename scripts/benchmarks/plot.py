"""Draws ratios as horizontal bars, as SVG: readable on a light and on a dark page."""

import statistics
from xml.sax.saxutils import escape

ROW, TOP, LEFT, WIDTH, RIGHT = 30, 44, 490, 400, 70
STYLE = """
svg { --back: #fff; --text: #1f2328; --bar: #4a7ebb; --grid: #d0d7de; --mark: #b3261e }
@media (prefers-color-scheme: dark) { svg { --back: #16191d; --text: #e6e8ea; --bar: #6ea3e0; --grid: #3d444d; --mark: #ff8a80 } }
.back { fill: var(--back) } text { fill: var(--text); font: 13px system-ui, sans-serif } .title { font-weight: 600 }
.bar { fill: var(--bar) } .grid { stroke: var(--grid) } .range { stroke: var(--text); stroke-width: 1.5 }
.target { stroke: var(--mark); stroke-width: 2.5 }
"""


def bars(title, rows):
    """An SVG of rows (name, ratios, target or none): bars of medians, lines from the least to the most, targets as marks."""
    most = max([1.0, *(value for _, ratios, target in rows for value in [*ratios, target or 0.0])])
    place = lambda value: round(LEFT + WIDTH * value / most, 1)
    bottom = TOP + ROW * len(rows)
    described, body = [], []
    step = 0.25 if most <= 1.5 else 0.5 if most <= 4 else round(most / 5)
    ticks = [step * number for number in range(int(most / step) + 1)]
    for tick in ticks:
        body.append(f'<line class="grid" x1="{place(tick)}" x2="{place(tick)}" y1="{TOP}" y2="{bottom}"/>')
        body.append(f'<text x="{place(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for number, (name, ratios, target) in enumerate(rows):
        middle, y = statistics.median(ratios), TOP + ROW * number
        center = y + ROW / 2
        body.append(f'<text x="{LEFT - 10}" y="{center + 4}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<rect class="bar" x="{LEFT}" y="{y + 6}" width="{round(place(middle) - LEFT, 1)}" height="{ROW - 12}"/>')
        body.append(f'<line class="range" x1="{place(min(ratios))}" x2="{place(max(ratios))}" y1="{center}" y2="{center}"/>')
        body.append(f'<text x="{place(most) + 10}" y="{center + 4}">{middle:.2f}</text>')
        described.append(f"{name}: {middle:.2f}")
        if target:
            body.append(f'<line class="target" x1="{place(target)}" x2="{place(target)}" y1="{y + 2}" y2="{y + ROW - 2}"/>')
            described[-1] += f", target {target:.2f}"
    width, height = LEFT + WIDTH + RIGHT, bottom + 30
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title desc">'
    labels = f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape("; ".join(described))}</desc>'
    back = f'<rect class="back" width="{width}" height="{height}" rx="6"/>'
    heading = f'<text class="title" x="16" y="27">{escape(title)}</text>'
    return "\n".join([head, labels, f"<style>{STYLE}</style>", back, heading, *body, "</svg>"]) + "\n"
