"""For each safeguard, the pieces that need it: what `--prove` makes most of its programs of, and a run some."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.soundness.mistakes import MISTAKES

NORMS = ("fuzz_norm_linear", "fuzz_add_norm", "rms_norm_gated_mlp")
LINEARS = ("fuzz_siblings", "fuzz_two_activations", "fuzz_kept_gate", "fuzz_nested_choice", "fuzz_biases_in_pairs")
FP32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Aim:
    """How to make programs that need a safeguard.

    ``op`` becomes one of ``templates``, or with ``wrap`` one of its operands does; or ``edit`` is applied. ``behind``
    are safeguards that would catch the fault, too: they are lifted with it, and must not show it by themselves.
    """

    patterns: tuple[str, ...] = ()
    op: str = ""
    templates: tuple[str, ...] = ()
    wrap: bool = False
    edit: str = ""
    dtype: torch.dtype | None = None
    mixed: bool = False  # parameters in fp32, whatever ``dtype``
    square: bool = False
    lead: int | None = None  # how many leading dimensions
    captures: str = ""  # "aten": only there
    careless: bool = False  # kernels that break their contract
    behind: tuple[str, ...] = ()


_TURNED = ("{0}.permute(1, 0)", "{0}.transpose(0, 1)", "{0}.transpose(-1, -2)", "{0}.permute(0, 2, 1)")
_TYPE = ("same-type",)

TARGETS: dict[str, Aim] = {
    "apart": Aim(NORMS[1:2], edit="cast_again", dtype=BF16),
    "first_number": Aim(("fuzz_masked_softmax", "fuzz_attention"), "mul", ("torch.mul({1}, {0})",), dtype=BF16),
    "acyclic": Aim(("fuzz_two_inputs",), edit="feed_back", behind=("gate.cycle",)),
    "gate.cycle": Aim(("fuzz_two_inputs",), edit="feed_back", behind=("acyclic",)),
    "nothing-crossed": Aim(("fuzz_two_inputs",), edit="late_operand"),
    "constant": Aim(("fuzz_nested_choice",), "gelu_tanh", MISTAKES["gelu_tanh"][1:], dtype=FP32),
    "count": Aim(NORMS, "mean", ("{0}.sum(-1, keepdim=True) / ({n} + 1)", "{0}.sum(-1, keepdim=True) / 5"), dtype=FP32),
    "equal_parts": Aim(("fuzz_packed_glu",), "first_half", ("{0}[..., 1 : 1 + {0}.shape[-1] // 2]",)),
    "same_border": Aim(("fuzz_slice",), "slice_from_2", ("{0}[..., 2:5]", "{0}[..., 2:-1]")),
    "exponent": Aim(NORMS, "square", ("{0}.pow(3)", "{0} ** 4", "{0}.pow(1)")),
    "gate.constraint": Aim(("fuzz_biases_in_pairs",)),
    "gate.external_use": Aim(edit="extra_reader"),
    "gate.graph_output": Aim(edit="returned"),
    "gate.mutation": Aim(edit="write_between"),
    "gate.region": Aim(edit="region"),
    "identity_order": Aim(("fuzz_each", *LINEARS), "", _TURNED, wrap=True, square=True),
    "inactive_dropout": Aim((), "", ("F.dropout({0}, 0.5)",), wrap=True),
    "match.dtype": Aim((*NORMS, "fuzz_low_only"), edit="change_cast", dtype=BF16),
    "match.literal": Aim(("fuzz_nested_choice", "fuzz_each", *NORMS), edit="change_literal"),
    "match.same": Aim((*LINEARS, "fuzz_each", "fuzz_rotary", *NORMS), edit="other_operand"),
    "match.size": Aim(("fuzz_scale",), edit="short_weight"),
    "matrix_weight": Aim(
        ("fuzz_any_weight",), "linear", ("{0} @ {1}.transpose(-1, -2)",), edit="batch_of_weights", lead=0
    ),
    "bias_is_a_row": Aim(
        ("fuzz_biases_in_pairs",), "linear_bias", ("F.linear({0}, {1}) + {2}",), edit="short_weight", dtype=FP32,
        behind=("match.size",),
    ),
    "one_dimension": Aim(
        ("fuzz_functional_norm",), "rms_norm", ("F.rms_norm({0}, {0}.shape[-2:], None, {2}) * {1}",), dtype=FP32, lead=2
    ),
    "one_plus": Aim(("fuzz_nested_choice",), "silu", ("{0} / (2 + torch.exp(-{0}))",), dtype=FP32),
    "one_weight": Aim(
        LINEARS, "linear", ("torch.bmm({0}, {1}.t().expand({0}.shape[0], {0}.shape[-1], -1))",), edit="narrow_weight",
        captures="aten", lead=2, behind=("match.size",),
    ),
    "match.without": Aim(("fuzz_both_absent",), edit="drop_op"),
    "match.wide": Aim(("fuzz_formula",), "mul", ("F.silu({0})",), dtype=BF16),
    "uncorrected": Aim(("fuzz_functional_layer_norm",), "layer_norm", MISTAKES["layer_norm"][:1], dtype=FP32),
    "only_the_last": Aim(
        ("fuzz_heads",), "split_heads", ("{0}.reshape(-1, {0}.shape[0], 2)", "{0}.reshape({0}.shape[0] * 2, -1, 2)"),
        behind=("same-type", "same-strides"),
    ),
    "operands-kept": Aim(("fuzz_each",), careless=True),
    "same-memory": Aim(("fuzz_same_twice",), careless=True),
    "same-strides": Aim(("fuzz_scale",), careless=True),
    "same-type": Aim(("fuzz_low_only",), careless=True),
    "power_of_two": Aim(("fuzz_masked_softmax", "fuzz_attention"), "mul", ("{0} / 3.0", "{0} / 7.0"), dtype=FP32),
    "promotes_alone": Aim(("fuzz_shifted_weight",), "add", ("{0}.float() + {1}",), edit="number_beside", dtype=BF16),
    "widening_is_exact": Aim(
        ("fuzz_weighted",), "mul", ("({0}.to(torch.bfloat16) * {1}).float()",), dtype=BF16, mixed=True
    ),
    "reads_stay": Aim(NORMS, edit="write_inside", behind=("gate.mutation", "gate.external_use"), dtype=FP32),
    "repeated": Aim(
        ("fuzz_grouped",), "repeat",
        ("{0}[:, :, None].expand(-1, -1, 2, -1).reshape(-1, {0}.shape[1], {0}.shape[-1])",),
        behind=("same-type", "same-strides"),
    ),
    "rows_kept": Aim(
        ("fuzz_plain_product", "fuzz_nested_choice"), "", (), edit="rows_elsewhere", captures="aten", lead=2,
        behind=("same-type", "same-strides"),
    ),
    "same_number": Aim(("fuzz_where",), "where", MISTAKES["where"][:1], dtype=FP32, captures="aten"),
    "rounded_once": Aim(("fuzz_nested_choice",), "silu", ("{0} * torch.sigmoid({0})",), dtype=BF16),
    "same_dimensions": Aim(("fuzz_attention",), "transpose_last", ("{0}.T",), square=True, lead=2),
    "same_dtype": Aim((), "", ("{0}.to(torch.bfloat16)", "{0}.to(torch.float16).to({0}.dtype)"), wrap=True, dtype=FP32),
    "same_dtype_back": Aim(
        ("fuzz_nested_choice",), "silu", ("F.silu({0}.float()).to(torch.float16)",), captures="aten", dtype=BF16,
        behind=_TYPE,
    ),
    "widened_to_fp32": Aim(
        ("fuzz_nested_choice",), "silu", ("F.silu({0}.to(torch.float16)).to({0}.dtype)",), captures="aten", dtype=BF16
    ),
    "same_labels": Aim(LINEARS, "linear", ('torch.einsum("bij,kj->ibk", {0}, {1})',), square=True, lead=2),
    "same_later": Aim((), edit="stale_copy"),
    "same_operand": Aim(
        ("fuzz_nested_choice",), "silu", ("{0} * torch.sigmoid(torch.full({0}.shape, 0.5))",), dtype=FP32
    ),
    "same_reduction": Aim(
        ("fuzz_masked_softmax",), "softmax", (MISTAKES["softmax"][1],), dtype=FP32, square=True, captures="any"
    ),
    "same_shape": Aim(NORMS, "mean", ("{0}.reshape(1, -1).mean(-1, keepdim=True)",), dtype=FP32, lead=1),
    "times_one": Aim((), "", ("{0} * 2", "{0} / 4", "0.5 * {0}"), wrap=True),
    "unwritten_twin": Aim(NORMS, edit="write_between_casts", dtype=BF16, behind=("gate.mutation",)),
    "batch_weight_transposed": Aim(
        LINEARS, "linear", ("torch.bmm({0}, {1}.expand({0}.shape[0], -1, -1))",), captures="aten", square=True, lead=2
    ),
    "whole_slice": Aim(("fuzz_each", "fuzz_add_norm", "fuzz_rotary"), "", ("{0}[:1]", "{0}[..., :1]"), wrap=True),
}  # fmt: skip
