"""How often each pattern of the library is in one recorded call of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bench.coverage.oracle.norms import kind_of
from bench.coverage.oracle.recording import Call, ModuleCall, Recording

_SAME = {"contiguous", "clone", "detach", "dropout", "alias"}
_CASTS = {"to", "float", "type_as", "type", "bfloat16", "half"}
_SHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
_PARTS = {"chunk", "split", "__getitem__", "unbind", "tensor_split", "select", "narrow"}
_ACTS = {"silu", "gelu", "relu", "sigmoid", "tanh", "leaky_relu", "softplus", "mish", "elu", "hardswish"}
_GATED_MLP_ACTS = {"silu", "gelu", "relu"}
_ADDS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
_MULS = {"mul", "__mul__", "__rmul__", "__imul__", "mul_", "multiply"}
_LINEARS = {"linear", "addmm"}


class Present:
    """The structures of one recording; each list has one entry for each place."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.calls = recording.calls
        self.norms = [m for m in recording.modules if kind_of(m.module) == "weighted" and _is_read(m)]
        self.unweighted = [m for m in recording.modules if kind_of(m.module) == "unweighted" and _is_read(m)]
        self.gated_norms = [m for m in recording.modules if kind_of(m.module) == "gated" and _is_read(m)]
        self.activations = {
            id(m.made_by): m for m in recording.modules if _is_activation(m.module) and m.made_by is not None
        }
        self.inside = _calls_inside(recording, self.activations)
        products = [c for c in self.calls if c.name in _LINEARS and _weight(c) is not None]
        self.linears = [c for c in products if c.name == "linear"]
        self.products = products
        self.mlps = [mlp for c in self.linears if (mlp := self._gated_mlp(c)) is not None]

    # --- single structures ---

    def activation_of(self, call: Call | None) -> tuple[str, Call | None] | None:
        """The name of the activation that this call is the result of, and the call that made its operand."""
        if call is None:
            return None
        module = self.activations.get(id(call))
        if module is not None:
            return _act_name(module.module), module.given_by
        if call.name in _ACTS and id(call) not in self.inside:
            return call.name, call.maker(0)
        return None

    def _gated_mlp(self, down: Call) -> tuple[Call, str, str] | None:
        """Of a linear that ends a gated MLP: one of its projections, how they are laid out, and the activation."""
        product = _strip(down.maker(0))
        if product is None or product.name not in _MULS or len(product.makers) != 2:
            return None
        for gate, up in ((0, 1), (1, 0)):
            act = self.activation_of(_strip(product.maker(gate)))
            if act is None:
                continue
            name, before = act
            first, second = _strip(before), _strip(product.maker(up))
            if first is None or second is None:
                continue
            if first.name in _LINEARS and second.name in _LINEARS:
                if first is not second and first.tensors[0] is second.tensors[0] and _weight(first) is not None:
                    return first, "separate", name
            else:
                one, other = _cut_from(first), _cut_from(second)
                if one is not None and one is other and _weight(one) is not None:
                    return one, "packed", name
        return None

    # --- counts ---

    def rms_norm(self) -> int:
        return len(self.norms)

    def rms_norm_unweighted(self) -> int:
        return len(self.unweighted)

    def rms_norm_gated(self) -> int:
        return len(self.gated_norms)

    def add_rms_norm(self) -> int:
        return sum(_is_sum(_strip(m.given_by)) for m in self.norms)

    def gated_mlp(self) -> int:
        return sum(act in _GATED_MLP_ACTS for _, _, act in self.mlps)

    def gated_mlp_of_another_activation(self) -> int:
        return sum(act not in _GATED_MLP_ACTS for _, _, act in self.mlps)

    def rms_norm_gated_mlp(self) -> int:
        return sum(act in _GATED_MLP_ACTS and self._feeds(first) == "alone" for first, _, act in self.mlps)

    def rms_norm_gated_mlp_with_other_readers(self) -> int:
        return sum(act in _GATED_MLP_ACTS and self._feeds(first) == "shared" for first, _, act in self.mlps)

    def _feeds(self, projection: Call) -> str:
        """How an RMSNorm feeds a gated MLP by this projection: ``alone``, ``shared`` or not at all (empty)."""
        x, maker = projection.tensors[0], projection.maker(0)
        while maker is not None and maker.name in _SHAPES and not any(m.made_by is maker for m in self.norms):
            x, maker = maker.tensors[0], maker.maker(0)  # rows for the experts
        if maker is None or not any(m.made is x for m in self.norms):
            return ""
        mine = [r for r in maker.readers if r.name in _LINEARS and r.tensors[0] is x]
        return "alone" if len(mine) == len(maker.readers) and len(mine) <= 2 else "shared"

    def siblings(self) -> list[list[Call]]:
        """The groups of two and more linears of one input."""
        groups: dict[int, list[Call]] = {}
        for call in self.linears:
            groups.setdefault(id(call.tensors[0]), []).append(call)
        return [g for g in groups.values() if len({id(_weight(c)) for c in g}) > 1]

    def sibling_linears(self) -> int:
        return len(self.siblings())

    def rms_norm_qkv(self) -> int:
        """Groups of two or three that alone read an RMSNorm, with a bias all or none."""
        found = 0
        for group in self.siblings():
            x, maker = group[0].tensors[0], group[0].maker(0)
            alone = maker is not None and len(maker.readers) == len(group) <= 3
            biased = {_bias(c) is None for c in group}
            found += alone and len(biased) == 1 and any(m.made is x for m in self.norms)
        return found

    def linear(self) -> int:
        return len(self.linears)

    def rope(self) -> int:
        """Half-rotations: ``x * cos + cat(-x2, x1) * sin``."""
        return sum(_is_rotation(c) for c in self.calls)

    def layer_norm_mlp(self) -> int:
        """A projection, an activation, a projection; a LayerNorm for it alone before, or one of the sum with it."""
        return self._layer_norms_of_mlps().count("own")

    def layer_norm_mlp_with_other_readers(self) -> int:
        return self._layer_norms_of_mlps().count("shared")

    def _layer_norms_of_mlps(self) -> list[str]:
        found = []
        for down in self.products:
            act = self.activation_of(_strip(_input_maker(down)))
            up = _strip(act[1]) if act is not None else None
            while up is not None and up.name in _SHAPES:
                up = _strip(up.maker(0))
            if up is None or up.name not in _LINEARS or _weight(up) is None:
                continue
            norm = _input_maker(up)
            before = norm is not None and norm.name == "layer_norm"
            if (before and norm is not None and len(norm.readers) == 1) or _sum_is_normed(down, up):
                found.append("own")
            elif before:
                found.append("shared")
        return found

    def moe_experts(self) -> int:
        return sum(_is_experts(m.module) for m in self.recording.modules)

    def linear_cross_entropy(self) -> int:
        found = 0
        for call in self.calls:
            if call.name == "cross_entropy":
                maker = call.maker(0)
                while maker is not None and maker.name not in _LINEARS and maker.name in _PASSES:
                    maker = maker.maker(0)
                found += maker is not None and maker.name in _LINEARS
        return found


_PASSES = _SAME | _CASTS | _SHAPES | {"__getitem__"} | _MULS | {"__truediv__", "div", "tanh"}

COUNTS: dict[str, Callable[[Present], int]] = {
    "rms_norm": Present.rms_norm,
    "add_rms_norm": Present.add_rms_norm,
    "gated_mlp": Present.gated_mlp,
    "rms_norm_gated_mlp": Present.rms_norm_gated_mlp,
    "rms_norm_qkv": Present.rms_norm_qkv,
    "sibling_linears": Present.sibling_linears,
    "layer_norm_mlp": Present.layer_norm_mlp,
    "rope": Present.rope,
    "linear": Present.linear,
    "moe_experts": Present.moe_experts,
    "linear_cross_entropy": Present.linear_cross_entropy,
}
"""The patterns that can be counted; of another one the oracle says nothing."""

BESIDE: dict[str, Callable[[Present], int]] = {
    "unweighted RMSNorm": Present.rms_norm_unweighted,
    "gated RMSNorm": Present.rms_norm_gated,
    "gated MLP of another activation": Present.gated_mlp_of_another_activation,
    "RMSNorm before a gated MLP, read by others, too": Present.rms_norm_gated_mlp_with_other_readers,
    "LayerNorm before an MLP, read by others, too": Present.layer_norm_mlp_with_other_readers,
}
"""What is near a pattern and is not it."""


def present(recording: Recording) -> dict[str, int]:
    """Pattern, or what is near one -> how often it is there."""
    found = Present(recording)
    return {name: int(count(found)) for name, count in {**COUNTS, **BESIDE}.items()}


def _is_read(norm: ModuleCall) -> bool:
    return norm.made_by is not None and bool(norm.made_by.readers)


def _is_activation(module: nn.Module) -> bool:
    if any(True for _ in (*module.children(), *module.parameters())):
        return False
    cls = type(module)
    return cls.__module__ in _HOMES or any(word in cls.__name__.lower() for word in ("gelu", "silu", "relu", "swish"))


_HOMES = {"transformers.activations", "torch.nn.modules.activation"}


_NAMES = {"SiLUActivation": "silu", "SiLU": "silu", "GELUActivation": "gelu", "GELU": "gelu", "ReLU": "relu",
          "GELUTanh": "gelu", "PytorchGELUTanh": "gelu"}  # fmt: skip


def _act_name(module: nn.Module) -> str:
    return _NAMES.get(type(module).__name__, type(module).__name__)


def _calls_inside(recording: Recording, activations: dict[int, ModuleCall]) -> set[int]:
    """The calls that a module of an activation makes: it is one activation, not several."""
    paths = {m.path for m in activations.values()}
    return {id(c) for c in recording.calls if c.path in paths}


def _strip(call: Call | None) -> Call | None:
    """The call behind what changes nothing: inactive dropout, copies, casts to the dtype that is there."""
    while call is not None:
        cast = call.name in _CASTS and isinstance(call.result, Tensor)
        same_dtype = cast and call.tensors[0].dtype == call.result.dtype
        quiet = call.name in _SAME and not (call.name == "dropout" and _drops(call))
        if not (same_dtype or quiet):
            return call
        call = call.maker(0)
    return None


def _drops(call: Call) -> bool:
    p = call.kwargs.get("p", call.args[1] if len(call.args) > 1 else 0.5)
    training = call.kwargs.get("training", call.args[2] if len(call.args) > 2 else True)
    return bool(p) and bool(training)


def _cut_from(call: Call | None) -> Call | None:
    """The linear of which this is a part."""
    steps = 0
    while call is not None and call.name in _PARTS | _SHAPES | _SAME and steps < 4:
        call, steps = call.maker(0), steps + 1
    return call if call is not None and call.name in _LINEARS and steps else None


def _input(call: Call) -> Tensor:
    """What a linear is given; ``addmm`` has its bias first."""
    return call.args[1] if call.name == "addmm" else call.tensors[0]


def _input_maker(call: Call) -> Call | None:
    maker = call.maker(1 if call.name == "addmm" else 0)
    while maker is not None and call.name == "addmm" and maker.name in _SHAPES:  # Conv1D makes rows first
        maker = maker.maker(0)
    return maker


def _weight(call: Call) -> Any:
    place = 2 if call.name == "addmm" else 1
    weight = call.kwargs.get("weight", call.args[place] if len(call.args) > place else None)
    return weight if isinstance(weight, nn.Parameter) else None


def _bias(call: Call) -> Any:
    return call.kwargs.get("bias", call.args[2] if len(call.args) > 2 else None)


def _sum_is_normed(down: Call, up: Call) -> bool:
    """Whether a LayerNorm takes the sum of an MLP's operand and result."""
    operands, maker = [_input(up)], up.maker(1 if up.name == "addmm" else 0)
    while maker is not None and maker.name in _SHAPES:
        operands, maker = [*operands, maker.tensors[0]], maker.maker(0)
    sums, seen = [r for r in down.readers if r.name in _SAME | _SHAPES | _ADDS], 0
    while seen < len(sums):
        if sums[seen].name not in _ADDS:
            sums += [r for r in sums[seen].readers if r.name in _SAME | _SHAPES | _ADDS]
        seen += 1
    of_both = [s for s in sums if s.name in _ADDS and any(t is x for t in s.tensors for x in operands)]
    return any(r.name == "layer_norm" for s in of_both for r in s.readers)


def _is_sum(call: Call | None) -> bool:
    if call is None or call.name not in _ADDS:
        return False
    both = call.tensors
    return len(both) == 2 and both[0].shape == both[1].shape and both[0].dtype == both[1].dtype


def _is_rotation(call: Call) -> bool:
    if call.name not in _ADDS or len(call.makers) != 2:
        return False
    return any(_is_rotated(m) for m in call.makers)


def _is_rotated(product: Call | None) -> bool:
    if product is None or product.name not in _MULS:
        return False
    return any(m is not None and m.name == "cat" and _negates_one(m) for m in product.makers)


def _negates_one(cat: Call) -> bool:
    """``cat(-x2, x1)``; NanoChat's ``cat(x2, -x1)`` turns the other way."""
    negated = [m is not None and m.name in {"neg", "__neg__"} for m in cat.makers]
    return negated == [True, False]


def _is_experts(module: nn.Module) -> bool:
    return any(p.dim() == 3 and name.startswith("gate_up_proj") for name, p in module.named_parameters(recurse=False))
