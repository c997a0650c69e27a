"""The record of one measurement, and its JSON form: a pattern at one shape on one machine, and the time of each arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxfuse.machine import Machine, triton_release

LEFT_ALONE = "left alone"
"""The arm in which the inner compiler has the site as it was captured; all others are kernels, by name."""


def compiler(inner: str, mode: str | None) -> str:
    """What every arm is compiled with, as a word; CUDA graphs around it change no kernel."""
    return f"{inner} max-autotune" if mode is not None and mode.startswith("max-autotune") else inner


@dataclass(frozen=True)
class Shape:
    """What was measured.

    Attributes:
        pattern: ``pack::name``.
        operands: the captures that were there.
        rows: the product of the input's leading sizes.
        sizes: the pattern's dimensions.
        inner: what compiled every arm (:func:`compiler`).
    """

    pattern: str
    variant: tuple[tuple[str, str], ...]
    operands: tuple[str, ...]
    dtype: str
    rows: int
    sizes: tuple[tuple[str, int], ...]
    inner: str = "inductor"

    def __str__(self) -> str:
        words = [self.dtype, f"{self.rows} row{'s' if self.rows != 1 else ''}"]
        return ", ".join(words + [" ".join(f"{name}={size}" for name, size in self.sizes)] * bool(self.sizes))


@dataclass(frozen=True)
class Arm:
    """Milliseconds of one call: median, 20th and 80th percentile. ``source`` tells which code of the kernel ran."""

    ms: float
    p20: float
    p80: float
    source: str = ""


@dataclass(frozen=True)
class Versions:
    """What a measurement holds for."""

    fxfuse: str
    torch: str
    triton: str

    @classmethod
    def here(cls) -> Versions:
        import fxfuse

        return cls(fxfuse.__version__, torch.__version__, triton_release() or "none")

    def hold_for(self, other: Versions) -> bool:
        """Whether what was measured with these says something about those: patch releases do not count."""
        same = (_minor(self.torch), _minor(self.triton)) == (_minor(other.torch), _minor(other.triton))
        return same and self.fxfuse == other.fxfuse


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@dataclass(frozen=True)
class Entry:
    """One measurement. ``skipped`` says of kernels that could not be measured why not; ``date`` is ISO 8601."""

    shape: Shape
    machine: Machine
    versions: Versions
    arms: Mapping[str, Arm]
    skipped: Mapping[str, str] = field(default_factory=dict)
    date: str = ""

    @property
    def key(self) -> tuple[Shape, Machine, Versions]:
        """What there is one entry of."""
        return self.shape, self.machine, self.versions

    def ratio(self, arm: str) -> float:
        """How many times as fast as the site left alone; below 1 is slower."""
        return self.arms[LEFT_ALONE].ms / self.arms[arm].ms

    def __str__(self) -> str:
        return f"{self.machine}, {self.shape}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        arms = {
            name: {"ms": arm.ms, "p20": arm.p20, "p80": arm.p80, "ratio": round(self.ratio(name), 4)}
            | ({"source": arm.source} if arm.source else {})
            for name, arm in self.arms.items()
        }
        shape = dataclasses.asdict(self.shape)
        shape |= {"variant": dict(self.shape.variant), "operands": list(self.shape.operands)}
        shape["sizes"] = dict(self.shape.sizes)
        return {
            "shape": shape,
            "machine": dataclasses.asdict(self.machine),
            "versions": dataclasses.asdict(self.versions),
            "date": self.date,
            "arms": arms,
            "skipped": dict(self.skipped),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """The entry that :meth:`to_json` made.

        Raises:
            ValueError: it is none.
        """
        try:
            shape = dict(data["shape"])
            for key in ("variant", "sizes"):
                shape[key] = tuple(sorted(shape[key].items()))
            shape["operands"] = tuple(sorted(shape["operands"]))
            arms = {name: _arm(arm) for name, arm in data["arms"].items()}
            made = cls(
                Shape(**shape),
                Machine(**data["machine"]),
                Versions(**data["versions"]),
                arms,
                dict(data.get("skipped", {})),
                str(data.get("date", "")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no results entry: {type(error).__name__}: {error}") from error
        if LEFT_ALONE not in arms or not isinstance(made.shape.rows, int):
            raise ValueError(f"a results entry has an arm {LEFT_ALONE!r} and a number of rows; found {made.shape}")
        return made


def _arm(data: Mapping[str, Any]) -> Arm:
    made = Arm(float(data["ms"]), float(data["p20"]), float(data["p80"]), str(data.get("source", "")))
    if not 0.0 < made.ms < float("inf"):
        raise ValueError(f"an arm takes a positive time; found {made.ms!r} ms")
    return made
