"""A pattern's reference as a piece of a program: random variant, sizes, dtypes and spellings, and a few edits."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from typing import Any

import torch

from bench.soundness.builder import FLOATS, Builder
from bench.soundness.edits import aimed, edit
from bench.soundness.program import BUFFER
from bench.soundness.recorded import Op, Recorded, Ref, record
from bench.soundness.spellings import DTYPES, SPELLINGS, literal
from bench.soundness.targets import Aim
from fxfuse.authoring import Dim, Pattern
from fxfuse.authoring.captures import Capture, Shaped, is_optional, is_param, is_scalar
from fxfuse.authoring.sizes import evaluate

SIZES = (1, 2, 3, 4, 6, 8)


def piece(b: Builder, pattern: Pattern, edits: int, *, clean: bool = False, aim: Aim | None = None) -> bool:
    """Add one piece. ``clean``: as the reference is written, in one dtype. False where it could not be made."""
    rng = b.rng
    for _ in range(4):
        variant = {name: rng.choice(labels) for name, labels in pattern.choices.items()}
        given = _given(b, pattern, variant, clean, aim or Aim())
        if given is None:
            continue
        captures, recorded = given
        b.focus.append(pattern.name)
        if aim is not None:
            aimed(aim, rng, recorded, b, captures)
        for _ in range(edits):
            edit(rng, recorded, b, captures)
        emit(b, recorded, captures, respell=0.0 if clean else rng.choice((0.0, 0.3, 0.8)))
        return True
    return False


def _given(
    b: Builder, pattern: Pattern, variant: Mapping[str, str], clean: bool, aim: Aim
) -> tuple[dict[str, str], Recorded] | None:
    """Operands for every capture, and what the reference does with them."""
    rng = b.rng
    mark = b.mark()
    dims = _sizes(rng, pattern, variant, aim.square)
    dtype = aim.dtype or rng.choices(FLOATS, (5, 3, 2))[0]
    lead = _lead(rng, dims, aim)
    clean = clean or aim.mixed
    share = rng.choices((0.0, 1.0, 0.5), (6, 2, 2))[0]  # of the optional operands that are there
    names: dict[str, Any] = {}
    for name, capture in pattern.captures.items():
        if is_optional(capture) and rng.random() >= share:
            names[name] = None
        elif is_scalar(capture):
            names[name] = _scalar(rng, capture)
        elif getattr(capture, "many", False):
            names[name] = tuple(_operand(b, capture, dims, lead, dtype, clean) for _ in range(_count(pattern, rng)))
        else:
            wide = aim.mixed and is_param(capture)
            names[name] = _operand(b, capture, dims, lead, torch.float32 if wide else dtype, clean)
    _alike(pattern, names)
    values = {k: _value(b, v) for k, v in names.items()}
    tensors = {n: b.env[n] for v in names.values() for n in (v if isinstance(v, tuple) else (v,)) if n in b.env}
    try:
        with torch.no_grad():
            recorded = record(lambda: pattern.reference(values, variant), tensors)
        if not recorded.ops:
            raise ValueError("nothing is computed")
    except Exception:
        b.back_to(mark)
        return None
    return {n: n for n in tensors}, recorded


def _count(pattern: Pattern, rng: random.Random) -> int:
    return rng.choice((2, 3)) if rng.random() < 0.9 else 1


def _alike(pattern: Pattern, names: dict[str, Any]) -> None:
    """``many`` captures have one length."""
    several = [n for n, c in pattern.captures.items() if getattr(c, "many", False) and names[n] is not None]
    count = min((len(names[n]) for n in several), default=0)
    for name in several:
        names[name] = names[name][:count]


def _value(b: Builder, name: Any) -> Any:
    if isinstance(name, tuple):
        return tuple(_value(b, n) for n in name)
    return b.env.get(name, name) if isinstance(name, str) else name


def _lead(rng: random.Random, dims: Mapping[Dim, int], aim: Aim) -> tuple[int, ...]:
    """Leading sizes; at times those of the named dimensions, so that a transpose too many changes no shape."""
    count = rng.choices((0, 1, 2, 3), (0.5, 3, 5, 1))[0] if aim.lead is None else aim.lead
    if dims and (aim.square or rng.random() < 0.15):
        return (next(iter(dims.values())),) * count
    return tuple(0 if rng.random() < 0.02 else rng.choice((1, 2, 2, 3, 4)) for _ in range(count))


def _sizes(rng: random.Random, pattern: Pattern, variant: Mapping[str, str], square: bool) -> dict[Dim, int]:
    """A size for every named dimension; often all equal, so that shapes cannot tell operands apart."""
    if square or rng.random() < 0.4:
        sizes = dict.fromkeys(pattern.dims, rng.choice((2, 4, 6, 8)))
    else:
        sizes = {dim: rng.choice(SIZES) for dim in pattern.dims}
    for dim, factor, other in relations(pattern, tuple(variant.items())):
        sizes[dim] = factor * sizes[other]
    return sizes


Relation = tuple[Dim, int, Dim]


@functools.cache
def relations(pattern: Pattern, variant: tuple[tuple[str, str], ...]) -> tuple[Relation, ...]:
    """What sizes must fulfil beyond what the pattern declares, for its reference to run: found by trying."""
    dims = list(dict.fromkeys(pattern.dims))
    single = [(a, factor, other) for a in dims for other in dims if a is not other for factor in (1, 2, 3)]
    guesses: list[tuple[Relation, ...]] = [(), *((s,) for s in single)]
    guesses += [(s, t) for s in single for t in single if s[0] is not t[0] and t[2] is not s[0]][:400]
    for guess in guesses:
        sizes = {dim: 2 * prime for dim, prime in zip(dims, (5, 7, 11, 13, 17, 19, 23, 29, 31), strict=False)}
        for dim, factor, other in guess:
            sizes[dim] = factor * sizes[other]
        b = Builder(random.Random(0))
        names = {n: None if is_optional(c) else _plain(b, c, sizes) for n, c in pattern.captures.items()}
        try:
            pattern.reference({k: _value(b, v) for k, v in names.items()}, dict(variant))
        except Exception:
            continue
        return guess
    return ()


def _plain(b: Builder, capture: Any, sizes: Mapping[Dim, int]) -> Any:
    if is_scalar(capture):
        return {float: 1e-6, int: 1, bool: False, str: "none"}.get(capture.type, (1,))
    one = _operand(b, capture, sizes, (3,), torch.float32, True)
    return (one, one) if getattr(capture, "many", False) else one


def _scalar(rng: random.Random, capture: Any) -> Any:
    if capture.type is float:
        return rng.choice((1e-6, 1e-6, 1e-5, 0.25, 0.3, 1, 1.0))
    if capture.type is int:
        return rng.choice((-1, 0, 1, 2))
    if capture.type is bool:
        return rng.random() < 0.5
    return rng.choice(("none", "tanh")) if capture.type is str else (rng.choice(SIZES),)


def _operand(
    b: Builder, capture: Capture, dims: Mapping[Dim, int], lead: tuple[int, ...], dtype: torch.dtype, clean: bool
) -> str:
    """A new operand, or one that the program has."""
    assert isinstance(capture, Shaped)
    rng = b.rng
    shape: list[int] = []
    for dim in capture.dims:
        shape += lead if dim is ... else [max(int(evaluate(dim, dims) or 0), 0)]
    allowed = capture.dtypes or FLOATS
    if dtype not in allowed or (not clean and rng.random() < 0.08):
        dtype = rng.choice(allowed)
    fitting = [n for n, v in b.env.items() if tuple(v.shape) == tuple(shape) and v.dtype is dtype]
    if is_param(capture):
        known = [n for n in fitting if n[0] == "p"]
        if known and rng.random() < 0.12:
            return rng.choice(known)
        if known and rng.random() < 0.03:
            return b.operand(tuple(shape), dtype, "p", of=f"{rng.choice(known)}.data")
        return b.operand(tuple(shape), dtype, BUFFER if rng.random() < 0.05 else "p", scale=0.5)
    inputs = [n for n in fitting if n[0] in "xt"]
    if inputs and rng.random() < 0.7:
        return rng.choice(inputs)
    if rng.random() < 0.06:
        flipped = b.operand((*shape[:-2], shape[-1], shape[-2]), dtype) if len(shape) > 1 else None
        made = b.emit(f"{flipped}.transpose(-1, -2)") if flipped else None
        if made is not None:
            return made
    return b.operand(tuple(shape), dtype, low=max(min(dims.values(), default=2), 1))


# --- writing it down ------------------------------------------------------------------------------------------------


def emit(b: Builder, recorded: Recorded, captures: Mapping[str, Any], *, respell: float) -> None:
    """Add the operations as statements, each in a random spelling with the probability ``respell``."""
    names: dict[int | str, str] = {name: captures[name] for name in captures}
    pending = list(recorded.ops)
    shuffle = b.rng.random() < 0.3
    outer = b.region
    while pending:
        ready = [op for op in pending if all(r.key in names for r in op.refs())]
        if not ready:
            break
        op = b.rng.choice(ready) if shuffle and not any(o.name == "run" for o in pending) else ready[0]
        pending.remove(op)
        b.region = (*outer, *op.region)
        made = write(b, op, names, respell)
        if made is not None:
            names[op.key] = made
    b.region = outer
    results = [names[r.key] for r in recorded.results if r.key in names]
    b.outputs += [names[r.key] for i, r in enumerate(recorded.results) if i in b.returned and r.key in names]
    b.returned.clear()
    b.results += results
    b.inner |= {names[op.key] for op in recorded.ops if op.key in names} - set(results)


def write(b: Builder, op: Op, names: Mapping[int | str, str], respell: float) -> str | None:
    """One operation as a statement; the name of its value, or None where no spelling of it runs."""
    rng = b.rng
    given = [names[a.key] if isinstance(a, Ref) else literal(a) for a in op.args]
    if op.name == "run":
        b.run(op.template.format(*given))
        return None
    templates = list(SPELLINGS.get(op.name, ())) or [op.template]
    if op.template and op.name:
        templates = [op.template, *templates]
    elif rng.random() < respell:
        rng.shuffle(templates)
    if op.name == "cast" and op.args[1] in DTYPES and not op.template and rng.random() < 0.5:
        templates.insert(0, DTYPES[op.args[1]])
        like = [n for n, v in b.env.items() if v.dtype is op.args[1]]
        if like and rng.random() < respell:
            templates.insert(0, "{0}." + f"{rng.choice(('to', 'type_as'))}({rng.choice(like)})")
    size = _last_size(b, given)
    for template in templates[:4]:
        made = b.emit(template.format(*given, n=size))
        if made is not None:
            return made
    return None


def _last_size(b: Builder, given: list[str]) -> int:
    value = b.env.get(given[0]) if given else None
    return int(value.shape[-1]) if value is not None and value.dim() else 1
