"""What people write a model to, and read it back from: each gives the bytes written, and a model made of them."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.weights.model import Decoder, inputs

Writer = Callable[[Decoder, Path], tuple[int, dict[str, torch.Tensor]]]


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files)


def state_dict(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    return sum(value.untyped_storage().nbytes() for value in model.state_dict().values()), kept


def torch_save(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    torch.save(model.state_dict(), path / "m.pt")
    return _size(path), torch.load(path / "m.pt")


def torch_save_mapped(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    torch.save(model.state_dict(), path / "m.pt")
    return _size(path), torch.load(path / "m.pt", mmap=True)


def pickled_model(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    written = pickle.dumps(model)
    return len(written), pickle.loads(written).state_dict()


def one_parameter(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    name = "layers.0.mlp.up.weight"
    torch.save(model.get_parameter(name), path / "p.pt")
    return _size(path), {name: torch.load(path / "p.pt", weights_only=False)}


def one_submodule(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    torch.save(model.layers[1].mlp.gate, path / "s.pt")
    read = torch.load(path / "s.pt", weights_only=False)
    return _size(path), {f"layers.1.mlp.gate.{name}": value for name, value in read.state_dict().items()}


def safetensors_save_file(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    from safetensors.torch import load_file, save_file

    save_file(model.state_dict(), path / "m.safetensors")
    return _size(path), load_file(path / "m.safetensors")


def safetensors_save_model(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    from safetensors.torch import load_model, save_model

    save_model(model, str(path / "m.safetensors"))
    read = Decoder()
    load_model(read, str(path / "m.safetensors"))
    return _size(path), read.state_dict()


def accelerate_save_model(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    from accelerate import Accelerator
    from safetensors.torch import load_file

    Accelerator(cpu=True).save_model(model, str(path / "m"))
    return _size(path / "m"), load_file(path / "m" / "model.safetensors")


def accelerate_save_state(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    from accelerate import Accelerator

    kept = copy.deepcopy(model.state_dict())
    accelerator = Accelerator(cpu=True)
    accelerator._models = [model]
    accelerator.save_state(str(path / "s"))
    with torch.no_grad():
        model.layers[0].mlp.gate.weight.zero_()
    accelerator.load_state(str(path / "s"))
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    written = sum(f.stat().st_size for f in (path / "s").rglob("*.safetensors"))  # beside it lies the random state
    return written, copy.deepcopy(model.state_dict())


def dcp(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    import warnings

    import torch.distributed.checkpoint as checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": model.state_dict()}, checkpoint_id=path / "d", no_dist=True)
        read = {"model": Decoder().state_dict()}
        checkpoint.load(read, checkpoint_id=path / "d", no_dist=True)
    written = sum(f.stat().st_size for f in (path / "d").glob("*.distcp"))  # beside it lies the time of writing
    return written, read["model"]


def optimizer_state(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Adam's moments belong to the same Parameters, before and after, and are read back to the bit."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with torch.enable_grad():
        model(inputs(3)).square().mean().backward()
    optimizer.step()
    assert all(p in optimizer.state for p in model.parameters())
    torch.save(optimizer.state_dict(), path / "o.pt")
    again = torch.optim.AdamW(model.parameters(), lr=0.01)
    again.load_state_dict(torch.load(path / "o.pt"))
    for p in model.parameters():
        assert torch.equal(again.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])
    optimizer.zero_grad()
    return _size(path), copy.deepcopy(model.state_dict())


def accumulated_gradients(model: Decoder, path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Two backwards into one gradient, and both ways of throwing it away."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.enable_grad():
        for _ in range(2):
            model(inputs(4)).sum().backward()
    twin = copy.deepcopy(model)
    twin.zero_grad()
    with torch.enable_grad():
        (2 * twin(inputs(4)).sum()).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())
    return sum(p.untyped_storage().nbytes() for p in model.parameters()), copy.deepcopy(model.state_dict())


WRITERS: tuple[Writer, ...] = (
    state_dict, torch_save, torch_save_mapped, pickled_model, one_parameter, one_submodule, safetensors_save_file,
    safetensors_save_model, accelerate_save_model, accelerate_save_state, dcp, optimizer_state, accumulated_gradients,
)  # fmt: skip
NEEDS = {"safetensors": "safetensors", "accelerate": "accelerate"}


def missing(writer: Callable[..., Any]) -> str | None:
    """The package that a writer needs and that is not installed."""
    wanted = [package for prefix, package in NEEDS.items() if writer.__name__.startswith(prefix)]
    return next((package for package in wanted if importlib.util.find_spec(package) is None), None)


def bits_equal(one: nn.Module | dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether `other` has the bits of the same names in `one`."""
    mine = one.state_dict() if isinstance(one, nn.Module) else one
    return all(
        torch.equal(mine[name].detach().view(torch.uint8), v.detach().view(torch.uint8)) for name, v in other.items()
    )
