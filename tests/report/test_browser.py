"""The page in a real browser: from a file, with no network and no word in the console, whatever a model is called."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import Tiny, batch
from report.browsing import Opened, browser
from support import Net, mlp, options, plain, rms, rows

import fxfuse
from fxfuse.report import ReasonRecord, Report, Site
from fxfuse.report.parts import CaptureRecord, GraphRecord, NodeRecord, SourceRecord

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028\u2029`${alert(3)}{{7*7}}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as launched:
        yield launched


def some(m: Net, x: torch.Tensor) -> torch.Tensor:
    h = rms(m, x)
    return plain(m, x) + mlp(m, h) + torch.nn.functional.linear(h, m.router).sum()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two reports as pages: one of 6 equal rewritten sites, one with a near miss."""
    folder = tmp_path_factory.mktemp("pages")
    with torch.no_grad():
        layers = fxfuse.explain(Tiny(6), (batch(),), options={"weights": "inline"})
    mixed = fxfuse.explain(Net(some), (rows(),), options=options())
    made = {}
    for name, report in (("layers", layers), ("mixed", mixed)):
        made[name] = folder / f"{name}.html"
        report.save(made[name])
        report.save(made[name].with_suffix(".json"))
    return made


def test_it_opens_without_network_or_complaint(chromium: Any, pages: dict[str, Path]) -> None:
    opened = Opened(chromium, pages["layers"])
    assert opened.page.title().startswith("fxfuse: rewrote 6 rms_norm_gated_mlp")
    assert opened.texts(".group .times") == ["×6"]
    assert opened.page.locator("figure svg").count() >= 3, "before, after and the derived weight are drawn"
    assert opened.asked == [opened.address]
    assert opened.said == []


def test_deep_links_and_keys(chromium: Any, pages: dict[str, Path]) -> None:
    opened = Opened(chromium, pages["layers"], "#site-3")
    assert opened.texts("#site h2") == ["layers.3.norm + layers.3.mlp"]
    opened.page.keyboard.press("j")
    assert opened.page.evaluate("location.hash") == "#site-4"
    assert opened.texts("#site h2") == ["layers.4.norm + layers.4.mlp"]
    opened.page.keyboard.press("k")
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("layers.5")
    assert opened.texts("#shown") == ["1 of 6 sites"]
    opened.page.keyboard.press("Escape")
    assert opened.texts("#shown") == ["6 of 6 sites"]
    Opened(chromium, pages["layers"], "#site-99").page.get_by_text("There is no site 99.").wait_for()
    assert opened.said == []


@pytest.mark.parametrize(
    ("what", "value", "shown"),
    [
        ("#search", "op:linear", "2 of 2 sites"),
        ("#search", "softmax", "0 of 2 sites"),
        ("#search", "missed external_use", "1 of 2 sites"),
        ("#search", "pattern:rms_norm_gated_mlp outcome:rewritten", "1 of 2 sites"),
        ("#by-outcome", "missed", "1 of 2 sites"),
        ("#by-code", "EXTERNAL_USE", "1 of 2 sites"),
        ("#by-pattern", "rms_norm_gated_mlp", "2 of 2 sites"),
    ],
)
def test_filters(chromium: Any, pages: dict[str, Path], what: str, value: str, shown: str) -> None:
    opened = Opened(chromium, pages["mixed"])
    if what == "#search":
        opened.page.fill(what, value)
    else:
        opened.page.select_option(what, value)
    assert opened.texts("#shown") == [shown]
    opened.page.close()


def test_hovering_marks_the_counterpart(chromium: Any, pages: dict[str, Path]) -> None:
    opened = Opened(chromium, pages["layers"], "#site-2")
    gone = opened.page.locator("[data-side=before] .row.gone").first
    gone.hover()
    name = gone.get_attribute("data-n")
    marked = opened.page.locator(f'.hot[data-n="{name}"]')
    assert marked.count() >= 2, "the line and its box"
    paired = opened.page.locator("[data-side=after] .row.new.pair")
    names = {paired.nth(i).get_attribute("data-n") for i in range(paired.count())}
    report = Report.load(pages["layers"].with_suffix(".json"))
    assert names == set(report.sites[2].new_nodes)
    assert opened.page.locator(".src .hot").count() == 1, "and the model's line"
    paired.first.hover()
    assert opened.page.locator("[data-side=before] .row.gone.pair").count() > 0


def test_a_near_miss_marks_the_node(chromium: Any, pages: dict[str, Path]) -> None:
    opened = Opened(chromium, pages["mixed"])
    opened.page.locator(".group.missed .head").click()
    assert opened.texts(".reason code.code") == ["EXTERNAL_USE"]
    assert opened.page.locator("[data-side=before] .row.miss").count() == 1
    assert opened.page.locator("svg g.miss").count() == 1
    assert opened.page.locator(".row.reader").count() >= 1
    assert opened.said == []


def test_light_and_dark(chromium: Any, pages: dict[str, Path]) -> None:
    shades = []
    for scheme in ("light", "dark"):
        opened = Opened(chromium, pages["layers"], color_scheme=scheme)
        shades.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.page.keyboard.press("t")
        shades.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.page.close()
    assert shades[0] == shades[3] != shades[1] == shades[2]


def test_everything_is_reached_by_tab(chromium: Any, pages: dict[str, Path]) -> None:
    opened = Opened(chromium, pages["mixed"])
    seen = set()
    for _ in range(30):
        opened.page.keyboard.press("Tab")
        seen.add(opened.page.evaluate("document.activeElement.id || document.activeElement.getAttribute('class')"))
    assert {"skip", "theme", "search", "by-outcome", "head", "rows"} <= seen


def hostile() -> Report:
    node = NodeRecord(EVIL, f"F.silu({EVIL})", (EVIL,), EVIL, EVIL, f"{EVIL}:1", EVIL)
    graph = GraphRecord(0, EVIL, True, (node,), (node,), (SourceRecord(EVIL, 1, (EVIL,)),))
    detail = ReasonRecord(
        "OP", EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL
    )
    detail = replace(detail, tried=(replace(detail, alternative=EVIL),))
    capture = CaptureRecord(EVIL, "parameter", EVIL, EVIL, EVIL, EVIL)
    site = Site(
        EVIL, {EVIL: EVIL}, (EVIL,), "missed", EVIL, EVIL, EVIL, EVIL, root=EVIL, nodes=(EVIL,), steps=(EVIL,),
        detail=detail, also=(detail,), notes=(EVIL,), body=EVIL, captures=(capture,),
    )  # fmt: skip
    return Report((site,), options={EVIL: EVIL}, versions={EVIL: EVIL}, notes=(EVIL,), name=EVIL, captured=(graph,))


def test_a_hostile_model_is_only_text(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    hostile().save(path)
    opened = Opened(chromium, path)
    opened.page.wait_for_selector("#site h2")
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2
    assert "alert(1)" in opened.texts("#site h2")[0]
    assert "49" not in opened.texts("#site h2")[0], "no template of the model's is filled in"
    opened.page.locator("#site .row[data-n]").first.hover()
    assert opened.asked == [opened.address]
    assert opened.said == []
    text = path.read_text(encoding="utf-8")
    assert "\u2028" not in text.split('id="data">')[1].split("<script>")[0]


class Named(torch.nn.Module):
    """Modules, parameters and a file that are called as nobody should call them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleDict({"<script>alert('x')</script>": Net(plain), '"quotes"': Net(some)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks.values():
            x = block(x)
        return x


def test_a_real_model_with_such_names(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    fxfuse.explain(Named(), (rows(),), options=options()).save(path)
    opened = Opened(chromium, path)
    assert any("<script>alert('x')</script>" in text for text in opened.texts(".where"))
    assert opened.said == []


def test_ten_megabytes_of_source_stay_small(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    source = tmp_path / "</script>long.py"
    source.parent.mkdir(parents=True, exist_ok=True)
    file = source.parent / "long.py"
    filler = "\n".join(f"# {long}" for _ in range(10))
    body = f"{filler}\ndef body(m, x, plain):\n    y = plain(m, x)  # {long}\n    return torch.tanh(y)  # {long}\n"
    file.write_text(body, encoding="utf-8")
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(body, str(file), "exec"), scope)
    report = fxfuse.explain(Net(lambda m, x: scope["body"](m, x, plain)), (rows(),), options=options())
    assert len(report.to_html()) < 500_000
    assert len(report.to_json()) < 500_000


def big(count: int) -> Report:
    """A report of a graph with ``count`` nodes, a site in every 40th."""
    nodes = [NodeRecord("n0", "input x", (), "f32[8, 16]")]
    for i in range(1, count):
        code, inputs, where = f"torch.sin(n{i - 1})", (f"n{i - 1}",), (f"layers.{i // 40}", f"model.py:{i % 90 + 1}")
        nodes.append(NodeRecord(f"n{i}", code, inputs, "f32[8, 16]", *where, "x = torch.sin(x)"))
    sites, after = [], []
    for i, node in enumerate(nodes):
        if i % 40 == 20:
            new = NodeRecord(f"fused_{i}", f"fused(n{i - 1})", (f"n{i - 1}",), "f32[8, 16]", node.module)
            after.append(new)
            old = (node.name,)
            facts = {"root": node.name, "nodes": old, "erased": old, "new_nodes": (new.name,)}
            sites.append(Site("p", {"act": "silu"}, (node.module,), "rewritten", kernel="k", **facts))
        else:
            after.append(node)
    return Report(tuple(sites), nodes=count, captured=(GraphRecord(0, "", True, tuple(nodes), tuple(after)),))


def test_ten_thousand_nodes_are_fluent(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "big.html"
    start = time.perf_counter()
    big(10_000).save(path)
    assert time.perf_counter() - start < 10
    start = time.perf_counter()
    opened = Opened(chromium, path, "#graph-0-n9001")
    opened.page.wait_for_selector('.row.hot[data-n="n9001"]')
    assert time.perf_counter() - start < 10
    assert opened.page.locator(".whole .row").count() < 400, "only what is in sight is in the document"
    slowest = opened.page.evaluate(
        """async () => { const pane = document.querySelector('.whole .rows'); let worst = 0;
        for (let i = 0; i < 30; i++) { const t = performance.now(); pane.scrollTop = i * 6000;
        pane.dispatchEvent(new Event('scroll'));
        await new Promise(requestAnimationFrame);
        worst = Math.max(worst, performance.now() - t); } return worst; }"""
    )
    assert slowest < 500
    opened.page.check("#only")
    opened.page.wait_for_selector(".row.cut")
    assert opened.said == []


def test_a_model_of_32_layers_is_small() -> None:
    with torch.no_grad():
        report = fxfuse.explain(Tiny(32), (batch(),))
    assert report.rewritten["rms_norm_gated_mlp"] == 32
    assert len(report.to_html().encode()) < 400_000
