"""The table: every event and every file, under each placement, through one compiled function for all models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxfuse
from bench.weights.events import EVENTS, Event
from bench.weights.files import WRITERS, Writer, bits_equal, missing
from bench.weights.model import Decoder, compiled, inputs
from fxfuse.params import copies
from fxfuse.params.share import groups_of

CLOSE = 1e-5


@dataclass(frozen=True)
class Row:
    """What came of one event under one placement. ``right`` is empty, or says what went wrong.

    ``before`` and ``after`` are the bytes of the parameters with all that is derived from them; of a file, its size
    before the model was compiled and after.
    """

    event: str
    placement: str
    right: str
    recompiles: int
    before: int
    after: int


def rows(placement: str, only: tuple[str, ...] = ()) -> Iterator[Row]:
    """One row for each event and each file. Every site of the one artifact was rewritten with this placement."""
    torch._dynamo.reset()
    fast = compiled(lambda model, x: model(x), placement)
    with torch.no_grad():
        fast(Decoder(), inputs())
        placed = [(s.outcome, s.weights) for s in fxfuse.reports()[-1].sites]
        if placed != [("rewritten", placement)] * 2:
            raise AssertionError(f"asked for {placement}; the sites are {placed}")
        for event in EVENTS:
            if not only or event.__name__ in only:
                yield _after(event, placement, fast)
        for writer in WRITERS:
            if missing(writer) is None and (not only or writer.__name__ in only):
                yield _written(writer, placement, fast)


def _after(event: Event, placement: str, fast: Any) -> Row:
    torch.manual_seed(1)
    model, x = Decoder(), inputs()
    problem = _placed(model, placement, fast(model, x)) or _differs(fast, model, x)
    before, graphs, stale = held(model), _graphs(), model(x)
    other = event(model)
    for _ in range(2):
        problem = problem or _differs(fast, model, x)
        if other is not None:
            problem = problem or _differs(fast, other, x)
    on_meta = any(p.is_meta for p in model.parameters())
    if not problem and not on_meta and (model(x) - stale).abs().max() < 1e-4:
        problem = "the event changed nothing, so nothing was shown"
    return Row(event.__name__, placement, problem, _graphs() - graphs, before, 0 if on_meta else held(model))


def _written(writer: Writer, placement: str, fast: Any) -> Row:
    torch.manual_seed(1)
    model, x = Decoder(), inputs()
    twin = Decoder()
    twin.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "before").mkdir()
        (Path(folder) / "after").mkdir()
        before, _ = writer(twin, Path(folder) / "before")
        problem = _placed(model, placement, fast(model, x))
        graphs = _graphs()
        after, read = writer(model, Path(folder) / "after")
        if not bits_equal(model, read):
            problem = problem or "what was read is not what was written"
        elif before != after:
            problem = problem or f"{after} bytes, and {before} of the model that was not compiled"
        elif not bits_equal(twin, dict(model.state_dict())):
            problem = problem or "the values differ from those of the model that was not compiled"
        problem = problem or _differs(fast, model, x)
    return Row(writer.__name__, placement, problem, _graphs() - graphs, before, after)


def _placed(model: nn.Module, placement: str, _called: Tensor) -> str:
    """Whether this very model, after a call, has its weights where they should be."""
    shared, copied = len(groups_of(model)), len(_copies_of(model))
    expected = {"share": (2, 0), "copy": (0, 2)}.get(placement, (0, 0))
    return "" if (shared, copied) == expected else f"{shared} groups and {copied} copies, not {expected}"


def _differs(fast: Any, model: nn.Module, x: Tensor) -> str:
    """What the compiled function makes of a model, where eager does something else; a refusal must be one in both."""
    try:
        expected = model(x)
    except Exception as error:
        try:
            fast(model, x)
        except Exception:
            return ""
        return f"eager raises {type(error).__name__}, and the compiled function does not"
    return _apart(fast(model, x), expected)


def held(model: nn.Module) -> int:
    """Bytes of a model's parameters and of all that is derived from them; what lies in both counts once."""
    tensors = [*model.parameters(), *(group.tensor for group in groups_of(model) if group.tensor is not None)]
    spans = {(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors}
    total, end = 0, 0
    for low, high in sorted(spans):
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total + sum(copy.bytes for copy in _copies_of(model))


def _copies_of(model: nn.Module) -> list[Any]:
    ids = {id(p) for p in model.parameters()}
    return [copy for copy in copies() if any(id(ref()) in ids for ref in copy.refs)]


def _graphs() -> int:
    count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return count


def other_calls(placement: str) -> Iterator[Row]:
    """Calls with weights that are not the model's own, or in another dtype: one more graph for each other dtype."""
    with torch.no_grad():
        yield _functional_call(placement)
        yield _weights_as_arguments(placement)
        yield _called_in_bf16_between(placement)


def _functional_call(placement: str) -> Row:
    torch._dynamo.reset()
    model, other, x = Decoder(), Decoder(), inputs()
    fast = compiled(model, placement)
    fast(x)
    before, graphs = held(model), _graphs()
    problem = ""
    for _ in range(2):
        weights = {f"_orig_mod.{name}": p for name, p in other.named_parameters()}
        problem = problem or _apart(torch.func.functional_call(fast, weights, (x,)), other(x))
        problem = problem or _apart(fast(x), model(x))
        other.layers[0].mlp.up.weight.data.mul_(-2)
    return Row("functional_call", placement, problem, _graphs() - graphs, before, held(model))


def _weights_as_arguments(placement: str) -> Row:
    """A function of tensors: what is no parameter of a module is not derived from, so nothing can be stale."""
    torch._dynamo.reset()
    model, x = Decoder(1), inputs()

    def call(weights: dict[str, Tensor], x: Tensor) -> Any:
        return torch.func.functional_call(model, weights, (x,))

    fast = compiled(call, placement)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    problem = _apart(fast(weights, x), call(weights, x))
    before, graphs = held(model), _graphs()
    for _ in range(2):
        weights = {name: torch.randn_like(p) for name, p in weights.items()}
        problem = problem or _apart(fast(weights, x), call(weights, x))
    return Row("weights_as_arguments", placement, problem, _graphs() - graphs, before, held(model))


def _called_in_bf16_between(placement: str) -> Row:
    torch._dynamo.reset()
    model, x = Decoder(), inputs()
    fast = compiled(model, placement)
    fast(x)
    before, graphs = held(model), _graphs()
    model.to(torch.bfloat16)
    low = (fast(x.bfloat16()).float() - model(x.bfloat16()).float()).abs().max().item()
    problem = "" if low < 0.05 else f"off by {low:.2g} in bf16"
    model.to(torch.float32)
    problem = problem or _apart(fast(x), model(x))
    return Row("called_in_bf16_between", placement, problem, _graphs() - graphs, before, held(model))


def _apart(found: Tensor, expected: Tensor) -> str:
    worst = (found - expected).abs().max().item()
    return "" if worst <= CLOSE * max(1.0, expected.abs().max().item()) else f"off by {worst:.2g}"
