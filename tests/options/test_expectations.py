"""`expect`, `expect_rewritten`, `paths`, `on_miss` and kernels by name: what a user asks for is given, or refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, close, count, recorded
from torch import Tensor

import fxfuse
from fxfuse.testing import assert_fused

pytestmark = pytest.mark.filterwarnings("error:fxfuse")


def explain(**options: Any) -> fxfuse.Report:
    with torch.no_grad():
        return fxfuse.explain(Tiny(layers=3), (batch(),), options=options)


@torch.no_grad()
def compile_it(*, fullgraph: bool, broken: bool = False, **options: Any) -> list[fxfuse.Report]:
    torch._dynamo.reset()  # what one compile made would serve the next
    model, x = (Broken() if broken else Tiny(layers=3)), batch()
    fast = torch.compile(model, backend="fxfuse", fullgraph=fullgraph, options={"inner": "eager", **options})
    with recorded() as reports:
        close(fast(x), model(x))
    return reports


class Broken(Tiny):
    def __init__(self) -> None:
        super().__init__(layers=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        torch._dynamo.graph_break()
        return self.layers[1](x)


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["expect", "expect_rewritten"])
def test_counts_that_are_met(key: str) -> None:
    counts = {key: {PATTERN: 3}}
    assert explain(**counts).rewritten[PATTERN] == 3
    assert count(compile_it(fullgraph=True, **counts)) == 3
    assert count(compile_it(fullgraph=False, **counts)) == 3


@pytest.mark.parametrize(("key", "verb"), [("expect", "matched"), ("expect_rewritten", "were rewritten")])
def test_counts_that_differ(key: str, verb: str) -> None:
    counts = {key: {PATTERN: 4}}
    message = f"{key}: 4 sites of {PATTERN} were expected, 3 {verb}"
    with pytest.raises(fxfuse.ExpectationError, match=message):
        explain(**counts)
    with pytest.raises(fxfuse.ExpectationError, match=message) as caught:
        compile_it(fullgraph=True, **counts)
    assert isinstance(caught.value, ValueError)
    with pytest.warns(UserWarning, match=message):  # one graph of possibly several: the answer is still right
        compile_it(fullgraph=False, **counts)


def test_matched_and_rewritten_are_counted_apart() -> None:
    off = {"kernels": {PATTERN: "off"}}
    report = explain(**off, expect={PATTERN: 3}, expect_rewritten={PATTERN: 0})
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "DISABLED")}
    with pytest.raises(fxfuse.ExpectationError, match=r"0 were rewritten.*First reason: DISABLED"):
        explain(**off, expect_rewritten={PATTERN: 3})


def test_counts_are_over_the_whole_call_in_explain_and_per_graph_in_a_compile() -> None:
    with torch.no_grad():
        report = fxfuse.explain(Broken(), (batch(),), options={"expect": {PATTERN: 2}})
    assert report.graphs == 2
    with pytest.warns(UserWarning, match="judged for one graph of possibly several"):
        reports = compile_it(fullgraph=False, broken=True, expect={PATTERN: 2})
    assert count(reports) == 2


@torch.no_grad()
def test_assert_fused() -> None:
    report = assert_fused(Tiny(), (batch(),), expect={PATTERN: 2})
    assert report.rewritten[PATTERN] == 2
    with pytest.raises(AssertionError, match="3 rewritten sites of 'rms_norm_gated_mlp' were expected, 2 found") as no:
        assert_fused(Tiny(), (batch(),), expect={PATTERN: 3})
    assert "x2 layers.{0-1}.norm" in str(no.value)  # the report itself
    assert_fused(Tiny(), (), {"x": batch()}, expect={PATTERN: 1}, options={"paths": ["layers.0"]})
    with pytest.raises(fxfuse.OptionError, match="expect_rewritten"):
        assert_fused(Tiny(), (batch(),), expect={PATTERN: 2}, options={"expect_rewritten": {PATTERN: 2}})


@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_assert_fused_of_an_unknown_pattern(number: int) -> None:
    """A count of 0 of a misspelt name would pass for ever."""
    with pytest.raises(fxfuse.OptionError, match="unknown pattern"):
        assert_fused(Tiny(), (batch(),), expect={"rms_norm_gated_mpl": number})


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("globs", "layers"),
    [
        (["layers.1"], [1]),
        (["layers.1.mlp"], [1]),
        (["layers.*.mlp"], [0, 1, 2]),
        (["**.mlp"], [0, 1, 2]),
        (["**"], [0, 1, 2]),
        (["layers.0", "layers.2.norm"], [0, 2]),
        (["!layers.1"], [0, 2]),
        (["layers.*", "!layers.0", "!layers.2.mlp"], [1]),
        ("layers.2", [2]),
    ],
)
def test_globs(globs: Any, layers: list[int]) -> None:
    report = explain(paths=globs, expect_rewritten={PATTERN: len(layers)})
    assert [s.modules[0] for s in report.sites if s.outcome == "rewritten"] == [f"layers.{i}.norm" for i in layers]
    others = [s for s in report.sites if s.outcome != "rewritten"]
    assert {s.code for s in others} <= {"DISABLED"}
    assert len(report.sites) == 3
    assert count(compile_it(fullgraph=True, paths=globs)) == len(layers)


@pytest.mark.parametrize("globs", [["layers.7"], ["layers.*", "decoder.**"], ["layers"[:-1]], ["layers.*.mlp.nothing"]])
def test_a_glob_that_hits_nothing(globs: list[str]) -> None:
    message = "hits no site; sites are in: layers.0.mlp"
    with pytest.raises(fxfuse.ExpectationError, match=message):
        explain(paths=globs)
    with pytest.raises(fxfuse.ExpectationError, match=message):
        compile_it(fullgraph=True, paths=globs)
    with pytest.warns(UserWarning, match=message):
        compile_it(fullgraph=False, paths=globs)


def test_a_glob_is_not_a_prefix_nor_a_regular_expression() -> None:
    with pytest.raises(fxfuse.ExpectationError):
        explain(paths=["layers.1.n"])
    with pytest.raises(fxfuse.ExpectationError):
        explain(paths=["layers.[01]"])
    with pytest.raises(fxfuse.ExpectationError):
        explain(paths=["*.mlp"])  # one segment only


# --- on_miss ---------------------------------------------------------------------------------------------------------


def nothing_to_fuse(x: Tensor) -> Tensor:
    return torch.relu(x) + 1


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_named_pattern_that_matches_nowhere(fullgraph: bool) -> None:
    x = torch.randn(3)

    def run(**options: Any) -> Tensor:
        torch._dynamo.reset()
        options = {"inner": "eager", "patterns": [PATTERN], **options}
        return torch.compile(nothing_to_fuse, backend="fxfuse", fullgraph=fullgraph, options=options)(x)

    message = f"pattern '{PATTERN}' was named and matched nowhere"
    with pytest.warns(UserWarning, match=message):
        assert torch.equal(run(), nothing_to_fuse(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(on_miss="silent")
    if fullgraph:
        with pytest.raises(fxfuse.ExpectationError, match=message):
            run(on_miss="error")
    else:
        with pytest.warns(UserWarning, match=message):
            run(on_miss="error")


def test_on_miss_in_explain() -> None:
    def run(**options: Any) -> fxfuse.Report:
        return fxfuse.explain(nothing_to_fuse, (torch.randn(3),), options=options)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run().sites == ()  # nobody named it
        run(on_miss="error")
        run(patterns=[PATTERN], on_miss="silent")
        explain(patterns=[PATTERN], on_miss="error")  # and here it matches
    for named in ({"patterns": [PATTERN]}, {"add": [PATTERN]}, {"kernels": {PATTERN: "plain"}}):
        with pytest.warns(UserWarning, match="was named and matched nowhere"):
            run(**named)
        with pytest.raises(fxfuse.ExpectationError, match="was named and matched nowhere"):
            run(**named, on_miss="error")


# --- kernels by name -------------------------------------------------------------------------------------------------


def test_a_kernel_by_name() -> None:
    assert {s.kernel for s in explain(kernels={PATTERN: "plain"}).sites} == {"plain"}
    assert {s.kernel for s in explain(kernels={PATTERN: "stacked"}, weights="inline").sites} == {"stacked"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA the site is still on the CPU, but says so differently")
def test_a_kernel_that_cannot_run_here_is_refused_and_never_replaced() -> None:
    wish = {"kernels": {PATTERN: "triton_decode"}}
    with pytest.raises(fxfuse.OptionError, match=r"layers\.0\.norm.*'triton_decode' needs a cuda device.*on cpu"):
        explain(**wish)
    for fullgraph in (True, False):
        with pytest.raises(fxfuse.OptionError, match="needs a cuda device") as caught:
            compile_it(fullgraph=fullgraph, **wish)
        assert not isinstance(caught.value, torch._dynamo.exc.BackendCompilerFailed)


def test_a_kernel_and_a_placement_that_exclude_each_other() -> None:
    with pytest.raises(fxfuse.OptionError, match=r"stacked.*derives a weight.*separate"):
        explain(kernels={PATTERN: "stacked"}, weights="separate")


def test_off_is_a_row() -> None:
    report = explain(kernels={PATTERN: "off"})
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "DISABLED")}
    assert report.matched[PATTERN] == 3
    assert "off" in report.sites[0].reason
