"""fxfuse: `torch.compile(model, backend="fxfuse")`. The one public door; every name here is re-exported.

Names load when first used, so that `import fxfuse` costs next to nothing on top of `import torch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fxfuse import testing
    from fxfuse.authoring import Dim, Input, Param, Scalar, keep, many, one_of, ordered
    from fxfuse.authoring.pattern import Pattern, pattern
    from fxfuse.authoring.region import region
    from fxfuse.backend import Backend
    from fxfuse.backend import fxfuse as fxfuse  # public, but not in __all__: a star import must not hide the package
    from fxfuse.capture import explain
    from fxfuse.errors import CaptureError, ExpectationError, FxfuseError, OptionError, PatternError
    from fxfuse.inductor_pass import InductorPass
    from fxfuse.kernels import kernel
    from fxfuse.numerics.bisect import bisect
    from fxfuse.numerics.repro import repro
    from fxfuse.numerics.verify import verify
    from fxfuse.params import (
        cast,
        chunk,
        experts,
        fold,
        pack,
        pad,
        permute,
        refresh,
        restore,
        scale,
        stack,
        transpose,
    )
    from fxfuse.passes import rewrite
    from fxfuse.report import Report, Site, reports
    from fxfuse.tuning import tune

_HOMES = {
    "fxfuse.authoring": (
        "Dim",
        "Input",
        "Param",
        "Pattern",
        "Scalar",
        "keep",
        "many",
        "one_of",
        "ordered",
        "pattern",
        "region",
    ),
    "fxfuse.errors": ("CaptureError", "ExpectationError", "FxfuseError", "OptionError", "PatternError"),
    "fxfuse.capture": ("explain",),
    "fxfuse.kernels": ("kernel",),
    "fxfuse.numerics.bisect": ("bisect",),
    "fxfuse.numerics.repro": ("repro",),
    "fxfuse.numerics.verify": ("verify",),
    "fxfuse.params": (
        "cast",
        "chunk",
        "experts",
        "fold",
        "pack",
        "pad",
        "permute",
        "refresh",
        "restore",
        "scale",
        "stack",
        "transpose",
    ),
    "fxfuse.backend": ("Backend", "fxfuse"),
    "fxfuse.inductor_pass": ("InductorPass",),
    "fxfuse.passes": ("rewrite",),
    "fxfuse.report": ("Report", "Site", "reports"),
    "fxfuse.tuning": ("tune",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Backend",
    "CaptureError",
    "Dim",
    "ExpectationError",
    "FxfuseError",
    "InductorPass",
    "Input",
    "OptionError",
    "Param",
    "Pattern",
    "PatternError",
    "Report",
    "Scalar",
    "Site",
    "__version__",
    "bisect",
    "cast",
    "chunk",
    "experts",
    "explain",
    "fold",
    "keep",
    "kernel",
    "many",
    "one_of",
    "ordered",
    "pack",
    "pad",
    "pattern",
    "permute",
    "refresh",
    "region",
    "reports",
    "repro",
    "restore",
    "rewrite",
    "scale",
    "stack",
    "testing",
    "transpose",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("fxfuse.testing")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'fxfuse' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
