"""Derived parameters at run time: what a compiled graph's wrapper asks, on each call, for the operands it derives.

Dynamo reuses one artifact for a second model, for each layer of a per-layer compile, for both sides of a graph break.
So nothing is bound to an artifact: `DerivedInputs` looks its tensors up by the live arguments of each call. What it
keeps per set of sources holds them weakly, and N instances keep N derived tensors.

Copies are kept in one process-wide, weak registry, so that the graphs for decode and prefill use one copy. A copy is
checked on each call against everything that a write leaves behind: the identity of the sources, their addresses and
strides, their version counters, and `SAMPLES` elements of each, since `p.data.mul_()`, a NumPy write or a fused
optimizer may touch nothing but the bits. A write that misses all sampled elements *and* leaves no other trace cannot be
seen; `refresh` serves after one.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter

import torch
from torch import Tensor, nn

from fxfuse.compat import dispatch_mode_active, no_torch_function, storage_manager
from fxfuse.params.budget import SLACK, Budget, Held, key_of, own_bytes
from fxfuse.params.share import LOCK, WATCHERS, Group, NotShareable, capturing, kind_reason, layout, share_group
from fxfuse.params.transforms import Transform

PLACEMENTS = ("share", "copy")
SAMPLES = 16
COPIES_ARE_WATCHED = (
    f"copies of weights are made anew where a parameter's identity, address, version or one of {SAMPLES} sampled "
    "elements changed; a write without such a trace (few elements, through .data or NumPy) needs fxfuse.refresh"
)
"""What a report says where a site's weights are a copy."""
_address = Tensor.data_ptr
_is_contiguous = Tensor.is_contiguous
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Derived:
    """One derived operand of one compiled graph.

    `positions` are those of the transform's sources, in its order, in the graph's flat argument list. `placement` is
    "share" (the sources live in the operand) or "copy" (a second tensor, kept up to date).
    """

    transform: Transform
    positions: tuple[int, ...]
    placement: str

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement {self.placement!r} is unknown; valid are {', '.join(map(repr, PLACEMENTS))}")
        if len(self.positions) != len(self.transform.sources):
            raise ValueError(
                f"{self.transform.describe()} was given {len(self.positions)} positions; "
                f"it takes {len(self.transform.sources)}, for {', '.join(self.transform.sources)} in this order"
            )
        if self.placement not in self.transform.placements:
            raise ValueError(
                f"{self.transform.describe()} cannot be placed by 'share', since its sources are not contiguous slices "
                "of it; valid is 'copy'"
            )


class DerivedInputs:
    """The derived operands of one compiled graph, for the live arguments of each call.

    `on_note` gets a sentence, once per operand and reason, when an operand cannot be kept and is computed anew on each
    call: correct, and slower. Keeping is tried again at the 2nd, 4th, 8th, ... such call. `take_mapped` is `share`'s;
    `extra_memory` is what copies may take (`fxfuse.params.budget`).
    """

    def __init__(
        self,
        derived: Sequence[Derived],
        on_note: Callable[[str], None] | None = None,
        *,
        take_mapped: bool = False,
        extra_memory: float = float("inf"),
    ) -> None:
        self.derived = tuple(derived)
        self._on_note = on_note
        self._take_mapped = take_mapped
        self._extra_memory = extra_memory
        self._noted: set[tuple[int, str]] = set()
        self._entries: dict[tuple[int, ...], _Entry] = {}
        self._pick = _picker([position for one in self.derived for position in one.positions])

    def __call__(self, args: Sequence[Tensor]) -> list[Tensor]:
        """One tensor per derived operand, in order, with the values of now. Never called in grad mode.

        Raises ValueError if the live arguments do not fit a transform.
        """
        live = self._pick(args)
        key = tuple(map(id, live))
        entry = self._entries.get(key)
        if entry is None:
            return self._look_up(args, live, key, calls=0)
        tensors = entry.tensors(args, live)
        if tensors is None:
            return self._look_up(args, live, key, calls=0)
        if entry.refused:
            entry.calls += 1
            if entry.calls & (entry.calls - 1) == 0:
                return self._look_up(args, live, key, calls=entry.calls)
            for index in entry.refused:
                tensors[index] = _anew(self.derived[index], args)
        return tensors  # type: ignore[return-value]  # what was refused was filled in

    def _look_up(
        self, args: Sequence[Tensor], live: tuple[Tensor, ...], key: tuple[int, ...], calls: int
    ) -> list[Tensor]:
        """The slow way, operand by operand; what could be kept is remembered for the next call."""
        kept: list[Group | _Copy | _Nothing] = [_NOTHING] * len(self.derived)
        tensors: dict[int, Tensor] = {}
        # shares first: they move the memory that copies are to watch
        for index, one in sorted(enumerate(self.derived), key=lambda each: each[1].placement != "share"):
            try:
                kept[index], tensors[index] = self._keep(one, [args[position] for position in one.positions])
            except NotShareable as refused:
                self._note(index, refused.reason)
                tensors[index] = _anew(one, args)
        if not capturing(live):
            with LOCK, torch.inference_mode(False), torch.no_grad():
                forget = partial(_forget, weakref.ref(self), key)
                self._entries[key] = _Entry(live, self.derived, kept, calls, forget)
        return [tensors[index] for index in range(len(self.derived))]

    def _keep(self, one: Derived, sources: Sequence[Tensor]) -> tuple[Group | _Copy, Tensor]:
        with LOCK, torch.inference_mode(False), torch.no_grad():
            if one.placement == "copy":
                copy = _copy_of(one.transform, sources, self._extra_memory)
                return copy, copy.tensor
            group = share_group(sources, one.transform, take_mapped=self._take_mapped)
            assert group.tensor is not None  # only given up under LOCK
            return group, group.tensor

    def _note(self, index: int, reason: str) -> None:
        if self._on_note is not None and (index, reason) not in self._noted:
            self._noted.add((index, reason))
            one = self.derived[index]
            self._on_note(
                f"{one.transform.describe()}, wanted as {one.placement!r}, is computed anew on each call: {reason}"
            )


def refresh(model: nn.Module) -> int:
    """Drop every copy made from a parameter or buffer of `model`, so that the next call builds it anew.

    For writes that nobody can see. Returns how many copies were dropped; their memory is free at once.
    """
    ids = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    with LOCK:
        stale = [copy for copy in list(_COPIES.values()) if any(id(ref()) in ids for ref in copy.refs)]
        for copy in stale:
            copy.retire()
    return len(stale)


# copies


class _Copy:
    """A second tensor, and what its sources looked like when it was built.

    `views` are on the sources' memory, and so hold it: while the copy lives, no other tensor can come to lie there.
    Entries hold copies; a copy whose sources changed is retired, never rewritten.
    """

    __slots__ = (
        "__weakref__", "bytes", "contiguous", "key", "layouts", "pointers", "ratio", "refs", "samples", "tensor",
        "users", "versions", "views",
    )  # fmt: skip

    def __init__(self, transform: Transform, sources: Sequence[Tensor]) -> None:
        self.key = key_of(transform, sources)
        self.users: weakref.WeakSet[_Entry] = weakref.WeakSet()
        self.refs = [weakref.ref(source) for source in sources]
        # looked at before the values are read, so that a write in between is seen by the next check
        self.layouts = [layout(source) for source in sources]
        self.pointers = [source.data_ptr() for source in sources]
        self.contiguous = [source.is_contiguous() for source in sources]
        self.versions = [source._version for source in sources]
        self.views = [_sample(source) for source in sources]
        self.samples = [view.clone() for view in self.views]
        self.tensor = transform(*(source.detach() for source in sources))
        storage = self.tensor.untyped_storage()._cdata
        if any(storage == source.untyped_storage()._cdata for source in sources):  # a cast that changes nothing
            self.tensor = self.tensor.clone()
        self.bytes = transform.bytes_held(self.tensor)
        self.ratio = self.bytes / max(1, own_bytes(sources))

    def fresh(self, sources: Sequence[Tensor]) -> bool:
        """Whether `sources` are the same objects and look as they did."""
        return (
            all(ref() is source for ref, source in zip(self.refs, sources, strict=True))
            and [source.data_ptr() for source in sources] == self.pointers
            and [layout(source) for source in sources] == self.layouts
            and [source._version for source in sources] == self.versions
            and all(map(torch.equal, self.views, self.samples))
        )

    def holds(self, storage: int) -> int:
        """See `fxfuse.params.share.Watcher`."""
        return sum(view.untyped_storage()._cdata == storage for view in self.views)

    def retire(self) -> None:
        """Let everyone forget this copy. Under LOCK."""
        if _COPIES.get(self.key) is self:
            del _COPIES[self.key]
        for entry in list(self.users):
            entry.retire()
        self.users.clear()


_COPIES: weakref.WeakValueDictionary[tuple[Transform, tuple[int, ...]], _Copy] = weakref.WeakValueDictionary()


def copies() -> list[Held]:
    """The copies of this process: for accounts, and for what a further one may take."""
    return list(_COPIES.values())


def unwatchable(transform: Transform, sources: Sequence[Tensor]) -> str | None:
    """Why no copy of these sources can be kept up to date, or None."""
    for index, source in enumerate(sources):
        reason = kind_reason(source)
        if reason is None and source.dtype.itemsize not in _BITS:
            reason = f"has the dtype {source.dtype}, of which no elements can be compared by their bits"
        if reason is None and (manager := storage_manager(source)) is not None:
            reason = f"has storage that {manager} frees and fills again without counting it as a change"
        if reason:
            return f"source {index} ({transform.sources[index]}) {reason}"
    return None


def _copy_of(transform: Transform, sources: Sequence[Tensor], extra_memory: float) -> _Copy:
    """The copy of these sources that is fresh now. Under LOCK. Raises NotShareable if none can be kept."""
    if dispatch_mode_active():
        raise NotShareable("a TorchDispatchMode is active, so what it would see are not the parameters' real values")
    if capturing(sources):
        raise NotShareable("a CUDA graph is being captured, which would go on reading a copy that was dropped")
    problem = unwatchable(transform, sources)
    if problem is not None:
        raise NotShareable(problem)
    copy = _COPIES.get(key_of(transform, sources))
    if copy is not None:
        if copy.fresh(sources):
            return copy
        copy.retire()
        del copy  # its memory first, then the new one's
    problem = Budget(extra_memory, copies()).refusal([(transform, sources)])
    if problem is not None:
        raise NotShareable(problem)
    copy = _Copy(transform, sources)
    if copy.ratio > extra_memory + SLACK:
        raise NotShareable(f"{transform.describe()} took {copy.bytes} bytes, more than was foreseen and granted")
    _COPIES[copy.key] = copy
    WATCHERS.add(copy)
    return copy


def _sample(source: Tensor) -> Tensor:
    """A view of at most SAMPLES elements of `source`, from the first to the last, as integers of (n,).

    Integers, since a NaN is not equal to itself.
    """
    line = source.detach()
    if line.is_contiguous():
        line = line.as_strided((line.numel(),), (1,))
    while line.ndim > 1:
        shortest = min(range(line.ndim), key=lambda dim: line.shape[dim])
        line = line.select(shortest, line.shape[shortest] // 2) if line.numel() else line.flatten()
    length = line.shape[0]
    step = max(1, (length - 1) // (SAMPLES - 1))
    return line[::step][:SAMPLES].view(_BITS[source.dtype.itemsize])


# what a DerivedInputs remembers of one call


class _Nothing:
    """In the place of a group or copy for a refused operand."""

    tensor: Tensor | None = None


_NOTHING = _Nothing()


class _Entry:
    """The derived operands for one set of live sources, and what must still hold for them to be used.

    `refused` are the operands that nothing is kept for; `calls` counts the calls in which they were computed anew.
    Shapes and dtypes are not looked at here: a compiled graph is for one shape and dtype of its parameters, and its
    guards see to that.
    """

    __slots__ = (
        "__weakref__", "calls", "contiguous", "kept", "mixed", "on_cuda", "pick", "pick_copied", "pointers", "probes",
        "refs", "refused", "versions",
    )  # fmt: skip

    def __init__(
        self,
        live: Sequence[Tensor],
        derived: Sequence[Derived],
        kept: Sequence[Group | _Copy | _Nothing],
        calls: int,
        forget: Callable[[object], None],
    ) -> None:
        self.kept: Sequence[Group | _Copy | _Nothing] | None = kept
        self.calls = calls
        self.refused = [index for index, holder in enumerate(kept) if holder is _NOTHING]
        self.refs = [weakref.ref(source, forget) for source in live]
        pointers: dict[int, int] = {}
        contiguous: dict[int, bool] = {}
        versions: dict[int, int] = {}
        views: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
        for one, holder in zip(derived, kept, strict=True):
            if isinstance(holder, _Nothing):
                continue
            # what the holders saw, not what is there now: a write in between must not go unseen
            for position, pointer in zip(one.positions, holder.pointers, strict=True):
                if pointers.setdefault(position, pointer) != pointer:
                    self.kept = None  # another thread moved it meanwhile: good for this call only
            contiguous.update(zip(one.positions, holder.contiguous, strict=True))
            if isinstance(holder, _Copy):
                for position, version in zip(one.positions, holder.versions, strict=True):
                    if versions.setdefault(position, version) != version:
                        self.kept = None  # written meanwhile
                if _COPIES.get(holder.key) is not holder:
                    self.kept = None  # retired meanwhile
                for view, sample in zip(holder.views, holder.samples, strict=True):
                    views.setdefault((view.device, view.dtype), []).append((view, sample))
                holder.users.add(self)
        self.pick = _picker(pointers)
        self.pointers = list(pointers.values())
        self.contiguous = list(contiguous.values())
        self.pick_copied = _picker(versions)
        self.versions = list(versions.values())
        self.mixed = len(versions) != len(pointers)
        self.on_cuda = any(device.type == "cuda" for device, _ in views)
        self.probes = [
            (_reader([view for view, _ in pairs]), torch.cat([sample for _, sample in pairs]))
            for pairs in views.values()
        ]

    def tensors(self, args: Sequence[Tensor], live: tuple[Tensor, ...]) -> list[Tensor | None] | None:
        """The operands, None for each refused one; or None if anything is not as it was.

        `live` are the sources of all operands, in the order in which the operands name them first.
        """
        kept, probes = self.kept, self.probes  # another thread may retire this entry
        if kept is None:
            return None
        with no_torch_function():  # a default device is a mode that would look at each of these
            live = self.pick(args) if self.refused else live
            if list(map(_address, live)) != self.pointers:
                return None
            if list(map(_is_contiguous, live)) != self.contiguous:  # `p.data = p.data.t()` keeps object and address
                return None
            if probes:
                copied = self.pick_copied(args) if self.mixed else live
                if [source._version for source in copied] != self.versions:
                    return None
                if self.on_cuda and torch.cuda.is_current_stream_capturing():
                    return None
                for read, samples in probes:
                    if not torch.equal(read(), samples):
                        return None
        tensors = [holder.tensor for holder in kept]
        missing = [index for index, tensor in enumerate(tensors) if tensor is None]
        return tensors if missing == self.refused else None  # else a group was given up

    def retire(self) -> None:
        self.kept = None
        self.probes = []


def _reader(views: Sequence[Tensor]) -> Callable[[], Tensor]:
    """A function that gives the elements of all these views, one after another, as they are now.

    On a CPU it is one gather by address, 30 times as fast as joining 200 views. It is called where every source has
    just been seen at its address, and it holds the views, so what lies there is theirs.
    """
    size = views[0].element_size()
    if views[0].device.type != "cpu" or any(view.data_ptr() % size or not view.numel() for view in views):
        return partial(torch.cat, list(views))
    low = min(view.data_ptr() for view in views)
    places = [
        (view.data_ptr() - low) // size
        + torch.arange(view.numel(), device="cpu") * (view.stride(0) if view.numel() > 1 else 1)
        for view in views
    ]
    index = torch.cat(places)
    span = (ctypes.c_char * ((int(index.max()) + 1) * size)).from_address(low)
    memory = torch.frombuffer(span, dtype=views[0].dtype)
    return partial(_gathered, memory, index, views)


def _gathered(memory: Tensor, index: Tensor, _held: Sequence[Tensor]) -> Tensor:
    return torch.index_select(memory, 0, index)


def _forget(owner: weakref.ref[DerivedInputs], key: tuple[int, ...], _died: object) -> None:
    inputs = owner()
    if inputs is not None:
        inputs._entries.pop(key, None)


def _anew(one: Derived, args: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        result: Tensor = one.transform(*(args[position].detach() for position in one.positions))
        return result


def _picker(positions: Iterable[int]) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function that takes the arguments at these positions, each once: `itemgetter`, for any number of them."""
    wanted = tuple(dict.fromkeys(positions))
    if len(wanted) > 1:
        return itemgetter(*wanted)
    return lambda args: tuple(args[position] for position in wanted)
