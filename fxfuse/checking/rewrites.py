"""Whether a rewrite to a kernel is the reference: in form, in numbers, in gradients, and as no other variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxfuse.checking.examples import Captured, Example
from fxfuse.checking.failures import Failure
from fxfuse.checking.judging import rewrite
from fxfuse.checking.repro import repro
from fxfuse.checking.running import call, same_bits, tensors_in
from fxfuse.checking.sketch import META, evaluate
from fxfuse.checking.ways import Way
from fxfuse.compat import statically_known_true
from fxfuse.engine import Fused
from fxfuse.errors import OptionError, first_line
from fxfuse.kernels import REFERENCE, kernels_for
from fxfuse.numerics.contract import Errors, errors, worst
from fxfuse.numerics.exact import Exact, NotMeasured, wide
from fxfuse.rewriting.examples import mode_of

SEEDS = 5
_NEARER = 0.25
_WORSE = 1.05


@dataclass
class Rewrites:
    """What was measured of kernels, by name, and what is wrong with them."""

    forms: int = 0
    numerics: dict[str, list[Errors]] = field(default_factory=dict)
    gradients: dict[str, list[Errors]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ran(self) -> list[str]:
        """The kernels that ran at least once."""
        return list(self.numerics)


class Kernels:
    """Checks every kernel of a pattern, example by example.

    Args:
        others: the ways of the pattern, to tell a kernel that computes another variant.
    """

    def __init__(self, others: Sequence[Way], seed: int) -> None:
        self.others = others
        self.seed = seed
        self.done = Rewrites()

    def check(self, example: Example, captured: Captured, *, seeds: int = SEEDS, gradients: bool = False) -> None:
        """Rewrite this example's graph to each kernel that can run here, and compare."""
        for name in [REFERENCE, *kernels_for(example.pattern)]:
            with torch.no_grad():
                fused = self._fused(example, captured, name)
            if fused is None:
                continue
            self._form(example, captured, name, fused)
            if seeds:
                self._numbers(example, captured, name, fused, seeds)
            if gradients:
                self._gradients(example, captured, name, max(seeds, SEEDS))

    def check_resized(self, example: Example, captured: Captured) -> None:
        """Run what was made with symbolic sizes at those of ``example``: a kernel may not have fixed any of them."""
        for name in self.ran:
            with torch.no_grad():
                fused = self._fused(example, captured, name)
            if fused is not None:
                self._numbers(example, captured, name, fused, 1)

    @property
    def ran(self) -> list[str]:
        return self.done.ran

    def _fused(self, example: Example, captured: Captured, name: str) -> Fused | None:
        """The rewritten graph; None where the kernel cannot serve this site, or fails."""
        try:
            fused = rewrite(captured.gm, captured.live, example.pattern, name)
        except OptionError as error:  # what the kernel requires does not hold: that is its right
            why = str(error).partition(f"kernel {name!r} ")[2].rstrip(".") or str(error)
            reasons = self.done.skipped.setdefault(name, [])
            if why not in reasons:
                reasons.append(why)
            return None
        except Exception as error:
            self._fail("kernel", example, captured, name, f"cannot be put in place: {first_line(error)}")
            return None
        kernels = [site.kernel for site in fused.report.sites if site.outcome == "rewritten"]
        return fused if kernels == [name] else None

    # --- form -------------------------------------------------------------------------------------------------------

    def _form(self, example: Example, captured: Captured, name: str, fused: Fused) -> None:
        """Fake dtypes, shapes and strides, for symbolic sizes as well as for static ones."""
        self.done.forms += 1
        fakes = [n.meta[META] for n in captured.gm.graph.find_nodes(op="placeholder")]
        wanted = fx.map_arg(captured.gm.graph.output_node().args[0], lambda n: n.meta[META])
        try:
            with mode_of(fakes), torch.no_grad():
                got = _fake(fused.gm, fakes)
        except Exception as error:
            self._fail("kernel", example, captured, name, f"does not run on fake tensors: {first_line(error)}")
            return
        problem = form_differs(got, wanted)
        if problem is not None:
            self._fail("kernel", example, captured, name, f"on fake tensors: {problem}")

    # --- numbers ----------------------------------------------------------------------------------------------------

    def _numbers(self, example: Example, captured: Captured, name: str, fused: Fused, seeds: int) -> None:
        found: dict[int, list[Errors]] = {}
        others: list[tuple[str, bool] | None] = []
        for i in range(seeds):
            tensors = example.tensors(self.seed + i, outliers=True)
            arguments = captured.resized(tensors) or captured.arguments(tensors)
            eager, _ = evaluate(captured.gm, arguments)
            try:
                result, left = evaluate(fused.gm, arguments)
            except Exception as error:
                self._fail("kernel", example, captured, name, f"fails when it runs: {first_line(error)}")
                return
            problem = form_differs(result, eager) or _touched(arguments, left)
            if problem is not None:
                self._fail("kernel", example, captured, name, problem)
                return
            try:
                exact = Exact(captured.gm, captured.gm.graph).run(*arguments)
            except NotMeasured as refused:
                self.done.notes.append(f"{example}: not compared with float64, because {refused}")
                exact = [wide(t) for t in tensors_in(eager)]
            triples = zip(tensors_in(result), tensors_in(eager), tensors_in(exact), strict=True)
            for place, triple in enumerate(triples):
                found.setdefault(place, []).append(errors(*triple))
            others.append(self._another(example, tensors, result, eager))
        for place, several in found.items():
            whole = worst(several)
            self.done.numerics.setdefault(name, []).append(whole)
            if not whole.within:
                of = f" (result {place})" if len(found) > 1 else ""
                self._fail("numerics", example, captured, name, f"is out of bounds{of}: {whole}")
        first = others[0] if others else None
        worse = any(worst(several).fused.rms > _WORSE * worst(several).eager.rms for several in found.values())
        rewritten = [site for site in fused.report.sites if site.outcome == "rewritten"]
        as_asked = all(
            dict(site.variant) == dict(example.variant) for site in rewritten
        )  # or the view takes two for one
        if (
            as_asked
            and first is not None
            and all(o is not None and o[0] == first[0] and (o[1] or worse) for o in others)
        ):
            self._fail("kernel", example, captured, name, f"computes {first[0]} where {example.way} is asked")

    def _another(
        self, example: Example, tensors: Mapping[str, Any], result: Any, eager: Any
    ) -> tuple[str, bool] | None:
        """The other variant that a result is (and whether to the bit), where it is not what was asked for.

        Variants may differ only by where they round, which no bound on the error shows.
        """
        ours, own = tensors_in(result), tensors_in(eager)
        if same_bits(ours, own) or not all(t.is_floating_point() for t in own):
            return None
        distance = _distance(ours, own)
        for way in self.others:
            mine = example.way
            same_captures = (way.tensors, way.scalars, way.siblings) == (mine.tensors, mine.scalars, mine.siblings)
            if not same_captures or way.variant == example.variant:
                continue
            other = tensors_in(way.run(tensors, example.sizing.scalars))
            if form_differs(other, own) is None and _distance(ours, other) <= _NEARER * distance:
                return str(way), same_bits(ours, other)
        return None

    # --- gradients --------------------------------------------------------------------------------------------------

    def _gradients(self, example: Example, captured: Captured, name: str, seeds: int) -> None:
        """The gradients of every floating-point argument, against autograd of the reference and of float64."""
        kernel = kernels_for(example.pattern).get(name)
        if kernel is not None and kernel.backward is None:
            return
        with torch.enable_grad():
            fused = self._fused(example, captured, name)
        if fused is None:
            return
        found = []
        for i in range(seeds):
            arguments = captured.arguments(example.tensors(self.seed + i))
            try:
                eager = _gradients(captured.gm, arguments, self.seed)
                result = _gradients(fused.gm, arguments, self.seed)
                exact = _gradients(
                    _ExactForGradients(captured.gm, captured.gm.graph).run, map(wide, arguments), self.seed
                )
            except NotMeasured:
                return
            except Exception as error:
                self._fail("gradient", example, captured, name, f"fails under autograd: {first_line(error)}")
                return
            for place, (ours, theirs, wanted) in enumerate(zip(result, eager, exact, strict=True)):
                if (ours is None) != (theirs is None):
                    has = (
                        "no gradient, and the reference has one" if ours is None else "one, and the reference has none"
                    )
                    what = f"gives another gradient of {captured.names[place]}: {has}"
                    self._fail("gradient", example, captured, name, what)
                    return
                if ours is not None and theirs is not None and wanted is not None:
                    found.append((captured.names[place], errors(ours, theirs, wanted)))
        for tensor in dict.fromkeys(n for n, _ in found):
            whole = worst(e for n, e in found if n == tensor)
            self.done.gradients.setdefault(name, []).append(whole)
            if not whole.within:
                what = f"gives a gradient of {tensor} that is out of bounds: {whole}"
                self._fail("gradient", example, captured, name, what)

    def _fail(self, check: str, example: Example, captured: Captured, name: str, what: str) -> None:
        script = repro(example.pattern, captured.gm, captured, None if name == REFERENCE else name)
        self.done.failures.append(Failure(check, str(example), f"kernel {name!r} {what}", self.seed, script))


class _ExactForGradients(Exact):
    """Float64 through which gradients flow: its operands are wide already."""

    def run(self, *args: Any, **more: Any) -> Any:
        return fx.Interpreter.run(self, *args, **more)


def _gradients(function: Any, arguments: Any, seed: int) -> list[torch.Tensor | None]:
    """Gradients of the results, weighted at random, in the arguments; None for one without."""
    own = [
        a.detach().clone().requires_grad_(a.is_floating_point() or a.is_complex()) if isinstance(a, torch.Tensor) else a
        for a in arguments
    ]
    with torch.enable_grad():
        results = [r for r in tensors_in(function(*own)) if r.requires_grad]
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
        leaves = [a for a in own if isinstance(a, torch.Tensor) and a.requires_grad]
        if not results or not leaves:
            return [None for _ in own]
        made = iter(torch.autograd.grad(results, leaves, weights, allow_unused=True))
    return [next(made) if isinstance(a, torch.Tensor) and a.requires_grad else None for a in own]


def _fake(gm: fx.GraphModule, fakes: Sequence[Any]) -> Any:
    values: dict[fx.Node, Any] = {}
    pending = iter(fakes)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(pending)
        elif node.op == "get_attr":
            values[node] = getattr(gm, str(node.target))
        elif node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        else:
            values[node] = call(node, values.__getitem__)
    return None


def form_differs(got: Any, wanted: Any) -> str | None:
    """How results differ in number, dtype, shape, device or strides; None where they do not."""
    ours, theirs = tensors_in(got), tensors_in(wanted)
    if len(ours) != len(theirs):
        return f"{len(ours)} results; the reference has {len(theirs)}"
    for x, y in zip(ours, theirs, strict=True):
        if (x.dtype, x.device) != (y.dtype, y.device) or not _equal(x.shape, y.shape):
            return f"gives {_form(x)}; the reference gives {_form(y)}"
        strides = [
            (a, b) for size, a, b in zip(y.shape, x.stride(), y.stride(), strict=True) if not _equal([size], [1])
        ]
        if not _equal([0], [y.numel()]) and not _equal([a for a, _ in strides], [b for _, b in strides]):
            return (
                f"gives strides {tuple(x.stride())} for shape {tuple(y.shape)}; the reference gives {tuple(y.stride())}"
            )
    return None


def _equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


def _touched(arguments: Sequence[Any], left: Sequence[Any]) -> str | None:
    return None if same_bits(list(arguments), list(left)) else "writes to its operands"


def _distance(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """RMS over all places of all results."""
    total = sum((x.double() - y.double()).nan_to_num().square().sum().item() for x, y in zip(a, b, strict=True))
    return float(total) ** 0.5


__all__ = ["SEEDS", "Kernels", "Rewrites", "form_differs"]
