"""Fused weights that cost no memory: parameters that live inside the tensor which is derived from them.

`share` makes one allocation F and gives each source *a storage of its own* inside it. Parameter objects and modules
stay; an in-place write, an optimizer step or `load_state_dict` writes into F itself, so F is never stale. Because each
source has a storage of exactly its own size, everything that saves models saves what it saved before. (Plain views of
F would not do: accelerate's `save_model` then drops weights in silence.)

What a group of sources shares is kept in a process-wide registry that holds the sources weakly: F goes when they go.
A source is in one group at most. `restore` undoes it, bit-exact.

Threads may share and restore at once. As with any `p.data = ...`, no other thread may be *reading* a parameter's
memory at the moment in which it is moved.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack, to_dlpack

from fxfuse.compat import dispatch_mode_active, is_functorch_wrapped_tensor, storage_holders, storage_manager
from fxfuse.params.transforms import Transform

# One lock for all bookkeeping of derived parameters. Reentrant, since a garbage collection may run anything.
LOCK = threading.RLock()

# Inductor checks alignment once, at compile; TMA loads on CUDA need 128 bytes.
BORDER = {"cpu": 16}
BORDER_ELSEWHERE = 128


class NotShareable(Exception):
    """The sources cannot live in one allocation. `reason` is a sentence; nothing was changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Member(weakref.ref[Tensor]):
    """A weak reference to one source, which knows under which key the registry has it."""

    __slots__ = ("key",)

    key: int


def _member(source: Tensor) -> _Member:
    member = _Member(source, _member_died)
    member.key = id(source)
    return member


class Group:
    """Sources that live in one allocation.

    `tensor` is F, or None once the group was given up. `members` are weak references in F's order, `pointers` the
    addresses at which they were put.
    """

    __slots__ = ("contiguous", "layouts", "members", "pointers", "tensor", "transform")

    def __init__(self, sources: Sequence[Tensor], transform: Transform, tensor: Tensor) -> None:
        self.transform = transform
        self.tensor: Tensor | None = tensor
        self.members = tuple(_member(source) for source in sources)
        self.pointers = [source.data_ptr() for source in sources]
        self.layouts = [layout(source) for source in sources]
        self.contiguous = [True] * len(sources)

    def describe(self) -> str:
        """The group as a line of a report."""
        shape = "given up" if self.tensor is None else f"{self.tensor.dtype}{list(self.tensor.shape)}"
        return f"{self.transform.describe()}: {shape}"

    def still_in_place(self, source: Tensor, index: int) -> bool:
        """Whether `source` is member `index` and lives where it was put."""
        return (
            self.members[index]() is source
            and source.data_ptr() == self.pointers[index]
            and layout(source) == self.layouts[index]
        )

    def intact(self) -> bool:
        """Whether all members live, and live where they were put: only then does F hold their values."""
        if self.tensor is None:
            return False
        sources = [member() for member in self.members]
        return all(source is not None and self.still_in_place(source, i) for i, source in enumerate(sources))


_GROUPS: dict[int, Group] = {}  # id of a live source -> its group


def _member_died(member: Any) -> None:
    # Runs wherever the last reference goes, so it takes no lock: each step is one atomic operation on a dict.
    group = _GROUPS.get(member.key)
    if group is not None and any(member is one for one in group.members):
        _GROUPS.pop(member.key, None)


def _give_up(group: Group) -> None:
    for member in group.members:
        if _GROUPS.get(member.key) is group:
            _GROUPS.pop(member.key, None)
    group.tensor = None


def find(sources: Sequence[Tensor], transform: Transform) -> Group | None:
    """The intact group of exactly these sources in this order, or None. What they are called does not matter."""
    group = _GROUPS.get(id(sources[0]))
    if group is None or group.tensor is None or len(group.members) != len(sources) or not transform.shareable:
        return None
    if type(group.transform) is not type(transform):  # rows (n * A, B) or experts (n, A, B)
        return None
    # `p.data = p.data.t()` keeps object and address, so what is read from there counts too; loops are slow here
    for source, member, pointer, (shape, _, dtype) in zip(sources, group.members, group.pointers, group.layouts):  # noqa: B905
        if (
            member() is not source
            or source.data_ptr() != pointer
            or not source.is_contiguous()
            or source.shape != shape
            or source.dtype != dtype
        ):
            return None
    return group


def current(sources: Sequence[Tensor], transform: Transform) -> Tensor | None:
    """F of these sources if they live in it now, each object in its place; else None."""
    group = find(sources, transform)
    return None if group is None else group.tensor


def share(sources: Sequence[Tensor], transform: Transform, *, take_mapped: bool = False) -> Tensor:
    """Move `sources` into one allocation and return it: what `transform` gives, without a second copy.

    `sources` are in the order of `transform.sources`, of shapes (n_i, ...); the result F is (sum of n_i, ...), or of
    experts (number of sources, n, ...). Sources that already live together in this order keep their F. Raises
    NotShareable with the reason; then nothing was changed.

    `take_mapped` also takes sources in a private mapping of a file, which is where `from_pretrained` leaves weights
    on a CPU if their dtype is the checkpoint's. Their pages then become memory of this process instead of pages which
    the system can drop and read again, which is why it is not the default.
    """
    with LOCK, torch.inference_mode(False), torch.no_grad():
        return share_group(sources, transform, take_mapped=take_mapped).tensor  # type: ignore[return-value]


def share_group(sources: Sequence[Tensor], transform: Transform, *, take_mapped: bool) -> Group:
    """`share`, for callers that hold LOCK and are outside grad and inference mode."""
    if len(sources) != len(transform.sources):
        raise ValueError(
            f"{transform.describe()} was given {len(sources)} sources; "
            f"it takes {len(transform.sources)}, for {', '.join(transform.sources)} in this order"
        )
    found = find(sources, transform)
    if found is not None:
        return found
    try:
        require_shareable(sources, transform, take_mapped=take_mapped)
    except NotShareable:
        if not dispatch_mode_active() and not capturing(sources):
            _free_broken(sources)
        raise
    group = _move(sources, transform)
    for old in {id(g): g for g in (_GROUPS.get(id(source)) for source in sources) if g is not None}.values():
        # broken, or it would have been refused; members that stay in it keep its memory through their storage
        _leave(old, sources)
    _GROUPS.update((id(source), group) for source in sources)
    return group


def restore(model: nn.Module) -> int:
    """Give every parameter of `model` that shares storage a storage of its own again, with the same bits.

    Whole groups at once, so parameters outside `model` that share with one inside are given back too. Returns how
    many parameters were given back; a second call returns 0. What else holds the shared storage (a `state_dict()`
    taken in between) keeps the values of this moment.
    """
    with LOCK, torch.inference_mode(False), torch.no_grad():
        return sum(_restore_group(group) for group in groups_of(model))


def groups_of(model: nn.Module) -> tuple[Group, ...]:
    """The groups in which parameters or buffers of `model` are, each once, in the model's order."""
    found = (_GROUPS.get(id(tensor)) for tensor in chain(model.parameters(), model.buffers()))
    return tuple({id(group): group for group in found if group is not None}.values())


def group_count() -> int:
    """How many groups this process has: for tests and accounts."""
    return len({id(group) for group in list(_GROUPS.values())})


# moving


def _move(sources: Sequence[Tensor], transform: Transform) -> Group:
    originals = [source.data for source in sources]
    part: Tensor | None = None
    original: Tensor | None = None
    moved = 0
    try:
        whole = transform(*originals)
        if type(whole) is not Tensor or not whole.is_contiguous():
            raise NotShareable(f"{transform.describe()} gave a {type(whole).__name__} that is not one plain allocation")
        rows = whole.view(-1, *sources[0].shape[1:])  # of experts, too
        ends = list(accumulate(source.shape[0] for source in sources))
        for source, end in zip(sources, ends, strict=True):
            part = from_dlpack(to_dlpack(rows[end - source.shape[0] : end]))
            # strides of dimensions of length 1 are free, and DLPack does not carry them: Dynamo guards on them
            part = part.as_strided(source.shape, source.stride())
            moved += 1
            source.data = part
            _require_moved(source, rows, end, transform)
        return Group(sources, transform, whole)
    except BaseException as error:
        for source, original in zip(sources[:moved], originals, strict=False):
            assert original is not None
            source.data = original
        if isinstance(error, NotShareable) or not isinstance(error, Exception):
            raise
        raise NotShareable(f"moving the sources of {transform.describe()} failed and was undone: {error}") from error
    finally:
        originals.clear()  # a kept traceback keeps this frame, and with it would hold the storages
        part = original = None


def _require_moved(source: Tensor, whole: Tensor, end: int, transform: Transform) -> None:
    row_bytes = whole.stride(0) * whole.element_size()
    start = whole.data_ptr() + (end - source.shape[0]) * row_bytes
    border = BORDER.get(whole.device.type, BORDER_ELSEWHERE)
    if source.data_ptr() != start or start % border:
        raise NotShareable(f"a source of {transform.describe()} came to lie at {source.data_ptr():#x}, not {start:#x}")


def _free_broken(sources: Sequence[Tensor]) -> None:
    """Free what groups hold that lost a member, and that no new group takes the place of: nobody reads it any more.

    A member that is still in place holds all of the allocation, so it gets a storage of its own, unless someone else
    holds the one that it has.
    """
    for source in sources:
        group = _GROUPS.get(id(source))
        if group is None or group.intact():
            continue
        group.tensor = None
        for index, member in enumerate(group.members):
            one = member()
            if one is not None and _is_in(group, index, one) and _storage_reason(one, take_mapped=False) is None:
                _give_back(one)
                _GROUPS.pop(member.key, None)


def _is_in(group: Group, index: int, source: Tensor) -> bool:
    """Whether a member lives in the group's allocation: one that was re-pointed since has a storage of its own."""
    return _GROUPS.get(group.members[index].key) is group and source.data_ptr() == group.pointers[index]


def _give_back(source: Tensor) -> None:
    own = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype, device=source.device)
    source.data = own.copy_(source.data)


def _leave(group: Group, leaving: Sequence[Tensor]) -> None:
    for source in leaving:
        if _GROUPS.get(id(source)) is group:
            _GROUPS.pop(id(source), None)
    group.tensor = None


def _restore_group(group: Group) -> int:
    given_back = 0
    for index, member in enumerate(group.members):
        source = member()
        if source is not None and _is_in(group, index, source):
            _give_back(source)
            given_back += 1
    _give_up(group)
    return given_back


# refusing


def require_shareable(sources: Sequence[Tensor], transform: Transform, *, take_mapped: bool) -> None:
    """Raise NotShareable, with the reason, where `share` would; changes nothing."""
    if not transform.shareable:
        raise NotShareable(
            f"{transform.describe()} does not leave its sources as contiguous slices; only a stack of plain parameters "
            "along dimension 0, or of experts, does"
        )
    if dispatch_mode_active():
        raise NotShareable("a TorchDispatchMode is active, so what it would see are not the parameters' real values")
    if capturing(sources):
        raise NotShareable("a CUDA graph is being captured, so the move would be recorded instead of done")
    names = transform.sources
    for index, source in enumerate(sources):
        reason = _own_reason(source, take_mapped)
        if reason:
            raise NotShareable(f"source {index} ({names[index]}) {reason}")
        for before in range(index):
            reason = _pair_reason(sources[before], source, f"source {before} ({names[before]})")
            if reason:
                raise NotShareable(f"source {index} ({names[index]}) {reason}")
    _require_free_of_groups(sources, names)
    _require_borders(sources, names)


def capturing(sources: Sequence[Tensor]) -> bool:
    """Whether what runs now on the sources is recorded into a CUDA graph instead of done."""
    return any(source.is_cuda for source in sources) and torch.cuda.is_current_stream_capturing()


def kind_reason(source: Tensor) -> str | None:
    """What kind of tensor a source is, if it is none with plain memory and a version counter; else None."""
    if type(source) is not nn.Parameter and type(source) is not Tensor:
        return f"is a {type(source).__module__}.{type(source).__qualname__}, not a plain Parameter or Tensor"
    if is_functorch_wrapped_tensor(source):
        return "is wrapped by a torch.func transform, so it has no storage of its own"
    if source.layout is not torch.strided:
        return f"has the layout {source.layout}, not torch.strided"
    if source.is_quantized:
        return f"is quantised ({source.dtype})"
    if source.device.type == "meta":
        return "is on the meta device and has no values yet"
    if source.is_inference():
        return "was created under torch.inference_mode, so its changes are not counted and its storage is fixed"
    return None


def _own_reason(source: Tensor, take_mapped: bool) -> str | None:
    """What one source, by itself, is that forbids moving it; the order is from what it is to who holds it."""
    reason = kind_reason(source)
    if reason:
        return reason
    if not source.is_leaf:
        return "is not a leaf: it was computed from other tensors"
    if source.is_conj() or source.is_neg():
        return "is a lazily conjugated or negated view"
    if source.ndim == 0 or source.numel() == 0:
        return f"has the shape {tuple(source.shape)}: there are no rows to share"
    if not source.is_contiguous():
        return f"is not contiguous: shape {tuple(source.shape)} has the strides {source.stride()}"
    return _storage_reason(source, take_mapped)


def _storage_reason(source: Tensor, take_mapped: bool) -> str | None:
    storage = source.untyped_storage()
    own = source.numel() * source.element_size()
    manager = storage_manager(source)
    if manager is not None:
        return f"has storage that {manager} frees and fills again"
    if source.is_shared() and source.device.type == "cpu":
        return "is in shared memory (share_memory_()), which other processes may hold"
    if storage.nbytes() != own:
        return f"is a view: its storage holds {storage.nbytes()} bytes and the source has {own}"
    probed = sum(watcher.holds(storage._cdata) for watcher in WATCHERS)
    del storage  # else it counts as a holder
    holders = storage_holders(source) - probed
    if holders > 0:
        return (
            f"has a storage that {holders} other tensor{'s hold' if holders > 1 else ' holds'} "
            "(a tied or detached tensor, a kept state_dict(), a NumPy array), which would part from it"
        )
    if source.untyped_storage().resizable() or _is_ours(source):
        return None
    mapping = _mapped_file(source.data_ptr()) if source.device.type == "cpu" else None
    if mapping is None:
        return (
            "is in memory that someone else may write: torch did not allocate it (from_numpy, frombuffer, DLPack), or "
            "handed it to NumPy; clone the parameter to let it be moved"
        )
    path, private = mapping
    if take_mapped and private:
        return None
    how = "a private mapping" if private else "a mapping, shared with other processes,"
    return f"is in {how} of the file {path}; load it without mapping, or clone the parameter, to let it be moved"


class Watcher(Protocol):
    """Holds storages only to see whether they change (`fxfuse.params.derived`), so it does not forbid a move."""

    def holds(self, storage: int) -> int:
        """How many of its tensors are on the storage at this `_cdata`."""


WATCHERS: weakref.WeakSet[Watcher] = weakref.WeakSet()


def _is_ours(source: Tensor) -> bool:
    """Whether `source` lives where its group put it or another member, so that its memory is ours though not torch's.

    Another member, since two members may have swapped their data.
    """
    group = _GROUPS.get(id(source))
    return group is not None and source.data_ptr() in group.pointers


def _mapped_file(address: int) -> tuple[str, bool] | None:
    """The file that is mapped at `address`, and whether privately; None if there is none or the system cannot say."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                span, access, _, _, inode, *path = line.split(None, 5)
                low, high = (int(end, 16) for end in span.split("-"))
                if low <= address < high:
                    return (path[0].strip(), access.endswith("p")) if inode != "0" and path else None
    except OSError:
        pass
    return None


def _pair_reason(first: Tensor, second: Tensor, first_name: str) -> str | None:
    if first is second:
        return f"is the same tensor as {first_name} (tied)"
    if first.data_ptr() == second.data_ptr():
        return f"has the same storage as {first_name} (tied)"
    for what in ("device", "dtype", "requires_grad"):
        found, expected = getattr(second, what), getattr(first, what)
        if found != expected:
            return f"has {what} {found}, and {first_name} has {expected}; they must agree"
    if first.shape[1:] != second.shape[1:]:
        return f"has rows of shape {tuple(second.shape[1:])}, and {first_name} of {tuple(first.shape[1:])}"
    return None


def _require_free_of_groups(sources: Sequence[Tensor], names: Sequence[str]) -> None:
    for index, source in enumerate(sources):
        group = _GROUPS.get(id(source))
        if group is not None and group.intact():
            raise NotShareable(
                f"source {index} ({names[index]}) already shares storage as part of {group.describe()} with other "
                "sources or in another order; a parameter is in one group at most"
            )


def _require_borders(sources: Sequence[Tensor], names: Sequence[str]) -> None:
    border = BORDER.get(sources[0].device.type, BORDER_ELSEWHERE)
    offset = 0
    for index, source in enumerate(sources):
        if offset % border:
            raise NotShareable(
                f"source {index} ({names[index]}) would begin {offset} bytes into the allocation, "
                f"which is not on a border of {border} bytes"
            )
        offset += source.numel() * source.element_size()


def layout(source: Tensor) -> tuple[object, ...]:
    """All that says how a tensor reads its memory, beside the address."""
    return source.shape, source.stride(), source.dtype
