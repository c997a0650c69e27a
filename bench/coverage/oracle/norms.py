"""Which modules are an RMSNorm, and of which kind, from the source of their class."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

from torch import nn

_ROOT = re.compile(r"rsqrt\(|pow\([^()]*(\([^()]*\))?[^()]*-\s*0\.5\)|\*\*\s*-0\.5|1(\.0)?\s*/\s*torch\.sqrt")
_MEAN = re.compile(r"\.mean\(")
_SQUARE = re.compile(r"\.pow\(2(\.0)?\)|\.square\(|torch\.square|torch\.pow\([^,]+,\s*2\)|\*\*\s*2|\b(\w+) \* \2\b")
_CENTRED = re.compile(r"-\s*mean\b|\.var\(|-\s*\w+\.mean\(")


@functools.cache
def _source(cls: type) -> str:
    try:
        text = "\n".join(inspect.getsource(f) for f in vars(cls).values() if inspect.isfunction(f))
    except (OSError, TypeError):
        return ""
    return re.sub(r'"""[\s\S]*?"""|#.*', "", text)


def _own_source(module: nn.Module) -> str:
    classes = [c for c in type(module).__mro__ if c.__module__.partition(".")[0] != "torch"]
    return "\n".join(_source(c) for c in classes if issubclass(c, nn.Module))


def kind_of(module: nn.Module) -> str | None:
    """``weighted``, ``unweighted``, ``gated`` or ``grouped``; None for a module that is no RMSNorm."""
    if any(True for _ in module.children()):
        return None
    if isinstance(module, nn.RMSNorm):
        return "weighted" if module.weight is not None else "unweighted"
    source = _own_source(module)
    if not (_ROOT.search(source) and _MEAN.search(source) and _SQUARE.search(source)) or _CENTRED.search(source):
        return None
    weights: list[Any] = list(module.parameters(recurse=False))
    if not weights:
        return "unweighted"
    if len(weights) > 1 or weights[0].dim() != 1:
        return None
    if "gate" in inspect.signature(type(module).forward).parameters:
        return "gated"
    return "weighted"
