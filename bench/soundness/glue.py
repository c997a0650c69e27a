"""What stands around the pieces: any PyTorch at all, chosen without a plan."""

from __future__ import annotations

import random

import torch

from bench.soundness.builder import Builder
from bench.soundness.mistakes import FALSE_IDENTITIES, IDENTITIES, MUTATIONS

UNARY: tuple[str, ...] = (
    "F.relu({0})", "{0} * 0.5", "torch.tanh({0})", "{0}.float()", "{0}.to(torch.bfloat16)", "{0}.half()",
    "F.silu({0})", "F.softmax({0}, dim=-1)", "{0}.sigmoid()", "F.layer_norm({0}, {0}.shape[-1:])",
    "{0}.transpose(-1, -2)", "{0}.abs()", "{0}.reshape(-1, {0}.shape[-1])", "{0}.mean(-1, keepdim=True)",
    "{0}.chunk(2, -1)[0]", "{0}[..., :1]", "{0}.sum(0)", "F.dropout({0}, 0.1)", "F.rms_norm({0}, {0}.shape[-1:])",
    "torch.cat(({0}, {0}), -1)", "{0}.pow(2)", "{0} + 1.0", "torch.zeros_like({0})",
    "{0} * torch.rsqrt({0}.pow(2).mean(-1, keepdim=True) + 1e-6)", "{0}.unsqueeze(0)",
)  # fmt: skip
BINARY: tuple[str, ...] = (
    "{0} + {1}", "{0} * {1}", "{0} - {1}", "{1} + {0}", "F.silu({0}) * {1}", "torch.where({0} > 0, {0}, {1})",
    "torch.lerp({0}, {1}, 0.5)", "{0} * torch.sigmoid({1})", "torch.cat(({0}, {1}), -1)", "torch.stack(({0}, {1}))",
)  # fmt: skip


def glue(b: Builder, count: int) -> None:
    """Add up to ``count`` statements of any kind."""
    rng = b.rng
    for _ in range(count):
        kind = rng.choices(
            ("unary", "binary", "residual", "linear", "norm", "identity", "write", "output"),
            (5, 3, 3, 3, 1, 3, 1, 1),
        )[0]
        names = b.values()
        if not names:
            return
        first = _late(rng, names)
        if kind == "unary":
            b.emit(rng.choice(UNARY).format(first))
        elif kind == "identity":
            b.emit(rng.choice(IDENTITIES if rng.random() < 0.7 else FALSE_IDENTITIES).format(first))
        elif kind == "binary":
            b.emit(rng.choice(BINARY).format(first, _late(rng, names)))
        elif kind == "residual":
            same = [n for n in b.like(tuple(b.env[first].shape)) if n != first]
            b.emit(f"{first} + {rng.choice(same)}" if same else f"{first} + {first}")
        elif kind == "linear":
            _linear(b, first)
        elif kind == "norm":
            size = b.env[first].shape[-1:]
            if len(size) and b.env[first].dtype is torch.float32:
                b.emit(f"F.rms_norm({first}, ({size[0]},), {b.weight(tuple(size))}, 1e-5)")
        elif kind == "write":
            b.run(rng.choice(MUTATIONS).format(first))
        else:
            b.outputs.append(first)


def _late(rng: random.Random, names: list[str]) -> str:
    """One of the names, which come latest first, and rather a late one."""
    return names[min(int(rng.expovariate(0.4)), len(names) - 1)]


def _linear(b: Builder, name: str) -> None:
    value = b.env[name]
    if not value.dim():
        return
    size = int(value.shape[-1])
    known = [
        n for n, v in b.env.items() if n[0] == "p" and v.dim() == 2 and v.shape[1] == size and v.dtype == value.dtype
    ]
    weight = b.rng.choice(known) if known and b.rng.random() < 0.3 else None
    if weight is None:
        weight = b.weight((b.rng.choice((size, 1, 3, 4, 8)), size), value.dtype)
    b.emit(f"F.linear({name}, {weight})")
