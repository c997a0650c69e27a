"""Kernels that a test adapts for a pattern of the library are gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxfuse.kernels import registry


@pytest.fixture(autouse=True)
def adapted_for_the_test_only() -> Iterator[None]:
    yield
    for known in registry._REGISTRY.values():
        known[:] = [kernel for kernel in known if not getattr(kernel.function, "is_foreign", False)]
