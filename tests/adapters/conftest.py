"""Kernels that a test registers for a pattern of the library are gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxfuse.kernels import registry


@pytest.fixture(autouse=True)
def registered_for_the_test_only() -> Iterator[None]:
    before = {name: list(known) for name, known in registry._REGISTRY.items()}
    yield
    for name, known in registry._REGISTRY.items():
        known[:] = before.get(name, [])
