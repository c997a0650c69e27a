"""What a model writes is one canonical form in Dynamo's graph and in every ATen graph that is made of it."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from support import SHAPES, canonicals, function_of, operands, words
from view.aten_graphs import Function

from fxfuse import compat
from fxfuse.view import Leaf, LeafKind, View

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LEAVES = [Leaf(LeafKind.INPUT, name, i) for i, name in enumerate(SHAPES)]

SPELLINGS = (
    "x + y", "x + 1", "x - y", "x - 2.5", "x * y", "x * 0.5", "x / y", "x / 3", "-x", "x.abs()", "x.pow(2)",
    "x.square()", "x * x", "v.sqrt()", "v.rsqrt()", "v ** -0.5", "1 / v.sqrt()", "x.exp()", "v.log()", "x.sin()",
    "x.cos()", "x.erf()", "x.sigmoid()", "x.tanh()", "F.relu(x)", "F.silu(x)", "F.gelu(x)",
    "F.gelu(x, approximate='tanh')", "x * x.sigmoid()", "F.softmax(x, -1)", "F.softmax(x, 1)",
    "F.softmax(x, -1, dtype=torch.float32)", "F.softmax(x, -1, dtype=torch.float32).to(x.dtype)",
    "x.mean(-1, keepdim=True)", "x.mean((1, 2))", "x.sum(-1)", "x.sum(-1, keepdim=True) / 8",
    "x.amax(-1, keepdim=True)", "x.float()", "x.double()", "x.half()", "x.to(torch.bfloat16)",
    "x.float() * x.float()", "F.linear(x, W)", "F.linear(x[0], W)", "F.linear(x[0, 0], W)",
    "F.linear(x.reshape(6, 8), W)", "F.linear(x.transpose(0, 1), W)", "x @ W.t()", "x @ W.T", "x @ M", "x[0] @ M",
    "x @ C", "torch.bmm(x, C)", "x.transpose(1, 2)", "x.permute(2, 0, 1)", "W.t()", "x.reshape(6, 8)",
    "x.view(2, 3, 2, 4)", "x.flatten(1)", "x.unsqueeze(1)", "v.squeeze(-1)", "v.expand(2, 3, 8)", "x.contiguous()",
    "x.detach()", "x.clone()", "F.dropout(x, 0.5, False)", "x.chunk(2, -1)[1]", "x.split(4, -1)[0]",
    "x.split([3, 5], -1)[1]", "x[..., :4]", "x[..., 4:]", "x[..., 2:5]", "x[:, 0]", "x[:, :, :]", "x.unbind(0)[1]",
    "x.narrow(-1, 4, 4)", "x.select(1, 2)", "torch.cat((x, y), -1)", "torch.stack((x, y), 0)",
    "torch.where(x > 0, x, y)", "x.masked_fill(y > 0, 0.0)", "torch.maximum(x, y)", "F.rms_norm(x, (8,), w, 1e-5)",
    "F.layer_norm(x, (8,), w, w, 1e-5)", "F.layer_norm(x, (8,), w)", "F.layer_norm(x, (8,))",
    "w * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)",
    "(w * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6))).to(x.dtype)",
)  # fmt: skip
"""As models spell them; each also in low precision."""

NOT_ALIKE = {
    "F.linear(x[0, 0], W)": "one row is a matrix of one row in some decompositions",
    "x.detach()": "no grad mode is left to be detached from",
    "torch.stack((x, y), 0)": "a cat and a reshape",
    "1 / v.sqrt()": "in low precision a reciprocal",
}
"""Where some decomposition keeps another form, which no pattern of the library meets."""


@functools.cache
def _torch_level(dtype: torch.dtype) -> dict[str, str]:
    return canonicals(SPELLINGS, dtype)


def _words(dtype: torch.dtype, kind: str) -> dict[str, str]:
    named = operands(dtype)
    functions = [function_of(e) for e in SPELLINGS]

    def every(_: Function, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(named, args, strict=True))
        return tuple(f(**given) for f in functions)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(Function(every, {}), tuple(named.values()))
        if kind == "decomposed":
            program = program.run_decompositions()
        elif kind == "of Inductor":
            program = program.run_decompositions(dict(compat.inductor_decompositions()))
    view = View(program.graph, leaves=LEAVES)
    (results,) = program.graph.output_node().args
    return {e: words(view, view.operand(r)) for e, r in zip(SPELLINGS, results, strict=True)}


@pytest.mark.parametrize("kind", ["exported", "decomposed", "of Inductor"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=["fp32", "bf16", "fp16"])
def test_every_dialect_has_one_form(dtype: torch.dtype, kind: str) -> None:
    expected, got = _torch_level(dtype), _words(dtype, kind)
    assert not {e for e in NOT_ALIKE if e not in SPELLINGS}
    alike = {e for e in SPELLINGS if got[e] == expected[e]}
    assert {e: got[e] for e in SPELLINGS if e not in alike | set(NOT_ALIKE)} == {
        e: expected[e] for e in SPELLINGS if e not in alike | set(NOT_ALIKE)
    }
