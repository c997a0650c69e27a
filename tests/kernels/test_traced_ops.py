"""What a compiler sees of the kernels' ops: results, what each kernel writes, and for how many rows a graph serves."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from torch._subclasses import FakeTensorMode  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from fxfuse.kernels.triton import gated_mlp_prefill as prefill  # noqa: E402
from fxfuse.kernels.triton import norm_gated_mlp_decode as decode  # noqa: E402
from fxfuse.kernels.triton import norm_linears_decode as linears  # noqa: E402
from fxfuse.kernels.triton import rms_norm  # noqa: E402

BF16 = torch.bfloat16
HIDDEN, INNER, OUT = 64, 96, 48


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=BF16)


WEIGHT, GATE, UP, DOWN = zeros(HIDDEN), zeros(INNER, HIDDEN), zeros(INNER, HIDDEN), zeros(OUT, INNER)
NORM = (1e-6, "early")
RMS_NORM, ADD_RMS_NORM, DECODE, LINEARS, PREFILL = (
    make() for make in (rms_norm.op, rms_norm.add_op, decode.op, linears.op, prefill.op)
)

CALLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "rms_norm": lambda x: RMS_NORM(x, WEIGHT, *NORM),
    "unweighted": lambda x: RMS_NORM(x, None, 1e-6, "none"),
    "add_rms_norm": lambda x: ADD_RMS_NORM(x, x, WEIGHT, *NORM),
    "decode": lambda x: DECODE(x, WEIGHT, GATE, UP, DOWN, None, None, None, *NORM, "silu"),
    "decode without norm": lambda x: DECODE(x, None, GATE, UP, DOWN, None, None, None, 0.0, "none", "silu"),
    "linears": lambda x: LINEARS(x, WEIGHT, [GATE, UP, GATE], [None] * 3, *NORM),
    "two linears": lambda x: LINEARS(x, WEIGHT, [GATE, DOWN.view(-1, HIDDEN)], [None] * 2, *NORM),
    "prefill": lambda x: PREFILL(x, WEIGHT, GATE, UP, None, None, *NORM, "silu"),
    "prefill without norm": lambda x: PREFILL(x, None, GATE, UP, None, None, 0.0, "none", "silu"),
}
# Of each kernel of the op, in order.
WRITTEN = {
    "rms_norm": [["out_ptr"]],
    "unweighted": [["out_ptr"]],
    "add_rms_norm": [["total_ptr", "out_ptr"]],
    "decode": [["out_ptr"], ["out_ptr"]],
    "decode without norm": [["out_ptr"], ["out_ptr"]],
    "linears": [["q_out_ptr", "k_out_ptr", "v_out_ptr"]],
    "two linears": [["q_out_ptr", "k_out_ptr"]],
    "prefill": [["out_ptr", "factor_ptr"], ["out_ptr"]],
    "prefill without norm": [["out_ptr"]],
}
SHAPES = {
    "rms_norm": [HIDDEN],
    "unweighted": [HIDDEN],
    "add_rms_norm": [HIDDEN, HIDDEN],
    "decode": [OUT],
    "decode without norm": [OUT],
    "linears": [INNER] * 3,
    "two linears": [INNER, OUT * INNER // HIDDEN],
    "prefill": [INNER],
    "prefill without norm": [INNER],
}


@pytest.fixture(params=[80, 90])
def card(request, monkeypatch):
    """A driver that names its card and can do nothing else, for code that only asks what it would compile for."""
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", request.param, 32)))
    monkeypatch.setattr(prefill, "has_descriptors", lambda device: request.param >= 90)
    yield
    driver._active = before


@pytest.fixture
def captured():
    """(graphs, backend): a backend that keeps what Inductor would be given, and computes nothing."""
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        (results,) = graph.graph.output_node().args
        return lambda *args: [next(a for a in args if isinstance(a, torch.Tensor)).new_empty(0) for _ in results]

    return graphs, aot_autograd(fw_compiler=keep)


no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="traces for a card that is not there")


@no_card
@pytest.mark.parametrize("name", CALLS)
def test_inductor_sees_kernels_that_write_only_their_outputs(name, card, captured):
    """If torch cannot tell what a kernel writes it clones every operand: each call would copy the weights."""
    graphs, backend = captured
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(CALLS[name], backend=backend)(zeros(5, HIDDEN))
    (graph,) = graphs
    found = [node for node in graph.graph.nodes if "triton_kernel_wrapper_functional" in str(node.target)]
    assert [sorted(node.kwargs["tensors_to_clone"]) for node in found] == [sorted(names) for names in WRITTEN[name]]


# A row is another kernel, and more than 16 or 32 rows other tiles; a comparison that need not be made is none.
COUNTS = {
    "rms_norm": ((5, 1), (7, 1), (100, 1)),
    "add_rms_norm": ((5, 1), (7, 1), (100, 1)),
    "decode": ((5, 1), (7, 1), (16, 1), (1, 2), (20, 3), (33, 4), (64, 4), (12, 4)),
    "linears": ((5, 1), (7, 1), (16, 1), (1, 2), (20, 3)),
    "prefill": ((70, 1), (100, 1), (5000, 1)),
}


@no_card
@pytest.mark.parametrize("name", COUNTS)
def test_one_graph_serves_all_row_counts_of_a_tile(name, card, captured):
    graphs, backend = captured
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], backend=backend, dynamic=True)
    with torch.no_grad():
        for rows, expected in COUNTS[name]:
            compiled(zeros(rows, HIDDEN))
            assert len(graphs) == expected, rows


@pytest.mark.parametrize("name", CALLS)
def test_fake_results(name):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        results = CALLS[name](mode.from_tensor(zeros(2, 3, HIDDEN)))
    listed = list(results) if isinstance(results, list | tuple) else [results]
    assert [(r.shape, r.dtype) for r in listed] == [((2, 3, size), BF16) for size in SHAPES[name]]
