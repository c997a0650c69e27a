"""Layers as the `kernels` package publishes them: no state, no constructor, a forward that reads attributes of self."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def normed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + layer.variance_epsilon)
    return layer.weight * wide.to(x.dtype)


class Norm(nn.Module):
    """Llama's norm, computed where only real tensors can be read: nothing can trace it."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        assert hidden_states.untyped_storage().data_ptr() or not hidden_states.numel()
        return normed(self, hidden_states)


class NormOfAnotherKind(nn.Module):
    """Scales by 1 + w."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return normed(self, hidden_states) * ((1 + self.weight) / self.weight)


class NormThatWrites(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return normed(self, hidden_states.mul_(1.0))


class NormInAnotherDtype(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return normed(self, hidden_states).double()


class Traced(nn.Module):
    """The same norm in plain PyTorch, which says that a compiler may look into it."""

    can_torch_compile = True
    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return normed(self, hidden_states)


class TracedWithoutBackward(Traced):
    has_backward = False


class SwiGLUMLP(nn.Module):
    """A gated MLP that calls its own projections and activation."""

    can_torch_compile = True
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class HardcodedMLP(SwiGLUMLP):
    """Never asks which activation the model has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
