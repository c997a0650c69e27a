"""A small directed graph as layers of boxes: longest paths give the layers, barycentres the order within each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

CHARACTER, PADDING, HEIGHT, GAP, RISE = 6.6, 18.0, 34.0, 18.0, 58.0
_SWEEPS = 6
_WIDEST = 190.0


@dataclass(frozen=True)
class Drawing:
    """Boxes as ``(x, y, width)`` of their centres and half heights above, curves as SVG paths; all in one page unit."""

    width: float
    height: float
    boxes: tuple[tuple[float, float, float], ...]
    curves: tuple[tuple[int, int, str], ...]


def layered(labels: Sequence[str], edges: Sequence[tuple[int, int]]) -> Drawing:
    """Where the boxes with these labels go; an edge leads from the number of one box to that of another, downwards."""
    edges = sorted({(a, b) for a, b in edges if a != b})
    layer = _layers(len(labels), edges)
    chains = {}
    widths = [min(_WIDEST, max(map(len, label.split("\n"))) * CHARACTER + PADDING) for label in labels]
    rows: list[list[int]] = [[] for _ in range(max(layer, default=-1) + 1)]
    for node, at in enumerate(layer):
        rows[at].append(node)
    links: dict[int, list[int]] = {}
    for a, b in edges:  # a long edge bends around what stands in between
        chain = [a]
        for at in range(layer[a] + 1, layer[b]):
            widths.append(4.0)
            chain.append(len(widths) - 1)
            rows[at].append(chain[-1])
        chain.append(b)
        chains[a, b] = chain
        for upper, lower in pairwise(chain):
            links.setdefault(upper, []).append(lower)
            links.setdefault(lower, []).append(upper)
    x = _places(rows, widths, links)
    right = max((x[n] + widths[n] / 2 for row in rows for n in row), default=0.0)
    y = {n: HEIGHT / 2 + 4 + at * RISE for at, row in enumerate(rows) for n in row}
    boxes = tuple((round(x[n], 1), y[n], round(widths[n], 1)) for n in range(len(labels)))
    curves = tuple((a, b, _curve([(x[n], y[n]) for n in chain])) for (a, b), chain in chains.items())
    return Drawing(round(right + 4, 1), max(len(rows) * RISE - RISE + HEIGHT + 8, 0.0), boxes, curves)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    below: dict[int, list[int]] = {}
    waiting = [0] * count
    for a, b in edges:
        below.setdefault(a, []).append(b)
        waiting[b] += 1
    layer = [0] * count
    ready = [n for n in range(count) if not waiting[n]]
    order = []
    while ready:
        node = ready.pop()
        order.append(node)
        for after in below.get(node, ()):
            layer[after] = max(layer[after], layer[node] + 1)
            waiting[after] -= 1
            if not waiting[after]:
                ready.append(after)
    for node in reversed(order):  # an input stands right above its first reader
        if below.get(node) and not any(b == node for _, b in edges):
            layer[node] = min(layer[after] for after in below[node]) - 1
    return layer


def _places(rows: Sequence[list[int]], widths: Sequence[float], links: Mapping[int, Sequence[int]]) -> dict[int, float]:
    x: dict[int, float] = {}
    for row in rows:
        _pack(row, widths, x, None)
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wish = {n: sum(x[m] for m in links[n]) / len(links[n]) if links.get(n) else x[n] for n in row}
            row.sort(key=wish.__getitem__)
            _pack(row, widths, x, wish)
    left = min((x[n] - widths[n] / 2 for row in rows for n in row), default=0.0)
    return {n: at - left + 4 for n, at in x.items()}


def _pack(row: Sequence[int], widths: Sequence[float], x: dict[int, float], wish: Mapping[int, float] | None) -> None:
    """Put a row's boxes next to each other in their order, as near to where they would be as they fit."""
    edge = None
    for node in row:
        want = wish[node] if wish is not None else (edge or 0.0) + widths[node] / 2
        x[node] = want if edge is None else max(want, edge + GAP + widths[node] / 2)
        edge = x[node] + widths[node] / 2
    if wish is not None and row:
        shift = sum(wish[n] - x[n] for n in row) / len(row)
        for node in row:
            x[node] += shift


def _curve(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path = [f"M{x:.1f} {y + HEIGHT / 2:.1f}"]
    y += HEIGHT / 2
    for i, (to_x, to_y) in enumerate(rest):
        end = to_y - HEIGHT / 2 if i == len(rest) - 1 else to_y
        middle = (y + end) / 2
        path.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {end:.1f}")
        x, y = to_x, end
    return "".join(path)
