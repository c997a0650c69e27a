"""The experts of a mixture, over rows that are sorted by expert: gate and up, activation, down, routing weight.

As transformers computes them where a graph may hold no loop (``grouped_mm``): ``rows`` are the tokens in the order of
their experts, ``ids`` those experts, ``routing`` each row's weight. The router before, the sort, and the sum over a
token's experts behind are outside. ``count`` says in what the experts' rows are counted: CPUs count floats.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Scalar, one_of, pattern

D, N, ROWS, EXPERTS = Dim("hidden"), Dim("intermediate"), Dim("rows"), Dim("experts")
BF16 = torch.bfloat16


@pattern("moe_experts")
def moe_experts(
    rows: Any = Input(ROWS, D, dtype=BF16),
    ids: Any = Input(ROWS, dtype=torch.int64),
    routing: Any = Input(ROWS),
    experts: Any = Scalar(int),
    last: Any = Scalar(int),
    gate_up: Any = Param(EXPERTS, 2 * N, D, dtype=BF16),
    down: Any = Param(EXPERTS, D, N, dtype=BF16),
) -> Any:
    counted = one_of("count", floats=lambda: ids.float(), ints=lambda: ids.int())
    ends = torch.histc(counted, bins=experts, min=0, max=last).cumsum(-1, dtype=torch.int32)
    gate, up = F.grouped_mm(rows, gate_up.transpose(-2, -1), offs=ends).chunk(2, -1)
    act = one_of(
        "act",
        silu=lambda: F.silu(gate),
        gelu=lambda: F.gelu(gate),
        gelu_tanh=lambda: F.gelu(gate, approximate="tanh"),
        relu=lambda: F.relu(gate),
    )
    y = F.grouped_mm(act * up, down.transpose(-2, -1), offs=ends)
    return y * routing.unsqueeze(-1)
