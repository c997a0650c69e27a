"""A failure inside fxfuse: the original graph is compiled, one warning says so, and the report has the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import PATTERN, Tiny, batch, close, count, recorded

import fxfuse
from fxfuse import backend, errors
from fxfuse.kernels import registry
from fxfuse.kernels.gated_mlp import plain


@pytest.fixture(autouse=True)
def nothing_warned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_WARNED", set())


@pytest.fixture
def kernel() -> Iterator[Callable[[Callable[..., Any]], dict[str, Any]]]:
    """Registers a function as a kernel for one test, and gives the options that ask for it."""

    def register(function: Callable[..., Any]) -> dict[str, Any]:
        fxfuse.kernel(PATTERN, name="of_this_test", backward="autograd")(function)
        return {"kernels": {PATTERN: "of_this_test"}}

    yield register
    registry._REGISTRY[PATTERN] = [k for k in registry._REGISTRY[PATTERN] if k.name != "of_this_test"]


def run(**options: Any) -> tuple[list[fxfuse.Report], list[str]]:
    """Compile and call a model, compare with eager, and answer the reports and what fxfuse warned about."""
    model, x = Tiny(), batch()
    with torch.no_grad(), recorded() as reports, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = torch.compile(model, backend="fxfuse", options={"inner": "eager", **options})
        close(fast(x), model(x))
        model.layers[0].mlp.gate.weight.mul_(2)
        close(fast(x), model(x))
    return reports, [str(w.message) for w in caught if "fxfuse" in str(w.message)]


def assert_fell_back(reports: list[fxfuse.Report], messages: list[str], what: str) -> None:
    assert len(messages) == 1
    assert what in messages[0]
    assert "REWRITE_ERROR" in messages[0]
    assert fxfuse.reports()[-1] is reports[-1]
    (report,) = reports
    assert count(reports) == 0
    assert {s.code for s in report.sites} == {"REWRITE_ERROR"}
    assert all(what in s.reason for s in report.sites)
    assert what in str(report)
    assert fxfuse.Report.from_json(report.to_json()).sites == report.sites


def test_the_positive_twin(kernel: Any) -> None:
    reports, messages = run(**kernel(plain))
    assert count(reports) == 2
    assert messages == []


def test_the_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the engine stumbled\nand the details")

    monkeypatch.setattr(backend, "fuse", broken)
    assert_fell_back(*run(), "RuntimeError: the engine stumbled")
    with pytest.raises(Exception, match="the engine stumbled"):
        run(on_error="raise")


def test_the_same_failure_is_warned_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the engine stumbled")

    monkeypatch.setattr(backend, "fuse", broken)
    assert len(run()[1]) == 1
    torch._dynamo.reset()
    reports, messages = run()
    assert messages == []
    assert len(reports) == 1  # but never silent: it is in the report


def raises(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
    raise ZeroDivisionError("inside the kernel")


def wrong_shape(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
    return torch.nn.functional.linear(x, gate)


def wrong_dtype(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
    return x.to(torch.bfloat16)


def two_tensors(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
    return x, x


def nothing(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
    return None


def does_not_trace(x: Any, weight: Any, gate: Any, up: Any, down: Any, *, eps: Any, norm: str, act: str) -> Any:
    return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (raises, "ZeroDivisionError: inside the kernel"),
        (wrong_shape, "RewriteError: kernel 'of_this_test' gives torch.float32"),
        (wrong_dtype, "RewriteError: kernel 'of_this_test' gives torch.bfloat16"),
        (two_tensors, "RewriteError: kernel 'of_this_test' returned tuple, not one tensor"),
        (nothing, "RewriteError: kernel 'of_this_test' returned NoneType, not one tensor"),
        (does_not_trace, "TraceError"),
    ],
)
def test_a_kernel_fails(function: Callable[..., Any], what: str, kernel: Any) -> None:
    options = kernel(function)
    reports, messages = run(**options)
    assert all(what in m and "REWRITE_ERROR" in m for m in messages)
    assert messages
    (report,) = reports
    assert {(s.outcome, s.code) for s in report.sites} == {("kept", "REWRITE_ERROR")}
    assert all(what in s.reason for s in report.sites)
    assert report.matched[PATTERN] == 2
    assert report.rewritten[PATTERN] == 0
    torch._dynamo.reset()
    with pytest.raises(Exception, match=what.split(":")[0]):
        run(**options, on_error="raise")


def test_a_kernel_fails_at_one_site_only(kernel: Any) -> None:
    calls = []

    def first_time_only(
        x: Any, weight: Any, gate: Any, up: Any, gate_up: Any, down: Any,
        gate_bias: Any, up_bias: Any, gate_up_bias: Any, down_bias: Any,
        *, eps: Any, norm: str, proj: str, act: str,
    ) -> Any:  # fmt: skip
        calls.append(1)
        if len(calls) == 1:
            # Some nodes are there already when it fails.
            _ = x * 2 + 1
            raise ZeroDivisionError("the first time")
        return plain(
            x, weight, gate, up, gate_up, down, gate_bias, up_bias, gate_up_bias, down_bias,
            eps=eps, norm=norm, proj=proj, act=act,
        )  # fmt: skip

    reports, messages = run(**kernel(first_time_only))
    assert len(messages) == 1
    assert [(s.outcome, s.code) for r in reports for s in r.sites] == [("kept", "REWRITE_ERROR"), ("rewritten", "")]


def test_the_inner_compiler_fails_on_the_rewritten_graph_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = backend._inner

    def inner(fused: Any, *args: Any) -> Any:
        if fused.changed:
            raise NotImplementedError("not this graph")
        return real(fused, *args)

    monkeypatch.setattr(backend, "_inner", inner)
    for weights in ("separate", "share"):
        errors._WARNED.clear()
        torch._dynamo.reset()
        reports, messages = run(weights=weights)
        assert_fell_back(reports, messages, "NotImplementedError: not this graph")
        assert reports[0].matched[PATTERN] == 2
    torch._dynamo.reset()
    with pytest.raises(Exception, match="not this graph"):
        run(on_error="raise")


def test_the_inner_compiler_fails_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is nothing to fall back to: its own error is the user's."""

    def inner(*args: Any) -> Any:
        raise NotImplementedError("not any graph")

    monkeypatch.setattr(backend, "_inner", inner)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="not any graph"):
        run()


# --- what a compile leaves to read -----------------------------------------------------------------------------------


def test_report_dir(tmp_path: Path) -> None:
    reports, _ = run(report_dir=str(tmp_path / "a" / "b"))
    files = sorted((tmp_path / "a" / "b").iterdir())
    assert [f.suffix for f in files] == [".html", ".json", ".txt"]
    loaded = fxfuse.Report.load(files[1])
    assert loaded.sites == reports[0].sites
    assert files[2].read_text() == str(reports[0])
    assert "rms_norm_gated_mlp" in files[0].read_text()


def test_report_dir_takes_a_path_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(report_dir=tmp_path / "path")
    torch._dynamo.reset()
    monkeypatch.setenv("FXFUSE_REPORT_DIR", str(tmp_path / "environment"))
    run()
    assert len(list((tmp_path / "path").iterdir())) == 3
    assert len(list((tmp_path / "environment").iterdir())) == 3


def test_a_report_dir_that_cannot_be_written_does_not_cost_the_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    reports, messages = run(report_dir=str(tmp_path / "file" / "below"))
    assert count(reports) == 2
    assert any(str(tmp_path) in m for m in messages)


def test_one_line_per_compile_on_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fxfuse"):
        run()
    lines = [r.message for r in caplog.records if r.name == "fxfuse"]
    assert len(lines) == 1
    assert lines[0].startswith("fxfuse: rewrote 2 rms_norm_gated_mlp in 1 graph of ")
