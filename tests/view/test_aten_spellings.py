"""What a model writes is one canonical form in Dynamo's graph and in every ATen graph that is made of it."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from aten_graphs import Function
from support import SHAPES, canonicals, function_of, operands, words
from torch import fx

from fxfuse import compat
from fxfuse.view import Leaf, LeafKind, View

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LEAVES = [Leaf(LeafKind.INPUT, name, i) for i, name in enumerate(SHAPES)]

SPELLINGS = (
    "x + y", "x + 1", "x - y", "x - 2.5", "x * y", "x * 0.5", "x / y", "x / 3", "-x", "x.abs()", "x.pow(2)", "x.square()",
    "x * x", "v.sqrt()", "v.rsqrt()", "v ** -0.5", "1 / v.sqrt()", "x.exp()", "v.log()", "x.sin()", "x.cos()", "x.erf()",
    "x.sigmoid()", "x.tanh()", "F.relu(x)", "F.silu(x)", "F.gelu(x)", "F.gelu(x, approximate='tanh')",
    "x * x.sigmoid()", "F.softmax(x, -1)", "F.softmax(x, 1)", "F.softmax(x, -1, dtype=torch.float32)",
    "F.softmax(x, -1, dtype=torch.float32).to(x.dtype)",
    "x.mean(-1, keepdim=True)", "x.mean((1, 2))", "x.sum(-1)", "x.sum(-1, keepdim=True) / 8", "x.amax(-1, keepdim=True)",
    "x.float()", "x.double()", "x.half()", "x.to(torch.bfloat16)", "x.float() * x.float()",
    "F.linear(x, W)", "F.linear(x[0], W)", "F.linear(x[0, 0], W)", "F.linear(x, W, W[:, 0])", "F.linear(x.reshape(6, 8), W)",
    "F.linear(x.transpose(0, 1), W)", "x @ W.t()", "x @ W.T", "x @ M", "x[0] @ M", "x @ C", "torch.bmm(x, C)",
    "x.transpose(1, 2)", "x.permute(2, 0, 1)", "W.t()", "x.reshape(6, 8)", "x.view(2, 3, 2, 4)", "x.flatten(1)", "x.unsqueeze(1)",
    "v.squeeze(-1)", "v.expand(2, 3, 8)", "x.contiguous()", "x.detach()", "x.clone()", "F.dropout(x, 0.5, False)",
    "x.chunk(2, -1)[1]", "x.chunk(2, 1)[0]", "x.split(4, -1)[0]", "x.split([3, 5], -1)[1]", "x[..., :4]", "x[..., 4:]", "x[..., 2:5]",
    "x[:, 0]", "x[:, :, :]", "x.unbind(0)[1]", "x.narrow(-1, 4, 4)", "x.select(1, 2)", "torch.cat((x, y), -1)",
    "torch.stack((x, y), 0)", "torch.where(x > 0, x, y)", "x.masked_fill(y > 0, 0.0)", "torch.maximum(x, y)",
    "F.rms_norm(x, (8,), w, 1e-5)", "F.layer_norm(x, (8,), w, w, 1e-5)", "F.layer_norm(x, (8,), w)", "F.layer_norm(x, (8,))",
    "w * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)",
    "(w * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6))).to(x.dtype)",
)  # fmt: skip
"""As models spell them; each also in low precision."""

NOT_ALIKE: dict[tuple[str, torch.dtype, str], str] = {}
"""Where a decomposition is not the canonical form, with the reason."""


def _traced(expression: str, dtype: torch.dtype, kind: str) -> fx.GraphModule:
    named = operands(dtype)
    function = function_of(expression)
    module = Function(lambda _, *args: function(**dict(zip(named, args, strict=True))), {})
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, tuple(named.values()))
        if kind == "decomposed":
            program = program.run_decompositions()
        elif kind == "of Inductor":
            program = program.run_decompositions(dict(compat.inductor_decompositions()))
    gm: fx.GraphModule = program.graph_module
    return gm


def _words(gm: fx.GraphModule) -> str:
    (result,) = gm.graph.output_node().args[0]  # type: ignore[misc]
    view = View(gm.graph, leaves=LEAVES)
    return words(view, view.value(result))  # type: ignore[arg-type]


@functools.cache
def _torch_level(dtype: torch.dtype) -> dict[str, str]:
    return canonicals(SPELLINGS, dtype)


@pytest.mark.parametrize("kind", ["exported", "decomposed", "of Inductor"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_every_dialect_has_one_form(dtype: torch.dtype, kind: str):
    expected = _torch_level(dtype)
    got = {e: _words(_traced(e, dtype, kind)) for e in SPELLINGS}
    assert got == expected
