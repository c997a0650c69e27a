"""Vision transformers' parts on tokens: SwiGLU with an identity norm in the middle, and the packed GLU."""

from __future__ import annotations

import torch
from styles.models.common import DIM, INNER, LAYERS, Decoder, Style, attend, linear, ones
from torch import Tensor, nn


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape, self.eps, self.weight = (DIM,), 1e-6, ones()

    def forward(self, x: Tensor) -> Tensor:
        v = x.float().pow(2).mean(dim=-1, keepdim=True)
        return (x.float() * torch.rsqrt(v + self.eps)).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x = linear(INNER, bias=True), linear(INNER, bias=True)
        self.act, self.drop1, self.norm = nn.SiLU(), nn.Dropout(0.0), norm or nn.Identity()
        self.fc2, self.drop2 = linear(DIM, INNER, bias=True), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1_g(x)) * self.fc1_x(x)
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


class GluMlp(nn.Module):
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.chunk_dim = dim
        self.fc1, self.act, self.fc2 = linear(2 * INNER, bias=True), nn.SiLU(), linear(DIM, INNER, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.fc1(x).chunk(2, dim=self.chunk_dim)
        return self.fc2(x1 * self.act(x2))


class HalfMlp(GluMlp):
    """The edit: both halves are the first."""

    def forward(self, x: Tensor) -> Tensor:
        x1, _ = self.fc1(x).chunk(2, dim=self.chunk_dim)
        return self.fc2(x1 * self.act(x1))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = ones()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.ls1, self.ls2 = RmsNorm(), RmsNorm(), LayerScale(), LayerScale()
        self.qkv, self.proj, self.mlp = linear(3 * DIM, bias=True), linear(DIM, bias=True), mlp

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 4, DIM // 4).unbind(2)
        x = x + self.ls1(self.proj(attend(q, k, v)))
        return x + self.ls2(self.mlp(self.norm2(x)))


NORMS = {"rms_norm": 2 * LAYERS + 1, "add_rms_norm": 2 * LAYERS}
MLPS = {"rms_norm_gated_mlp": LAYERS, "gated_mlp": LAYERS}
SWIGLU = Style(
    "timm SwiGLU",
    lambda: Decoder(lambda: Block(SwiGLU()), RmsNorm),
    {**NORMS, **MLPS, "rms_norm_qkv": LAYERS},
    {
        "norm in the middle": (
            lambda: Decoder(lambda: Block(SwiGLU(nn.LayerNorm(INNER))), RmsNorm),
            {**NORMS, "rms_norm_qkv": LAYERS},
        )
    },
)
GLU = Style(
    "timm GluMlp",
    lambda: Decoder(lambda: Block(GluMlp()), RmsNorm),
    {**NORMS, **MLPS},
    {"one half twice": (lambda: Decoder(lambda: Block(HalfMlp()), RmsNorm), NORMS)},
)
