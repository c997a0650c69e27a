"""Small graphs and small modules for the tests of the view, the matcher and the reports."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

import fxfuse
from fxfuse.report import Report, Site
from fxfuse.view import DtypeOf, Value, View
from fxfuse.view.values import dtype_name

PATTERN = "rms_norm_gated_mlp"
HIDDEN, INTER = 8, 12


# --- one expression, as Dynamo captures it --------------------------------------------------------------------------

SHAPES = {"x": (2, 3, 8), "y": (2, 3, 8), "v": (2, 3, 1), "w": (8,), "W": (12, 8), "M": (8, 8), "C": (2, 8, 8), "n": ()}


def operands(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The named tensors that an expression may use; ``v`` is positive, and all are far from zero's rounding."""
    generator = torch.Generator().manual_seed(7)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made["v"] = made["v"].abs() + 0.5
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def function_of(expression: str) -> Callable[..., Any]:
    """The expression as a function of all operands, by name."""
    scope = {"torch": torch, "F": F, "nn": nn}
    return eval(f"lambda {', '.join(SHAPES)}: {expression}", scope)  # type: ignore[no-any-return]


def value_of(expression: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What eager PyTorch computes."""
    return function_of(expression)(**operands(dtype))  # type: ignore[no-any-return]


def capture(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[fx.GraphModule, list[Any]]:
    """The one graph that Dynamo captures of a call, and its live arguments."""
    seen: list[tuple[fx.GraphModule, list[Any]]] = []

    def look(gm: fx.GraphModule, examples: list[Any]) -> Any:
        seen.append((gm, examples))
        return gm.forward

    torch.compile(function, backend=look, fullgraph=True)(*args, **kwargs)
    (only,) = seen
    return only


def canonicals(expressions: Sequence[str], dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Each expression in the view's words. They are traced as one graph, each under an op that the view ignores."""
    functions = [function_of(f"torch.atan({e})") for e in expressions]
    gm, examples = capture(lambda **named: [f(**named) for f in functions], **operands(dtype))
    view = View(gm.graph, examples)
    tops = [n for n in gm.graph.nodes if n.target is torch.atan]
    return {e: words(view, view.value(top.args[0])) for e, top in zip(expressions, tops, strict=True)}


def canonical(expression: str, dtype: torch.dtype = torch.float32) -> str:
    """One expression in the view's words."""
    return canonicals([expression], dtype)[expression]


def words(view: View, operand: Any) -> str:
    """A canonical value as text: ``mean(square(x), dim=-1, keepdim=True)``; what is not known as ``?name``."""
    operand = view.operand(operand)
    if isinstance(operand, DtypeOf):
        return f"{words(view, operand.of)}.dtype"
    if isinstance(operand, torch.dtype):
        return dtype_name(operand)
    if isinstance(operand, tuple) and any(isinstance(item, Value) for item in operand):
        return f"({', '.join(words(view, item) for item in operand)})"
    if not isinstance(operand, Value):
        return repr(operand)
    if operand.leaf is not None:
        return operand.leaf.path.removeprefix("named.")
    if not operand.known:
        return f"?{operand.op}"
    parts = []
    for name, raw in operand.args.items():
        text = words(view, raw)
        parts.append(text if isinstance(view.operand(raw), Value) else f"{name}={text}")
    return f"{operand.op}({', '.join(parts)})"


# --- a module whose forward is any function -------------------------------------------------------------------------


class Net(nn.Module):
    """The parameters of the headline pattern, and a forward that is whatever function is given."""

    def __init__(
        self,
        body: Callable[..., Any],
        dtype: torch.dtype = torch.float32,
        *,
        norm_dtype: torch.dtype | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)

        def parameter(*shape: int, dtype: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator).mul(0.5).to(dtype), requires_grad=False)

        self.weight = parameter(HIDDEN, dtype=norm_dtype or dtype)
        self.gate, self.up = parameter(INTER, HIDDEN), parameter(INTER, HIDDEN)
        self.gate_up = parameter(2 * INTER, HIDDEN)
        self.down = parameter(HIDDEN, INTER)
        self.gate_bias, self.up_bias = parameter(INTER), parameter(INTER)
        self.gate_up_bias, self.down_bias = parameter(2 * INTER), parameter(HIDDEN)
        self.router, self.sub = parameter(4, HIDDEN), parameter(INTER)
        for name, value in more.items():
            setattr(self, name, value)
        self.body = body

    def forward(self, *args: Any) -> Any:
        return self.body(self, *args)


def rms(m: Net, x: torch.Tensor, eps: Any = 1e-6) -> torch.Tensor:
    """Llama's norm."""
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return m.weight * h.to(x.dtype)


def mlp(m: Net, h: torch.Tensor) -> torch.Tensor:
    """Llama's gated MLP."""
    return F.linear(F.silu(F.linear(h, m.gate)) * F.linear(h, m.up), m.down)


def plain(m: Net, x: torch.Tensor) -> torch.Tensor:
    """The site itself, as Llama spells it."""
    return mlp(m, rms(m, x))


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> torch.Tensor:
    return torch.randn(*(shape or (2, 3, HIDDEN)), generator=torch.Generator().manual_seed(seed)).to(dtype)


def options(**more: Any) -> dict[str, Any]:
    """The headline pattern alone, with the kernel that repeats the reference's operations; failures raise."""
    kernels = {PATTERN: "plain"}
    return {"patterns": [PATTERN], "kernels": kernels, "on_miss": "silent", "on_error": "raise", **more}


def sites(model: Any, *args: Any, **more: Any) -> tuple[Site, ...]:
    """The sites that explain finds."""
    return fxfuse.explain(model, args, options=options(**more)).sites


def compiled(model: Any, *args: Any, rtol: float = 1e-5, atol: float = 1e-6, **more: Any) -> Report:
    """Compile over eager, assert that outputs and written inputs are eager's, and hand back the report."""
    torch._dynamo.reset()
    mine, theirs = _cloned(args), _cloned(args)
    torch.manual_seed(5)
    want = copy.deepcopy(model)(*theirs)  # which may write its parameters
    backend = fxfuse.Backend(**options(inner="eager", **more))
    torch.manual_seed(5)
    got = torch.compile(model, backend=backend, fullgraph=True)(*mine)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
    return fxfuse.reports()[-1]


def _cloned(args: Sequence[Any]) -> list[Any]:
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in args]


def sole(found: Sequence[Site]) -> Site:
    """The only site, or the one nearest to a match where the graph has several places to start from."""
    assert found, "no place in the graph looked like the pattern"
    return max(found, key=lambda s: (s.outcome == "rewritten", s.matched_nodes))
