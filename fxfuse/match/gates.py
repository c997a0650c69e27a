"""Safety gates: what must hold at every match of every pattern before it may be rewritten."""

from __future__ import annotations

import torch
from torch import fx

from fxfuse.authoring.terms import OpTerm
from fxfuse.compat import ambient_autocast, is_functorch_wrapped_tensor
from fxfuse.match.matching import ConstraintFailed, Match
from fxfuse.match.reasons import Failure
from fxfuse.safeguards import safeguard
from fxfuse.view import Value
from fxfuse.view.aten.numbers import is_number_in_tensor
from fxfuse.view.ops import READS_METADATA_ONLY, spec_of


def gate(match: Match) -> Failure | None:
    """The first reason why this match must not be rewritten, or None."""
    for check, safeguards in _GATES:
        failure = check(match)
        if failure is not None and not any(s.lifted for s in safeguards if s.name.endswith(failure.code.lower())):
            return failure
    return None


def _constraints(match: Match) -> Failure | None:
    for constraint in match.pattern.constraints:
        name = getattr(constraint, "__name__", "a constraint")
        try:
            answer = constraint(match)
            if answer is not None and answer is not True:
                says = "does not hold" if answer is False else f"returned {answer!r}; it returns None or a bool"
                return Failure("CONSTRAINT", f"{name} {says}", operand=match.root)
        except ConstraintFailed as failed:
            return Failure("CONSTRAINT", str(failed), operand=failed.at if isinstance(failed.at, Value) else match.root)
        except Exception as error:  # somebody else's code: one faulty constraint may not cost the other sites
            what = f"{name} failed: {type(error).__name__}: {error}"
            return Failure("CONSTRAINT", what, operand=match.root)
    return None


def _interior_is_not_captured(match: Match) -> Failure | None:
    covered = set(match.nodes)
    for name, captured in match.captures.items():
        for value in captured if isinstance(captured, tuple) else (captured,):
            if isinstance(value, Value) and value.node in covered:
                return Failure("BINDING", f"{name} from outside the site", f"its own part {value}", operand=value)
    return None


def _no_other_readers(match: Match) -> Failure | None:
    """Every node inside is read only inside. Reading a size or a dtype does not count: it needs no contents."""
    outputs = {id(v) for v in match.outputs}
    inside = {*match.nodes, *match.seen_through}
    of = {n: v for v in match.interior for n in (v.absorbed if id(v) in outputs else v.nodes)}
    of.update((n, match.view.value(n)) for n in match.seen_through)
    for node, value in of.items():
        if node in match.staying or (node not in value.nodes and value.node in match.staying):
            continue
        for reader in node.users:
            if reader in inside or _reads_metadata_only(reader):
                continue
            code = "GRAPH_OUTPUT" if reader.op == "output" else "EXTERNAL_USE"
            value = _shown_by(match, node) or value
            term = next((t for t, v in match.bound.items() if v is value and isinstance(t, OpTerm)), None)
            return Failure(code, node.name if id(value) in outputs else value, None, term, value, reader)
    return None


def _shown_by(match: Match, node: fx.Node) -> Value | None:
    """The interior value that a reader of this node gets, where the node is a view of one."""
    spec = spec_of(node)
    source = node.args[0] if spec is not None and spec.alias and spec.name != "to" and node.args else None
    shown = match.view.value(source) if isinstance(source, fx.Node) else None
    return shown if any(shown is value for value in match.interior) else None


def _reads_metadata_only(reader: fx.Node) -> bool:
    if reader.op == "call_method":
        return str(reader.target) in READS_METADATA_ONLY
    if reader.op == "call_function":
        if reader.target is getattr:
            return reader.args[1] in {"shape", "dtype", "device", "ndim"}
        return reader.target in (
            torch.ops.aten.sym_size.int,
            torch.ops.aten.sym_stride.int,
            torch.ops.aten.sym_numel.default,
            torch.ops.aten._assert_tensor_metadata.default,
        )
    return False


def _no_writes(match: Match) -> Failure | None:
    """Nothing that the site reads or makes is written from its first node to its last; its weights nowhere at all."""
    effects = match.view.effects
    if not effects.writes:
        return None
    order = effects.order
    first, last = order[match.nodes[0]], order[match.nodes[-1]]
    captured = match.captured_values()
    touched = {effects.family(v.node): v for v in [*match.interior, *captured]}
    weights = {effects.family(v.node): v for v in match.weight_values()}
    for writer, targets in effects.writes:
        for target in targets:
            family = effects.family(target)
            if family in weights:
                what = f"{weights[family].node.name} is written by {writer.name}; a weight may not change in the graph"
                return Failure("MUTATION", what, operand=target, reader=writer)
            if family in touched and first <= order[writer] <= last:
                what = f"{touched[family].node.name} is written by {writer.name} between the parts of the site"
                return Failure("MUTATION", what, operand=target, reader=writer)
    return None


def _one_region(match: Match) -> Failure | None:
    effects = match.view.effects
    root = match.root
    device = root.device.type if root.device is not None else "cpu"
    ambient = ambient_autocast(device)
    if ambient is not None:
        name = str(ambient).removeprefix("torch.")
        what = f"autocast to {name} is on around the call; its casts leave no node, so the site is left as it is"
        return Failure("REGION", what, operand=root)
    metas = (v.meta for v in (*match.outputs, *match.captured_values()))
    if any(isinstance(m, torch.Tensor) and is_functorch_wrapped_tensor(m) for m in metas):
        return Failure("REGION", "inside a functorch transform (vmap, grad, ...) of the graph", operand=root)
    if not effects.switches:
        return None
    order = effects.order
    first, last = order[match.nodes[0]], order[match.nodes[-1]]
    for position, switch in effects.switches:
        if first < position < last:
            return Failure("REGION", f"{switch.name} switches grad mode or autocast inside the site", operand=switch)
    if effects.under_autocast(root.node):
        return Failure("REGION", "an autocast region of the graph is open at the site", operand=root)
    return None


def _one_device(match: Match) -> Failure | None:
    devices: dict[torch.device, str] = {}
    for name, captured in match.captures.items():
        for value in captured if isinstance(captured, tuple) else (captured,):
            if type(value) is Value and isinstance(value.meta, torch.Tensor) and not is_number_in_tensor(value):
                devices.setdefault(value.meta.device, name)
    if len(devices) > 1:
        where = " and ".join(f"{name} on {device}" for device, name in devices.items())
        return Failure("CONSTRAINT", f"all operands must be on one device; found {where}", operand=match.root)
    return None


def _no_cycle(match: Match) -> Failure | None:
    """Nothing that the site reads may be computed from what it makes: one node cannot come before itself."""
    order = match.view.effects.order
    first = order[match.nodes[0]]
    covered = set(match.nodes)
    pending = [v.node for v in match.captured_values()]
    seen = set(pending)
    while pending:
        node = pending.pop()
        for source in node.all_input_nodes:
            if source in covered and source in match.owned:
                what = f"{node.name} is computed from {source.name}, a result of the site, and read by the site"
                return Failure("CYCLE", what, operand=node, reader=node)
            if source not in seen and order[source] > first:
                seen.add(source)
                pending.append(source)
    return None


_GATES = (
    (_interior_is_not_captured, ()),
    (_no_writes, (safeguard("gate.mutation", "a write to what the site reads or makes, between its parts"),)),
    (
        _no_other_readers,
        (
            safeguard("gate.external_use", "an interior value that is read outside the site"),
            safeguard("gate.graph_output", "an interior value that the graph returns"),
        ),
    ),
    (_no_cycle, (safeguard("gate.cycle", "a site that reads what is computed from its own results"),)),
    (_one_region, (safeguard("gate.region", "a switch of grad mode or autocast at the site"),)),
    (_one_device, ()),
    (_constraints, (safeguard("gate.constraint", "a match that the pattern's own conditions refuse"),)),
)
"""Each gate with the safeguards that can lift it; the last part of a safeguard's name is the reason code."""
