"""Every private name of torch that fxfuse uses, in one place, checked at import for each supported torch.

Supported: torch >= 2.11, < 2.14. A name that a release lacks is replaced here by its closest equal, and nowhere else.
Nothing here imports Dynamo or Inductor before it is needed: `import fxfuse` stays cheap.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import DisableTorchFunction as no_torch_function
from torch._C import _len_torch_dispatch_stack, _storage_Use_Count
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "ambient_autocast",
    "aot_input",
    "autograd_inside_op",
    "can_pack_linear",
    "code_being_compiled",
    "compile_cache_in",
    "compile_cpp",
    "compile_fx",
    "compile_mode",
    "constant_source",
    "core_decompositions",
    "cpu_multiplies_bf16",
    "custom_graph_pass",
    "detect_fake_mode",
    "dispatch_mode_active",
    "dynamo_placeholders",
    "forget_code",
    "inductor_decompositions",
    "inductor_flag",
    "inductor_options",
    "inside_ddp_optimizer",
    "is_fullgraph",
    "is_functorch_wrapped_tensor",
    "is_wrapper_subclass",
    "isolated_compile",
    "isolated_tracing",
    "make_fx",
    "mark_static",
    "mode_names",
    "mode_options",
    "no_torch_function",
    "pack_linear",
    "packed_bytes",
    "run_packed_linear",
    "shape_env_of",
    "size_hint",
    "static_aot_inputs",
    "statically_known_true",
    "storage_holders",
    "storage_manager",
    "tagged_cache",
    "trace_artifact",
    "trace_is_on",
    "validate_program",
    "without_autocast",
    "without_new_guards",
    "without_recompile_limits",
]


def statically_known_true(condition: Any) -> bool:
    """Whether a symbolic condition holds for every input; adds no guard."""
    from torch.fx.experimental.symbolic_shapes import (
        statically_known_true as known,  # 0.4 s, so not before it is needed
    )

    return bool(known(condition))


def constant_source(name: str) -> Any:
    """Dynamo's name for a graph input that comes from no variable of the user's."""
    from torch._dynamo.source import ConstantSource

    return ConstantSource(name)


def compile_fx(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config_patches: dict[str, Any] | None
) -> Callable[..., Any]:
    """Inductor, as `torch.compile` calls it."""
    from torch._inductor.compile_fx import compile_fx as inductor

    compiled: Any = inductor(gm, list(example_inputs), config_patches=config_patches or None)
    return compiled


def make_fx(
    function: Callable[..., Any],
    examples: Sequence[Any],
    *,
    decompositions: Mapping[Any, Any] | None = None,
    pre_dispatch: bool = False,
) -> fx.GraphModule:
    """``function`` on these fake tensors as an ATen graph, with example values under ``val``."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx as trace

    with enable_python_dispatcher():
        return trace(function, decomposition_table=dict(decompositions or {}), pre_dispatch=pre_dispatch)(*examples)


def inductor_decompositions() -> Mapping[Any, Any]:
    """What Inductor decomposes, so that its lowering meets nothing else."""
    from torch._inductor.decomposition import select_decomp_table

    table: Mapping[Any, Any] = select_decomp_table()
    return table


def core_decompositions() -> Mapping[Any, Any]:
    """What `ExportedProgram.run_decompositions` decomposes where it is told nothing else."""
    return dict(torch.export.default_decompositions().items())


@contextlib.contextmanager
def autograd_inside_op() -> Iterator[None]:
    """Autograd at work inside the body of a custom op, where torch has put it behind."""
    with contextlib.ExitStack() as stack:
        for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
            held = torch._C._SetExcludeDispatchKeyGuard(getattr(torch._C.DispatchKey, key), False)
            stack.enter_context(held)
        stack.enter_context(torch.enable_grad())
        yield


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Autocast off for every device type: an ATen graph has its casts written out."""
    with torch._C._DisableAutocast():
        yield


@contextlib.contextmanager
def without_new_guards(shape_env: Any) -> Iterator[None]:
    """Raise RuntimeError where tracing would make a symbolic size a constant, or otherwise constrain it."""
    freeze = getattr(shape_env, "error_on_new_guards", None)
    if freeze is not None:
        with freeze():
            yield
        return
    known = len(getattr(shape_env, "guards", ()))  # an older torch: told afterwards
    yield
    if len(getattr(shape_env, "guards", ())) != known:
        raise RuntimeError(f"a symbolic size was constrained: {shape_env.guards[known].expr}")


def is_wrapper_subclass(tensor: Tensor) -> bool:
    """Whether a tensor is made of others (quantized, distributed, nested), which AOTAutograd takes apart."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return bool(is_traceable_wrapper_subclass(tensor))


def compile_mode(values: Iterable[Any]) -> Any:
    """The fake mode that a backend is to compile under: Dynamo's for its backend, which is not that of the graph's own
    example values but has their symbols; outside of Dynamo that of the values. None where there is none."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    if context is not None and context.fake_mode is not None:
        return context.fake_mode
    return next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)


@contextlib.contextmanager
def isolated_tracing(fake_mode: Any) -> Iterator[None]:
    """A compile inside of a compile: what AOTAutograd and Inductor note down of this graph stays with this graph.

    Symbolic sizes and the guards on them are ``fake_mode``'s, and so the outer compile's.
    """
    from torch._guards import TracingContext, tracing

    with tracing(TracingContext(fake_mode)):
        yield


def inside_ddp_optimizer() -> bool:
    """Whether DistributedDataParallel's optimizer compiles parts of a graph now, and runs them on fake tensors."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    return context is not None and getattr(context, "ddp_optimizer_ctx", None) is not None


def inductor_flag(name: str, given: Mapping[str, Any]) -> bool:
    """Whether an option of Inductor is on: as given for one compile, or for the process."""
    import torch._inductor.config as config

    if name in given:
        return bool(given[name])
    held: Any = config
    for part in name.split("."):
        held = getattr(held, part)
    return bool(held)


def custom_graph_pass() -> type:
    """The base class by which Inductor knows a custom pass that names itself in cache keys."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    return CustomGraphPass


def shape_env_of(values: Sequence[Any]) -> Any:
    """The environment of the symbolic sizes among these example values, or None."""
    mode = detect_fake_mode([v for v in values if isinstance(v, FakeTensor)])
    return mode.shape_env if mode is not None else None


def validate_program(program: Any, gm: fx.GraphModule, signature: Any) -> None:
    """Raise what `ExportedProgram` raises where it would not take this graph with this signature."""
    program._update(gm, signature)


@contextlib.contextmanager
def compile_cache_in(folder: str) -> Iterator[None]:
    """For the time of a compile, Inductor's caches are those in ``folder`` and none that this process holds."""
    from torch._inductor.utils import clear_caches

    saved = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    clear_caches()
    try:
        yield
    finally:
        if saved is None:
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = saved
        clear_caches()


def mode_options(mode: str, dynamic: bool | None = None) -> dict[str, Any]:
    """Inductor's config for a torch.compile ``mode``. Raises ``RuntimeError`` for an unknown one."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode, dynamic))


def inductor_options() -> frozenset[str]:
    """The names of Inductor's options."""
    import torch._inductor.config as config

    options: Any = config
    return frozenset(options.shallow_copy_dict())


def mode_names() -> tuple[str, ...]:
    """The modes that this torch knows, without importing Inductor."""
    return ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def isolated_compile(model: Callable[..., Any], backend: Callable[..., Any] | str, **kwargs: Any) -> Callable[..., Any]:
    """`torch.compile` with cache entries of its own, so that an earlier compile's recompile limit does not count."""
    compile_: Any = torch.compile
    try:
        compiled: Callable[..., Any] = compile_(model, backend=backend, isolate_recompiles=True, **kwargs)
    except TypeError:  # torch < 2.13
        compiled = compile_(model, backend=backend, **kwargs)
    return compiled


@contextlib.contextmanager
def tagged_cache(tag: str) -> Iterator[None]:
    """Put ``tag`` into the keys of torch's compile caches: they do not see the bodies of our ops and kernels."""
    config: Any = torch.compiler.config
    with config.patch(cache_key_tag=f"{config.cache_key_tag}|{tag}"):
        yield


def size_hint(size: int | torch.SymInt) -> int | None:
    """The value that a size had while tracing, without adding a guard; None where there is none."""
    if isinstance(size, int):
        return size
    node = size.node
    hint = getattr(node, "hint", None)
    return int(hint) if hint is not None else None


def ambient_autocast(device_type: str) -> torch.dtype | None:
    """The dtype of the autocast that is on now for this device type, or None."""
    try:
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
    except RuntimeError:  # a device type without autocast (meta)
        return None
    return None


def grouped_products() -> tuple[Callable[..., Any], ...]:
    """The function by which every spelling of ``F.grouped_mm`` computes, where this torch has it."""
    return (torch._grouped_mm,) if hasattr(torch, "_grouped_mm") else ()


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 matrix instructions that oneDNN may use (AVX512-BF16, AMX, or Arm's BF16).

    ``ONEDNN_MAX_CPU_ISA`` caps what oneDNN uses, so a cap below them counts as not having them.
    """
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if cap and cap not in {"ALL", "DEFAULT"} and "BF16" not in cap and "FP16" not in cap and "AMX" not in cap:
        return False
    cpu = torch.cpu
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_arm_bf16_supported"):
        check = getattr(cpu, probe, None)
        if check is not None and check():
            return True
    return torch.backends.cpu.get_cpu_capability() not in {"DEFAULT", "AVX2", "AVX512", "NO AVX"} and _arm_has_bf16()


def can_pack_linear() -> str | None:
    """Why this torch cannot pack a linear's weight for oneDNN, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    ops = ("_reorder_linear_weight", "_linear_pointwise", "_nbytes")
    missing = [name for name in ops if not hasattr(torch.ops.mkldnn, name)]
    return f"this torch has no torch.ops.mkldnn.{missing[0]}" if missing else None


def compile_cpp(source: str) -> Any:
    """A C++ source as a loaded library (ctypes), made by Inductor's compiler with its flags and kept in its cache."""
    from torch._inductor.codecache import CppCodeCache

    return CppCodeCache.load(source)


def pack_linear(weight: Tensor) -> Tensor:
    """A linear's weight in the layout that oneDNN's GEMM prefers; an opaque tensor."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_bytes(packed: Tensor) -> int:
    """The bytes that an opaque tensor of oneDNN takes."""
    return int(torch.ops.mkldnn._nbytes(packed))


def run_packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` of a contiguous input with a weight from `pack_linear`."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    return result


def storage_manager(tensor: Tensor) -> str | None:
    """Who frees this parameter's storage and fills it again behind its version counter: FSDP, ZeRO-3; None: nobody."""
    if hasattr(tensor, "ds_id"):
        return "DeepSpeed's ZeRO-3"
    if hasattr(tensor, "_fsdp_flattened"):
        return "FSDP"
    states = getattr(sys.modules.get("torch.distributed._composable_state"), "_module_state_mapping", {})
    for held in list(states.values()):
        state = held() if isinstance(held, weakref.ref) else held
        if type(state).__name__ != "FSDPState":
            continue
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:  # torch < 2.12
            groups = [group for group in [getattr(state, "_fsdp_param_group", None)] if group is not None]
        for each in (param for group in groups for param in group.fsdp_params):
            if getattr(each, "_unsharded_param", None) is tensor or getattr(each, "sharded_param", None) is tensor:
                return "FSDP2"
    return None


def _arm_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as info:
            return " bf16" in info.read()
    except OSError:
        return False


def trace_is_on() -> bool:
    """Whether torch writes its structured trace (``TORCH_TRACE``), which tlparse reads."""
    import torch._logging._internal as internal

    # Without a folder, torch's handler takes itself away when it is first used; others' handlers are no trace.
    handlers = [h for h in internal.trace_log.handlers if isinstance(h, internal.LazyTraceHandler)]
    return any(handler.root_dir is not None for handler in handlers)


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """Add a file to torch's structured trace, under the compile that is going on."""
    from torch._logging import trace_structured

    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload)


def code_being_compiled() -> Any:
    """The code object whose frame Dynamo compiles now, and how many compiled entries it has already; None outside."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        code = InstructionTranslator.current_tx().f_code
    except (AttributeError, IndexError):
        return None
    frames: Any = torch._C._dynamo.eval_frame
    count = getattr(frames, "_get_total_cache_entry_count", None)  # torch >= 2.13
    return code, count(code) if count is not None else len(frames._debug_get_cache_entry_list(code))


def dynamo_placeholders() -> list[fx.Node]:
    """The inputs of the graph whose backend Dynamo calls now, with their sources; empty outside."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        graph = InstructionTranslator.current_tx().output.graph
    except (AttributeError, IndexError):
        return []
    return list(graph.find_nodes(op="placeholder"))


def aot_input(node: fx.Node) -> tuple[str, Any] | None:
    """What AOTAutograd says of a placeholder: ("parameter", its path), ("buffer", its path), ("plain", its place among
    the inputs of the graph that AOTAutograd was given) or ("other", 0). None where it says nothing."""
    described = node.meta.get("desc")
    if described is None:
        return None
    from torch._functorch._aot_autograd import descriptors

    if isinstance(described, descriptors.ParamAOTInput):
        return "parameter", described.target
    if isinstance(described, descriptors.BufferAOTInput):
        return "buffer", described.target
    if isinstance(described, descriptors.PlainAOTInput):
        return "plain", described.idx
    return "other", 0


def static_aot_inputs() -> frozenset[int]:
    """The places, among the inputs that AOTAutograd was given, of those that Dynamo knows to be the model's own.

    Empty outside of a compile, and where AOTAutograd was given another graph than Dynamo's.
    """
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    return frozenset(getattr(metadata, "static_input_indices", None) or ())


def forget_code(code: Any) -> None:
    """Drop every compiled entry of a code object."""
    torch._C._dynamo.eval_frame.reset_code(code)


def mark_static(tensor: Tensor, dim: int) -> None:
    """Dynamo captures this size of a tensor as a number, also where it is asked for symbols."""
    torch._dynamo.mark_static(tensor, dim)


def without_recompile_limits() -> Any:
    """A context in which Dynamo compiles however many entries a code object has."""
    config: Any = torch._dynamo.config
    return config.patch(recompile_limit=1 << 20, accumulated_recompile_limit=1 << 20)


def is_fullgraph() -> bool:
    """Whether the frame that is being compiled was asked to be one graph (``fullgraph=True``)."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return bool(InstructionTranslator.current_tx().one_graph)
    except (AttributeError, IndexError):  # called outside a compile, or another torch
        return False


def dispatch_mode_active() -> bool:
    """Whether a TorchDispatchMode (fake tensors, functionalization, a counter) would see what torch runs now."""
    return bool(_len_torch_dispatch_stack())


def _count(tensor: Tensor) -> int:
    # The use count has each tensor on the storage, and the Python storage object once however many names it has:
    # those names are in its reference count.
    storage = tensor.untyped_storage()
    return _storage_Use_Count(storage._cdata) + sys.getrefcount(storage)


_ALONE = _count(torch.nn.Parameter(torch.empty(1)))


def storage_holders(tensor: Tensor) -> int:
    """How many others hold the tensor's storage: other tensors, NumPy arrays on it, Python storage objects."""
    return _count(tensor) - _ALONE
