"""What compiling leaves as it was: modules, parameters, hooks, state_dict, and every file that a model is saved to."""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end.tiny import (
    EVERY_PLACEMENT,
    PLACEMENTS,
    Tiny,
    batch,
    close,
    compiled,
    graphs,
    placed,
    recorded,
    tiny_llama,
)
from torch import Tensor, nn

import fxfuse
from fxfuse.params.share import groups_of

safetensors_torch = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

LAYERS = 2


def description(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a user can see, without holding any of its memory."""
    return {
        "repr": repr(model),
        "modules": [(name, id(m), type(m)) for name, m in model.named_modules()],
        "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
        "forwards": {name: m.forward.__func__ for name, m in model.named_modules()},
        "hooks": {
            (name, kind): list(getattr(m, kind).values())
            for name, m in model.named_modules()
            for kind in vars(m)
            if kind.endswith("_hooks")
        },
        "parameters": [_about(name, p) for name, p in model.named_parameters()],
        "buffers": [_about(name, b) for name, b in model.named_buffers()],
        "state_dict": list(model.state_dict()),
        "storages": [p.untyped_storage().nbytes() for p in model.parameters()],
        "training": {name: m.training for name, m in model.named_modules()},
    }


def marked(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model with the two marks that Dynamo itself leaves under every backend; what fxfuse adds is compared to that.

    They are `_is_torch_compile` on the module and `_dynamo_static_input_type` on each parameter, and are pickled.
    """
    with torch.no_grad():
        torch.compile(model, backend="eager")(*args, **kwargs)
    torch._dynamo.reset()
    return model


def _about(name: str, tensor: Tensor) -> tuple[Any, ...]:
    layout = (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device)
    return (
        name,
        id(tensor),
        type(tensor),
        dict(vars(tensor)),
        *layout,
        tensor.requires_grad,
        tensor.is_leaf,
        tensor._is_view(),
    )


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_values(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- writers: each saves to a folder, and says what it can read back from there --------------------------------------


def _fresh() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return tiny_llama(LAYERS)


def torch_save(model: Any, folder: Path) -> dict[str, Tensor]:
    torch.save(model.state_dict(), folder / "state.pt")
    return torch.load(folder / "state.pt")


def torch_save_of_the_module(model: Any, folder: Path) -> dict[str, Tensor]:
    torch.save(model, folder / "module.pt")
    return torch.load(folder / "module.pt", weights_only=False).state_dict()


def pickled(model: Any, folder: Path) -> dict[str, Tensor]:
    (folder / "model.pickle").write_bytes(pickle.dumps(model))
    return pickle.loads((folder / "model.pickle").read_bytes()).state_dict()


def safetensors_file(model: Any, folder: Path) -> dict[str, Tensor]:
    safetensors_torch.save_file(model.state_dict(), folder / "file.safetensors")
    return safetensors_torch.load_file(folder / "file.safetensors")


def safetensors_model(model: Any, folder: Path) -> dict[str, Tensor]:
    safetensors_torch.save_model(model, str(folder / "model.safetensors"))
    other = _fresh()
    assert safetensors_torch.load_model(other, folder / "model.safetensors") == (set(), [])
    return other.state_dict()


def save_pretrained(model: Any, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()


def accelerate_save(model: Any, folder: Path) -> dict[str, Tensor]:
    accelerate.Accelerator(cpu=True).save_model(model, folder)
    other = _fresh()
    accelerate.load_checkpoint_in_model(other, str(folder))
    return other.state_dict()


def one_submodule(model: Any, folder: Path) -> dict[str, Tensor]:
    torch.save(model.model.layers[1].mlp, folder / "mlp.pt")
    return torch.load(folder / "mlp.pt", weights_only=False).state_dict()


def one_parameter(model: Any, folder: Path) -> dict[str, Tensor]:
    torch.save(model.model.layers[0].mlp.up_proj.weight, folder / "parameter.pt")
    return {"weight": torch.load(folder / "parameter.pt").detach()}


WRITERS: list[Callable[[Any, Path], dict[str, Tensor]]] = [
    save_pretrained,  # first, since it completes the config, which is pickled too
    torch_save, torch_save_of_the_module, pickled, safetensors_file, safetensors_model, accelerate_save,
    one_submodule, one_parameter,
]  # fmt: skip
EVERY_WRITER = pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)


def sizes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}


@dataclass
class Used:
    """A model after a compile and three calls, and what was known of it before."""

    placement: str
    model: Any
    description: dict[str, Any]
    values: dict[str, Tensor]
    read_back: dict[str, dict[str, Tensor]]
    folder: Path


@pytest.fixture(scope="module", params=PLACEMENTS)
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    """One compile serves all tests of a placement: they only read."""
    placement, folder = request.param, tmp_path_factory.mktemp(request.param)
    tokens = torch.arange(1, 8)[None]
    model = marked(_fresh(), tokens, use_cache=False)
    model.register_forward_hook(_harmless)
    before = Used(placement, model, description(model), values(model), {}, folder)
    for write in WRITERS:
        (folder / "before" / write.__name__).mkdir(parents=True)
        before.read_back[write.__name__] = write(model, folder / "before" / write.__name__)
    before.read_back = {name: {k: v.clone() for k, v in read.items()} for name, read in before.read_back.items()}
    with torch.no_grad(), recorded() as reports:
        fast = compiled(model, placement)
        for _ in range(3):
            found = fast(tokens, use_cache=False).logits
    placed(model, placement, LAYERS, reports)
    close(found, model(tokens, use_cache=False).logits)
    yield before
    fxfuse.restore(model)


def _harmless(module: nn.Module, args: Any, output: Any) -> None:
    """A user's hook."""


def test_the_description_sees_changes() -> None:
    """The negative twin of the tests below: what they compare is not blind."""
    for change in (
        lambda m: m.layers[0].register_forward_hook(_harmless),
        lambda m: setattr(m.layers[0].mlp, "note", 1),
        lambda m: setattr(m.layers[0].mlp, "up", nn.Linear(16, 32, bias=False)),
        lambda m: setattr(m.layers[0].mlp.up, "weight", nn.Parameter(m.layers[0].mlp.up.weight.detach())),
        lambda m: setattr(m.layers[0].mlp.up.weight, "note", 1),
        lambda m: m.layers[0].mlp.gate.weight.requires_grad_(False),
        lambda m: m.register_buffer("extra", torch.zeros(1)),
        lambda m: setattr(m.norm.weight, "data", torch.zeros(32)[:16]),
        lambda m: m.layers[1].eval(),
    ):
        model = Tiny()
        before = description(model)
        change(model)
        assert description(model) != before


def test_modules_parameters_and_hooks_are_the_same(used: Used) -> None:
    now = description(used.model)
    for what, expected in used.description.items():
        assert now[what] == expected, what
    assert_same_values(values(used.model), used.values)


@EVERY_WRITER
def test_saved_files_are_the_same(used: Used, write: Callable[[Any, Path], dict[str, Tensor]]) -> None:
    folder = used.folder / "after" / write.__name__
    folder.mkdir(parents=True)
    read = write(used.model, folder)
    assert_same_values(read, used.read_back[write.__name__])
    assert sizes(folder) == sizes(used.folder / "before" / write.__name__)


def test_saving_moved_nothing_back(used: Used) -> None:
    """The files above were of the model as it is used: still shared, where it is shared."""
    assert len(groups_of(used.model)) == (LAYERS if used.placement == "share" else 0)


def test_a_state_dict_in_memory_is_the_same(used: Used) -> None:
    buffer = io.BytesIO()
    torch.save(used.model.state_dict(), buffer)
    buffer.seek(0)
    other = _fresh()
    other.load_state_dict(torch.load(buffer))
    assert_same_values(values(other), used.values)


# --- restore ---------------------------------------------------------------------------------------------------------


def ranges(model: nn.Module) -> list[tuple[int, int]]:
    storages = [p.untyped_storage() for p in model.parameters()]
    return sorted((s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages)


@EVERY_PLACEMENT
@torch.no_grad()
def test_after_restore_every_storage_is_its_own(placement: str) -> None:
    x = batch()
    model = marked(Tiny(), x)
    before, start = description(model), values(model)
    addresses = [p.data_ptr() for p in model.parameters()]
    fast = compiled(model, placement)
    expected = model(x)
    fast(x)
    moved = [p.data_ptr() for p in model.parameters()] != addresses
    assert moved == (placement == "share")
    assert fxfuse.restore(model) == (4 if placement == "share" else 0)
    assert fxfuse.restore(model) == 0
    assert groups_of(model) == ()
    spans = ranges(model)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    for parameter in model.parameters():
        storage = parameter.untyped_storage()
        assert storage.nbytes() == parameter.numel() * parameter.element_size()
        assert storage.resizable()  # torch allocated it, for this parameter alone
    now = description(model)
    assert all(now[what] == before[what] for what in before)
    assert_same_values(values(model), start)
    number = graphs()
    close(fast(x), expected)  # and the compiled model goes on
    assert graphs() == number


@torch.no_grad()
def test_a_shared_storage_is_not_resizable_before_restore() -> None:
    """The negative twin: what the test above asks of storages does not hold while they are shared."""
    model = Tiny(layers=1)
    compiled(model, "share")(batch())
    assert not model.layers[0].mlp.gate.weight.untyped_storage().resizable()
    assert model.layers[0].mlp.down.weight.untyped_storage().resizable()


@torch.no_grad()
def test_explain_moves_nothing() -> None:
    model = marked(Tiny(), batch())
    addresses = [p.data_ptr() for p in model.parameters()]
    before = description(model)
    report = fxfuse.explain(model, (batch(),), options={"weights": "share"})
    assert [s.weights for s in report.sites] == ["share", "share"]
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert groups_of(model) == ()
    assert description(model) == before


@torch.no_grad()
def test_another_instance_of_the_class_is_not_touched() -> None:
    model, other, x = Tiny(), Tiny(), batch()
    before, addresses = description(other), [p.data_ptr() for p in other.parameters()]
    expected = other(x)
    compiled(model, "share")(x)
    assert description(other) == before
    assert [p.data_ptr() for p in other.parameters()] == addresses
    assert torch.equal(other(x), expected)
    assert type(model) is Tiny
