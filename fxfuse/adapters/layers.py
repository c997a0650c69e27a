"""`from_hub_layer`: a layer class as a kernel of a pattern, in whichever model the pattern is found.

A layer of the `kernels` package has no state of its own: its forward reads ``self.weight``, ``self.variance_epsilon``.
Here ``self`` is a shell with those attributes, filled with what the pattern captured at the site.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fxfuse import library
from fxfuse.adapters.calling import LayerCall, check_layer, differentiability, hidden, is_opaque, layout_of
from fxfuse.adapters.hub import loaded
from fxfuse.adapters.layouts import Init
from fxfuse.adapters.spelled import ACTIVATIONS, Spelled
from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import is_input, is_optional, is_scalar
from fxfuse.authoring.terms import CaptureTerm, ChoiceTerm, Term
from fxfuse.errors import PatternError, unknown
from fxfuse.fingerprint import fingerprint
from fxfuse.kernels import SiteFacts, kernel
from fxfuse.params import Transform

PREFIX = "model.layers.0"


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
    backward: bool | str = True,
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
    _check(layer, bound, attributes, inputs, variants or {})
    allowed = _variants(layer, bound, attributes, variants or {})
    spelled = Spelled(layer, layout_of(layer), bound, dict(attributes), init, prefix)
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
    kinds |= {n: c.type.__name__ for n, c in bound.captures.items() if n in attributes and is_scalar(c)}  # type: ignore[attr-defined]  # a Scalar has a type
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


def _check(
    layer: type,
    pattern: Pattern,
    attributes: Mapping[str, str],
    inputs: Sequence[str],
    allowed: Mapping[str, Collection[str]],
) -> None:
    valid = {**pattern.captures, **dict.fromkeys(pattern.choices)}
    for operand in (*inputs, *attributes):
        if operand not in valid:
            raise PatternError(f"{layer.__name__}: " + unknown(f"operand of {pattern.name}", operand, valid))
    for operand in inputs:
        if operand not in pattern.captures or not is_input(pattern.captures[operand]):
            raise PatternError(f"{layer.__name__}: {operand} of {pattern.name} is no Input, so forward cannot take it.")
    certain = frozenset.intersection(*(_certain(o, allowed) for form in pattern.forms for o in form.outputs))
    told = {*inputs, *attributes}
    unread = [n for n, c in pattern.captures.items() if n in certain - told and (is_input(c) or is_scalar(c))]
    if unread:
        raise PatternError(
            f"{layer.__name__} is told nothing of {unread[0]} of {pattern.name}: add it to inputs or attributes."
        )


def _certain(term: Term, allowed: Mapping[str, Collection[str]]) -> frozenset[str]:
    """The captures that every site of these variants has."""
    if isinstance(term, CaptureTerm):
        return frozenset() if is_optional(term.capture) else frozenset({term.name})
    if isinstance(term, ChoiceTerm):
        labels = allowed.get(term.name, term.alternatives)
        labels = {labels} if isinstance(labels, str) else labels
        every = [_certain(t, allowed) for label, t in term.alternatives.items() if label in labels]
        return frozenset.intersection(*every) if every else frozenset()
    return frozenset().union(*(_certain(child, allowed) for child in term.children()))


def _variants(
    layer: type, pattern: Pattern, attributes: Mapping[str, str], given: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    allowed: dict[str, set[str]] = {}
    for choice, labels in pattern.choices.items():
        if choice in given:
            allowed[choice] = {given[choice]} if isinstance(given[choice], str) else set(given[choice])  # type: ignore[arg-type]  # a label or several
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
