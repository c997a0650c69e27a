"""What people do to a model's weights between two calls. Each event changes what the next call has to compute."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.weights.model import Decoder, inputs

Event = Callable[[Decoder], Any]
"""Takes the model; what it returns, if anything, is a further model that is to be called, too."""


def _mlp(model: Decoder, layer: int = 0) -> Any:
    return model.layers[layer].mlp


def _random(model: Decoder) -> torch.Tensor:
    """Other values for a gate or an up."""
    return torch.randn_like(_mlp(model).gate.weight.detach())


def _low_rank(model: Decoder) -> torch.Tensor:
    rows, columns = _mlp(model).gate.weight.shape
    return torch.randn(rows, 2) @ torch.randn(2, columns) / columns**0.5


def in_place_edit(model: Decoder) -> None:
    with torch.no_grad():
        _mlp(model).gate.weight.mul_(3)
        _mlp(model, 1).up.weight[2] = 5.0


def copy_under_no_grad(model: Decoder) -> None:
    with torch.no_grad():
        _mlp(model).gate.weight.copy_(_random(model))


def data_mul(model: Decoder) -> None:
    _mlp(model).up.weight.data.mul_(-2)


def data_copy(model: Decoder) -> None:
    _mlp(model).up.weight.data.copy_(_random(model))


def data_add(model: Decoder) -> None:
    _mlp(model).gate.weight.data += 0.3


def numpy_write(model: Decoder) -> None:
    _mlp(model).gate.weight.detach().numpy()[...] *= 2


def data_assigned(model: Decoder) -> None:
    for layer in model.layers:
        layer.mlp.gate.weight.data = _random(model)


def data_exchanged(model: Decoder) -> None:
    gate, up = _mlp(model).gate.weight, _mlp(model).up.weight
    gate.data, up.data = up.data, gate.data


def parameters_exchanged(model: Decoder) -> None:
    mlp = _mlp(model)
    mlp.gate.weight, mlp.up.weight = mlp.up.weight, mlp.gate.weight


def new_parameter(model: Decoder) -> None:
    _mlp(model).up.weight = nn.Parameter(_random(model))


def norm_and_down(model: Decoder) -> None:
    with torch.no_grad():
        model.layers[0].norm.weight.mul_(2)
        _mlp(model, 1).down.weight.neg_()


def _trained(model: Decoder, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            model(inputs(5)).square().mean().backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def sgd(model: Decoder) -> None:
    _trained(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))


def sgd_fused(model: Decoder) -> None:
    _trained(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, fused=True))


def adamw(model: Decoder) -> None:
    _trained(model, torch.optim.AdamW(model.parameters(), lr=0.1, foreach=True))


def adamw_fused(model: Decoder) -> None:
    _trained(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True))


def ema_copied(model: Decoder) -> None:
    average = copy.deepcopy(model)
    sgd(model)
    with torch.no_grad():
        for mean, p in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(p, 0.3)
            p.copy_(mean)


def ema_swapped_in(model: Decoder) -> None:
    average = copy.deepcopy(model)
    sgd(average)
    for mean, p in zip(average.parameters(), model.parameters(), strict=True):
        mean.data, p.data = p.data, mean.data


def load_state_dict(model: Decoder) -> None:
    model.load_state_dict(Decoder().state_dict())


def load_state_dict_assign(model: Decoder) -> None:
    model.load_state_dict(Decoder().state_dict(), assign=True)


def bf16_and_back(model: Decoder) -> None:
    """Each `to` swaps the data of every parameter, and addresses that the first one frees may be used again."""
    model.to(torch.bfloat16)
    _mlp(model).gate.weight.data.mul_(3)
    model.to(torch.float32)


def double_and_back(model: Decoder) -> None:
    model.double()
    _mlp(model).up.weight.data.add_(1)
    model.float()


def lora_merged(model: Decoder) -> None:
    for layer in model.layers:
        layer.mlp.gate.weight.data += _low_rank(model)


def lora_merged_and_unmerged(model: Decoder) -> None:
    """What is left is the rounding, and one more adapter, merged after."""
    delta = _low_rank(model)
    weight = _mlp(model).up.weight
    weight.data += delta
    weight.data -= delta
    weight.data += 0.5 * delta


def tied(model: Decoder) -> None:
    _mlp(model, 1).gate.weight = _mlp(model, 0).gate.weight


def untied(model: Decoder) -> None:
    tied(model)
    _mlp(model, 1).gate.weight = nn.Parameter(_mlp(model, 1).gate.weight.detach() * 2)


def share_memory(model: Decoder) -> None:
    model.share_memory()
    _mlp(model).up.weight.data.mul_(2)


def from_another_thread(model: Decoder) -> None:
    def swap() -> None:
        _mlp(model).gate.weight.data = _random(model)
        _mlp(model, 1).up.weight.data.mul_(2)

    thread = threading.Thread(target=swap)
    thread.start()
    thread.join()


def deep_copied(model: Decoder) -> Decoder:
    twin = copy.deepcopy(model)
    data_mul(twin)
    in_place_edit(model)
    return twin


def pickled(model: Decoder) -> Decoder:
    twin: Decoder = pickle.loads(pickle.dumps(model))
    data_assigned(twin)
    data_mul(model)
    return twin


def a_second_model(model: Decoder) -> Decoder:
    other = Decoder()
    in_place_edit(model)
    return other


def to_meta(model: Decoder) -> None:
    model.to("meta")


EVENTS: tuple[Event, ...] = (
    in_place_edit, copy_under_no_grad, data_mul, data_copy, data_add, numpy_write, data_assigned, data_exchanged,
    parameters_exchanged, new_parameter, norm_and_down, sgd, sgd_fused, adamw, adamw_fused, ema_copied, ema_swapped_in,
    load_state_dict, load_state_dict_assign, bf16_and_back, double_and_back, lora_merged, lora_merged_and_unmerged,
    tied, untied, share_memory, from_another_thread, deep_copied, pickled, a_second_model, to_meta,
)  # fmt: skip
