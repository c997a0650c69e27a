"""A copy of a captured graph. Dynamo's own is its fallback, and may never be edited."""

from __future__ import annotations

import copy

from torch import fx

_DYNAMO_ATTRIBUTES = (
    "_param_name_to_source",
    "_source_to_user_stacks",
    "compile_subgraph_reason",
    "torchdynamo_force_dynamic",
)


def copy_graph(gm: fx.GraphModule) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of the graph of ``gm``, and the copy of each node.

    Node meta is copied one level deep; what Dynamo keeps beside meta (``_dynamo_source``) comes along.
    """
    graph = fx.Graph(owning_module=gm, tracer_cls=getattr(gm.graph, "_tracer_cls", None))
    graph._codegen = copy.deepcopy(gm.graph._codegen)  # how inputs and outputs are flattened
    mapping: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(gm.graph, mapping)
    old_output = gm.graph.output_node()
    new_output = graph.output(output, type_expr=old_output.type)
    new_output.meta = copy.copy(old_output.meta)
    mapping[old_output] = new_output
    for old, new in mapping.items():
        source = getattr(old, "_dynamo_source", None)
        if source is not None:
            new._dynamo_source = source
    return graph, mapping


def module_of(gm: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """A module that runs ``graph`` with the tensors and submodules of ``gm``, which it shares."""
    made = fx.GraphModule(gm, graph)
    made.meta = dict(gm.meta)
    for name in _DYNAMO_ATTRIBUTES:
        if name in gm.__dict__:
            setattr(made, name, gm.__dict__[name])
    return made
