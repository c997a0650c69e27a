"""`bisect`: the first site whose rewrite breaks a check, found by rewriting ever shorter prefixes of the sites."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxfuse import compat, fuel
from fxfuse.backend import inner_compiled
from fxfuse.capture import positional, underneath
from fxfuse.engine import Fused, fuse, with_graph_number
from fxfuse.errors import CaptureError, FxfuseError, OptionError, first_line
from fxfuse.numerics.repro import script_of
from fxfuse.numerics.state import preserved
from fxfuse.options import Options, parse
from fxfuse.report import Report, Site
from fxfuse.report.text import render_site

Check = Callable[[Callable[..., Any]], Any]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""What results may differ from eager, relative to the largest value, where nobody says otherwise."""


class BisectError(FxfuseError, RuntimeError):
    """There is nothing to bisect: no site is rewritten, or the check fails without any rewrite."""


@dataclass(frozen=True)
class Bisection:
    """What :func:`bisect` found.

    Attributes:
        site: the first site whose rewrite breaks the check; None where the check holds with every site rewritten.
        limit: how many sites are rewritten when it breaks first: ``FXFUSE_LIMIT=limit`` shows it, one less does not.
        sites: how many sites are rewritten in all.
        compiles: how many times the model was compiled.
        why: how the check failed at that site.
        repro: a script with that site alone.
        report: of the compile that broke first, or of the whole one.
    """

    site: Site | None
    limit: int
    sites: int
    compiles: int
    why: str
    repro: str
    report: Report

    @property
    def holds(self) -> bool:
        """Whether the check holds with every site rewritten."""
        return self.site is None

    def __str__(self) -> str:
        times = f"{self.compiles} compiles"
        if self.site is None:
            return f"the check holds with all {self.sites} sites rewritten ({times})"
        lines = [f"rewrite {self.limit} of {self.sites} breaks the check ({times}): {self.why}"]
        lines += [render_site(self.site)]
        lines += [f"FXFUSE_LIMIT={self.limit} shows it, FXFUSE_LIMIT={self.limit - 1} does not; .repro is a script."]
        return "\n".join(lines)


def bisect(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    check: Check | None = None,
    tol: float | None = None,
) -> Bisection:
    """The first site whose rewrite breaks a check, in the order in which sites are rewritten, in O(log n) compiles.

    Each probe compiles the model anew, with the first k sites rewritten, apart from all other compiles of the process,
    and from the same state: parameters, gradients, buffers, tensor arguments and random state are put back after it.

    Args:
        model, args, kwargs, options: as for :func:`fxfuse.explain`. The inner compiler is the options'.
        check: called with the compiled model; it may call it as often as it likes, train it, look at a loss. It fails
            by returning ``False`` or raising. Without one, a single call is compared with eager: results and, where
            they require grad, the parameters' gradients.
        tol: the difference allowed by that comparison, relative to the largest value.

    Raises:
        OptionError: a bad option, ``check`` or ``tol``.
        BisectError: no site is rewritten, or the check fails without any rewrite.
        CaptureError: Dynamo captured no graph.
    """
    args = positional("bisect", args)
    if check is not None and not callable(check):
        raise OptionError(f"check is a function of the compiled model; given {check!r}.")
    if check is not None and tol is not None:
        raise OptionError("tol is for the comparison with eager; it cannot go with a check of your own.")
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 <= tol < float("inf")):
        raise OptionError(f"tol is a relative error of at least 0; given {tol!r}.")
    parsed = parse(options)
    model = getattr(model, "_orig_mod", model)
    with underneath(model):
        work = _Bisect(model, args, dict(kwargs or {}), parsed, check or _Comparison(model, args, kwargs or {}, tol))
        return work.run()


@dataclass
class _Probe:
    """One compile with the first ``limit`` sites rewritten."""

    problem: str | None
    used: int
    reports: list[Report]
    last: Any


class _Bisect:
    def __init__(
        self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options, check: Check
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.options = options
        self.check = check
        self.compiles = 0
        self.names: dict[int, list[str]] = {}
        if isinstance(model, nn.Module):
            for path, parameter in model.named_parameters(remove_duplicate=False):
                self.names.setdefault(id(parameter), []).append(path)

    def run(self) -> Bisection:
        whole = self.probe(None)
        if not whole.reports:
            failed = f" The check itself failed: {whole.problem}." if whole.problem is not None else ""
            raise CaptureError(f"Dynamo captured no graph while the check ran, so there is nothing to bisect.{failed}")
        if whole.used == 0:
            missed = sum(len(r.sites) for r in whole.reports)
            raise BisectError(
                f"no site is rewritten in this call ({missed} were left as they are), so fxfuse changes nothing; "
                "fxfuse.explain says why."
            )
        if whole.problem is None:
            return Bisection(None, whole.used, whole.used, self.compiles, "", "", whole.reports[-1])
        plain = self.probe(0)
        if plain.problem is not None:
            raise BisectError(f"the check fails without any rewrite, so no site is to blame: {plain.problem}")
        good, bad, broken = 0, whole.used, whole
        while bad - good > 1:
            middle = (good + bad) // 2
            probe = self.probe(middle)
            if probe.problem is None:
                good = middle
            else:
                bad, broken = middle, probe
        if broken.last is None or broken is whole:
            broken = self.probe(bad)
        site, script = broken.last
        report = next(r for r in broken.reports if any(s is site for s in r.sites))
        return Bisection(site, bad, whole.used, self.compiles, broken.problem or whole.problem, script(), report)

    def probe(self, limit: int | None) -> _Probe:
        """Run the check with the first ``limit`` sites rewritten."""
        self.compiles += 1
        reports: list[Report] = []
        last: list[Any] = [None]
        failures: list[OptionError] = []
        looked_at: dict[Any, int] = {}

        def backend(gm: fx.GraphModule, examples: list[Any]) -> Any:
            place = compat.code_being_compiled()
            if place is not None:
                looked_at.setdefault(*place)
            try:
                fused = fuse(gm, examples, self.options, names=self.names, record=True)
            except OptionError as error:  # Dynamo would wrap it
                failures.append(error)
                return gm.forward
            fused.report = with_graph_number(fused.report, len(reports))
            reports.append(fused.report)
            compiled = _compiled(fused, examples, self.options)
            if fused.rewritten:
                one = fused.rewritten[-1]
                site = fused.report.sites[one.site]
                script = _scripted(one, site, self.options)
                last[0] = site, lambda: script
            return saved.guarding(gm, compiled)

        problem = None
        with (
            fuel.limited(limit) as burned,
            preserved(self.model, self.args, self.kwargs) as saved,
            _trainable(self.model),
            compat.without_recompile_limits(),
        ):
            try:
                if self.check(compat.isolated_compile(self.model, backend)) is False:
                    problem = "the check returned False"
            except Exception as error:
                problem = first_line(error)
            finally:
                for code, entries in looked_at.items():
                    if entries == 0:
                        compat.forget_code(code)
        if failures:
            raise failures[0]
        return _Probe(problem, burned.used, reports, last[0])


def _scripted(one: Any, site: Site, options: Options) -> str:
    try:
        return script_of(one, site, options)
    except Exception as error:
        return f"# no script can be made of this site: {first_line(error)}\n"


def _compiled(fused: Fused, examples: list[Any], options: Options) -> Callable[..., Any]:
    """The rewritten graph, with derived weights computed at each call: a probe moves no parameter."""
    compiled = inner_compiled(fused, examples, options)
    if not fused.derived:
        return compiled

    def call(*args: Any) -> Any:
        with torch.no_grad():
            derived = [one.transform(*(args[p].detach() for p in one.positions)) for one in fused.derived]
        return compiled(*args, *derived)

    return call


@contextlib.contextmanager
def _trainable(model: Any) -> Iterator[None]:
    """Parameters and their gradients are afterwards what they were."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    values = [(p, p.detach().clone(), p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, grad, grad_value in values:
                if not torch.equal(parameter, value):
                    parameter.copy_(value)
                parameter.grad = grad
                if grad is not None and grad_value is not None:
                    grad.copy_(grad_value)
        for module, training in modes:
            module.training = training


class _Comparison:
    """The check where the user gives none: one call against eager, forward and backward."""

    def __init__(self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tol: float | None) -> None:
        self.model, self.args, self.kwargs, self.tol = model, args, kwargs, tol
        with preserved(model, args, kwargs), _trainable(model):
            self.want = self._run(model)

    def __call__(self, compiled: Callable[..., Any]) -> None:
        found = self._run(compiled)
        for name, want in self.want.items():
            if name not in found:
                raise AssertionError(f"{name} is missing")
            _require_near(name, found[name], want, self.tol)

    def _run(self, function: Callable[..., Any]) -> dict[str, Tensor]:
        results = [t for t in pytree.tree_leaves(function(*self.args, **self.kwargs)) if isinstance(t, Tensor)]
        found = {f"result {i}": t.detach().clone() for i, t in enumerate(results)}
        differentiable = [t for t in results if t.requires_grad and t.is_floating_point()]
        if differentiable and isinstance(self.model, nn.Module):
            self.model.zero_grad(set_to_none=True)
            sum(t.float().square().mean() for t in differentiable).backward()  # type: ignore[union-attr]  # there is one at least
            for path, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    found[f"the gradient of {path}"] = parameter.grad.detach().clone()
        return found


def _require_near(name: str, found: Tensor, want: Tensor, tol: float | None) -> None:
    if found.shape != want.shape or found.dtype != want.dtype:
        raise AssertionError(
            f"{name} is {found.dtype} {tuple(found.shape)}, and in eager {want.dtype} {tuple(want.shape)}"
        )
    if not want.is_floating_point():
        if not torch.equal(found, want):
            raise AssertionError(f"{name} differs from eager")
        return
    allowed = tol if tol is not None else TOLERANCE.get(want.dtype, 5e-2)
    same = (found == want) | (found.isnan() & want.isnan())
    off = torch.where(same, 0.0, (found.double() - want.double()).abs()).nan_to_num(nan=float("inf"))
    finite = want.double().abs().nan_to_num(0.0, 0.0, 0.0)
    error = off.max().item() / (finite.max().item() or 1.0) if off.numel() else 0.0
    if error > allowed:
        raise AssertionError(f"{name} is off from eager by {error:.1e} of its largest value (allowed {allowed:.1e})")
