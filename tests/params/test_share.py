"""Sharing storage: what it keeps, what it refuses and why, how it is undone, and that nothing leaks."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxfuse.params import NotShareable, restore, share, stack
from fxfuse.params.share import current, group_count, groups_of

GATE_UP = stack("gate", "up")


class Mlp(nn.Module):
    def __init__(self, hidden: int = 16, inner: int = 24, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, inner, bias=False, dtype=dtype)
        self.up = nn.Linear(hidden, inner, bias=False, dtype=dtype)
        self.down = nn.Linear(inner, hidden, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def pair(mlp: Mlp) -> tuple[Tensor, Tensor]:
    return mlp.gate.weight, mlp.up.weight


def facts(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()
    return (
        id(tensor), tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype,
        tensor.requires_grad, storage.nbytes(), tensor.storage_offset(),
    )  # fmt: skip


def test_each_source_has_a_storage_of_its_own_inside_one_allocation() -> None:
    mlp = Mlp()
    before = [weight.detach().clone() for weight in pair(mlp)]
    identities, versions = [id(w) for w in pair(mlp)], [w._version for w in pair(mlp)]
    whole = share(pair(mlp), GATE_UP)
    assert torch.equal(whole, torch.cat(before))
    for index, (weight, rows) in enumerate(zip(pair(mlp), whole.split(24), strict=True)):
        assert weight.data_ptr() == rows.data_ptr()
        assert (weight.storage_offset(), weight.untyped_storage().nbytes()) == (0, 24 * 16 * 4)
        assert torch.equal(weight, before[index])
        assert type(weight) is nn.Parameter
        assert weight.requires_grad
        assert weight.is_leaf
        assert not weight._is_view()
    assert [id(w) for w in pair(mlp)] == identities
    assert [w._version for w in pair(mlp)] == versions
    assert mlp.gate.weight.untyped_storage()._cdata != mlp.up.weight.untyped_storage()._cdata


def test_sharing_again_gives_the_same_tensor_whatever_the_sources_are_called() -> None:
    mlp = Mlp()
    whole = share(pair(mlp), GATE_UP)
    assert share(pair(mlp), GATE_UP) is whole
    assert share(pair(mlp), stack("w1", "w3")) is whole
    assert current(pair(mlp), GATE_UP) is whole
    assert current(pair(mlp)[::-1], GATE_UP) is None


@pytest.mark.parametrize("shape", [(1, 16), (4, 1), (4, 2, 2), (8,)])
def test_strides_stay_as_they_were_for_any_shape(shape: tuple[int, ...]) -> None:
    a, b = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
    strides = a.stride(), b.stride()
    share((a, b), GATE_UP)
    assert (a.stride(), b.stride()) == strides


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.double, torch.float8_e4m3fn, torch.int8])
def test_dtypes_and_unequal_rows(dtype: torch.dtype) -> None:
    a = nn.Parameter(torch.randn(16, 16).to(dtype), requires_grad=False)
    b = nn.Parameter(torch.randn(3, 16).to(dtype), requires_grad=False)
    bits = torch.cat([a.detach().view(torch.uint8), b.detach().view(torch.uint8)])
    assert torch.equal(share((a, b), GATE_UP).view(torch.uint8), bits)


def test_sharing_under_inference_mode_leaves_ordinary_parameters() -> None:
    mlp = Mlp()
    with torch.inference_mode():
        whole = share(pair(mlp), GATE_UP)
    assert not whole.is_inference()
    assert not mlp.gate.weight.is_inference()
    mlp(torch.randn(2, 16)).sum().backward()
    assert mlp.gate.weight.grad is not None
    with torch.no_grad():
        mlp.gate.weight.mul_(2)
    assert torch.equal(whole[:24], mlp.gate.weight)


# refusals


class Sub(Tensor):
    pass


def _inference() -> Tensor:
    with torch.inference_mode():
        return nn.Parameter(torch.randn(4, 4))


def _p(*shape: int, **kwargs: Any) -> nn.Parameter:
    return nn.Parameter(torch.randn(*(shape or (4, 4)), **kwargs))


def _tied() -> tuple[Tensor, ...]:
    one = _p()
    return one, one


def _same_storage() -> tuple[Tensor, ...]:
    one = _p()
    return one, nn.Parameter(one.data)


def _flat() -> tuple[Tensor, ...]:
    flat = torch.randn(8, 4)
    return nn.Parameter(flat[:4]), nn.Parameter(flat[4:])


REFUSALS: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "subclass": (lambda: (_p(), torch.randn(4, 4).as_subclass(Sub)), r"source 1 \(up\) is a .*Sub, not a plain Param"),
    "not a leaf": (lambda: (_p(), _p() * 2), r"source 1 \(up\) is not a leaf"),
    "meta": (lambda: (_p(device="meta"), _p(device="meta")), r"source 0 \(gate\) is on the meta device"),
    "inference": (lambda: (_p(), _inference()), r"source 1 \(up\) was created under torch.inference_mode"),
    "sparse": (lambda: (torch.eye(4).to_sparse(), _p()), r"source 0 \(gate\) has the layout torch.sparse_coo"),
    "quantised": (
        lambda: (torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8), _p()),
        r"source 0 \(gate\) is quantised \(torch.qint8\)",
    ),
    "conjugate": (lambda: (torch.randn(4, 4, dtype=torch.cfloat).conj(), _p()), r"lazily conjugated"),
    "zero size": (lambda: (_p(), _p(0, 4)), r"source 1 \(up\) has the shape \(0, 4\): there are no rows"),
    "no rows": (lambda: (nn.Parameter(torch.tensor(1.0)), _p()), r"source 0 \(gate\) has the shape \(\)"),
    "transposed": (lambda: (_p(), nn.Parameter(torch.randn(4, 8).t())), r"not contiguous: .*strides \(1, 8\)"),
    "expanded": (lambda: (_p(), nn.Parameter(torch.randn(1, 4).expand(4, 4))), r"not contiguous: .*strides \(0, 1\)"),
    "flat buffer": (_flat, r"source 0 \(gate\) is a view: its storage holds 128 bytes and the source has 64"),
    "tied": (_tied, r"source 1 \(up\) is the same tensor as source 0 \(gate\) \(tied\)"),
    "same storage": (_same_storage, r"source 0 \(gate\) has a storage that 1 other tensor holds"),
    "shared memory": (lambda: (_p(), nn.Parameter(torch.randn(4, 4).share_memory_())), "up.*is in shared memory"),
    "dtypes": (
        lambda: (_p(), _p(dtype=torch.bfloat16)),
        r"up\) has dtype torch.bfloat16, and source 0 \(gate\) has tor",
    ),
    "devices": (lambda: (_p(), _p(device="meta")), r"source 1 \(up\) is on the meta device"),
    "grad": (lambda: (_p(), _p().requires_grad_(False)), "up.*has requires_grad False, and source 0 .*has True"),
    "rows": (lambda: (_p(), _p(4, 8)), r"up\) has rows of shape \(8,\), and source 0 \(gate\) of \(4,\)"),
    "border": (lambda: (_p(3, 3), _p(3, 3)), r"up\) would begin 36 bytes into the allocation.* border of 16 bytes"),
    "numpy": (
        lambda: (_p(), nn.Parameter(torch.from_numpy(torch.randn(4, 4).numpy().copy()))),
        r"up\) is in memory that someone else may write: torch did not allocate it",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_name_the_source_and_change_nothing(what: str) -> None:
    make, message = REFUSALS[what]
    sources = make()
    if what not in ("sparse", "quantised", "meta", "devices", "inference"):
        before = [facts(source) for source in sources]
    else:
        before = None
    with pytest.raises(NotShareable, match=message) as info:
        share(sources, GATE_UP)
    assert info.value.reason == str(info.value)
    if before is not None:
        assert [facts(source) for source in sources] == before


HOLDERS: dict[str, Callable[[Mlp], Any]] = {
    "state_dict": lambda mlp: mlp.state_dict(),
    "a view": lambda mlp: mlp.up.weight.detach()[3:],
    "storage": lambda mlp: mlp.up.weight.untyped_storage(),
    "dlpack": lambda mlp: torch.utils.dlpack.to_dlpack(mlp.up.weight.detach()),
}


@pytest.mark.parametrize("what", HOLDERS)
def test_a_storage_that_someone_holds_is_refused_until_they_let_go(what: str) -> None:
    mlp = Mlp()
    holder = HOLDERS[what](mlp)
    with pytest.raises(NotShareable, match=r"has a storage that [12] other tensors? holds?") as info:
        share(pair(mlp), GATE_UP)
    del holder
    share(pair(mlp), GATE_UP)
    assert info.value.reason  # a kept error holds nothing either


def test_a_numpy_array_on_the_weight_is_refused_and_leaves_its_mark() -> None:
    mlp = Mlp()
    array = mlp.up.weight.detach().numpy()
    with pytest.raises(NotShareable, match="has a storage that 1 other tensor holds"):
        share(pair(mlp), GATE_UP)
    del array  # torch marks the storage for good, and cannot tell whether NumPy still has it
    with pytest.raises(NotShareable, match="or handed it to NumPy; clone the parameter"):
        share(pair(mlp), GATE_UP)
    mlp.up.weight.data = mlp.up.weight.data.clone()
    share(pair(mlp), GATE_UP)


def test_mapped_checkpoints_are_refused_by_default_and_can_be_granted(tmp_path: Path) -> None:
    torch.save(Mlp().state_dict(), tmp_path / "model.pt")
    mlp = Mlp()
    mlp.load_state_dict(torch.load(tmp_path / "model.pt", mmap=True), assign=True)
    with pytest.raises(NotShareable, match=r"is in a private mapping of the file .*model.pt"):
        share(pair(mlp), GATE_UP)
    before = torch.cat(pair(mlp)).detach()
    assert torch.equal(share(pair(mlp), GATE_UP, take_mapped=True), before)


def test_one_group_at_most() -> None:
    mlp = Mlp()
    whole = share(pair(mlp), GATE_UP)
    other = _p(24, 16)
    for sources in (pair(mlp)[::-1], (mlp.gate.weight, other), (other, mlp.up.weight)):
        with pytest.raises(NotShareable, match=r"already shares storage as part of stack.gate, up.: torch.float32"):
            share(sources, GATE_UP)
    with pytest.raises(NotShareable, match="already shares storage"):
        share((*pair(mlp), other), stack("a", "b", "c"))
    assert current(pair(mlp), GATE_UP) is whole


def test_transforms_that_cannot_be_shared_and_wrong_counts() -> None:
    mlp = Mlp()
    with pytest.raises(NotShareable, match="does not leave its sources as contiguous slices"):
        share(pair(mlp), stack("gate", "up", dim=1))
    with pytest.raises(ValueError, match="was given 1 sources; it takes 2"):
        share(pair(mlp)[:1], GATE_UP)


def test_nothing_is_moved_under_a_dispatch_mode_or_in_vmap() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    mlp = Mlp()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(NotShareable, match="TorchDispatchMode is active"):
        share(pair(mlp), GATE_UP)

    def inside(weight: Tensor) -> Tensor:
        with pytest.raises(NotShareable, match=r"wrapped by a torch.func transform"):
            share((weight, weight), GATE_UP)
        return weight

    torch.vmap(inside)(torch.randn(2, 4, 4))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_midway_is_undone(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    import importlib

    module = importlib.import_module("fxfuse.params.share")
    mlp = Mlp()
    before = [facts(weight) for weight in pair(mlp)]
    calls = []
    real = module.from_dlpack

    def flaky(capsule: Any) -> Tensor:
        calls.append(1)
        if len(calls) > failing:
            raise RuntimeError("no such luck")
        return real(capsule)

    monkeypatch.setattr(module, "from_dlpack", flaky)
    with pytest.raises(NotShareable, match="failed and was undone: no such luck") as info:
        share(pair(mlp), GATE_UP)
    assert [facts(weight) for weight in pair(mlp)] == before
    assert group_count() == len(module._GROUPS) == 0 or groups_of(mlp) == ()
    monkeypatch.undo()
    share(pair(mlp), GATE_UP)  # the kept error does not hold the storages
    assert info.value.reason


# broken shares and undoing


def test_a_broken_share_is_noticed_and_the_old_tensor_never_written() -> None:
    mlp = Mlp()
    whole = share(pair(mlp), GATE_UP)
    kept = whole.clone()
    mlp.gate.weight.data = torch.randn(24, 16)
    assert current(pair(mlp), GATE_UP) is None
    again = share(pair(mlp), GATE_UP)
    assert again is not whole
    assert torch.equal(again, torch.cat(pair(mlp)))
    assert torch.equal(whole, kept)
    with torch.no_grad():
        mlp.up.weight.zero_()
    assert torch.equal(whole, kept)


@pytest.mark.parametrize("square", [lambda w: w.data.t(), lambda w: w.data[:8], lambda w: w.data.view(8, 32)])
def test_the_same_address_read_otherwise_is_not_the_share(square: Callable[[Tensor], Tensor]) -> None:
    a, b = _p(16, 16), _p(16, 16)
    share((a, b), GATE_UP)
    a.data = square(a)
    assert current((a, b), GATE_UP) is None


def test_a_member_of_a_broken_group_may_join_another() -> None:
    mlp, other = Mlp(), _p(24, 16)
    share(pair(mlp), GATE_UP)
    mlp.gate.weight.data = torch.randn(24, 16)
    joined = share((mlp.up.weight, other), GATE_UP)
    assert torch.equal(joined, torch.cat([mlp.up.weight, other]))
    assert restore(mlp) == 2
    mlp2 = Mlp()
    share(pair(mlp2), GATE_UP)
    del mlp2.gate
    up = mlp2.up.weight
    assert torch.equal(share((up, other), GATE_UP), torch.cat([up, other]))


def test_restore_gives_back_whole_groups_bit_exact() -> None:
    model = nn.ModuleList([Mlp(), Mlp()])
    with torch.no_grad():
        model[0].gate.weight[0, 0] = float("nan")
    bits = [w.detach().view(torch.int32).clone() for w in model.parameters()]
    for mlp in model:
        share(pair(mlp), GATE_UP)
    held = weakref.ref(groups_of(model)[0].tensor)
    assert len(groups_of(model)) == 2
    assert restore(model[0].gate) == 2  # its partner outside the module too
    assert held() is None
    assert len(groups_of(model)) == 1
    assert restore(model) == 2
    assert restore(model) == 0
    for weight, before in zip(model.parameters(), bits, strict=True):
        assert torch.equal(weight.detach().view(torch.int32), before)
        assert weight.untyped_storage().resizable()
        assert weight.requires_grad
    share(pair(model[0]), GATE_UP)  # and may be shared again


def test_restore_under_inference_mode_and_of_a_half_that_survives() -> None:
    mlp = Mlp()
    share(pair(mlp), GATE_UP)
    mlp.gate = nn.Identity()
    gc.collect()
    with torch.inference_mode():
        assert restore(mlp) == 1
    assert not mlp.up.weight.is_inference()
    assert restore(mlp) == 0


def test_share_memory_after_sharing_breaks_the_share_and_keeps_values() -> None:
    mlp = Mlp()
    before = torch.cat(pair(mlp)).detach()
    share(pair(mlp), GATE_UP)
    mlp.share_memory()
    assert torch.equal(torch.cat(pair(mlp)), before)
    assert current(pair(mlp), GATE_UP) is None
    with pytest.raises(NotShareable, match="shared memory"):
        share(pair(mlp), GATE_UP)


# lifetime and threads


def _live_tensors() -> int:
    return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


def test_nothing_stays_after_1000_models() -> None:
    def cycle() -> None:
        mlp = Mlp()
        share(pair(mlp), GATE_UP)

    cycle()
    gc.collect()
    gc.disable()  # references alone must do
    try:
        tensors, groups = _live_tensors(), group_count()
        for _ in range(1000):
            cycle()
        assert group_count() == groups
        assert _live_tensors() == tensors
    finally:
        gc.enable()


def test_the_allocation_dies_with_its_parameters() -> None:
    mlp = Mlp()
    gone = weakref.ref(share(pair(mlp), GATE_UP))
    up = mlp.up.weight
    del mlp
    gc.collect()
    assert torch.isfinite(up).all()  # one that survives keeps its memory
    del up
    gc.collect()
    assert gone() is None


def test_threads_share_one_allocation_per_model() -> None:
    models = [Mlp() for _ in range(20)]
    expected = [torch.cat(pair(mlp)).detach() for mlp in models]
    found: list[list[Tensor]] = []
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def work() -> None:
        try:
            start.wait()
            found.append([share(pair(mlp), GATE_UP) for mlp in models])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for index, whole in enumerate(expected):
        assert len({id(each[index]) for each in found}) == 1
        assert torch.equal(found[0][index], whole)


@pytest.mark.parametrize("leaving", ["both", "one"])
def test_a_broken_group_that_cannot_be_made_anew_holds_no_memory(leaving: str) -> None:
    mlp = Mlp()
    whole = weakref.ref(share(pair(mlp), GATE_UP))
    leavers = pair(mlp) if leaving == "both" else pair(mlp)[:1]
    for weight in leavers:
        weight.data = torch.randn(24, 16).share_memory_()
    values = [weight.detach().clone() for weight in pair(mlp)]
    with pytest.raises(NotShareable, match="is in shared memory"):
        share(pair(mlp), GATE_UP)
    gc.collect()
    assert whole() is None
    for weight in leavers:
        weight.data = weight.data.clone()
    assert torch.equal(share(pair(mlp), GATE_UP), torch.cat(values))


def test_the_one_that_stayed_keeps_its_storage_while_someone_holds_it() -> None:
    mlp = Mlp()
    share(pair(mlp), GATE_UP)
    held = mlp.up.weight.detach()
    mlp.gate.weight.data = torch.randn(24, 16).share_memory_()
    for _ in range(2):
        with pytest.raises(NotShareable, match="is in shared memory"):
            share(pair(mlp), GATE_UP)
        mlp.up.weight.data.mul_(2)
        assert torch.equal(held, mlp.up.weight), "they parted"
    del held
    mlp.gate.weight.data = mlp.gate.weight.data.clone()
    assert torch.equal(share(pair(mlp), GATE_UP), torch.cat(pair(mlp)))
    assert restore(mlp) == 2
