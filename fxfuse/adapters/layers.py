"""`from_hub_layer`: a layer class as a kernel of a pattern, in whichever model the pattern is found.

A layer of the `kernels` package has no state of its own: its forward reads ``self.weight``, ``self.variance_epsilon``.
Here ``self`` is a shell with those attributes, filled with what the pattern captured at the site.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxfuse import library
from fxfuse.adapters.calling import LayerCall, check_layer, differentiability, hidden, is_opaque, layout_of
from fxfuse.adapters.conversion import Source
from fxfuse.adapters.hollow import emptied
from fxfuse.adapters.hub import loaded
from fxfuse.adapters.layouts import Init, LaidOut, lay_out
from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import Shaped, is_input, is_optional, is_scalar
from fxfuse.authoring.sizes import Dim, evaluate
from fxfuse.errors import PatternError, unknown
from fxfuse.fingerprint import fingerprint
from fxfuse.kernels import SiteFacts, kernel
from fxfuse.params import Transform

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""What an alternative of a choice is, where a layer has it as an attribute that it calls."""

PREFIX = "model.layers.0"
_PLAIN = (int, float, bool, str, tuple)
_SIZES = (16, 28, 44, 52, 68, 76, 92, 116)  # of dimensions, while nothing but their names is known


def from_hub_layer(
    layer: Any,
    pattern: Pattern | str,
    attributes: Mapping[str, str],
    *,
    inputs: Sequence[str] = ("x",),
    variants: Mapping[str, Collection[str]] | None = None,
    name: str | None = None,
    init: Init | None = None,
    prefix: str = PREFIX,
    opaque: bool | None = None,
    like: str | None = None,
    backward: bool = True,
    when: Callable[[SiteFacts], str | None] | None = None,
    **requirements: Any,
) -> Pattern:
    """Register a layer's forward as a kernel of a pattern; returns the pattern.

    Each site is tried on random inputs before it is trusted, whatever was said here of what the layer computes.

    Args:
        layer: a class with a forward, or ``"org/repo:Name"``, which the `kernels` package loads.
        pattern: a Pattern or its name.
        attributes: what of the pattern stands where: capture or choice -> an attribute of ``self``. Where the layer has
            a layout (``<name>Layout`` in its module): -> an attribute of the modules that the layout takes,
            ``"mlp.gate_proj.weight"``, and the layout says what ``self`` is. A choice becomes the function it names.
        inputs: the captures that forward takes, in order.
        variants: the alternatives that the layer computes, for each choice that is not among the attributes.
        name: the kernel's name; the layer's by default.
        init: builds the layout from those modules.
        prefix: what the modules' paths begin with in a model, for a layout's ``conversion_mapping``.
        opaque, like, backward: as of :func:`fxfuse.adapters.from_kernelconfig`.
        when, requirements: as of :func:`fxfuse.kernel`, such as ``device=``, ``dtypes=``, ``capability=``.

    Raises:
        PatternError: an operand or choice that the pattern does not have, a choice of which nothing is said, or a
            layout that does not fit.
    """
    layer = loaded(layer)
    check_layer(layer, len(inputs))
    bound = pattern if isinstance(pattern, Pattern) else library.lookup(pattern, "from_hub_layer")
    _check(layer, bound, attributes, inputs)
    allowed = _variants(layer, bound, attributes, variants or {})
    spelled = _Spelled(layer, layout_of(layer), bound, dict(attributes), init, prefix)
    laid = spelled.laid_out(spelled.usual())
    tensors: list[tuple[str, str]] = []
    derive: dict[str, Transform] = {}
    for path, source in laid.sources.items():
        operand = source if isinstance(source, str) else "made_" + path.replace(".", "_")
        if isinstance(source, Transform):
            derive[operand] = source
        tensors.append((path, operand))
    told = "\n".join([laid.told(identity=False), repr(dict(attributes)), fingerprint((init, layout_of(layer)))])
    call = LayerCall(layer, tuple(inputs), tuple(tensors), tuple(attributes), told, spelled)
    blind = is_opaque(layer, opaque)
    kinds = {n: "str" for n in attributes if n in bound.choices}
    kinds |= {n: c.type.__name__ for n, c in bound.captures.items() if n in attributes and is_scalar(c)}  # type: ignore[attr-defined]
    declared = differentiability(layer, blind, backward)
    function = hidden(call, kinds, like, differentiable=declared is not None) if blind else call

    def fits(facts: SiteFacts) -> str | None:
        lacking = [n for n in attributes if n in bound.captures and n not in facts.present]
        if lacking:
            return f"reads {lacking[0]}, which the site does not have"
        symbolic = sorted(facts.symbolic_scalars.intersection(attributes))
        if blind and symbolic:
            return f"needs a literal {symbolic[0]}; the site's is symbolic"
        return when(facts) if when is not None else None

    made = kernel(
        bound,
        name=name or layer.__name__,
        variants=allowed,
        derive=derive,
        backward=declared,
        when=fits,
        **requirements,
    )
    made(function)
    return bound


def _check(layer: type, pattern: Pattern, attributes: Mapping[str, str], inputs: Sequence[str]) -> None:
    valid = {**pattern.captures, **dict.fromkeys(pattern.choices)}
    for operand in (*inputs, *attributes):
        if operand not in valid:
            raise PatternError(f"{layer.__name__}: " + unknown(f"operand of {pattern.name}", operand, valid))
    for operand in inputs:
        if not is_input(pattern.captures[operand]):
            raise PatternError(f"{layer.__name__}: {operand} of {pattern.name} is no Input, so forward cannot take it.")
    unread = [
        n
        for n, c in pattern.captures.items()
        if (is_input(c) or is_scalar(c)) and not is_optional(c) and n not in inputs and n not in attributes
    ]
    if unread:
        raise PatternError(
            f"{layer.__name__} is told nothing of {unread[0]} of {pattern.name}: add it to inputs or attributes."
        )


def _variants(
    layer: type, pattern: Pattern, attributes: Mapping[str, str], given: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    allowed: dict[str, set[str]] = {}
    for choice, labels in pattern.choices.items():
        if choice in given:
            allowed[choice] = {given[choice]} if isinstance(given[choice], str) else set(given[choice])  # type: ignore[arg-type]
        elif choice not in attributes:
            raise PatternError(
                f"{pattern.name} has the choice {choice!r} ({', '.join(labels)}), and nothing says which of it "
                f"{layer.__name__} computes; pass variants={{{choice!r}: {{{labels[0]!r}}}}}."
            )
        if choice in attributes:
            allowed[choice] = allowed.get(choice, set(labels)) & set(ACTIVATIONS)
            if not allowed[choice]:
                raise PatternError(
                    f"{choice} of {pattern.name} cannot be an attribute: none of {', '.join(labels)} is a function "
                    f"known here ({', '.join(ACTIVATIONS)})."
                )
    for choice in given:
        if choice not in pattern.choices:
            raise PatternError(f"{layer.__name__}: " + unknown(f"choice of {pattern.name}", choice, pattern.choices))
    return allowed


class _Spelled:
    """The modules that a pattern's captures would have come from, for what is known of the captures."""

    def __init__(
        self,
        layer: type,
        layout: type | None,
        pattern: Pattern,
        attributes: dict[str, str],
        init: Init | None,
        prefix: str,
    ) -> None:
        self.layer = layer
        self.layout = layout
        self.pattern = pattern
        self.attributes = attributes
        self.init = init
        self.has_layout = layout is not None or init is not None
        self.prefix = prefix
        self.capture_of = {self._full(path): name for name, path in attributes.items()}
        self._made: dict[Any, nn.Module] = {}

    def _full(self, path: str) -> str:
        return f"{self.prefix}.{path}"

    def usual(self) -> dict[str, Any]:
        """A size for each dimension and a value for each scalar, so that a layout can be set up at all."""
        sizes: dict[Dim, int] = dict(zip(self.pattern.dims, _SIZES, strict=False))
        values: dict[str, Any] = {}
        for name in self.attributes:
            capture: Any = self.pattern.captures.get(name)
            if isinstance(capture, Shaped):
                values[name] = torch.empty([evaluate(d, sizes) for d in capture.dims if d is not ...], device="meta")
            elif capture is not None:
                values[name] = 1e-5 if capture.type is float else capture.type()
            else:
                values[name] = next(label for label in self.pattern.choices[name] if label in ACTIVATIONS)
        return values

    def __call__(self, given: Mapping[str, Any]) -> nn.Module:
        """The shell for these operands."""
        values = {name: given[name] for name in self.attributes}
        key = tuple((tuple(v.shape), v.dtype) if hasattr(v, "dtype") else v for v in values.values())
        if not all(isinstance(one, _PLAIN) for one in key):  # a symbolic number
            return emptied(self.laid_out(values).module)
        if key not in self._made:
            self._made[key] = emptied(self.laid_out(values).module)
        return self._made[key]

    def laid_out(self, values: Mapping[str, Any]) -> LaidOut:
        """The layer's ``self``, hollow, with captures as the sources of its tensors."""
        root = nn.Module()
        for name, path in sorted(self.attributes.items(), key=lambda item: item[1].count(".")):
            _put(root, path, values[name], self.attributes.values())
        modules: dict[str, nn.Module] = {self.prefix: root}
        if self.has_layout:
            modules = {self._full(n): root.get_submodule(n) for n in self._module_names()}
        laid = lay_out(self.layer, self.layout, modules, self.init, takes_modules=True)
        return LaidOut(laid.module, {path: self._captured(source) for path, source in laid.sources.items()})

    def _module_names(self) -> list[str]:
        flat = [path for path in self.attributes.values() if "." not in path]
        if flat:
            raise PatternError(
                f"{self.layer.__name__} has a layout, so its attributes are those of the modules that it takes, such "
                f"as 'norm.{flat[0]}'; given {flat[0]!r}."
            )
        return list(dict.fromkeys(path.partition(".")[0] for path in self.attributes.values()))

    def _captured(self, source: Source) -> Source:
        if isinstance(source, str):
            return self.capture_of[source]
        return replace(source, operands=tuple(map(self._captured, source.operands)))


def _put(root: nn.Module, path: str, value: Any, paths: Collection[str]) -> None:
    """Set an attribute of a submodule, which is made where it is not there. One with a matrix is an `nn.Linear`."""
    owner, _, name = path.rpartition(".")
    holder = root
    for segment in owner.split(".") if owner else ():
        if segment not in holder._modules:
            holder.add_module(segment, nn.Module())
        holder = holder.get_submodule(segment)
    if isinstance(value, str):
        setattr(holder, name, ACTIVATIONS[value])
        return
    if not hasattr(value, "shape"):
        setattr(holder, name, value)
        return
    weight = torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
    if name == "weight" and weight.ndim == 2 and owner:
        linear = nn.Linear(
            weight.shape[1], weight.shape[0], bias=f"{owner}.bias" in paths, dtype=weight.dtype, device="meta"
        )
        above, _, last = owner.rpartition(".")
        root.get_submodule(above).register_module(last, linear)
        return
    holder.register_parameter(name, nn.Parameter(weight, requires_grad=False))
