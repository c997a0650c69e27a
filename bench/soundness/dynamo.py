"""A program as Dynamo captures it, with its parameters and buffers on a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from bench.soundness.program import INPUT, PARAMETER, Program, operands, scope
from bench.soundness.tracing import Captured


class Holder(nn.Module):
    """Runs the program on its own parameters and buffers, and the inputs that it is given."""

    def __init__(self, program: Program, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.body = program.function(scope())
        self.order = program.parameters
        for name, tensor in tensors.items():
            if name[0] == PARAMETER:
                self.register_parameter(name, nn.Parameter(tensor, tensor.requires_grad))
            elif name[0] != INPUT:
                self.register_buffer(name, tensor)

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.body(*(inputs[n] if n in inputs else getattr(self, n) for n in self.order))


def capture_with_dynamo(program: Program, seed: int) -> Captured:
    """The one graph that Dynamo captures; raises where it breaks the graph or lifts more than the program's tensors."""
    tensors = operands(program, seed)
    module = Holder(program, tensors)
    named = {**tensors, **dict(module.named_parameters()), **dict(module.named_buffers())}
    seen: list[tuple[fx.GraphModule, list[Any]]] = []

    def look(gm: fx.GraphModule, examples: list[Any]) -> Any:
        seen.append((gm, examples))
        return gm.forward

    torch._dynamo.reset()
    inputs = {o.name: named[o.name] for o in program.operands if o.kind == INPUT}
    for operand in program.operands:
        for size in operand.dynamic:
            torch._dynamo.mark_dynamic(inputs[operand.name], size)
    with torch.set_grad_enabled(program.grad):
        torch.compile(module, backend=look, fullgraph=True)(**inputs)
    (only,) = seen
    gm, examples = only
    by_id = {id(t): n for n, t in named.items()}
    names = []
    for holder, example in zip(gm.graph.find_nodes(op="placeholder"), examples, strict=True):
        if isinstance(example, torch.Tensor):
            names.append(by_id[id(example)])
        else:
            names.append(f"s{int(example)}")
            holder.meta.setdefault("example_value", example)
    return Captured(gm, tuple(names))
