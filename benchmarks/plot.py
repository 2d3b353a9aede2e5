"""A table's figures as a drawing: a small SVG of horizontal bars that reads on light and on dark pages.

Figures far apart are dots on a logarithmic scale, since the length of a bar says nothing there.
"""

import math
import re
from html import escape

from benchmarks.harness import Table

OURS = re.compile(r"asgi_enhance|\bours\b|our stack|RateLimiter|RedisManager|the layer|peak-ewma|rendezvous")
"""How the scripts call what is ours: these are drawn in another colour."""

WIDTH, NAMES, FIGURES, ROW, HEAD = 720, 300, 70, 26, 46
FAR_APART = 25.0

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .axis { font-size: 11px; fill: #59636e }
.bar { fill: #9aa4af } .ours { fill: #0969da } .line { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .axis { fill: #9198a1 }
  .bar { fill: #6e7681 } .ours { fill: #4493f8 } .line { stroke: #3d444d }
}
"""


def svg(table: Table) -> str | None:
    """The drawn column of a table; None if there is none, or less than two figures in it."""
    if table.drawn is None:
        return None
    column = list(table.columns).index(table.drawn)
    figures = {name: row[column] for name, row in table.rows.items()}
    values = {name: value for name, value in figures.items() if isinstance(value, float | int) and value > 0}
    if len(values) < 2:
        return None
    least, most = min(values.values()), max(values.values())
    far_apart = most / least > FAR_APART
    space = WIDTH - NAMES - FIGURES
    first, last = math.floor(math.log10(least)), math.log10(most)

    def x(value: float) -> float:
        share = (math.log10(value) - first) / (last - first) if far_apart else value / most
        return NAMES + space * share

    height = HEAD + ROW * len(values) + (20 if far_apart else 6)
    title = f"{table.title}: {table.drawn}"
    caption = f"{title}, {table.better} is better{', logarithmic' if far_apart else ''}"
    marks = [f'<text x="8" y="24">{escape(caption)}</text>']
    if far_apart:
        for power in range(first, math.floor(last) + 1):
            at = f"{x(10.0**power):.1f}"
            marks.append(f'<path class="line" d="M{at} {HEAD - 8}V{height - 20}"/>')
            marks.append(f'<text class="axis" x="{at}" y="{height - 6}" text-anchor="middle">{10.0**power:g}</text>')
    for number, (name, value) in enumerate(values.items()):
        middle, end = HEAD + ROW * number + ROW // 2 - 4, x(value)
        kind = "ours" if OURS.search(name) else "bar"
        shape = (
            f'<circle class="{kind}" cx="{end:.1f}" cy="{middle}" r="5"/>'
            if far_apart
            else f'<rect class="{kind}" x="{NAMES}" y="{middle - 8}" width="{end - NAMES:.1f}" height="16" rx="2"/>'
        )
        marks.append(f'<text x="{NAMES - 10}" y="{middle + 4}" text-anchor="end">{escape(short(name))}</text>')
        marks.append(shape)
        marks.append(f'<text x="{end + 10:.1f}" y="{middle + 4}">{escape(table.cell(value, table.drawn))}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>\n" + "\n".join(marks) + "\n</svg>\n"
    )


def short(name: str, length: int = 44) -> str:
    """A name that fits beside its bar."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
