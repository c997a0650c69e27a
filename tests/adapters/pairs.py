"""Kernels as their authors publish them for transformers' KernelConfig: a layer, its layout, a conversion of weights.

The first two are the shapes of the two examples of transformers #46339: a norm whose weight is renamed, and a norm
fused with the MLP behind it, whose gate and up are concatenated. The others differ from them in one thing each.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Concatenate, WeightConverter
from transformers.conversion_mapping import WeightRenaming
from transformers.core_model_loading import Chunk, Interleave

NORM = [WeightRenaming(r"norm\.weight", "norm.scale")]
SCALE = WeightRenaming("post_attention_layernorm.weight", "post_attention_layernorm.scale")
DOWN = WeightRenaming("mlp.down_proj.weight", "post_attention_layernorm.down_proj.weight")


def gate_up(*sources: str, dim: int = 0) -> WeightConverter:
    """These, one after another, as the fused layer's first projection."""
    operations = [Concatenate(dim=dim)]
    return WeightConverter(list(sources), "post_attention_layernorm.gate_up_proj.weight", operations=operations)


GATE_UP = gate_up("mlp.gate_proj.weight", "mlp.up_proj.weight")
FUSED = [SCALE, DOWN, GATE_UP]
UP_FIRST = [SCALE, DOWN, gate_up("mlp.up_proj.weight", "mlp.gate_proj.weight")]
MISSPELT = [SCALE, DOWN, gate_up("mlp.gate_proj.weight", "mlp.upper_proj.weight")]
ALONG_COLUMNS = [SCALE, DOWN, gate_up("mlp.gate_proj.weight", "mlp.up_proj.weight", dim=1)]
FACTOR = [WeightRenaming("post_attention_layernorm.weight", "post_attention_layernorm.factor"), DOWN, GATE_UP]


HALVES = [
    SCALE,
    GATE_UP,
    WeightConverter(
        "mlp.down_proj.weight",
        ["post_attention_layernorm.down_proj.weight", "post_attention_layernorm.rest"],
        operations=[Chunk(dim=0)],
    ),
]
INTERLEAVED = [
    SCALE,
    DOWN,
    WeightConverter(
        ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
        "post_attention_layernorm.gate_up_proj.weight",
        operations=[Concatenate(dim=0), Interleave(dim=0)],
    ),
]
NOTHING = [None]
BEFORE_FEEDFORWARD = [
    WeightRenaming("pre_feedforward_layernorm.weight", "pre_feedforward_layernorm.scale"),
    WeightRenaming("mlp.down_proj.weight", "pre_feedforward_layernorm.down_proj.weight"),
    WeightConverter(
        ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
        "pre_feedforward_layernorm.gate_up_proj.weight",
        operations=[Concatenate(dim=0)],
    ),
]


class CustomRMSNormLayout(nn.Module):
    conversion_mapping = NORM

    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps


class CustomRMSNorm(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dtype = hidden_states.dtype
        wide = hidden_states.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.scale * wide.to(dtype)


class RMSNormMLPLayout(nn.Module):
    conversion_mapping = FUSED

    def __init__(self, norm, mlp):
        super().__init__()
        self.variance_epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        self.scale = nn.Parameter(torch.empty_like(norm.weight))
        gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.gate_up_proj = nn.Linear(
            gate.in_features,
            gate.out_features + up.out_features,
            bias=gate.bias is not None,
            device=gate.weight.device,
            dtype=gate.weight.dtype,
        )
        self.down_proj = nn.Linear(
            down.in_features,
            down.out_features,
            bias=down.bias is not None,
            device=down.weight.device,
            dtype=down.weight.dtype,
        )
        self.act_fn = mlp.act_fn


class RMSNormMLP(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        dtype = hidden_states.dtype
        wide = hidden_states.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        gate, up = self.gate_up_proj(self.scale * wide.to(dtype)).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


# --- one thing wrong ------------------------------------------------------------------------------------------------


class UpFirst(RMSNormMLP):
    pass


class UpFirstLayout(RMSNormMLPLayout):
    """Concatenates up before gate, and cuts as if gate came first."""

    conversion_mapping = UP_FIRST


class OtherEps(RMSNormMLP):
    pass


class OtherEpsLayout(RMSNormMLPLayout):
    def __init__(self, norm, mlp):
        super().__init__(norm, mlp)
        self.variance_epsilon = 10 * self.variance_epsilon


class NamesNothing(RMSNormMLP):
    pass


class NamesNothingLayout(RMSNormMLPLayout):
    conversion_mapping = MISSPELT


class MakesNothing(RMSNormMLP):
    pass


class MakesNothingLayout(RMSNormMLPLayout):
    conversion_mapping = FACTOR


class LeavesOut(RMSNormMLP):
    pass


class LeavesOutLayout(RMSNormMLPLayout):
    def __init__(self, norm, mlp):
        super().__init__(norm, mlp)
        self.shift = nn.Parameter(torch.zeros_like(norm.weight))


class WrongDim(RMSNormMLP):
    pass


class WrongDimLayout(RMSNormMLPLayout):
    conversion_mapping = ALONG_COLUMNS


class ReadsWhatIsNot(RMSNormMLP):
    pass


class ReadsWhatIsNotLayout(RMSNormMLPLayout):
    def __init__(self, norm, mlp):
        super().__init__(norm, mlp)
        self.limit = mlp.swiglu_limit


class NoLayout(RMSNormMLP):
    pass


class TakesTwo(RMSNormMLP):
    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + residual


class TakesTwoLayout(RMSNormMLPLayout):
    pass


class Chunks(RMSNormMLP):
    pass


class ChunksLayout(RMSNormMLPLayout):
    conversion_mapping = HALVES


class Interleaves(RMSNormMLP):
    pass


class InterleavesLayout(RMSNormMLPLayout):
    conversion_mapping = INTERLEAVED


class HalfImported(RMSNormMLP):
    pass


class HalfImportedLayout(RMSNormMLPLayout):
    conversion_mapping = NOTHING


# --- another model's norm -------------------------------------------------------------------------------------------


class BeforeFeedforward(RMSNormMLP):
    pass


class BeforeFeedforwardLayout(RMSNormMLPLayout):
    conversion_mapping = BEFORE_FEEDFORWARD
