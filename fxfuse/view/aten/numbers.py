"""Python numbers that AOTAutograd passes as tensors: a symbolic float is a float64 tensor without dimensions."""

from __future__ import annotations

import torch
from torch import fx

from fxfuse.view.values import Value


def is_number_in_tensor(value: Value) -> bool:
    """Whether this is such an input of the graph, or its cast to the dtype of what it is computed with."""
    holder = value.args["input"] if value.op == "cast" and value.known else value.node
    if not isinstance(holder, fx.Node) or holder.op != "placeholder":
        return False
    example = holder.meta.get("val")
    if not isinstance(example, torch.Tensor) or example.dtype is not torch.float64:
        return False
    return example.dim() == 0 and example.device.type == "cpu" and not example.requires_grad
