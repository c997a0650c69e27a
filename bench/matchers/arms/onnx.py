"""onnxscript's rewriter on the graph of ``torch.onnx.export``, with its OR, commute, constants and checks."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.matchers.arms.arm import Outcome, by_block, judge
from bench.matchers.captures import onnx_model
from bench.matchers.perturbations import Case

BIASES = ("gate_bias", "up_bias", "down_bias")
FLOAT = 1


def rules_of(
    norms: Sequence[str], *, biases: Sequence[bool] = (False, True), ranks: Sequence[int] = (3, 2)
) -> list[Any]:
    """A rule for each bias and rank, since the last operation of a pattern may not be an OR; the rest are ORs."""
    from onnxscript.rewriter.pattern import RewriteRule

    return [
        RewriteRule(
            _pattern(bias, rank, norms),
            _replacement(bias, rank, norms),
            _check,
            name=f"rms_norm_gated_mlp, {'bias' if bias else 'no bias'}, {rank}-D",
        )
        for bias, rank in itertools.product(biases, ranks)
    ]


def _linear(op: Any, rank: int, h: Any, weight: Any, bias: Any) -> Any:
    """As the exporter and its optimizer leave it: MatMul with a transposed weight, or Gemm where there are two dims."""
    if rank == 2:
        return op.Gemm(h, weight, *([] if bias is None else [bias]), transB=1, alpha=1.0, beta=1.0, transA=0)
    made = op.MatMul(h, weight)
    return made if bias is None else op.Add(made, bias)


def _block(op: Any, rank: int, h: Any, gate: Any, up: Any, down: Any, biases: Sequence[Any]) -> Any:
    g = _linear(op, rank, h, gate, biases[0])
    return _linear(op, rank, op.Mul(op.Mul(g, op.Sigmoid(g)), _linear(op, rank, h, up, biases[1])), down, biases[2])


def _rms_norm(op: Any, norms: Sequence[str], x: Any, weight: Any, eps: Any, wide: Any, narrow: Any) -> Any:
    from onnxscript.rewriter.pattern import OrValue

    # Every OR has a tag: commute() of one without raises "tag_var must be specified".
    h = OrValue([op.Cast(x, to=wide), x], tag_var="x_cast")
    mean = op.ReduceMean(op.Pow(h, 2.0), [-1], keepdims=1, noop_with_empty_axes=0)
    h = op.Mul(h, op.Reciprocal(op.Sqrt(op.Add(mean, eps))))
    forms = []
    if "early" in norms:
        forms.append(op.Mul(weight, OrValue([op.Cast(h, to=narrow), h], tag_var="h_cast")))
    if "late" in norms:
        scale = OrValue([op.Cast(weight, to=wide), weight], tag_var="w_cast")
        forms.append(op.Cast(op.Mul(scale, h), to=narrow))
    return OrValue(forms, tag_var="norm") if len(forms) > 1 else forms[0]


def _pattern(bias: bool, rank: int, norms: Sequence[str]) -> Any:
    """onnxscript reads the captures from the signature, so a pattern with biases is another function."""
    if bias:
        return lambda op, x, weight, eps, gate, up, down, gate_bias, up_bias, down_bias, wide, narrow: _block(
            op,
            rank,
            _rms_norm(op, norms, x, weight, eps, wide, narrow),
            gate,
            up,
            down,
            (gate_bias, up_bias, down_bias),
        )
    return lambda op, x, weight, eps, gate, up, down, wide, narrow: _block(
        op, rank, _rms_norm(op, norms, x, weight, eps, wide, narrow), gate, up, down, (None, None, None)
    )


def _check(context: Any, eps: Any, gate: Any, up: Any, down: Any, **_: Any) -> Any:
    """What the shipped rules check, too: eps a constant scalar, the weights initializers."""
    from onnxscript.rewriter import _ir_utils
    from onnxscript.rewriter.pattern import MatchResult

    result = MatchResult()
    if not isinstance(_ir_utils.get_singleton_value(eps), float):
        return result.fail("eps is not a constant number.", eps)
    for weight in (gate, up, down):
        if weight.const_value is None:
            return result.fail("a projection's weight is not an initializer.", weight)
    return result


def _replacement(bias: bool, rank: int, norms: Sequence[str]) -> Any:
    """The declared function in ONNX's own operations, so that the reference evaluator rounds both sides alike."""

    def fused(op: Any, x: Any, weight: Any, eps: Any, gate: Any, up: Any, down: Any, **more: Any) -> Any:
        norm = norms[more["norm"]] if len(norms) > 1 else norms[0]
        h = op.Cast(x, to=FLOAT)
        square = op.Pow(h, op.Constant(value_float=2.0))
        mean = op.ReduceMean(square, op.Constant(value_ints=[-1]), keepdims=1)
        h = op.Mul(h, op.Reciprocal(op.Sqrt(op.Add(mean, eps))))
        if norm == "early":
            h = op.Mul(weight, op.CastLike(h, x))
        else:
            h = op.CastLike(op.Mul(op.Cast(weight, to=FLOAT), h), x)
        return _block(op, rank, h, gate, up, down, [more[name] if bias else None for name in BIASES])

    return fused


class Onnx:
    """Rules for bias and rank, all commuted by the rewriter's own option."""

    name = "onnxscript"
    given = (
        "torch.onnx.export(dynamo=True, optimize=True); ORs for the casts and norms, eps any constant, weights "
        "checked, one rule for each bias and rank, RewriteRuleSet(commute=True)"
    )

    def run(self, case: Case) -> Outcome:
        from onnxscript.rewriter.pattern import MatchingTracer, RewriteRuleSet

        model = onnx_model(case.model(), case.inputs(), dynamic=case.dynamic)
        before = _run(case, model)
        rules = RewriteRuleSet(rules_of(case.norms), commute=True)
        tracer = MatchingTracer()
        rules.apply_to_model(model, tracer=tracer)
        asked = io.StringIO()
        with contextlib.redirect_stdout(asked):
            tracer.report()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            sites = rules.apply_to_model(model)
        outcome = Outcome(sites, said=said.getvalue(), asked=asked.getvalue(), patterns=len(rules.rules))
        return judge(outcome, case, before, lambda: _run(case, model))


def _run(case: Case, model: Any) -> list[list[Tensor]]:
    """The model through ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator
    from onnxscript import ir

    session = ReferenceEvaluator(ir.serde.serialize_model(model))
    given = {v.name: _from_torch(x) for v, x in zip(model.graph.inputs, case.inputs(), strict=True)}
    made = [_to_torch(array) for array in session.run(None, given)]
    return by_block(case, made)


def _to_torch(array: Any) -> Tensor:
    import numpy

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(numpy.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(numpy.array(array))


def _from_torch(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.contiguous().numpy()
