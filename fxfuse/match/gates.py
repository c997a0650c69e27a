"""Safety gates: what must hold at every match of every pattern before it may be rewritten."""

from __future__ import annotations

import torch
from torch import fx

from fxfuse.authoring.captures import is_param
from fxfuse.compat import ambient_autocast, is_functorch_wrapped_tensor
from fxfuse.match.reasons import Failure
from fxfuse.match.search import ConstraintFailed, Match
from fxfuse.view import Value
from fxfuse.view.ops import READS_METADATA_ONLY


def gate(match: Match) -> Failure | None:
    """The first reason why this match must not be rewritten, or None."""
    for check in (_interior_is_not_captured, _no_other_readers, _no_writes, _one_region, _one_device, _constraints):
        failure = check(match)
        if failure is not None:
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
    for name, value in match.captures.items():
        if isinstance(value, Value) and value.node in covered:
            return Failure("BINDING", f"{name} from outside the site", f"its own part {value}", operand=value)
    return None


def _no_other_readers(match: Match) -> Failure | None:
    """Every node inside is read only inside. Reading a size or a dtype does not count: it needs no contents."""
    view, covered = match.view, set(match.nodes)
    term_of = {id(v): t for t, v in match.bound.items() if isinstance(v, Value)}
    for value in match.interior:
        if value is match.root or _casts_a_capture(match, value):
            continue
        outside = [n for n in value.nodes if n not in covered]
        assert not outside
        pending = list(value.nodes)
        pending += [n for n in view.aliases(value) if n not in pending]
        inside = covered | set(pending)
        for node in pending:
            for reader in node.users:
                if reader in inside or _reads_metadata_only(reader):
                    continue
                code = "GRAPH_OUTPUT" if reader.op == "output" else "EXTERNAL_USE"
                return Failure(code, value, None, term_of.get(id(value)), value, reader)
    for node in match.root.absorbed:
        for reader in node.users:
            if reader not in covered and not _reads_metadata_only(reader):
                code = "GRAPH_OUTPUT" if reader.op == "output" else "EXTERNAL_USE"
                return Failure(code, node.name, None, match.pattern.terms.root, match.root, reader)
    return None


def _casts_a_capture(match: Match, value: Value) -> bool:
    """A cast of what the kernel gets anyway may be read by others too: it stays, and the kernel makes its own."""
    source = match.view.operand(value.args["input"]) if value.op == "cast" and value.owner is None else None
    return source is not None and any(source is captured for captured in match.captures.values())


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
        )
    return False


def _no_writes(match: Match) -> Failure | None:
    """Nothing that the site reads or makes is written from its first node to its last; its weights nowhere at all."""
    effects = match.view.effects
    if not effects.writes:
        return None
    order = effects.order
    first, last = order[match.nodes[0]], order[match.root.node]
    values = [*match.interior, *(v for v in match.captures.values() if isinstance(v, Value))]
    touched = {effects.family(v.node): v for v in values}
    weights = {
        effects.family(v.node): v
        for name, v in match.captures.items()
        if isinstance(v, Value) and is_param(match.pattern.captures[name])
    }
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
    metas = (v.meta for v in (root, *match.captures.values()) if isinstance(v, Value))
    if any(isinstance(m, torch.Tensor) and is_functorch_wrapped_tensor(m) for m in metas):
        return Failure("REGION", "inside a functorch transform (vmap, grad, ...) of the graph", operand=root)
    if not effects.switches:
        return None
    order = effects.order
    first, last = order[match.nodes[0]], order[root.node]
    for position, switch in effects.switches:
        if first < position < last:
            return Failure("REGION", f"{switch.name} switches grad mode or autocast inside the site", operand=switch)
    if effects.under_autocast(root.node):
        return Failure("REGION", "an autocast region of the graph is open at the site", operand=root)
    return None


def _one_device(match: Match) -> Failure | None:
    devices: dict[str, str] = {}
    for name, value in match.captures.items():
        if isinstance(value, Value) and value.device is not None:
            devices.setdefault(str(value.device), name)
    if len(devices) > 1:
        where = " and ".join(f"{name} on {device}" for device, name in devices.items())
        return Failure("CONSTRAINT", f"all operands must be on one device; found {where}", operand=match.root)
    return None
