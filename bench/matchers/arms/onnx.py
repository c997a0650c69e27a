"""onnxscript's rewriter on the graph of ``torch.onnx.export``, with its OR, commute, constants and checks."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor

from bench.matchers.arms.arm import Outcome, by_block, judge
from bench.matchers.blocks import NORMS, gated_mlp
from bench.matchers.captures import onnx_model
from bench.matchers.perturbations import Case

DOMAIN = "fxfuse_bench"


def rules_of(case: Case, *, ranks: tuple[int, ...] = (3, 2)) -> list[Any]:
    """A rule for each bias and rank, since the last operation of a pattern may not be an OR; the rest are ORs."""
    from onnxscript.rewriter import pattern as rewriting

    made = []
    for bias in (False, True):
        for rank in ranks if bias else (3,):  # without a bias both ranks are MatMul
            made.append(
                rewriting.RewriteRule(
                    _pattern(bias, rank, case.norms),
                    _replacement(bias, case.norms),
                    _check,
                    name=f"rms_norm_gated_mlp, {'bias' if bias else 'no bias'}, {rank}-D",
                )
            )
    return made


def _pattern(bias: bool, rank: int, norms: tuple[str, ...]) -> Any:
    """x, weight, eps and the projections' weights, as the exporter and its optimizer leave them (transposed)."""
    from onnxscript.rewriter.pattern import OrValue

    def linear(op: Any, h: Any, weight: Any, offset: Any) -> Any:
        if not bias:
            return op.MatMul(h, weight)
        return op.Add(op.MatMul(h, weight), offset) if rank == 3 else op.Gemm(h, weight, offset, transB=1)

    # Every OR has a tag: commute() of one without raises "tag_var must be specified".
    def rms_norm(op: Any, x: Any, weight: Any, eps: Any, wide: Any, narrow: Any) -> Any:
        h = OrValue([op.Cast(x, to=wide), x], tag_var="x_cast")
        mean = op.ReduceMean(op.Pow(h, 2.0), [-1], keepdims=1, noop_with_empty_axes=0)
        h = op.Mul(h, op.Reciprocal(op.Sqrt(op.Add(mean, eps))))
        forms = []
        if "early" in norms:
            forms.append(op.Mul(weight, OrValue([op.Cast(h, to=narrow), h], tag_var="h_cast")))
        if "late" in norms:
            forms.append(op.Cast(op.Mul(OrValue([op.Cast(weight, to=wide), weight], tag_var="w_cast"), h), to=narrow))
        return OrValue(forms, tag_var="norm") if len(forms) > 1 else forms[0]

    def block(op: Any, h: Any, gate: Any, up: Any, down: Any, biases: Any) -> Any:
        g = linear(op, h, gate, biases[0])
        return linear(op, op.Mul(op.Mul(g, op.Sigmoid(g)), linear(op, h, up, biases[1])), down, biases[2])

    if bias:
        return lambda op, x, weight, eps, gate, up, down, gate_bias, up_bias, down_bias, wide, narrow: block(
            op, rms_norm(op, x, weight, eps, wide, narrow), gate, up, down, (gate_bias, up_bias, down_bias)
        )
    return lambda op, x, weight, eps, gate, up, down, wide, narrow: block(
        op, rms_norm(op, x, weight, eps, wide, narrow), gate, up, down, (None, None, None)
    )


def _check(context: Any, eps: Any, gate: Any, up: Any, down: Any, **_: Any) -> Any:
    """What the shipped rules check: eps a constant scalar, the weights initializers."""
    from onnxscript.rewriter import _ir_utils
    from onnxscript.rewriter.pattern import MatchResult

    result = MatchResult()
    if not isinstance(_ir_utils.get_singleton_value(eps), float):
        return result.fail("eps is not a constant number.", eps)
    for weight in (gate, up, down):
        if weight.const_value is None:
            return result.fail("a projection's weight is not an initializer.", weight)
    return result


def _replacement(bias: bool, norms: tuple[str, ...]) -> Any:
    def fused(op: Any, x: Any, weight: Any, eps: Any, gate: Any, up: Any, down: Any, **more: Any) -> Any:
        from onnxscript.rewriter import _ir_utils

        norm = norms[more["norm"]] if len(norms) > 1 else norms[0]
        biases = [more[name] for name in ("gate_bias", "up_bias", "down_bias")] if bias else []
        number = _ir_utils.get_singleton_value(eps)
        return op.RmsNormGatedMlp(x, weight, gate, up, down, *biases, eps=number, norm=norm, _domain=DOMAIN)

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
        rules = RewriteRuleSet(rules_of(case), commute=True)
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
    """The model through ONNX's reference evaluator, in which the fused operation is the pattern's function."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
    from onnxscript import ir

    class RmsNormGatedMlp(OpRun):  # type: ignore[misc]
        op_domain = DOMAIN

        def _run(self, x: Any, weight: Any, gate: Any, up: Any, down: Any, *biases: Any, eps: Any, norm: Any) -> Any:
            x, weight, gate, up, down, *biases = map(_to_torch, (x, weight, gate, up, down, *biases))
            flip = (lambda t: t) if biases and x.dim() == 2 else (lambda t: t.t())  # Gemm has transB
            made = gated_mlp(NORMS[norm](x, weight, eps), flip(gate), flip(up), flip(down), *biases)
            return (_from_torch(made),)

    session = ReferenceEvaluator(ir.serde.serialize_model(model), new_ops=[RmsNormGatedMlp])
    given = {v.name: _from_torch(x) for v, x in zip(model.graph.inputs, case.inputs(), strict=True)}
    return by_block(case, [_to_torch(a) for a in session.run(None, given)])


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
