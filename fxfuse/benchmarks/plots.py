"""Ratios over the row count as a small SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 170, 32, 40
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22", "#e377c2")

Points = Sequence[tuple[int, float]]


def lines(title: str, series: Mapping[str, Points]) -> str:
    """A chart: ratios to Inductor's default over row counts, both on logarithmic scales; the line at 1 is drawn."""
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points] + [1.0]
    low, high = math.log2(min(*ys, 0.75)), math.log2(max(*ys, 1.35))
    first, last = math.log2(xs[0]), math.log2(xs[-1])

    def x_of(rows: int) -> float:
        part = (math.log2(rows) - first) / (last - first) if last > first else 0.5
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return TOP + (high - math.log2(value)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(LEFT, 18, title, "start", 'font-size="13"'),
    ]
    for value in _ticks(low, high):
        strong = ' stroke-width="1.5" stroke="#444"' if value == 1 else ' stroke="#ddd"'
        y = f"{y_of(value):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"{strong}/>')
        parts.append(_text(LEFT - 6, y_of(value) + 4, f"{value:g}", "end"))
    parts += [_text(x_of(x), HEIGHT - BOTTOM + 16, str(x), "middle") for x in xs]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "rows", "middle"))
    for place, (name, points) in enumerate(series.items()):
        color = COLORS[place % len(COLORS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{color}"/>' for x, y in points]
        at = TOP + 16 * place
        parts.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{at}" width="10" height="10" fill="{color}"/>')
        parts.append(_text(WIDTH - RIGHT + 30, at + 9, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    known = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50)
    return [value for value in known if low <= math.log2(value) <= high]


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
