"""Many spellings of one operation. ``{0}``, ``{1}``... are its operands, ``{n}`` the last size of the first."""

from __future__ import annotations

from typing import Any

import torch

SPELLINGS: dict[str, tuple[str, ...]] = {
    "add": (
        "{0} + {1}", "{1} + {0}", "torch.add({0}, {1})", "{0}.add({1})", "torch.add({1}, other={0})",
        "torch.add({0}, {1}, alpha=1)",
    ),
    "sub": (
        "{0} - {1}", "torch.sub({0}, {1})", "{0}.sub({1})", "{0} + (-{1})", "torch.add({0}, {1}, alpha=-1)",
        "-({1} - {0})",
    ),
    "mul": (
        "{0} * {1}", "{1} * {0}", "torch.mul({0}, {1})", "{0}.mul({1})", "{1}.mul(other={0})",
        "torch.multiply({1}, {0})",
    ),
    "truediv": (
        "{0} / {1}", "torch.div({0}, {1})", "{0}.div({1})", "torch.true_divide({0}, {1})",
    ),
    "neg": (
        "-{0}", "torch.neg({0})", "{0}.neg()", "{0} * -1",
    ),
    "square": (
        "{0}.pow(2)", "{0} ** 2", "torch.pow({0}, 2)", "{0} * {0}", "{0}.square()", "torch.square({0})",
        "torch.pow({0}, exponent=2.0)",
    ),
    "rsqrt": (
        "torch.rsqrt({0})", "{0}.rsqrt()", "{0} ** -0.5", "1 / torch.sqrt({0})", "{0}.sqrt().reciprocal()",
        "torch.pow({0}, -0.5)", "1.0 / {0}.sqrt()", "{0}.pow(0.5).reciprocal()",
    ),
    "sqrt": (
        "torch.sqrt({0})", "{0}.sqrt()", "{0} ** 0.5",
    ),
    "mean": (
        "{0}.mean(-1, keepdim=True)", "torch.mean({0}, -1, True)", "{0}.mean(dim=[-1], keepdim=True)",
        "torch.mean({0}, dim=(-1,), keepdim=True)", "{0}.sum(-1, keepdim=True) / {0}.shape[-1]",
        "{0}.sum(-1, keepdim=True) / {n}", "{0}.mean(axis=-1, keepdims=True)", "{0}.mean(-1).unsqueeze(-1)",
        "{0}.mean({0}.dim() - 1, keepdim=True)", "{0}.mean(-1, keepdim=True, dtype=torch.float32)",
    ),
    "linear": (
        "F.linear({0}, {1})", "{0} @ {1}.t()", "torch.matmul({0}, {1}.T)", "{0} @ {1}.transpose(0, 1)",
        "torch.mm({0}, {1}.mT)", "{0}.matmul({1}.permute(1, 0))", "F.linear(input={0}, weight={1})",
        "{0} @ {1}.transpose(-1, -2)", "F.linear({0}, {1}, None)", 'torch.einsum("...i,oi->...o", {0}, {1})',
    ),
    "linear_bias": (
        "F.linear({0}, {1}, {2})", "{0} @ {1}.t() + {2}", "torch.addmm({2}, {0}, {1}.t())",
        "F.linear({0}, {1}, bias={2})", "F.linear({0}, {1}) + {2}", "{2} + {0} @ {1}.T",
    ),
    "cast": (
        "{0}.to({1})", "{0}.to(dtype={1})", "{0}.type({1})",
    ),
    "silu": (
        "F.silu({0})", "{0} * torch.sigmoid({0})", "{0}.sigmoid() * {0}", "F.silu({0}, inplace=False)",
        "nn.SiLU()({0})", "torch.sigmoid({0}) * {0}", "{0} * F.sigmoid({0})", "{0} / (1 + torch.exp(-{0}))",
    ),
    "gelu": (
        "F.gelu({0})", 'F.gelu({0}, approximate="none")', "{0} * 0.5 * (1.0 + torch.erf({0} / 2 ** 0.5))",
    ),
    "gelu_tanh": (
        'F.gelu({0}, approximate="tanh")', 'nn.GELU(approximate="tanh")({0})',
        "0.5 * {0} * (1.0 + torch.tanh((2 / 3.141592653589793) ** 0.5 * ({0} + 0.044715 * {0} ** 3)))",
        "{0} * 0.5 * (1.0 + torch.tanh({0} * 0.7978845608028654 * (1.0 + 0.044715 * {0} * {0})))",
    ),
    "relu": (
        "F.relu({0})", "torch.relu({0})", "{0}.relu()", "{0}.clamp(min=0)", "F.relu({0}, inplace=False)",
    ),
    "sigmoid": (
        "torch.sigmoid({0})", "{0}.sigmoid()", "F.sigmoid({0})",
    ),
    "tanh": (
        "torch.tanh({0})", "{0}.tanh()", "F.tanh({0})",
    ),
    "exp": (
        "torch.exp({0})", "{0}.exp()",
    ),
    "softmax": (
        "F.softmax({0}, dim=-1)",
        "(lambda e: e / e.sum(-1, keepdim=True))(torch.exp({0} - {0}.amax(-1, keepdim=True)))", "{0}.softmax(-1)",
        "torch.softmax({0}, -1)",
    ),
    "first_half": (
        "{0}.chunk(2, -1)[0]", "torch.chunk({0}, 2, dim=-1)[0]", "{0}.split({0}.shape[-1] // 2, -1)[0]",
        "{0}[..., : {0}.shape[-1] // 2]", "{0}.narrow(-1, 0, {0}.shape[-1] // 2)",
        "{0}.unflatten(-1, (2, -1))[..., 0, :]", "torch.tensor_split({0}, 2, -1)[0]",
    ),
    "second_half": (
        "{0}.chunk(2, -1)[1]", "torch.chunk({0}, 2, dim=-1)[1]", "{0}.split({0}.shape[-1] // 2, -1)[1]",
        "{0}[..., {0}.shape[-1] // 2 :]", "{0}.chunk(2, -1)[-1]",
        "{0}.narrow(-1, {0}.shape[-1] // 2, {0}.shape[-1] // 2)",
    ),
    "transpose_last": (
        "{0}.transpose(-1, -2)", "{0}.mT", "{0}.transpose(-2, -1)", "torch.swapaxes({0}, -1, -2)",
    ),
    "rms_norm": (
        "F.rms_norm({0}, ({n},), {1}, {2})",
    ),
    "layer_norm": (
        "F.layer_norm({0}, ({n},), {1}, {2}, {3})",
        "({0} - {0}.mean(-1, keepdim=True)) * torch.rsqrt({0}.var(-1, keepdim=True, unbiased=False) "
        "+ {3}) * {1} + {2}",
        "({0} - {0}.mean(-1, keepdim=True)) / torch.sqrt(({0} - {0}.mean(-1, "
        "keepdim=True)).pow(2).mean(-1, keepdim=True) + {3}) * {1} + {2}",
    ),
    "split_heads": (
        "{0}.unflatten(-1, (-1, 2))", "{0}.view({0}.shape[:-1] + (-1, 2))", "{0}.reshape(*{0}.shape[:-1], -1, 2)",
    ),
    "where": ("torch.where({0}, {1}, {2})", "{2}.masked_fill({0}, {1})", "torch.where(~{0}, {2}, {1})"),
    "repeat": (
        "{0}.repeat_interleave(2, dim=-2)",
        "{0}[:, :, None].expand(-1, -1, 2, -1).reshape({0}.shape[0], -1, {0}.shape[-1])",
    ),
    "slice_from_2": (
        "{0}[..., 2:]", "{0}.narrow(-1, 2, {0}.shape[-1] - 2)", "{0}.split([2, {0}.shape[-1] - 2], -1)[1]",
    ),
    "cat_last": (
        "torch.cat(({0}, {1}), dim=-1)", "torch.cat([{0}, {1}], -1)", "torch.concat(({0}, {1}), -1)",
    ),
}  # fmt: skip
"""The first of each row is how Llama writes it."""

DTYPES = {torch.float32: "{0}.float()", torch.bfloat16: "{0}.bfloat16()", torch.float16: "{0}.half()",
          torch.float64: "{0}.double()"}  # fmt: skip

SWAPS: tuple[tuple[str, ...], ...] = (
    ("add", "sub", "mul", "truediv"),
    ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh"),
    ("rsqrt", "sqrt", "exp", "sigmoid"),
    ("first_half", "second_half"),
    ("neg", "relu"),
)
"""Operations of one arity, each of which may stand by mistake where another should."""


def literal(value: Any) -> str:
    """A constant as program text."""
    if isinstance(value, slice):
        parts = [value.start, value.stop] + ([value.step] if value.step is not None else [])
        return ":".join("" if p is None else literal(p) for p in parts)
    if value is Ellipsis:
        return "..."
    if isinstance(value, tuple | list):
        inner = ", ".join(literal(v) for v in value)
        if isinstance(value, list):
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    return repr(value)
