"""Modules that a model's author could have written: sibling weights stacked, or over Liger's functions.

Each is for the first form of its pattern (norm early, SiLU, no biases), made from the tensors of that form.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
"""What every norm of the benchmarks has."""

Tensors = Mapping[str, Tensor]


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm as Llama's authors write it."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * h.to(x.dtype)


def _parameter(tensor: Tensor) -> nn.Parameter:
    """A parameter of the tensor's values; the very one that is given, whose storage nobody else may then hold."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), requires_grad=False)


class StackedMlp(nn.Module):
    """A gated MLP with one linear for gate and up, with an RMSNorm in front where there is a weight for it."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.weight = _parameter(tensors["weight"]) if "weight" in tensors else None
        self.gate_up = _parameter(torch.cat([tensors["gate"], tensors["up"]]))
        self.down = _parameter(tensors["down"])

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.weight is None else _norm(x, self.weight)
        gate, up = F.linear(h, self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


class StackedProjections(nn.Module):
    """An RMSNorm and one linear for its projections."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        parts = [tensor for name, tensor in tensors.items() if name.startswith("projections")]
        self.sizes = [part.shape[0] for part in parts]
        self.weight = _parameter(tensors["weight"])
        self.stacked = _parameter(torch.cat(parts))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return F.linear(_norm(x, self.weight), self.stacked).split(self.sizes, -1)


def _liger() -> Any:
    """Liger's functions, of a package that fxfuse does not need itself."""
    return importlib.import_module("liger_kernel.transformers.functional")


class LigerNorm(nn.Module):
    """Liger's RMSNorm."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.weight = _parameter(tensors["weight"])

    def forward(self, x: Tensor) -> Tensor:
        return _liger().liger_rms_norm(x, self.weight, EPS, 0.0, "llama", False)


class LigerMlp(nn.Module):
    """A gated MLP over Liger's SwiGLU, behind Liger's RMSNorm where there is a weight for it."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.norm = LigerNorm(tensors) if "weight" in tensors else nn.Identity()
        self.gate, self.up, self.down = (_parameter(tensors[name]) for name in ("gate", "up", "down"))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return F.linear(_liger().liger_swiglu(F.linear(h, self.gate), F.linear(h, self.up)), self.down)


Maker = Callable[[Tensors], nn.Module]

MODULES: dict[str, dict[str, Maker]] = {
    "by hand": {"rms_norm_gated_mlp": StackedMlp, "gated_mlp": StackedMlp, "rms_norm_qkv": StackedProjections},
    "liger": {"rms_norm_gated_mlp": LigerMlp, "gated_mlp": LigerMlp, "rms_norm": LigerNorm},
}


_HOW = {"by hand": "by hand here", "liger": "over Liger here"}


def maker(module: str, pattern: str) -> Maker | str:
    """What makes the module of an arm for a pattern, or why there is none."""
    found = MODULES[module].get(pattern)
    if found is not None:
        return found
    return f"no module of {pattern} is written {_HOW[module]}"


def stack_model(model: Any) -> int:
    """Put :class:`StackedMlp` in place of each gated MLP of a transformers model; how many there were."""
    found = [m for m in model.modules() if all(hasattr(m, n) for n in ("gate_proj", "up_proj", "down_proj", "act_fn"))]
    for mlp in found:
        stacked = StackedMlp({n: getattr(mlp, f"{n}_proj").weight for n in ("gate", "up", "down")})
        mlp.forward = stacked.forward
        mlp.stacked = stacked
        del mlp.gate_proj, mlp.up_proj
    return len(found)


def liger_model(model: Any) -> int:
    """Put Liger's functions in place of each gated MLP and RMSNorm of a transformers model; how many there were."""
    found = 0
    for module in list(model.modules()):
        if all(hasattr(module, n) for n in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            made: nn.Module = LigerMlp({n: getattr(module, f"{n}_proj").weight for n in ("gate", "up", "down")})
        elif type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight"):
            made = LigerNorm({"weight": module.weight})
        else:
            continue
        module.forward = made.forward
        module.liger = made
        found += 1
    return found
