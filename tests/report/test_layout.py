"""Drawings: every edge leads down, boxes of a layer do not overlap, and the same graph is drawn the same."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from fxfuse.report.html.layout import GAP, layered
from fxfuse.report.html.model import label_of

DIAMOND = (["x", "gate", "up", "mul"], [(0, 1), (0, 2), (1, 3), (2, 3)])


def test_a_diamond_has_three_layers() -> None:
    drawing = layered(*DIAMOND)
    heights = [y for _, y, _ in drawing.boxes]
    assert heights[0] < heights[1] == heights[2] < heights[3]
    assert layered(*DIAMOND) == drawing


@pytest.mark.parametrize("seed", range(6))
def test_random_graphs(seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randint(2, 40)
    edges = [(a, b) for b in range(1, count) for a in generator.sample(range(b), min(b, generator.randint(0, 2)))]
    drawing = layered([f"node {i}\nf32[{i}]" for i in range(count)], edges)
    for a, b in edges:
        assert drawing.boxes[a][1] < drawing.boxes[b][1]
    rows: dict[float, list[tuple[float, float]]] = {}
    for x, y, width in drawing.boxes:
        rows.setdefault(y, []).append((x - width / 2, x + width / 2))
        assert x - width / 2 >= 0
        assert x + width / 2 <= drawing.width
    for spans in rows.values():
        spans.sort()
        assert all(right + GAP / 2 < left for (_, right), (left, _) in pairwise(spans))


def test_nothing_and_one_box() -> None:
    assert layered([], []).boxes == ()
    assert len(layered(["x"], []).boxes) == 1


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("F.linear(h, w)", "linear"), ("h.pow(2)", "pow"), ("a * b", "×"), ("a + 1e-06", "+"), ("x[0]", "[ ]"),
        ("torch.ops.aten.mm.default(a, b)", "mm"),
        ("torch.ops.transformers.grouped(a, b)", "grouped"), ("input layers.0.w", "input layers.0.w"),
    ],
)  # fmt: skip
def test_labels(code: str, label: str) -> None:
    assert label_of(code) == label
