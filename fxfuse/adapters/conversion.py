"""`conversion_mapping` of transformers, read as fxfuse's transforms of a model's own parameters.

transformers applies it to a checkpoint while it loads; here the same objects say which parameter, or which
concatenation of several, a layout's parameter is. They are used through their own attributes and methods:
``rename_source_key``, ``source_patterns``, ``target_patterns``, ``operations``. Nothing is imported for them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from fxfuse.errors import PatternError, unknown
from fxfuse.params import Transform, stack, transpose

Shape = Sequence[int]
Source = str | Transform


def converted(
    mapping: Sequence[Any], sources: Mapping[str, Shape], targets: Mapping[str, Shape], layout: str
) -> dict[str, Source]:
    """For each of a layout's parameters, the model's parameter that it is, or the transform that makes it.

    Args:
        sources: full path of each parameter that goes in -> its shape.
        targets: full path of each parameter that the layout has -> its shape.
        layout: the layout's name, for messages.

    Raises:
        PatternError: a parameter of either side is left over, an entry names what does not exist, an operation is not
            known, or a shape differs.
    """
    entries = [copy.copy(one) for one in mapping]  # they note that they were used
    for entry in entries:
        if not hasattr(entry, "rename_source_key"):
            raise PatternError(
                f"{layout}.conversion_mapping holds {entry!r}; valid are transformers' WeightRenaming and "
                f"WeightConverter. A kernel that guards their import has None here where transformers is missing."
            )
    renamings = [e for e in entries if not hasattr(e, "operations")]
    converters = [e for e in entries if hasattr(e, "operations")]
    found: dict[str, list[tuple[str, Any, str | None]]] = {}
    for source in sources:
        target = source
        for renaming in renamings:
            target, _ = renaming.rename_source_key(target)
        used, pattern = None, None
        for converter in converters:
            target, pattern = converter.rename_source_key(target)
            if pattern is not None:
                used = converter
                break
        found.setdefault(target, []).append((source, used, pattern))
    for target, parts in found.items():
        if target not in targets:
            which = ", ".join(source for source, _, _ in parts)
            raise PatternError(
                f"{layout}.conversion_mapping makes {target} of {which}, and the layout has no such parameter: "
                + unknown("parameter", target, targets)
            )
    lacking = [target for target in targets if target not in found]
    if lacking:
        raise PatternError(
            f"{layout} has the parameter {lacking[0]}, which nothing in its conversion_mapping makes out of the "
            f"modules' parameters {', '.join(sources)}."
        )
    return {target: _made(parts, sources, targets[target], target, layout) for target, parts in found.items()}


def _made(
    parts: list[tuple[str, Any, str | None]], sources: Mapping[str, Shape], wanted: Shape, target: str, layout: str
) -> Source:
    converter = parts[0][1]
    made: Source
    if converter is None:
        if len(parts) > 1:
            raise PatternError(f"{layout}: {', '.join(p[0] for p in parts)} are all renamed to {target}.")
        made = parts[0][0]
    else:
        made = _applied(converter, parts, sources, target, layout)
    shape = sources[made] if isinstance(made, str) else _shape(made, sources, target, layout)
    if tuple(shape) != tuple(wanted):
        raise PatternError(
            f"{layout}: {target} is made as {made}, of shape {tuple(shape)}; the layout declares {tuple(wanted)}."
        )
    return made


def _shape(made: Transform, sources: Mapping[str, Shape], target: str, layout: str) -> Shape:
    try:
        return made.shape([sources[name] for name in made.sources])
    except ValueError as error:
        raise PatternError(f"{layout}: {target} cannot be made: {error}.") from error


def _applied(
    converter: Any, parts: list[tuple[str, Any, str | None]], sources: Mapping[str, Shape], target: str, layout: str
) -> Source:
    if len(converter.target_patterns) != 1:
        raise PatternError(
            f"{layout}: {target} is one of several that are made of {parts[0][0]} ({converter!r}); a layout's "
            f"parameter can be renamed, concatenated or transposed."
        )
    absent = [p for p in converter.source_patterns if p not in {pattern for _, _, pattern in parts}]
    if absent:
        raise PatternError(
            f"{layout}: {target} is made of {', '.join(map(repr, converter.source_patterns))}, and {absent[0]!r} "
            f"names none of the modules' parameters {', '.join(sources)}."
        )
    values: list[Source] = [s for wanted in converter.source_patterns for s, _, pattern in parts if pattern == wanted]
    rank = len(sources[parts[0][0]])
    for operation in converter.operations:
        values = [_operated(operation, values, rank, target, layout)]
    (made,) = values
    return made


def _operated(operation: Any, values: list[Source], rank: int, target: str, layout: str) -> Source:
    kind = type(operation).__name__
    if kind == "Concatenate" and getattr(operation, "num_shards_attribute", None) is None:
        return stack(*values, dim=operation.dim % rank)
    if kind == "Transpose" and not getattr(operation, "check_dims", False) and len(values) == 1:
        return transpose(values[0], operation.dim0 % rank, operation.dim1 % rank)
    raise PatternError(
        f"{layout}: {target} is made by {operation!r}, which fxfuse has no transform for; valid are Concatenate(dim) "
        f"and Transpose(dim0, dim1) of one tensor, each without looking at the model's configuration or sizes."
    )
