"""A program as a functional ATen graph, as ``torch.export`` and Inductor's post-grad passes see it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bench.soundness.program import Program, operands, scope
from bench.soundness.tracing import Captured


def capture_aten(program: Program, seed: int, *, decomposed: bool) -> Captured:
    """The graph under no grad, writes made functional; ``decomposed`` by Inductor's decompositions."""
    given = operands(program, seed)
    function = program.function(scope())
    table: Any = {}
    if decomposed:
        from torch._inductor.decomposition import select_decomp_table

        table = select_decomp_table()
    with torch.no_grad():
        functional = torch.func.functionalize(function)
        gm = make_fx(functional, decomposition_table=table, tracing_mode="fake")(*given.values())
    return Captured(gm, program.parameters)
