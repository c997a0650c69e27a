"""The registry: each requirement holds or is a sentence, the narrowest wins, lazy ones are imported when chosen."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxfuse
from fxfuse import Dim, Input, Param, PatternError, kernel, machine, pattern
from fxfuse.kernels import SiteFacts, candidates, choose, kernels_for, lazy, named, registry, why_none

D, N = Dim("d"), Dim("n")


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    kernels_for("rms_norm_gated_mlp")
    before = {name: list(known) for name, known in registry._REGISTRY.items()}
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


@pytest.fixture
def scaled() -> fxfuse.Pattern:
    @pattern("scaled_of_test")
    def scaled_of_test(x: Any = Input(..., D), w: Any = Param(N, D), bias: Any = Param(N, optional=True)) -> Any:
        return torch.tanh(torch.nn.functional.linear(x, w, bias))

    return scaled_of_test


def body(x: Any, w: Any, bias: Any) -> Any:
    return torch.tanh(torch.nn.functional.linear(x, w, bias))


def facts(**more: Any) -> SiteFacts:
    given: dict[str, Any] = {
        "device": "cuda", "capability": (9, 0), "dtype": torch.bfloat16, "rows": 8, "variant": {},
        "present": frozenset({"x", "w"}), "symbolic_scalars": frozenset(), "needs_grad": False,
        "shared_memory": 232_448, "triton": (3, 4, 0),
    }  # fmt: skip
    return SiteFacts(**{**given, **more})


def problem(pattern: Any, name: str, site: SiteFacts) -> str | None:
    return {made.name: why for made, why in candidates(pattern, site)}[name]


# --- each requirement -------------------------------------------------------------------------------------------------

REQUIREMENTS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({"device": "cuda"}, {}, {"device": "cpu"}, "needs a cuda device; the site is on cpu"),
    ({"device": ("cuda", "xpu")}, {"device": "xpu"}, {"device": "cpu"}, "needs a cuda or xpu device"),
    ({"capability": (9, 0)}, {}, {"capability": (8, 9)}, "needs compute capability 9.0 to 99.9; found 8.9"),
    ({"capability": (9, 0)}, {}, {"capability": None}, "found none"),
    ({"capability": ((8, 0), (9, 0))}, {}, {"capability": (10, 0)}, "8.0 to 9.0; found 10.0"),
    ({"dtypes": (torch.bfloat16,)}, {}, {"dtype": torch.float32}, "needs dtype bfloat16; the site has float32"),
    ({"rows": (1, 16)}, {"rows": 16}, {"rows": 17}, "needs 1 to 16 rows; the site has 17"),
    ({"rows": (2, 16)}, {"rows": 2}, {"rows": 1}, "needs 2 to 16 rows; the site has 1"),
    ({"shared_memory": 232_448}, {}, {"shared_memory": 101_376}, "needs 232448 bytes of shared memory"),
    ({"shared_memory": 1}, {}, {"shared_memory": None}, "the device has none"),
    ({"triton": (3, 3)}, {}, {"triton": (3, 2, 9)}, "needs Triton 3.3 to 99.9; found 3.2.9"),
    ({"triton": (3, 3)}, {}, {"triton": None}, "found none"),
    ({"triton": ((3, 0), (3, 4))}, {"triton": (3, 4, 2)}, {"triton": (3, 5, 0)}, "needs Triton 3.0 to 3.4"),
    ({"when": lambda f: None if f.rows % 8 == 0 else "needs rows by eight"}, {}, {"rows": 9}, "needs rows by eight"),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "holds", "fails", "sentence"), REQUIREMENTS)
def test_a_requirement_holds_or_is_a_sentence(
    scaled: Any, declared: Any, holds: Any, fails: Any, sentence: str
) -> None:
    kernel(scaled, name="one", **declared)(body)
    assert problem(scaled, "one", facts(**holds)) is None
    found = problem(scaled, "one", facts(**fails))
    assert found is not None
    assert sentence in found
    assert named(scaled, ("one",), facts(**fails)) == (None, f"kernel 'one' {found}")


@pytest.mark.parametrize(
    "declared",
    [
        {"alignment": 12}, {"alignment": "16"}, {"alignment": 0}, {"alignment": {"x": 3}}, {"shared_memory": -1},
        {"shared_memory": 1.5}, {"triton": "3.3"}, {"triton": 3}, {"implementation": "no_path"},
        {"implementation": "a.b:c", "takes": "x"}, {"takes": ("x",)}, {"alignment": {"weight": 16}},
    ],
    ids=str,
)  # fmt: skip
def test_a_requirement_of_the_wrong_form_is_refused_at_once(scaled: Any, declared: Any) -> None:
    def declare() -> None:
        kernel(scaled, name="wrong", **declared)(body)

    with pytest.raises(PatternError):
        declare()
    assert kernels_for(scaled) == {}


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "any"), ((8, 0), "from_80"), ((8, 9), "only_89"),
                                                    ((9, 0), "from_90"), ((12, 0), "from_90")])  # fmt: skip
def test_of_intervals_of_capability_the_narrowest_wins(scaled: Any, capability: Any, chosen: str) -> None:
    intervals = {"any": None, "from_80": (8, 0), "only_89": ((8, 9), (8, 9)), "from_90": (9, 0)}
    for name, interval in intervals.items():
        kernel(scaled, name=name, device="cuda", capability=interval, default=True)(body)
    made, _ = choose(scaled, facts(capability=capability), derived=False)
    assert made is not None
    assert made.name == chosen


@pytest.mark.parametrize(
    "narrower",
    [{"device": "cuda"}, {"capability": (8, 0)}, {"rows": (1, 16)}, {"dtypes": (torch.bfloat16,)}, {"alignment": 16},
     {"shared_memory": 1_000}, {"triton": (3, 0)}, {"when": lambda f: None}],
    ids=lambda requirement: next(iter(requirement)),
)  # fmt: skip
def test_a_further_requirement_makes_a_kernel_narrower(scaled: Any, narrower: Any) -> None:
    kernel(scaled, name="a_wide_one", default=True)(body)
    kernel(scaled, name="narrow", default=True, **narrower)(body)
    made, why = choose(scaled, facts(), derived=False)
    assert made is not None
    assert (made.name, why) == ("narrow", "the narrowest kernel that can run")


# --- alignment --------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weight.t())


def aligned(*shape: int, offset: int = 0, stride: int | None = None) -> torch.Tensor:
    """A matrix whose storage begins at a multiple of 256 bytes, and that begins so many elements later."""
    stride = stride or shape[-1]
    flat = torch.zeros(shape[0] * stride + offset + 64)
    skip = (-flat.data_ptr() % 256) // 4
    return flat[skip:].detach().as_strided(shape, (stride, 1), skip + offset)


ALIGNED: list[tuple[str, torch.Tensor, torch.Tensor, str]] = [
    ("all is well", aligned(3, 8), aligned(5, 8), ""),
    ("odd row length", aligned(3, 7), aligned(5, 7), "the rows of w are 7 elements of 4 bytes apart"),
    ("offset of the input", aligned(3, 8, offset=1), aligned(5, 8), "x begins"),
    ("offset by a whole unit", aligned(3, 8, offset=4), aligned(5, 8), ""),
    ("input with odd strides", aligned(3, 8, stride=9), aligned(5, 8), "the rows of x are 9 elements of 4 bytes"),
    ("input by columns", aligned(8, 3).t(), aligned(5, 8), "x is not contiguous along its last dimension (stride 3)"),
    ("weight at an odd address", aligned(3, 8), aligned(5, 8, offset=1), "w begins"),
]


@pytest.mark.parametrize(("x", "weight", "said"), [case[1:] for case in ALIGNED], ids=[case[0] for case in ALIGNED])
def test_alignment_of_operands(scaled: Any, x: torch.Tensor, weight: torch.Tensor, said: str) -> None:
    kernel(scaled, name="by_16_bytes", alignment=16)(body)
    options = {"patterns": [scaled], "kernels": {scaled.name: "by_16_bytes"}}
    if not said:
        assert fxfuse.explain(Scaled(weight), (x,), options=options).sites[0].kernel == "by_16_bytes"
        return
    with pytest.raises(fxfuse.OptionError, match="by_16_bytes") as refused:
        fxfuse.explain(Scaled(weight), (x,), options=options)
    assert f"needs rows that begin at multiples of 16 bytes; {said}" in str(refused.value)


def test_alignment_of_one_operand_only(scaled: Any) -> None:
    kernel(scaled, name="weight_only", alignment={"w": 16})(body)
    options = {"patterns": [scaled], "kernels": {scaled.name: "weight_only"}}
    x = aligned(3, 8, stride=9)
    assert fxfuse.explain(Scaled(aligned(5, 8)), (x,), options=options).sites[0].kernel == "weight_only"
    with pytest.raises(fxfuse.OptionError, match="rows of w"):
        fxfuse.explain(Scaled(aligned(5, 8, stride=9)), (x,), options=options)


@torch.no_grad()
def test_alignment_under_symbolic_sizes(scaled: Any) -> None:
    """A symbolic row count leaves the rows where they are; a symbolic row length proves nothing."""
    kernel(scaled, name="by_16_bytes", alignment={"x": 16})(body)
    options = {"patterns": [scaled], "kernels": {scaled.name: "by_16_bytes"}, "inner": "eager"}
    model = Scaled(aligned(5, 8))
    fast = torch.compile(model, backend=fxfuse.Backend(**options), dynamic=True)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(fast(x), model(x))
    wide = torch.randn(3, 16)[:, :8]  # rows of 16 elements, of which the graph knows no more than a symbol
    with pytest.raises(fxfuse.OptionError, match=r"the rows of x are s\d+ elements of 4 bytes apart"):
        fast(wide)


# --- declarations -----------------------------------------------------------------------------------------------------


def test_a_second_kernel_of_a_name_raises_unless_forced(scaled: Any, caplog: pytest.LogCaptureFixture) -> None:
    kernel(scaled, name="one")(body)

    def other(x: Any, w: Any, bias: Any) -> Any:
        return body(x, w, bias)

    with pytest.raises(PatternError, match=r"already has a kernel 'one', from .*test_registry"):
        kernel(scaled, name="one")(other)
    assert kernels_for(scaled)["one"].function is body
    with caplog.at_level(logging.WARNING, logger="fxfuse"):
        kernel(scaled, name="one", force=True)(other)
    assert kernels_for(scaled)["one"].function is other
    assert "kernel 'one' of 'scaled_of_test'" in caplog.text
    kernel(scaled, name="two", force=True)(body)  # nothing to replace is nothing to say
    assert "'two'" not in caplog.text


def test_declarations_cannot_be_changed(scaled: Any) -> None:
    kernel(scaled, name="one", rows=(1, 16))(body)
    made = kernels_for(scaled)["one"]
    with pytest.raises(AttributeError):
        made.name = "two"  # type: ignore[misc]  # is the case
    with pytest.raises(AttributeError):
        made.requires.rows = (1, 99)  # type: ignore[misc]  # is the case


def test_why_none_names_what_could_run_when_named(scaled: Any) -> None:
    kernel(scaled, name="one")(body)
    code, sentence = why_none(scaled, facts(), "")
    assert code == "COST"
    assert sentence.startswith("not measured on this device: one can run here when named")
    assert why_none(scaled, facts(needs_grad=True), "")[0] == "REQUIRES_GRAD"


# --- lazy implementations ---------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose module is imported by nobody."""
    package = tmp_path / "lazily_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    code = """
        import torch

        def fast(x, w, bias):
            return torch.tanh(torch.nn.functional.linear(x, w, bias))

        def other_operands(x, w):
            return x

        number = 3
    """
    (package / "heavy.py").write_text(textwrap.dedent(code))
    (package / "broken.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "lazily_of_test"
    lazy._load.cache_clear()
    for name in [n for n in sys.modules if n.startswith("lazily_of_test")]:
        del sys.modules[name]


def run(scaled: Any, **options: Any) -> fxfuse.Site:
    model, x = Scaled(torch.randn(5, 8)), torch.randn(3, 8)
    torch._dynamo.reset()
    backend = fxfuse.Backend(patterns=[scaled], inner="eager", on_error="raise", **options)
    torch.testing.assert_close(torch.compile(model, backend=backend)(x), model(x))
    return fxfuse.reports()[-1].sites[0]


def test_an_implementation_is_imported_only_when_it_is_chosen(scaled: Any, elsewhere: str) -> None:
    kernel(scaled, name="lazy", implementation=f"{elsewhere}.heavy:fast", backward="autograd")
    kernel(scaled, name="here", backward="autograd")(body)
    assert run(scaled, kernels={scaled.name: "here"}).kernel == "here"
    assert f"{elsewhere}.heavy" not in sys.modules
    assert run(scaled, kernels={scaled.name: "lazy"}).kernel == "lazy"
    assert f"{elsewhere}.heavy" in sys.modules


def test_a_pass_has_the_ops_of_a_cached_graph_at_hand_but_none_for_other_devices(scaled: Any, elsewhere: str) -> None:
    kernel(scaled, name="there", device="xpu", implementation=f"{elsewhere}.heavy:fast", default=True)
    fxfuse.InductorPass(patterns=[scaled]).uuid()
    assert f"{elsewhere}.heavy" not in sys.modules
    kernel(scaled, name="lazy", device=("cpu", "cuda"), implementation=f"{elsewhere}.heavy:fast", default=True)
    fxfuse.InductorPass(patterns=[scaled]).uuid()
    assert f"{elsewhere}.heavy" in sys.modules


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("broken:fast", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("missing:fast", "No module named 'lazily_of_test.missing'"),
        ("heavy:slow", "has no attribute 'slow'"),
        ("heavy:number", "is a int; a function is needed"),
        ("heavy:other_operands", "takes (x, w), and was declared to take (x, w, bias)"),
    ],
)
def test_one_that_cannot_be_had_is_refused_with_the_reason(
    scaled: Any, elsewhere: str, attribute: str, said: str
) -> None:
    kernel(scaled, name="lazy", implementation=f"{elsewhere}.{attribute}", backward="autograd", default=True)
    kernel(scaled, name="z_here", backward="autograd", default=True)(body)
    with pytest.raises(fxfuse.OptionError) as refused:
        run(scaled, kernels={scaled.name: "lazy"})
    assert said in str(refused.value)
    assert run(scaled, kernels={scaled.name: ["lazy", "z_here"]}).kernel == "z_here"
    torch._dynamo.reset()
    site = fxfuse.explain(Scaled(torch.randn(5, 8)), (torch.randn(3, 8),), options={"add": [scaled]}).sites[0]
    assert site.kernel == "z_here", "nobody named one, so the next that can run is taken"


def test_what_it_takes_is_the_patterns_unless_said(scaled: Any) -> None:
    kernel(scaled, name="all", implementation="a.b:c")
    kernel(scaled, name="some", implementation="a.b:c", takes=("x", "w"))
    kernel(scaled, name="derived", implementation="a.b:c", derive={"t": fxfuse.transpose("w")})
    taken = {name: made.parameters for name, made in kernels_for(scaled).items()}
    assert taken == {"all": ("x", "w", "bias"), "some": ("x", "w"), "derived": ("x", "bias", "t")}
    with pytest.raises(PatternError, match="needs takes"):
        kernel("scaled_of_test", name="by_name", implementation="a.b:c")
    with pytest.raises(PatternError, match="unknown operand"):
        kernel(scaled, name="typo", implementation="a.b:c", takes=("x", "weight"))


# --- the machine ------------------------------------------------------------------------------------------------------


def test_the_machine_of_a_cpu() -> None:
    here = machine.machine_of("cpu")
    assert here.device == "cpu"
    assert here.name
    assert here.units == torch.get_num_threads()
    assert machine.capability(torch.device("cpu")) is None
    assert machine.shared_memory(torch.device("cpu")) is None
    assert machine.cache_bytes("cpu") >= 1 << 20


def test_tritons_version_is_told_without_importing_it() -> None:
    triton = pytest.importorskip("triton")
    assert machine.triton_version() == tuple(int(n) for n in triton.__version__.partition("+")[0].split(".")[:3])


def test_a_kernel_whose_op_cannot_be_had_is_not_chosen_and_says_why(scaled: Any) -> None:
    def builds() -> None:
        raise RuntimeError("no C++ compiler was found")

    def function(x: Any, w: Any) -> Any:
        return x * w

    kernel(scaled, name="built", default=True, op=builds)(function)
    assert kernels_for(scaled)["built"].unloadable == "cannot have its op: RuntimeError: no C++ compiler was found"
