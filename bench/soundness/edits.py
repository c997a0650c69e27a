"""Random edits of a piece: each makes a program that is nearly the pattern, and usually is not."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from bench.soundness.builder import FLOATS, Builder
from bench.soundness.mistakes import FALSE_IDENTITIES, IDENTITIES, MISTAKES, MUTATIONS
from bench.soundness.recorded import Op, Recorded, Ref
from bench.soundness.spellings import SWAPS
from bench.soundness.targets import Aim

Edit = Callable[[random.Random, Recorded, Builder, dict[str, str]], None]
EDITS: dict[str, tuple[Edit, float]] = {}


def aimed(aim: Aim, rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """Apply what makes a program need one safeguard."""
    if aim.edit:
        EDITS[aim.edit][0](rng, recorded, b, captures)
    if aim.templates and aim.wrap:
        _wrap(rng, recorded, captures, rng.choice(aim.templates))
    elif aim.templates:
        for op in recorded.ops:
            if op.name == aim.op:
                op.template = rng.choice(aim.templates)


def edit(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """Apply one random edit; its name is added to what the program is about."""
    name = rng.choices(list(EDITS), [weight for _, weight in EDITS.values()])[0]
    b.focus.append(name)
    EDITS[name][0](rng, recorded, b, captures)


def _edit(weight: float) -> Callable[[Edit], Edit]:
    def register(function: Edit) -> Edit:
        EDITS[function.__name__] = (function, weight)
        return function

    return register


def _fresh(recorded: Recorded) -> int:
    return max((op.key for op in recorded.ops), default=0) + 1


def _insert_after(recorded: Recorded, at: int, op: Op) -> None:
    recorded.ops.insert(at + 1, op)


def _values(recorded: Recorded, captures: dict[str, str]) -> list[Ref]:
    return [*(Ref(c) for c in captures), *(Ref(op.key) for op in recorded.ops if op.name != "run")]


def _wrap(rng: random.Random, recorded: Recorded, captures: dict[str, str], template: str) -> None:
    """Put an expression over one operand of one operation."""
    at, op = rng.choice(list(enumerate(recorded.ops)))
    places = [i for i, a in enumerate(op.args) if isinstance(a, Ref)]
    if not places:
        return
    place = rng.choice(places)
    made = Op(_fresh(recorded), "", [op.args[place]], template, op.region)
    recorded.ops.insert(at, made)
    changed = Ref(made.key)
    if rng.random() < 0.5:
        op.args[place] = changed
    else:  # for every reader of it from here on
        old = op.args[place]
        for later in recorded.ops[at + 1 :]:
            later.args = [changed if a == old else a for a in later.args]


@_edit(4)
def mistake(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    known = [op for op in recorded.ops if op.name in MISTAKES and not op.template]
    if known:
        op = rng.choice(known)
        op.template = rng.choice(MISTAKES[op.name])


@_edit(1.5)
def swap_op(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    known = [(op, row) for op in recorded.ops for row in SWAPS if op.name in row]
    if known:
        op, row = rng.choice(known)
        op.name = rng.choice([n for n in row if n != op.name])


@_edit(2)
def change_literal(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    known = [(op, i) for op in recorded.ops for i, a in enumerate(op.args) if isinstance(a, int | float)]
    if known:
        op, i = rng.choice(known)
        value = op.args[i]
        if isinstance(value, bool):
            op.args[i] = not value
        elif isinstance(value, int):
            op.args[i] = rng.choice((value + 1, value - 1, -value, 0, 2 * value, float(value)))
        else:
            op.args[i] = rng.choice((value * 2, value + 1, 0.0, -value, value * 1.001, 1))


@_edit(3)
def swap_operands(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    known = [op for op in recorded.ops if len(op.args) > 1]
    if known:
        op = rng.choice(known)
        i, j = rng.sample(range(len(op.args)), 2)
        op.args[i], op.args[j] = op.args[j], op.args[i]


@_edit(3)
def other_operand(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """One operand becomes another value of the program, or one of the piece."""
    at, op = rng.choice(list(enumerate(recorded.ops)))
    places = [i for i, a in enumerate(op.args) if isinstance(a, Ref)]
    earlier = [Ref(c) for c in captures] + [Ref(o.key) for o in recorded.ops[:at] if o.name != "run"]
    if places and earlier:
        op.args[rng.choice(places)] = rng.choice(earlier)


@_edit(2)
def insert_cast(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    dtype = rng.choice((*FLOATS, torch.float64))
    back = rng.random() < 0.6
    _wrap(rng, recorded, captures, f"{{0}}.to({dtype}).to({{0}}.dtype)" if back else f"{{0}}.to({dtype})")


@_edit(1.5)
def remove_cast(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    casts = [op for op in recorded.ops if op.name == "cast"]
    if casts:
        gone = rng.choice(casts)
        recorded.ops.remove(gone)
        for op in recorded.ops:
            op.args = [gone.args[0] if a == Ref(gone.key) else a for a in op.args]


@_edit(1)
def change_cast(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    casts = [op for op in recorded.ops if op.name == "cast"]
    if casts:
        rng.choice(casts).args[1] = rng.choice((*FLOATS, torch.float64))


@_edit(3)
def extra_reader(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    inner = [op for op in recorded.ops if op.name != "run"]
    op = rng.choice(inner)
    at = recorded.ops.index(op)
    template = rng.choice(("{0} + 0", "{0}.sum()", "{0}", "{0}.transpose(0, -1)", "torch.atan({0})", "{0}.view(-1)[0]"))
    place = rng.randint(at, len(recorded.ops) - 1)
    _insert_after(recorded, place, Op(_fresh(recorded), "", [Ref(op.key)], template))


@_edit(4)
def write_between(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    at = rng.randrange(len(recorded.ops))
    known = [Ref(c) for c in captures] + [Ref(o.key) for o in recorded.ops[: at + 1] if o.name != "run"]
    target = rng.choice(known)
    _insert_after(recorded, at, Op(_fresh(recorded), "run", [target], rng.choice(MUTATIONS)))


@_edit(2.5)
def write_alias_between(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """An alias is taken at one place, and written through at a later one."""
    at = rng.randrange(len(recorded.ops))
    known = [Ref(c) for c in captures] + [Ref(o.key) for o in recorded.ops[: at + 1] if o.name != "run"]
    alias = Op(_fresh(recorded), "", [rng.choice(known)], rng.choice((*IDENTITIES, "{0}.view(-1)", "{0}.mT", "{0}[0]")))
    _insert_after(recorded, at, alias)
    later = rng.randint(at + 1, len(recorded.ops) - 1)
    _insert_after(recorded, later, Op(_fresh(recorded), "run", [Ref(alias.key)], rng.choice(MUTATIONS)))
    if rng.random() < 0.3 and later + 2 < len(recorded.ops):
        op = rng.choice(recorded.ops[later + 2 :])
        op.args = [Ref(alias.key) if a == alias.args[0] else a for a in op.args]


@_edit(3)
def identity(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    _wrap(rng, recorded, captures, rng.choice(IDENTITIES))


@_edit(4)
def false_identity(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    _wrap(rng, recorded, captures, rng.choice(FALSE_IDENTITIES))


@_edit(2)
def region(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A run of operations in a region: grad mode, autocast or a checkpoint's body."""
    start = rng.randrange(len(recorded.ops))
    end = rng.randint(start + 1, len(recorded.ops))
    if rng.random() < 0.3:
        start, end = 0, len(recorded.ops)
    name = rng.choice(("no_grad", "enable_grad", "autocast", "autocast", f"checkpoint{_fresh(recorded)}"))
    for op in recorded.ops[start:end]:
        op.region = (*op.region, name)


@_edit(1)
def computed_twice(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    at, op = rng.choice(list(enumerate(recorded.ops)))
    if op.name == "run":
        return
    twin = op.copy()
    twin.key = _fresh(recorded)
    _insert_after(recorded, rng.randint(at, len(recorded.ops) - 1), twin)
    place = recorded.ops.index(twin)
    for later in recorded.ops[place + 1 :]:
        if rng.random() < 0.5:
            later.args = [Ref(twin.key) if a == Ref(op.key) else a for a in later.args]


@_edit(2.5)
def other_weight(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A parameter becomes something else of its size: computed, cut, aliased, of another dtype, an input."""
    weights = [c for c in captures if captures[c][0] in "pb"]
    if not weights:
        return
    old = rng.choice(weights)
    name = captures[old]
    value = b.env[name]
    ways: list[Callable[[], str | None]] = [
        lambda: b.emit(f"{name} * 2"),
        lambda: b.emit(f"{name} + 0"),
        lambda: b.emit(f"{name}.detach()"),
        lambda: b.emit(f"{name}.t().contiguous().t()"),
        lambda: b.emit(f"{name}.clone()"),
        lambda: b.emit(f"{name}.flip(0)"),
        lambda: b.emit(f"{name}.t()") if value.dim() == 2 and value.shape[0] == value.shape[1] else None,
        lambda: b.operand(tuple(value.shape), value.dtype),
        lambda: b.weight(tuple(value.shape), rng.choice(FLOATS)),
        lambda: b.operand(tuple(value.shape), value.dtype, "p", of=f"{name}.data"),
        lambda: b.operand(tuple(value.shape), value.dtype, "p", of=f"{name}.data.flip(0)"),
        lambda: b.operand(tuple(value.shape), value.dtype, "b", scale=0.5),
        lambda: b.operand(tuple(value.shape), value.dtype, "b", of=f"{name}.data"),
        lambda: b.emit(f"{name}.expand_as({name})"),
        lambda: b.emit(f"{name}[:1].expand_as({name})"),
        lambda: rng.choice([n for n in b.env if n[0] in "pb" and b.env[n].shape == value.shape]),
        lambda: b.emit(f"F.dropout({name}, 0.5)"),
    ]
    other = rng.choice(ways)()
    if other is None:
        return
    key = f"other~{len(captures)}"
    captures[key] = other
    chosen = [op for op in recorded.ops if Ref(old) in op.args]
    for op in chosen if rng.random() < 0.5 else chosen[:1]:
        op.args = [Ref(key) if a == Ref(old) else a for a in op.args]


@_edit(1)
def scalar_tensor(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A number becomes a tensor of no dimensions or of one element: an input, a buffer, or made in the graph."""
    known = [(op, i) for op in recorded.ops for i, a in enumerate(op.args) if isinstance(a, float)]
    if not known:
        return
    op, i = rng.choice(known)
    shape, dtype = rng.choice(((), (), (1,))), rng.choice((torch.float32, torch.float64))
    ways: list[Callable[[], str | None]] = [
        lambda: b.operand(shape, dtype, rng.choice("xbp"), shift=2.0),
        lambda: b.emit(f"torch.tensor({op.args[i]})"),
        lambda: b.emit(f"torch.ones(()) * {op.args[i]}"),
    ]
    made = rng.choice(ways)()
    if made is not None:
        key = f"number~{len(captures)}"
        captures[key] = made
        op.args[i] = Ref(key)


@_edit(0.7)
def returned(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A value inside is a result of the program, too."""
    recorded.results.append(Ref(rng.choice([op.key for op in recorded.ops if op.name != "run"])))
    b.returned.add(len(recorded.results) - 1)


@_edit(0.3)
def cast_again(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A result that is a cast is made twice, and the program returns both."""
    casts = [op for op in recorded.ops if op.name == "cast" and Ref(op.key) in recorded.results]
    if casts:
        op = rng.choice(casts)
        again = Op(_fresh(recorded), "cast", list(op.args), "", op.region)
        recorded.ops.append(again)
        recorded.results.append(Ref(again.key))
        b.returned.update((recorded.results.index(Ref(op.key)), len(recorded.results) - 1))


@_edit(0.5)
def feed_back(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A later operand is computed from an earlier result of the piece."""
    late = _readers_after_a_result(recorded, captures)
    if late:
        at, op, place, result = rng.choice(late)
        made = Op(_fresh(recorded), "", [result, op.args[place]], "{0} * 0.5 + {1}", op.region)
        recorded.ops.insert(at, made)
        op.args[place] = Ref(made.key)


@_edit(0.7)
def late_operand(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """An operand is made late: after a result was read, and after a write to what its reader reads."""
    late = _readers_after_a_result(recorded, captures)
    if not late:
        return
    at, op, place, result = rng.choice(late)
    key = f"beside~{len(captures)}"
    captures[key] = b.operand(tuple(b.env[captures[str(op.args[place].key)]].shape))
    reader = Op(_fresh(recorded), "", [result, Ref(key)], "{0} + {1}")
    write = Op(reader.key + 1, "run", [Ref(key)], rng.choice(("{0}.mul_(2)", "{0}.zero_()", "{0} += 1")))
    made = Op(reader.key + 2, "", [op.args[place]], "{0} * 1.5")
    recorded.ops[at:at] = [reader, write, made]
    op.args[place] = Ref(made.key)


def _readers_after_a_result(recorded: Recorded, captures: dict[str, str]) -> list[tuple[int, Op, int, Ref]]:
    found = []
    done: list[Ref] = []
    for at, op in enumerate(recorded.ops):
        places = [i for i, a in enumerate(op.args) if isinstance(a, Ref) and captures.get(str(a.key), "p")[0] in "xt"]
        found += [(at, op, place, result) for place in places for result in done if op.args[place] != result]
        if Ref(op.key) in recorded.results:
            done.append(Ref(op.key))
    return [f for f in found if f[1].args[f[2]].key in captures]


@_edit(0.5)
def short_weight(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A vector becomes one of a single element, which serves all by broadcasting."""
    weights = [c for c in captures if captures[c][0] == "p" and b.env[captures[c]].dim() == 1]
    if weights:
        name = rng.choice(weights)
        captures[name] = b.weight((1,), b.env[captures[name]].dtype)


@_edit(0.5)
def number_beside(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """An input of no dimensions, in fp32, in place of a larger one."""
    inputs = [c for c in captures if captures[c][0] == "x"]
    if inputs:
        captures[inputs[-1]] = b.operand((), torch.float32, shift=1.0)
        if rng.random() < 0.4:
            remove_cast(rng, recorded, b, captures)


@_edit(1)
def write_inside(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A formula of two statements, with a write to its operand between them."""
    roots = [op for op in recorded.ops if op.name == "rsqrt"]
    if roots:
        op = rng.choice(roots)
        at = recorded.ops.index(op)
        root = Op(_fresh(recorded), "", list(op.args), "torch.sqrt({0})", op.region)
        write = Op(root.key + 1, "run", list(op.args), rng.choice(("{0}.mul_(2)", "{0} += 1", "{0}.zero_()")))
        recorded.ops[at:at] = [root, write]
        op.name, op.args, op.template = "", [Ref(root.key)], "{0}.reciprocal()"


@_edit(1)
def write_between_casts(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """One tensor is cast twice, and written in between."""
    casts = [op for op in recorded.ops if op.name == "cast"]
    if casts:
        op = rng.choice(casts)
        at = recorded.ops.index(op)
        readers = [o for o in recorded.ops[at + 1 :] if Ref(op.key) in o.args]
        if readers:
            place = recorded.ops.index(readers[-1])
            again = Op(_fresh(recorded), "cast", list(op.args), "", op.region)
            write = Op(again.key + 1, "run", op.args[:1], rng.choice(("{0}.mul_(2)", "{0} += 1")))
            recorded.ops[place:place] = [write, again]
            readers[-1].args = [Ref(again.key) if a == Ref(op.key) else a for a in readers[-1].args]


@_edit(0.3)
def narrow_weight(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A matrix becomes one of a single column."""
    weights = [c for c in captures if captures[c][0] == "p" and b.env[captures[c]].dim() == 2]
    for name in weights:
        value = b.env[captures[name]]
        captures[name] = b.weight((value.shape[0], 1), value.dtype)


@_edit(1)
def stale_copy(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """The piece reads a copy of an operand, which is written after the copy was made."""
    inputs = [c for c in captures if captures[c][0] in "xt"]
    if not inputs:
        return
    old = Ref(rng.choice(inputs))
    copy = Op(_fresh(recorded), "", [old], rng.choice(("{0}.clone()", "{0}.clone()", "{0} * 1", "{0}.contiguous()")))
    written = old if rng.random() < 0.7 else Ref(copy.key)
    how = rng.choice(("{0}.mul_(2)", "{0} += 1", "{0}.zero_()", "{0}[..., 0] = 1.0"))
    write = Op(copy.key + 1, "run", [written], how)
    for op in recorded.ops:
        op.args = [Ref(copy.key) if a == old else a for a in op.args]
    place = 0 if rng.random() < 0.7 else rng.randrange(len(recorded.ops))
    recorded.ops[place:place] = [write]
    recorded.ops.insert(0, copy)


@_edit(0.3)
def batch_of_weights(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A matrix that is an input becomes a batch of matrices."""
    for name in [c for c in captures if captures[c][0] == "x" and b.env[captures[c]].dim() == 2]:
        value = b.env[captures[name]]
        captures[name] = b.operand((rng.choice((1, 2, 3)), *value.shape), value.dtype)


@_edit(0.3)
def rows_elsewhere(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """A product of flattened rows comes back in another order of the leading dimensions."""
    for op in recorded.ops:
        if op.name == "linear" or "matmul" in op.template or "@" in op.template:
            weight = "{1}.t()" if op.name == "linear" else "{1}"
            flat = "{0}.reshape(-1, {0}.shape[-1])"
            op.name, op.template = "", f"({flat} @ {weight}).reshape({{0}}.shape[1], {{0}}.shape[0], -1)"


@_edit(1)
def drop_op(rng: random.Random, recorded: Recorded, b: Builder, captures: dict[str, str]) -> None:
    """An operation of one operand is left out."""
    single = [op for op in recorded.ops if len(op.args) == 1 and isinstance(op.args[0], Ref) and op.name in _UNARY]
    if single:
        gone = rng.choice(single[-1:] if rng.random() < 0.5 else single)
        recorded.ops.remove(gone)
        for op in recorded.ops:
            op.args = [gone.args[0] if a == Ref(gone.key) else a for a in op.args]
        recorded.results = [gone.args[0] if r == Ref(gone.key) else r for r in recorded.results]


_UNARY = {"tanh", "sigmoid", "relu", "silu", "gelu", "gelu_tanh", "exp", "neg", "square", "softmax"}
