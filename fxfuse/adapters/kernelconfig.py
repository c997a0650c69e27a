"""`from_kernelconfig`: kernels written for transformers' KernelConfig, by the same mapping, without surgery.

A fusion key becomes one region, whose sites must be connected and closed; a class name becomes a region for each path
at which the model has such modules. The layer's forward runs on a shell of its layout; what the layout wants of weights
comes out of its ``conversion_mapping`` as transforms of the model's parameters. The model is only read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fxfuse.adapters.calling import LayerCall, check_layer, differentiability, hidden, is_opaque, layout_of
from fxfuse.adapters.conversion import Source
from fxfuse.adapters.hollow import emptied, hollow
from fxfuse.adapters.hub import loaded
from fxfuse.adapters.layouts import Init, LaidOut, lay_out
from fxfuse.authoring.region import Region, region
from fxfuse.errors import PatternError, unknown
from fxfuse.kernels import kernel
from fxfuse.params import Transform
from fxfuse.paths import binding, filled

Paths = tuple[str, ...]


def from_kernelconfig(
    kernel_mapping: Any,
    model: nn.Module,
    *,
    init: Init | None = None,
    opaque: bool | None = None,
    like: str | None = None,
    backward: bool | str = True,
) -> tuple[Region, ...]:
    """Regions of ``model``, each with the kernel that a KernelConfig names for it.

    Pass them to a compile: ``options={"add": [*from_kernelconfig(mapping, model)]}``. Nothing is patched and nothing is
    loaded anew; a compile without them is as before. Each site is tried on random inputs before it is trusted.

    Args:
        kernel_mapping: a ``KernelConfig``, or what it is made from. Keys: a class name, or for a fusion a tuple of
            ``(class name, glob)`` pairs, of which the globs count. Values: the layer's class, whose ``<name>Layout`` is
            looked up in its module, or ``"org/repo:Name"``, which the `kernels` package loads.
        model: where the modules are; it may be on the meta device.
        init: builds the layout from the modules, where its constructor takes something else than those (fusion) or the
            replaced module's own arguments (class name).
        opaque: run forward as one op that the compiler does not look into. By default where the layer does not say
            ``can_torch_compile = True``.
        like: for an opaque layer whose forward cannot run on fake tensors: the operand (``"x"``) whose shape, dtype and
            device its result has.
        backward: whether the layer may serve where a gradient is needed. By default where its forward is not opaque and
            it does not say ``has_backward = False``. ``"autograd"``: an opaque one, too, whose forward autograd can
            differentiate; it is run once more in the backward.

    Raises:
        PatternError: a glob or class that the model does not have, a layout that does not fit its modules' parameters,
            an operation of ``conversion_mapping`` without a transform, or a package that is missing.
    """
    mapping = getattr(kernel_mapping, "kernel_mapping", kernel_mapping)
    local = bool(getattr(kernel_mapping, "use_local_kernel", False))
    if not isinstance(mapping, Mapping) or not mapping:
        raise PatternError(f"from_kernelconfig takes a KernelConfig or its mapping; given {kernel_mapping!r}.")
    made: list[Region] = []
    for key, value in mapping.items():
        layer = loaded(value, local)
        check_layer(layer, 1)
        wanted = [place for globs in _globs(key, model) for place in _laid_out(key, layer, globs, model, init)]
        for where, laid in wanted:
            one = region(*where, name=_name(layer, where, [w for w, _ in wanted if w != where]))
            _add(one, layer, laid, opaque, like, backward)
            made.append(one)
    return tuple(made)


def _laid_out(key: Any, layer: type, globs: Paths, model: nn.Module, init: Init | None) -> list[tuple[Paths, LaidOut]]:
    """The globs, with what the layer sees as ``self`` there; place by place where that is not the same in all."""
    found = []
    for paths in _places(globs, model):
        modules = {path: hollow(model.get_submodule(path)) for path in paths}
        laid = lay_out(layer, layout_of(layer), modules, init, takes_modules=not isinstance(key, str))
        found.append((paths, _relative(laid, paths)))
    told = {laid.told(identity=True) for _, laid in found}
    return found if len(told) > 1 else [(globs, found[0][1])]


def _add(one: Region, layer: type, laid: LaidOut, opaque: bool | None, like: str | None, backward: bool | str) -> None:
    tensors: list[tuple[str, str]] = []
    derive: dict[str, Transform] = {}
    for path, source in laid.sources.items():
        operand = source if isinstance(source, str) else f"made_{_word(path)}"
        if isinstance(source, Transform):
            derive[operand] = source
        tensors.append((path, operand))
    shell = emptied(laid.module)
    call = LayerCall(layer, ("x",), tuple(tensors), (), laid.told(identity=False), lambda given: shell)
    blind = is_opaque(layer, opaque)
    declared = differentiability(layer, blind, backward)
    function = hidden(call, {}, like, differentiable=declared is not None) if blind else call
    kernel(one, name=layer.__name__, derive=derive, backward=declared, default=True)(function)


def _globs(key: Any, model: nn.Module) -> list[Paths]:
    """The globs of each region that a key of the mapping asks for."""
    if isinstance(key, str):
        return _by_class(key, model)
    pairs = list(key) if isinstance(key, tuple) else []
    if not pairs or not all(isinstance(p, tuple) and len(p) == 2 and all(isinstance(s, str) for s in p) for p in pairs):
        raise PatternError(
            f"a key is a class name, or a tuple of (class name, glob) pairs in the order of data flow; given {key!r}."
        )
    return [tuple(glob for _, glob in pairs)]


def _by_class(name: str, model: nn.Module) -> list[Paths]:
    """Globs for the modules whose class is called so, or has it in its name, as transformers finds them."""
    classes = {type(m).__name__: m for m in model.modules()}
    exact = {name} if name in classes else {c for c in classes if re.search(name, c)}
    paths = [path for path, m in model.named_modules() if type(m).__name__ in exact and path]
    if not paths:
        raise PatternError(f"{type(model).__name__} has no module of this class: " + unknown("class", name, classes))
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", path), []).append(path)
    globs: list[Paths] = []
    for glob, hits in found.items():
        others = [p for p, _ in model.named_modules() if binding(glob, p) is not None and p not in hits]
        globs += [(path,) for path in hits] if others else [(glob,)]
    return globs


def _places(globs: Paths, model: nn.Module) -> list[Paths]:
    """The modules of each site that the globs name in the model."""
    names = [path for path, _ in model.named_modules() if path]
    bound: dict[tuple[str, ...], set[str]] = {}
    for glob in globs:
        hits = {b: path for path in names if (b := binding(glob, path)) is not None}
        if not hits:
            near = sorted({re.sub(r"(?<=\.)\d+(?=\.)", "*", path) for path in names})
            raise PatternError(f"{glob!r} names no module of {type(model).__name__}: " + unknown("path", glob, near))
        for b in hits:
            bound.setdefault(b, set()).add(glob)
    for b, having in bound.items():
        lacking = [glob for glob in globs if glob not in having]
        if lacking:
            there = filled(next(iter(having)), b)
            raise PatternError(
                f"{there} is there in {type(model).__name__}, and {filled(lacking[0], b)}, which it is to be fused "
                f"with, is not."
            )
    return [tuple(filled(glob, b) for glob in globs) for b in bound]


def _relative(laid: LaidOut, paths: Paths) -> LaidOut:
    """The same with sources by the names that a region's operands have."""
    root = _root(paths)

    def operand(path: str) -> str:
        return _word(path.removeprefix(root))

    def renamed(source: Source) -> Source:
        if isinstance(source, str):
            return operand(source)
        return replace(source, operands=tuple(map(renamed, source.operands)))

    return LaidOut(laid.module, {path: renamed(source) for path, source in laid.sources.items()})


def _root(paths: Paths) -> str:
    """What the paths have in common before their last segment, with its final dot; as in a region."""
    shared = []
    for names in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return "".join(f"{name}." for name in shared)


def _word(path: str) -> str:
    return re.sub(r"\W+", "_", path).strip("_")


def _name(layer: type, where: Paths, others: Collection[Paths]) -> str:
    """The region's name: the layer's, with as much of the path as sets it apart from the layer's other regions."""
    if not others:
        return layer.__name__
    segments = where[0].split(".")
    ends = {other[0] for other in others}
    count = next(n for n in range(1, len(segments) + 1) if not any(_ends(e, segments[-n:]) for e in ends))
    return _word(f"{layer.__name__}_{'_'.join(s for s in segments[-count:] if '*' not in s)}")


def _ends(path: str, segments: Sequence[str]) -> bool:
    return path.split(".")[-len(segments) :] == list(segments)
