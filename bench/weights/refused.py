"""Parameters that may not be moved into one allocation: what becomes of a site that asks for it, and why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxfuse
from bench.weights.model import HIDDEN, INNER, Decoder, compiled, inputs
from bench.weights.table import _apart
from fxfuse.params.share import groups_of


@dataclass(frozen=True)
class Refused:
    """What came of one case. ``right`` is empty, or says what went wrong."""

    case: str
    outcome: str
    weights: str
    reason: str
    right: str


Case = Callable[[Any], Any]
"""Makes an MLP what the case is about; what it returns is held while the model is used."""


class Quantised(Tensor):
    """A subclass, as quantised weights are."""


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def _set(linear: Any, value: Tensor) -> None:
    linear.weight = nn.Parameter(value, requires_grad=False)


def views_of_a_flat_buffer(mlp: Any) -> None:
    flat = torch.randn(2 * INNER, HIDDEN)
    _set(mlp.gate, flat[:INNER])
    _set(mlp.up, flat[INNER:])


def expanded(mlp: Any) -> None:
    _set(mlp.gate, torch.randn(1, HIDDEN).expand(INNER, HIDDEN))
    mlp.up.weight.requires_grad_(False)


def overlapping(mlp: Any) -> None:
    _set(mlp.up, torch.randn(INNER + HIDDEN).as_strided((INNER, HIDDEN), (1, 1)))
    mlp.gate.weight.requires_grad_(False)


def transposed(mlp: Any) -> None:
    _set(mlp.up, torch.randn(HIDDEN, INNER).t())
    mlp.gate.weight.requires_grad_(False)


def a_subclass(mlp: Any) -> None:
    mlp.gate.weight = nn.Parameter(torch.randn(INNER, HIDDEN).as_subclass(Quantised))


def requires_grad_differs(mlp: Any) -> None:
    mlp.gate.weight.requires_grad_(False)


def made_in_inference_mode(mlp: Any) -> None:
    with torch.inference_mode():
        _set(mlp.gate, torch.randn(INNER, HIDDEN))
        _set(mlp.up, torch.randn(INNER, HIDDEN))


def in_shared_memory(mlp: Any) -> None:
    mlp.share_memory()


def a_mapped_checkpoint(mlp: Any) -> Any:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "model.pt"
    torch.save(mlp.state_dict(), path)
    mlp.load_state_dict(torch.load(path, mmap=True), assign=True)
    return folder


def a_kept_state_dict(mlp: Any) -> Any:
    return mlp.state_dict()


def a_view_held_elsewhere(mlp: Any) -> Any:
    return mlp.up.weight.detach()[3:]


def a_numpy_array_on_it(mlp: Any) -> Any:
    return mlp.up.weight.detach().numpy()


def memory_of_numpy(mlp: Any) -> Any:
    array = torch.randn(INNER, HIDDEN).numpy().copy()
    mlp.gate.weight.data = torch.from_numpy(array)
    return array


def tied_in_one_site(mlp: Any) -> None:
    mlp.up.weight = mlp.gate.weight


def tied_by_storage(mlp: Any) -> None:
    mlp.up.weight.data = mlp.gate.weight.data


def parametrized(mlp: Any) -> None:
    nn.utils.parametrize.register_parametrization(mlp.gate, "weight", Doubled())


CASES: tuple[Case, ...] = (
    views_of_a_flat_buffer, expanded, overlapping, transposed, a_subclass, requires_grad_differs,
    made_in_inference_mode, in_shared_memory, a_mapped_checkpoint, a_kept_state_dict, a_view_held_elsewhere,
    a_numpy_array_on_it, memory_of_numpy, tied_in_one_site, tied_by_storage, parametrized,
)  # fmt: skip


def refusals(placement: str = "share") -> Iterator[Refused]:
    """One row for each case."""
    for case in CASES:
        yield refusal(case, placement)


def refusal(case: Case, placement: str) -> Refused:
    """What a site with such parameters comes to where the user asks for the placement."""
    torch._dynamo.reset()
    torch.manual_seed(2)
    model, x = Decoder(1), inputs()
    mlp = model.layers[0].mlp
    with torch.inference_mode(case is made_in_inference_mode), torch.no_grad():
        held = case(mlp)
        addresses = [p.data_ptr() for p in model.parameters()]
        fast = compiled(model, placement, on_miss="silent", verify=False)
        problem = _apart(fast(x), model(x))
        if placement == "share" and (groups_of(model) or addresses != [p.data_ptr() for p in model.parameters()]):
            problem = problem or "a parameter was moved"
        for _ in range(2):
            mlp.down.weight.mul_(2)
            (mlp.up.weight if case not in (expanded, overlapping, tied_in_one_site) else mlp.down.weight).add_(0.5)
            problem = problem or _apart(fast(x), model(x))
    report = fxfuse.reports()[-1]
    site = max(report.sites, key=lambda s: s.outcome == "rewritten")
    del held
    reason = next(iter((*site.notes, *report.notes)), "") or f"{site.code}: {site.reason}"
    return Refused(case.__name__, site.outcome, site.weights, reason, problem)
