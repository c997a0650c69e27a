"""Properties of the search: deterministic, bounded, complete over overlaps; sites that share an input; selection."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from support import HIDDEN, PATTERN, Net, capture, compiled, mlp, options, plain, rms, rows, sites, sole
from torch.utils.checkpoint import checkpoint

import fxfuse
from fxfuse import Dim, Input, Param, Scalar, one_of, pattern
from fxfuse.library import lookup
from fxfuse.match import find_sites, select
from fxfuse.match.reasons import CODES
from fxfuse.view import LeafKind, View

HEADLINE = lookup(PATTERN, "test")
N, D = Dim("N"), Dim("D")


@pattern("gate_product")
def gate_product(h: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D)) -> Any:
    return F.silu(F.linear(h, gate)) * F.linear(h, up)


def view_of(body: Any, *args: Any) -> View:
    gm, examples = capture(Net(body), *(args or (rows(),)))
    return View(gm.graph, examples)


def three(m: Any, x: Any) -> Any:
    """Two sites that share their input, two one after the other, and an activation that is far from being one."""
    x = plain(m, x) + plain(m, x)
    return mlp(m, rms(m, plain(m, x))) + F.silu(x)


def test_twice_the_same() -> None:
    first, second = (fxfuse.explain(Net(three), (rows(),), options=options()) for _ in range(2))
    assert first.sites == second.sites
    assert first.rewritten == {PATTERN: 4}


def test_sites_that_share_their_input_are_all_rewritten() -> None:
    report = compiled(Net(three), rows())
    assert report.rewritten == {PATTERN: 4}
    assert {s.outcome for s in report.sites} == {"rewritten"}
    roots = [s.root for s in report.sites]
    assert len(set(roots)) == len(roots)


def test_the_step_limit_is_a_reason() -> None:
    view = view_of(plain)
    (stopped,) = find_sites(view, HEADLINE, limit=5)
    assert stopped.match is None
    assert stopped.reason is not None
    assert stopped.reason.code == "STEP_LIMIT"
    assert "5 steps" in stopped.reason.sentence()
    (whole,) = find_sites(view, HEADLINE)
    assert whole.match is not None


def test_the_search_is_linear_in_equal_sites() -> None:
    """The default limit is far above what one site takes, even where everything is commuted."""

    def commuted(m: Any, x: Any) -> Any:
        h = (torch.rsqrt(1e-6 + (x * x).mean(-1, keepdim=True)) * x) * m.weight
        return F.linear(F.linear(h, m.up) * F.silu(F.linear(h, m.gate)), m.down)

    (site,) = find_sites(view_of(commuted), HEADLINE, limit=1_000)
    assert site.match is not None


def test_of_two_overlapping_patterns_the_larger_wins_and_the_loser_names_it() -> None:
    view = view_of(plain)
    for order in ([gate_product, HEADLINE], [HEADLINE, gate_product]):
        found = select([f for p in order for f in find_sites(view, p)])
        outcome = {f.pattern.name: f.reason for f in found}
        assert outcome[PATTERN] is None
        loser = outcome["gate_product"]
        assert loser is not None
        assert loser.code == "OVERLAP"
        assert PATTERN in loser.sentence()


def test_priority_beats_size() -> None:
    @pattern("wanted", priority=1)
    def wanted(h: Any = Input(..., D), gate: Any = Param(N, D), up: Any = Param(N, D)) -> Any:
        return F.silu(F.linear(h, gate)) * F.linear(h, up)

    view = view_of(plain)
    found = select([*find_sites(view, HEADLINE), *find_sites(view, wanted)])
    assert {f.pattern.name: f.reason is None for f in found} == {PATTERN: False, "wanted": True}


def test_pattern_match_gives_captures_by_name() -> None:
    gm, _ = capture(Net(lambda m, x: F.silu(F.linear(x, m.gate)) * F.linear(x, m.up)), rows())
    (match,) = gate_product.match(gm)
    assert match.h.leaf.kind is LeafKind.INPUT
    assert match.gate is not match.up
    assert match.root.op == "mul"


def test_every_code_has_words() -> None:
    assert all(text and text[0].islower() for text in CODES.values())


# --- patterns of other shapes ---------------------------------------------------------------------------------------


def found_in(some: Any, body: Any, *args: Any) -> list[str]:
    """The outcome of each site of one pattern: '' for a match, else the code."""
    return ["" if f.reason is None else f.reason.code for f in find_sites(view_of(body, *args), some)]


def test_a_pattern_that_ends_in_a_cast_and_has_no_distinctive_op() -> None:
    @pattern("wide_product")
    def wide_product(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
        return (x.float() * y.float() + 1).to(x.dtype)

    def body(m: Any, x: Any) -> Any:
        return (x.float() * m.weight.float() + 1).to(x.dtype)

    assert found_in(wide_product, body, rows(dtype=torch.bfloat16)) == [""]
    assert found_in(wide_product, body, rows()) == [""]


def test_rms_norm_alone_is_found_in_every_spelling() -> None:
    @pattern("norm_alone")
    def norm_alone(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)) -> Any:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
        return one_of("norm", early=lambda: weight * h.to(x.dtype), late=lambda: (weight * h).to(x.dtype))

    assert found_in(norm_alone, rms) == [""]
    assert found_in(norm_alone, lambda m, x: F.rms_norm(x, (HIDDEN,), m.weight, 1e-6)) == [""]
    assert found_in(norm_alone, lambda m, x: m.weight * (x / torch.sqrt(x.square().mean(-1, True) + 1e-6))) == [""]


def test_an_optional_capture_used_twice_is_absent_twice() -> None:
    @pattern("twins")
    def twins(
        x: Any = Input(..., D), a: Any = Param(N, D), b: Any = Param(N, D), bias: Any = Param(N, optional=True)
    ) -> Any:
        return F.silu(F.linear(x, a, bias)) * F.linear(x, b, bias)

    def with_biases(first: str | None, second: str | None) -> Any:
        def body(m: Any, x: Any) -> Any:
            a, b = (getattr(m, n) if n else None for n in (first, second))
            return F.silu(F.linear(x, m.gate, a)) * F.linear(x, m.up, b)

        return body

    assert found_in(twins, with_biases(None, None)) == [""]
    assert found_in(twins, with_biases("gate_bias", "gate_bias")) == [""]
    for first, second in (("gate_bias", None), (None, "up_bias"), ("gate_bias", "up_bias")):
        (code,) = found_in(twins, with_biases(first, second))
        assert code in {"BINDING", "ARITY"}, (first, second)


def test_a_site_inside_activation_checkpointing_is_rewritten() -> None:
    body = Net(lambda m, x: x + checkpoint(lambda t: plain(m, t), x, use_reentrant=False))
    assert sole(compiled(body, rows()).sites).outcome == "rewritten"


def test_a_reader_inside_activation_checkpointing_is_a_reader() -> None:
    def body(m: Any, x: Any) -> Any:
        h = rms(m, x)
        return mlp(m, h) + checkpoint(lambda t: t * 2, h, use_reentrant=False)

    assert sole(compiled(Net(body), rows()).sites).code == "EXTERNAL_USE"


def test_paths_off_and_on() -> None:
    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Net(plain), Net(plain)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    outcomes = {s.modules: (s.outcome, s.code) for s in sites(Outer(), rows(), paths=["a"])}
    assert outcomes == {("a",): ("rewritten", ""), ("b",): ("kept", "DISABLED")}
