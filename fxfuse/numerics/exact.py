"""The exact function of a graph: the same operations on float64 operands, with no rounding in between."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.node import map_aggregate

_CASTS = {"float", "double", "half", "bfloat16"}
_REINTERPRETS = {torch.ops.aten.view.dtype}
_HALF_TO_FLOAT = {torch.ops.aten._softmax.default, torch.ops.aten._log_softmax.default}


class NotMeasured(Exception):
    """A site cannot be compared with float64; the message says why."""


class Exact(fx.Interpreter):
    """Runs a graph in float64: operands are widened, and casts to another floating-point dtype change nothing.

    Raises:
        NotMeasured: an operation refuses float64, reads bits, or gives another floating-point dtype all the same.
    """

    def __init__(self, gm: fx.GraphModule, graph: fx.Graph) -> None:
        super().__init__(gm, graph=graph)
        self.extra_traceback = False

    def run(self, *args: Any, **more: Any) -> Any:
        return super().run(*map(wide, args), **more)

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n) if n.target not in (F.rms_norm, torch.rms_norm) else self._rms_norm(n)
        except NotMeasured:
            raise
        except Exception as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NotMeasured(f"{n.name} does not run in float64: {what}") from error
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and wide_dtype(tensor.dtype) != tensor.dtype:
                raise NotMeasured(f"{n.name} gives {tensor.dtype} for float64 operands")
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in _REINTERPRETS:
            raise NotMeasured("it reads a tensor's bits as another dtype")
        args, kwargs = _wide_dtypes(args), _wide_dtypes(kwargs)
        if target in _HALF_TO_FLOAT:
            args = (*args[:2], False)
        return super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target == "view" and any(isinstance(a, torch.dtype) for a in (*args[1:], *kwargs.values())):
            raise NotMeasured("it reads a tensor's bits as another dtype")
        if target in _CASTS:
            return args[0].to(wide_dtype(args[0].dtype)) if args[0].is_floating_point() else args[0].double()
        return super().call_method(target, _wide_dtypes(args), _wide_dtypes(kwargs))

    def _rms_norm(self, n: fx.Node) -> Any:
        """Without eps the norm takes the one of a dtype, and float64 has another than the site's."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        names = ("input", "normalized_shape", "weight", "eps")
        named: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        if named.get("eps") is None:
            source = n.all_input_nodes[0].meta
            given = source.get("example_value", source.get("val"))
            if given is None or (given.dtype != torch.float32 and given.device.type != "cpu"):
                raise NotMeasured(f"{n.name} takes the eps of a dtype that is not known here")
            if given.dtype != torch.float64:
                named["eps"] = torch.finfo(torch.float32).eps
        return F.rms_norm(**named)


def wide(value: Any) -> Any:
    """A tensor in float64 (complex128), where it is of a floating-point dtype; anything else as it is."""
    return value.detach().to(wide_dtype(value.dtype)) if isinstance(value, torch.Tensor) else value


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def _wide_dtypes(operands: Any) -> Any:
    """The operands with each floating-point dtype among them replaced by float64."""
    return map_aggregate(operands, lambda v: wide_dtype(v) if isinstance(v, torch.dtype) else v)
