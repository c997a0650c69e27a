"""Declarations that lie in wait: kernels, patterns, constraints and options that are wrong, odd or of the same name."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import PATTERN, Net, mlp, options, plain, rms, rows
from torch import nn

import fxfuse
from fxfuse import Dim, Input, OptionError, PatternError, kernel, pattern
from fxfuse.caching import tag
from fxfuse.kernels import registry

D = Dim("d")


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    before = {name: list(known) for name, known in registry._REGISTRY.items()}
    registry.kernels_for(PATTERN)
    before.setdefault(PATTERN, list(registry._REGISTRY[PATTERN]))
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


@pytest.fixture
def doubled() -> fxfuse.Pattern:
    @pattern("hostile_doubled")
    def hostile_doubled(x: Any = Input(..., D)) -> Any:
        return torch.tanh(x) * 2

    return hostile_doubled


def both(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A site of each of the two patterns."""
    return plain(m, torch.tanh(x) * 2)


def run(*active: Any, body: Any = both, **more: Any) -> tuple[fxfuse.Report, list[str]]:
    """Compile over eager and compare; the report, and what fxfuse warned about."""
    model = Net(body)
    given = {"inner": "eager", "patterns": [*active, PATTERN], "on_miss": "silent", **more}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = torch.compile(model, backend=fxfuse.Backend(**given))(rows())
    torch.testing.assert_close(got, model(rows()))
    return fxfuse.reports()[-1], [str(w.message) for w in caught if "fxfuse" in str(w.message)]


def outcomes(report: fxfuse.Report) -> dict[str, tuple[str, str]]:
    return {s.pattern: (s.outcome, s.code) for s in report.sites}


# --- kernels that are no plain functions ----------------------------------------------------------------------------


class Callable_:
    def __call__(self, x: Any) -> Any:
        return torch.tanh(x) * 2


def times(x: Any, factor: float = 2.0) -> Any:
    return torch.tanh(x) * factor


@torch.library.custom_op("fxfuse_tests::hostile_double", mutates_args=())
def custom(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 2


@custom.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Holder:
    def method(self, x: Any) -> Any:
        return torch.tanh(x) * 2

    @staticmethod
    def static(x: Any) -> Any:
        return torch.tanh(x) * 2


ODD_KERNELS: dict[str, Callable[[], Any]] = {
    "an object with __call__": Callable_,
    "a bound method": lambda: Holder().method,
    "a custom op": lambda: custom,
    "a method of a class": lambda: Holder.static,
    "a plain function": lambda: lambda x: torch.tanh(x) * 2,
}


@pytest.mark.parametrize("make", [pytest.param(m, id=name) for name, m in ODD_KERNELS.items()])
def test_a_kernel_may_be_anything_that_can_be_called(doubled: Any, make: Any) -> None:
    kernel(doubled, name="odd", default=True)(make())
    report, messages = run(doubled)
    assert outcomes(report) == {doubled.name: ("rewritten", ""), PATTERN: ("rewritten", "")}
    assert messages == []
    assert tag([doubled]).startswith("fxfuse-")  # the key of Inductor's cache is made for every compile


def test_a_partial_is_a_kernel_or_refused_at_once(doubled: Any) -> None:
    takes_one = functools.partial(lambda factor, x: torch.tanh(x) * factor, 2)
    kernel(doubled, name="odd", default=True)(takes_one)
    assert tag([doubled]).startswith("fxfuse-")
    report, _ = run(doubled)
    assert outcomes(report) == {doubled.name: ("rewritten", ""), PATTERN: ("rewritten", "")}
    with pytest.raises(PatternError, match="factor"):
        kernel(doubled, name="odd_too")(functools.partial(times, factor=2.0))


def test_an_odd_kernel_does_not_stop_inductors_compile_of_other_graphs(
    doubled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor itself is left out: only what fxfuse does before it."""
    kernel(doubled, name="odd", default=True)(Callable_())
    monkeypatch.setattr(fxfuse.backend.compat, "compile_fx", lambda gm, examples, patches: gm.forward)
    backend = fxfuse.Backend(patterns=[doubled], on_miss="silent", on_error="raise")
    torch.testing.assert_close(torch.compile(torch.sin, backend=backend)(rows()), torch.sin(rows()))


# --- star import ----------------------------------------------------------------------------------------------------


def test_a_star_import_leaves_the_package_its_name() -> None:
    code = "import fxfuse\nfrom fxfuse import *\nassert fxfuse.explain is explain\nassert callable(Backend)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert callable(fxfuse.fxfuse), "the backend function is there for who asks for it"


# --- requirements of the wrong form ---------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"rows": 5}, "rows"),
    "rows as a list of one": ({"rows": (1,)}, "rows"),
    "rows the wrong way round": ({"rows": (9, 1)}, "rows"),
    "device": ({"device": 3}, "device"),
    "dtypes": ({"dtypes": torch.float32}, "dtypes"),
    "dtypes as names": ({"dtypes": ("float32",)}, "dtypes"),
    "capability": ({"capability": 8}, "capability"),
    "capability as a float": ({"capability": 8.0}, "capability"),
    "variants": ({"variants": {"act": 3}}, "variants"),
    "variants as a set": ({"variants": {"act"}}, "variants"),
    "when": ({"when": 3}, "when"),
    "derive": ({"derive": ["gate"]}, "derive"),
    "backward": ({"backward": True}, "backward"),
    "name": ({"name": 3}, "name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_requirement_of_the_wrong_form_is_refused_where_it_is_declared(doubled: Any, case: str) -> None:
    more, word = WRONG[case]
    with pytest.raises(PatternError, match=word):
        kernel(doubled, **{"name": "wrong", "default": True, **more})(lambda x: torch.tanh(x) * 2)
    assert "wrong" not in registry.kernels_for(doubled.name)
    kernel(doubled, name="right", default=True, rows=(1, 99), device="cpu", dtypes=(torch.float32,))(
        lambda x: torch.tanh(x) * 2
    )
    report, messages = run(doubled)
    assert outcomes(report)[doubled.name] == ("rewritten", "")
    assert messages == []


# --- references that cannot be traced -------------------------------------------------------------------------------


def with_a_tensor(x: Any = Input(..., D)) -> Any:
    return torch.tanh(x) * torch.ones(3)  # here


def with_a_float(x: Any = Input(..., D)) -> Any:
    return torch.tanh(x) * float(x)  # here


def with_its_length(x: Any = Input(..., D)) -> Any:
    return torch.tanh(x) * len(x)  # here


def with_an_error(x: Any = Input(..., D)) -> Any:
    return torch.tanh(x) * (1 / 0)  # here


def with_a_loop(x: Any = Input(..., D)) -> Any:
    return sum(torch.tanh(row) for row in x)  # here


def with_numpy(x: Any = Input(..., D)) -> Any:
    return torch.tanh(torch.as_tensor([1.0]) + x)  # here


@pytest.mark.parametrize(
    "reference", [with_a_tensor, with_a_float, with_its_length, with_an_error, with_a_loop, with_numpy]
)
def test_what_cannot_be_traced_is_a_pattern_error_that_names_the_line(reference: Callable[..., Any]) -> None:
    lines, first = inspect.getsourcelines(reference)
    number = next(first + i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    with pytest.raises(PatternError, match=re.escape(f"test_hostile_declarations.py:{number}")):
        pattern("hostile_untraced")(reference)


# --- references with ops that graphs are read without ---------------------------------------------------------------

SEEN_THROUGH: dict[str, Callable[[Any], Any]] = {
    "clone": lambda x: torch.sigmoid(x).clone() * 3,
    "contiguous": lambda x: torch.sigmoid(x).contiguous() * 3,
    "clone at the root": lambda x: torch.sigmoid(x).clone(),
    "contiguous input": lambda x: torch.sigmoid(x.contiguous()) * 3,
    "dropout(0)": lambda x: F.dropout(torch.sigmoid(x), 0.0) * 3,
    "dropout in eval": lambda x: F.dropout(torch.sigmoid(x), 0.5, False) * 3,
    "dropout at the root": lambda x: F.dropout(torch.sigmoid(x), 0.0),
    "detached clone": lambda x: torch.sigmoid(x).clone().contiguous() * 3,
    "plain": lambda x: torch.sigmoid(x) * 3,
}


@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_a_pattern_may_hold_what_is_seen_through_in_graphs(name: str) -> None:
    """Both as the reference spells it, and as the same graph without the op."""
    spelled = SEEN_THROUGH[name]

    def reference(x: Any = Input(..., D)) -> Any:
        return spelled(x)

    made = pattern("hostile_seen_through")(reference)
    kernel(made, name="own", default=True)(spelled)
    bare = torch.sigmoid if "root" in name else SEEN_THROUGH["plain"]
    for spelling in (spelled, bare):
        report, _ = run(made, body=lambda m, x, f=spelling: f(x))
        assert outcomes(report)[made.name] == ("rewritten", ""), str(report)


# --- messages -------------------------------------------------------------------------------------------------------


def test_an_unmet_count_does_not_say_that_nothing_looks_like_it() -> None:
    with pytest.raises(fxfuse.ExpectationError) as caught:
        fxfuse.explain(Net(plain), (rows(),), options={"expect": {PATTERN: 3}})
    assert "3 sites" in str(caught.value)
    assert "1 matched" in str(caught.value)
    assert "No place" not in str(caught.value)
    with pytest.raises(fxfuse.ExpectationError, match="No place"):
        fxfuse.explain(torch.sin, (rows(),), options={"expect": {PATTERN: 3}})


def test_off_among_other_kernels_is_said_to_stand_alone() -> None:
    with pytest.raises(OptionError) as caught:
        fxfuse.Backend(kernels={PATTERN: ["plain", "off"]})
    assert "Did you mean" not in str(caught.value)
    assert "alone" in str(caught.value)
    fxfuse.Backend(kernels={PATTERN: ["off"]})
    fxfuse.Backend(kernels={PATTERN: ["plain"]})


def test_an_unknown_inductor_option_is_refused_at_once() -> None:
    with pytest.raises(OptionError, match=r"nope"):
        fxfuse.Backend(inner_options={"nope": 1})
    fxfuse.Backend(inner_options={"max_autotune": False, "triton.cudagraphs": False})


# --- faulty kernels and constraints ---------------------------------------------------------------------------------


def divides_by_zero(_: Any) -> Any:
    return 1 / 0


def test_a_faulty_requirement_costs_its_own_site_only(doubled: Any) -> None:
    kernel(doubled, name="faulty", default=True, when=divides_by_zero)(lambda x: torch.tanh(x) * 2)
    report, messages = run(doubled)
    assert report.rewritten[PATTERN] == 1
    (site,) = [s for s in report.sites if s.pattern == doubled.name]
    assert (site.outcome, site.code) == ("kept", "REWRITE_ERROR")
    assert "ZeroDivisionError" in site.reason
    assert len(messages) == 1
    torch._dynamo.reset()
    with pytest.raises(Exception, match="division by zero"):
        run(doubled, on_error="raise")


def test_a_faulty_constraint_costs_its_own_site_only(doubled: Any) -> None:
    @doubled.constraint
    def misspelt(match: Any) -> None:
        match.require(match.nope is None, "never")

    report, _ = run(doubled)
    assert report.rewritten[PATTERN] == 1
    (site,) = [s for s in report.sites if s.pattern == doubled.name]
    assert site.outcome != "rewritten"
    assert site.code in {"CONSTRAINT", "REWRITE_ERROR"}
    assert "nope" in site.reason


def test_a_kernel_by_name_with_a_wrong_operand_costs_its_own_site_only(doubled: Any) -> None:
    kernel(doubled.name, name="typo", default=True)(lambda xx: xx)
    report, _ = run(doubled)
    assert report.rewritten[PATTERN] == 1
    (site,) = [s for s in report.sites if s.pattern == doubled.name]
    assert "'xx'" in f"{site.reason} {site.why_kernel}"


def test_a_kernel_by_name_with_a_wrong_operand_leaves_the_right_one(doubled: Any) -> None:
    kernel(doubled.name, name="typo", default=True, rows=(1, 99))(lambda xx: xx)
    kernel(doubled, name="right", default=True)(lambda x: torch.tanh(x) * 2)
    report, _ = run(doubled)
    (site,) = [s for s in report.sites if s.pattern == doubled.name]
    assert (site.outcome, site.kernel) == ("rewritten", "right")


@pytest.mark.parametrize(("answer", "holds"), [(False, False), (None, True), (True, True)])
def test_a_constraint_may_answer_with_a_bool(doubled: Any, answer: Any, holds: bool) -> None:
    doubled.constraint(lambda match: answer)
    kernel(doubled, name="right", default=True)(lambda x: torch.tanh(x) * 2)
    report, _ = run(doubled)
    assert outcomes(report)[doubled.name] == (("rewritten", "") if holds else ("missed", "CONSTRAINT"))
    assert report.rewritten[PATTERN] == 1


def test_a_constraint_that_answers_anything_else_is_said_to_be_wrong(doubled: Any) -> None:
    doubled.constraint(lambda match: "rank must be 3")
    kernel(doubled, name="right", default=True)(lambda x: torch.tanh(x) * 2)
    report, _ = run(doubled)
    (site,) = [s for s in report.sites if s.pattern == doubled.name]
    assert site.outcome != "rewritten"
    assert site.code in {"CONSTRAINT", "REWRITE_ERROR"}


# --- one name, two patterns -----------------------------------------------------------------------------------------


def namesake() -> fxfuse.Pattern:
    @pattern(PATTERN)
    def mine(x: Any = Input(..., D)) -> Any:
        return torch.tanh(x) * 17

    return mine


def test_kernels_of_a_namesake_are_not_taken() -> None:
    made = namesake()
    backend = fxfuse.Backend(inner="eager", patterns=[made], on_error="raise", on_miss="silent")
    got = torch.compile(lambda x: torch.tanh(x) * 17, backend=backend)(rows())
    torch.testing.assert_close(got, torch.tanh(rows()) * 17)
    (site,) = fxfuse.reports()[-1].sites
    assert site.kernel in {"", "reference"}
    assert site.code != "REWRITE_ERROR"


def test_a_namesake_gets_its_own_kernel_and_the_standard_pattern_keeps_its_own() -> None:
    made = namesake()
    kernel(made, name="of_mine", default=True)(lambda x: torch.tanh(x) * 17)
    backend = fxfuse.Backend(inner="eager", patterns=[made], on_error="raise", on_miss="silent")
    got = torch.compile(lambda x: torch.tanh(x) * 17, backend=backend)(rows())
    torch.testing.assert_close(got, torch.tanh(rows()) * 17)
    assert [s.kernel for s in fxfuse.reports()[-1].sites] == ["of_mine"]
    torch._dynamo.reset()
    model: nn.Module = Net(lambda m, x: mlp(m, rms(m, x)))
    torch.compile(model, backend=fxfuse.Backend(**options(inner="eager")))(rows())
    assert [s.kernel for s in fxfuse.reports()[-1].sites] == ["plain"]


def test_a_namesakes_kernel_may_have_the_name_of_a_standard_one() -> None:
    made = namesake()
    kernel(made, name="plain", default=True)(lambda x: torch.tanh(x) * 17)
    backend = fxfuse.Backend(inner="eager", patterns=[made], kernels={PATTERN: "plain"}, on_error="raise")
    got = torch.compile(lambda x: torch.tanh(x) * 17, backend=backend)(rows())
    torch.testing.assert_close(got, torch.tanh(rows()) * 17)
    assert [s.kernel for s in fxfuse.reports()[-1].sites] == ["plain"]
