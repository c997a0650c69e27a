"""`from_liger`: Liger's functions as kernels, where liger-kernel is installed.

Liger patches the classes of one model family at a time. Its functions compute what `rms_norm`, `gated_mlp` and
`rms_norm_gated_mlp` name, so here each is a kernel of those patterns, in every model. They launch Triton from Python,
so each is one op; the projections around them stay with the inner compiler. Gradients are Liger's own.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from fxfuse import library
from fxfuse.adapters.hub import imported
from fxfuse.adapters.opaque import opaque
from fxfuse.authoring import Pattern
from fxfuse.errors import PatternError, unknown
from fxfuse.kernels import SiteFacts, kernel

NAME = "liger"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CASTING = {"early": ("llama", 0.0), "late": ("gemma", 0.0), "offset": ("gemma", 1.0)}
"""Alternative of ``norm`` -> Liger's name for where it rounds, and what it adds to the weight."""

_ACTIVATIONS = {
    "silu": ("liger_kernel.ops.swiglu", "LigerSiLUMulFunction"),
    "gelu_tanh": ("liger_kernel.ops.geglu", "LigerGELUMulFunction"),
}


def from_liger(
    *patterns: str, device: str | Sequence[str] = ("cuda", "xpu"), default: bool = False, **requirements: Any
) -> tuple[Pattern, ...]:
    """Register Liger's functions as kernels named ``"liger"`` of these patterns; all that it has, where none is named.

    A site takes one where the user names it: ``kernels={"rms_norm": "liger"}``. It is tried on random inputs first.

    Args:
        patterns: of ``rms_norm``, ``gated_mlp`` and ``rms_norm_gated_mlp``.
        device: where liger-kernel runs.
        default: whether they may be chosen without being named.
        requirements: more of :func:`fxfuse.kernel`'s, such as ``rows=`` or ``force=``.

    Raises:
        PatternError: liger-kernel is not installed or too old, or another pattern.
    """
    made: list[Pattern] = []
    for name in patterns or tuple(_MAKERS):
        if name not in _MAKERS:
            raise PatternError("from_liger: " + unknown("pattern", name, _MAKERS))
        function, variants = _MAKERS[name]()
        found = library.lookup(name, "from_liger")
        register = kernel(
            found, name=NAME, device=device, dtypes=DTYPES, variants=variants, backward="autograd", default=default,
            when=_fits, **requirements,
        )  # fmt: skip
        register(function)
        made.append(found)
    return tuple(made)


def _fits(facts: SiteFacts) -> str | None:
    return "needs a literal eps; the site's is symbolic" if "eps" in facts.symbolic_scalars else None


def _function(module: str, name: str, takes: int) -> Any:
    """One of Liger's autograd functions, which takes at least so many arguments."""
    found = imported(module, name, "liger-kernel", "for from_liger")
    parameters = list(inspect.signature(inspect.unwrap(found.forward)).parameters.values())[1:]
    if len(parameters) < takes and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise PatternError(
            f"{module}.{name} of liger-kernel {_version()} takes {len(parameters)} arguments, and {takes} are needed."
        )
    return found


def _version() -> str:
    try:
        return importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


# --- calls, compared and fingerprinted by what they hold --------------------------------------------------------------


@dataclass(frozen=True)
class _Norm:
    """RMSNorm: x, weight, eps, offset, where it rounds."""

    function: Any
    version: str
    op: Callable[..., Any]

    is_foreign: ClassVar[bool] = True

    def __call__(self, x: Any, weight: Any, *, eps: Any, norm: str) -> Any:
        casting, offset = CASTING[norm]
        return self.op(x, weight, eps, offset, casting)


@dataclass(frozen=True)
class _GatedMLP:
    """The gated MLP with Liger's activation and product."""

    functions: tuple[tuple[str, Any], ...]
    version: str
    ops: tuple[tuple[str, Callable[..., Any]], ...]

    is_foreign: ClassVar[bool] = True

    def __call__(
        self, x: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any, *, act: str
    ) -> Any:
        g, u = F.linear(x, gate, gate_bias), F.linear(x, up, up_bias)
        return F.linear(dict(self.ops)[act](g, u), down, down_bias)


@dataclass(frozen=True)
class _NormGatedMLP:
    """Both, one after the other."""

    norm: _Norm
    mlp: _GatedMLP

    is_foreign: ClassVar[bool] = True

    def __call__(
        self, x: Any, weight: Any, gate: Any, up: Any, down: Any, gate_bias: Any, up_bias: Any, down_bias: Any,
        *, eps: Any, norm: str, act: str,
    ) -> Any:  # fmt: skip
        h = self.norm(x, weight, eps=eps, norm=norm)
        return self.mlp(h, gate, up, down, gate_bias, up_bias, down_bias, act=act)


Made = tuple[Callable[..., Any], dict[str, set[str]]]


def _norm() -> Made:
    function, version = _function("liger_kernel.ops.rms_norm", "LigerRMSNormFunction", 6), _version()

    def run(x: Any, weight: Any, eps: float, offset: float, casting: str) -> Any:
        if x.numel() == 0:
            return x.clone()  # Liger launches a program for each row, and none is an error
        return function.apply(x, weight, eps, offset, casting, False)  # its backward may not write into what it gets

    schema = {"x": "Tensor", "weight": "Tensor", "eps": "float", "offset": "float", "casting": "str"}
    op = opaque("liger_rms_norm", run, schema, key=(function, version), like="x", differentiable=True)
    return _Norm(function, version, op), {"norm": set(CASTING)}


def _gated_mlp() -> Made:
    functions = {act: _function(module, name, 2) for act, (module, name) in _ACTIVATIONS.items()}
    version = _version()
    ops = {act: _product(act, function, version) for act, function in functions.items()}
    mlp = _GatedMLP(tuple(functions.items()), version, tuple(ops.items()))
    return mlp, {"proj": {"separate"}, "act": set(ops)}


def _product(act: str, function: Any, version: str) -> Callable[..., Any]:
    def run(gate: Any, up: Any) -> Any:
        return function.apply(gate, up) if gate.numel() else gate * up

    schema = {"gate": "Tensor", "up": "Tensor"}
    return opaque(f"liger_{act}_mul", run, schema, key=(function, version), like="gate", differentiable=True)


def _norm_gated_mlp() -> Made:
    norm, norms = _norm()
    mlp, variants = _gated_mlp()
    assert isinstance(norm, _Norm)
    assert isinstance(mlp, _GatedMLP)
    return _NormGatedMLP(norm, mlp), {**norms, **variants}


_MAKERS: dict[str, Callable[[], Made]] = {
    "rms_norm": _norm,
    "gated_mlp": _gated_mlp,
    "rms_norm_gated_mlp": _norm_gated_mlp,
}
