"""When a graph is left whole, and where it may be divided: what must hold for stretches of it to be compiled apart.

Running the stretches one after the other is what the graph does, so nothing is reordered. What may go wrong lies at
the borders: a value that is no tensor, a mode that is on, a tensor that is written on one side and known by another
name on the other. There no border is put. What is not understood at all leaves the graph whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxfuse import compat
from fxfuse.reuse.labels import attribute, has_symbols
from fxfuse.reuse.segments import free_symbols, reads_body
from fxfuse.rewriting.examples import mode_of
from fxfuse.view.effects import KNOWN_MODULES, Effects, switches_mode, written_by

_BODIES = {"tag_activation_checkpoint", "wrap"}
_METADATA_WRITES = {
    "t_", "transpose_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "resize_", "resize_as_", "set_",
    "as_strided_", "detach_", "requires_grad_", "rename_", "register_hook", "register_post_accumulate_grad_hook",
    "retain_grad", "backward", "apply_",
}  # fmt: skip
_FOREIGN = ("torch._functorch", "torch._C._functorch", "torch.autograd", "torch.distributed", "torch._dynamo")
_HARMLESS = {"_log_api_usage_once", "_check", "_check_is_size", "_check_value", "_assert", "_assert_async"}
_RANDOM = (
    "dropout", "rand", "bernoulli", "multinomial", "normal", "exponential", "uniform", "geometric", "poisson", "rrelu",
    "gumbel",
)  # fmt: skip


class LeftWhole(Exception):
    """The graph is compiled as one, for this reason."""


@dataclass
class Ground:
    """A graph that may be divided.

    Attributes:
        nodes: what it computes, in order.
        forbidden: the places (in front of a node, or behind the last) where no border may stand, and why.
        last_use: the place of each node's last reader; the number of nodes for what the graph returns.
        same: results of writes in place, and the graph's inputs that they are.
        symbols: the graph's inputs that are sizes, by their symbol.
        grads: the nodes whose values require gradients.
    """

    nodes: list[fx.Node]
    last_use: dict[fx.Node, int]
    forbidden: dict[int, str] = field(default_factory=dict)
    same: dict[fx.Node, fx.Node] = field(default_factory=dict)
    symbols: dict[str, fx.Node] = field(default_factory=dict)
    grads: frozenset[fx.Node] = frozenset()


def survey(gm: fx.GraphModule, examples: Sequence[Any], *, ambient_grad: bool) -> Ground:
    """Where this graph may be divided.

    Raises:
        LeftWhole: nowhere, for a reason that concerns the whole graph.
    """
    graph = gm.graph
    leaves = [n for n in graph.nodes if n.op in {"placeholder", "get_attr"} and not reads_body(n)]
    nodes = [n for n in graph.nodes if n.op not in {"placeholder", "get_attr", "output"}]
    symbols = {str(v.node.expr): n for n in leaves if isinstance(v := n.meta.get("example_value"), torch.SymInt)}
    for position, leaf in enumerate(leaves):
        _check_leaf(leaf, examples[position] if leaf.op == "placeholder" and position < len(examples) else None)
    for node in nodes:
        _check_node(gm, node, symbols, ambient_grad)
    for node in graph.output_node().all_input_nodes:
        if not crosses(node.meta.get("example_value")):
            raise LeftWhole(f"it returns {node.name}, which is no tensor")
    place = {node: i for i, node in enumerate(nodes)}
    last_use = {n: max((place.get(u, len(nodes)) for u in n.users), default=-1) for n in (*leaves, *nodes)}
    effects = Effects(graph)
    ground = Ground(nodes, last_use, symbols=symbols)
    _forbid_open_modes(ground, ambient_grad)
    for node in nodes:
        if not crosses(node.meta.get("example_value")):
            _forbid(ground, place[node], last_use[node], f"{node.name} is no tensor, and is read behind it")
        elif not lies_for_sure(node.meta["example_value"]):
            behind = max((place[user] for user in node.users if user in place), default=-1)
            _forbid(ground, place[node], behind, f"{node.name} has strides that its sizes do not tell")
    ground.grads = frozenset(_gradients(graph, effects, ambient_grad))
    _forbid_dead_gradients(ground, place)
    _forbid_writes_apart(ground, place, effects, ambient_grad)
    return ground


def crosses(value: Any) -> bool:
    """Whether a value of this kind may go from one region to another."""
    if isinstance(value, torch.SymInt):
        return True
    return _is_plain(value)


def strides_of(value: torch.Tensor) -> list[Any]:
    """The strides of a value as sympy's expressions; numbers, in a graph of static shapes."""
    strides: Any = value.stride()
    return [part if type(part) is int else part.node.expr for part in strides]


def lies_for_sure(value: Any) -> bool:
    """Whether the strides of a value are told by the sizes that the graph is given: numbers, sums and products."""
    if not isinstance(value, torch.Tensor):
        return True
    return all(type(part) is int or part.is_polynomial() for part in strides_of(value))


def _is_plain(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_quantized:
        return False
    return not compat.is_wrapper_subclass(value) and not value.is_conj() and not value.is_neg()


def _forbid(ground: Ground, after: int, until: int, why: str) -> None:
    """No border behind place ``after``, up to the one in front of place ``until``."""
    for i in range(after + 1, until + 1):
        ground.forbidden.setdefault(i, why)


def _check_leaf(node: fx.Node, example: Any) -> None:
    if node.op == "get_attr":
        held = attribute(node)
        if not isinstance(held, torch.Tensor) or not _is_plain(held):
            raise LeftWhole(f"it holds {node.target}, a {type(held).__name__}")
        node.meta.setdefault("example_value", held)
        return
    value = node.meta.get("example_value")
    if not crosses(value):
        raise LeftWhole(f"its input {node.name} is a {type(value).__name__}")
    plain = type(example) in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer, type(None), int, torch.SymInt}
    if not plain and not isinstance(example, compat.FakeTensor | torch.nn.Parameter | torch.nn.Buffer):
        raise LeftWhole(f"its input {node.name} is a {type(example).__name__}")


def _check_node(gm: fx.GraphModule, node: fx.Node, symbols: Mapping[str, fx.Node], grad: bool) -> None:
    if node.op == "call_module":
        raise LeftWhole(f"it calls the module {node.target}")
    if has_symbols((node.args, node.kwargs)):
        raise LeftWhole(f"a symbolic number stands in {node.name}, which no input gives")
    name = str(getattr(node.target, "__name__", node.target))
    if name in _METADATA_WRITES:
        raise LeftWhole(f"{node.name} changes more of a tensor than its numbers ({name})")
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        _check_body(node, grad)
    elif node.op == "call_function" and not switches_mode(node):
        module = str(getattr(node.target, "__module__", ""))
        known = isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket) or not module
        if module.startswith(_FOREIGN) or "c10d" in str(node.target):
            raise LeftWhole(f"{node.name} calls {module}.{name}")
        if not known and module.partition(".")[0] not in KNOWN_MODULES:
            raise LeftWhole(f"{node.name} calls {module}.{name}, which may keep something from call to call")
    value = node.meta.get("example_value")
    if value is None and not node.users and not switches_mode(node) and name not in _HARMLESS:
        writes = next(written_by(node), None) is not None
        if not writes:
            raise LeftWhole(f"{node.name} calls {name}, which gives nothing and may do anything")
    missing = [s for s in free_symbols(value) if s not in symbols]
    if missing or node.meta.get("unbacked_bindings"):
        raise LeftWhole(f"{node.name} has a size that no input of the graph gives")


def _check_body(node: fx.Node, grad: bool) -> None:
    """A body that is run as it stands, once each call."""
    name = node.target.name() if isinstance(node.target, torch._ops.HigherOrderOperator) else ""
    if name not in _BODIES:
        raise LeftWhole(f"{node.name} is the higher-order op {name}")
    for operand in node.all_input_nodes:
        if reads_body(operand) and grad and _is_random(attribute(operand)):
            raise LeftWhole(f"{node.name} computes random numbers again in backward")


def _is_random(gm: fx.GraphModule) -> bool:
    for node in gm.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if node.op.startswith("call_") and any(word in name for word in _RANDOM) and not _drops_nothing(node, name):
            return True
        if name == "scaled_dot_product_attention" and (len(node.args) > 4 or node.kwargs.get("dropout_p")):
            return True
        if reads_body(node) and _is_random(attribute(node)):
            return True
    return False


def _drops_nothing(node: fx.Node, name: str) -> bool:
    return name == "dropout" and len(node.args) == 3 and (node.args[1] in (0, 0.0) or node.args[2] is False)


def _forbid_open_modes(ground: Ground, ambient_grad: bool) -> None:
    """No border where grad mode is not as it was on entry, or an autocast of the graph's is on."""
    grad, depth = ambient_grad, 0
    for i, node in enumerate(ground.nodes):
        if grad != ambient_grad or depth:
            _forbid(ground, i - 1, i, "a mode that the graph itself switched is on")
        if not switches_mode(node):
            continue
        name = str(getattr(node.target, "__name__", node.target))
        if name == "_set_grad_enabled":
            grad = bool(node.args[0])
            if grad and not ambient_grad:
                raise LeftWhole("it switches grad mode on")
        elif name in {"_enter_autocast", "_exit_autocast"}:
            depth += 1 if name == "_enter_autocast" else -1
        else:
            raise LeftWhole(f"it switches modes by {name}")
    if grad != ambient_grad or depth:
        raise LeftWhole("it leaves a mode switched that was not so on entry")


def _forbid_dead_gradients(ground: Ground, place: Mapping[fx.Node, int]) -> None:
    """No border behind which a value is read, but no gradient comes back: ``(norm > 0)``, ``norm.detach()``.

    A compiled region takes a result without a gradient for one whose gradient is zero, and zero times infinity, such
    as the slope of a square root at zero, is no number; eager leaves the whole branch out.
    """
    live: set[fx.Node] = set()
    for node in reversed(ground.last_use):
        readers = [user for user in node.users if user in live]
        returned = any(user.op == "output" for user in node.users)
        if node in ground.grads and (readers or returned):
            live.add(node)
        if node in ground.grads and node in place and not returned:
            after = max((place[reader] for reader in readers if reader in place), default=place[node])
            _forbid(ground, after, ground.last_use[node], f"no gradient comes back to {node.name} from behind it")


def _forbid_writes_apart(ground: Ground, place: Mapping[fx.Node, int], effects: Effects, grad: bool) -> None:
    """No border between a write in place and another name of what is written, unless that is an input of the graph."""
    families: dict[fx.Node, list[fx.Node]] = {}
    written: dict[fx.Node, list[fx.Node]] = {}
    for writer, targets in effects.writes:
        for target in targets:
            written.setdefault(effects.family(target), []).append(writer)
    if not written:
        return
    for node in (*ground.last_use,):
        family = effects.family(node)
        if family in written:
            families.setdefault(family, []).append(node)
    for family, members in families.items():
        roots = [n for n in members if n not in place]
        own = [n for n in members if n in place]
        writers = written[family]
        if len(roots) > 1:
            raise LeftWhole(f"its inputs {roots[0].name} and {roots[1].name} may share memory, and one is written")
        if not roots:
            first, final = min(map(place.__getitem__, own)), max(map(place.__getitem__, writers))
            why = f"{ground.nodes[first].name} would be made before it, and written behind it ({writers[-1].name})"
            _forbid(ground, first, final, why)
            continue
        (root,) = roots
        if root.op == "get_attr" or root in ground.grads or (grad and any(_carries(w, ground) for w in writers)):
            raise LeftWhole(f"it writes to {root.name}, and to what its gradient is")
        if grad:  # a region may save what it reads for backward, and a later one may not write to it then
            uses = [place.get(user, len(ground.nodes)) for node in members for user in node.users]
            _forbid(ground, min(uses), max(uses), f"{root.name} would be used before it, and written or used behind it")
        for node in own:
            goal = next(iter(written_by(node)), None)
            is_it = node in writers and node.args and goal is node.args[0] and _unchanged(node, root)
            if is_it and goal is not None and (goal is root or ground.same.get(goal) is root):
                ground.same[node] = root
            else:
                why = f"{node.name} shares the memory of {root.name}, which is written, and is read behind it"
                _forbid(ground, place[node], ground.last_use[node], why)


def _carries(writer: fx.Node, ground: Ground) -> bool:
    return writer in ground.grads or any(n in ground.grads for n in writer.all_input_nodes)


def _unchanged(node: fx.Node, root: fx.Node) -> bool:
    """Whether a write in place gave its very tensor back: an index assignment gives nothing."""
    if node.op != "call_method" or not str(node.target).endswith("_"):
        return False
    ours, theirs = node.meta.get("example_value"), root.meta.get("example_value")
    return isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor) and ours.shape == theirs.shape


def _gradients(graph: fx.Graph, effects: Effects, ambient: bool) -> Iterator[fx.Node]:
    """The nodes whose values require gradients. A rewritten node's example does not say so: it is computed again."""
    if not ambient:
        return
    known: set[fx.Node] = set()
    for node in graph.nodes:
        value = node.meta.get("example_value")
        needs = _requires(value)
        if not needs and node.op.startswith("call_") and any(n in known for n in node.all_input_nodes):
            needs = _differentiable(value) and effects.grad_enabled(node, ambient) and _requires(_again(node, known))
        if needs:
            known.add(node)
            yield node


def _requires(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_requires, value))
    return isinstance(value, torch.Tensor) and value.requires_grad


def _differentiable(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_differentiable, value))
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _again(node: fx.Node, known: set[fx.Node]) -> Any:
    """The example value of a node, with the gradients of its operands."""

    def example(operand: fx.Node) -> Any:
        if reads_body(operand):
            return attribute(operand)
        return _leaf(operand.meta.get("example_value"), operand in known)

    try:
        args, kwargs = fx.map_arg((node.args, node.kwargs), example)
        with mode_of(n.meta.get("example_value") for n in node.all_input_nodes), torch.enable_grad():
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            target: Any = node.target
            return target(*args, **kwargs)
    except Exception as error:
        raise LeftWhole(f"whether {node.name} requires a gradient cannot be told: {error}") from None


def _leaf(value: Any, needs: bool) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_leaf(item, needs) for item in value)
    if isinstance(value, torch.Tensor) and needs and _differentiable(value):
        return value.detach().requires_grad_()
    return value
