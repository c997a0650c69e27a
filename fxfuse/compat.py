"""Every private name of torch that fxfuse uses, in one place, checked at import for each supported torch.

Supported: torch >= 2.11, < 2.14. A name that a release lacks is replaced here by its closest equal, and nowhere else.
Nothing here imports Dynamo or Inductor before it is needed: `import fxfuse` stays cheap.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "code_being_compiled",
    "compile_cache_in",
    "compile_fx",
    "constant_source",
    "core_decompositions",
    "cpu_multiplies_bf16",
    "custom_graph_pass",
    "detect_fake_mode",
    "dispatch_mode_active",
    "dynamo_placeholders",
    "forget_code",
    "inductor_decompositions",
    "inductor_options",
    "is_fullgraph",
    "is_functorch_wrapped_tensor",
    "isolated_compile",
    "make_fx",
    "mark_static",
    "mode_names",
    "mode_options",
    "no_torch_function",
    "shape_env_of",
    "size_hint",
    "static_aot_inputs",
    "statically_known_true",
    "storage_holders",
    "tagged_cache",
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


def _arm_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as info:
            return " bf16" in info.read()
    except OSError:
        return False


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
