"""`verify`: each site of one call against float64, on the values that the call gave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from fxfuse.capture import capture, merge, positional
from fxfuse.describe import reason_record
from fxfuse.engine import Fused, Rewritten
from fxfuse.errors import OptionError, first_line
from fxfuse.expectations import judge as judge_counts
from fxfuse.match import Failure
from fxfuse.numerics.exact import NotMeasured
from fxfuse.numerics.isolate import Isolated
from fxfuse.numerics.measure import KernelError, Measured, Verdict, broken, judge, measure, not_measured
from fxfuse.options import parse
from fxfuse.report import Report, Site
from fxfuse.view.effects import body_of

INPUTS = "the call's own inputs"


def verify(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    tol: float | None = None,
) -> Report:
    """Check every site that one call would rewrite, on the inputs which that call gives it, against float64.

    The model runs once, in eager. At each site the kernel runs beside the original operations on the same values, and
    both are compared with the original operations in float64. The fused error may be twice eager's plus a floor
    (``fxfuse.numerics.contract``), in maximum and in RMS. It is the kernel that is checked, forward, as the rewrite
    calls it, without the inner compiler. As with :func:`fxfuse.explain`, nothing is changed.

    Each site that was measured has ``site.numbers``. One that is out of bounds, fails or cannot be measured has
    outcome ``"kept"`` and code VERIFY with the reason, as under the option ``verify=True``. ``report.ok`` says whether
    there were sites to verify and all of them hold: ``assert fxfuse.verify(model, (x,)).ok``.

    Args:
        model, args, kwargs, options: as for :func:`fxfuse.explain`; ``expect_rewritten`` counts sites that hold.
        tol: the error that is allowed, relative to the exact result's, in place of the contract.

    Raises:
        OptionError: a bad option or ``tol``.
        ExpectationError: a count, glob or named pattern that the call does not meet.
        CaptureError: Dynamo captured no graph.
    """
    args = positional("verify", args)
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 <= tol < float("inf")):
        raise OptionError(f"tol is a relative error of at least 0; given {tol!r}.")
    parsed = parse(options)
    checked: list[tuple[Report, list[_Check]]] = []

    def runner(gm: fx.GraphModule, fused: Fused) -> Callable[..., Any]:
        checks = [_Check(one) for one in fused.rewritten]
        checked.append((fused.report, checks))
        return lambda *values: _Watched(gm, checks).run(*values)

    reports = capture(model, args, kwargs or {}, parsed, runner)
    for report, checks in checked:
        sites = list(report.sites)
        for check in checks:
            sites[check.of.site] = _with_verdict(sites[check.of.site], check.of, check.verdict(tol))
        report.sites = tuple(sites)
    merged = merge(reports, parsed)
    judge_counts(merged, parsed, whole=True)
    return merged


class _Check:
    """One rewritten site, and what was measured there; a graph may run several times in a call."""

    def __init__(self, of: Rewritten) -> None:
        self.of = of
        self.measured: list[Measured] = []
        self.problem: Verdict | None = None
        self.site: Isolated | None = None
        self.written: set[fx.Node] = set()
        try:
            self.site = Isolated(of.editor, of.match, of.kernel, of.placement)
        except Exception as error:  # whatever it is, the site was not shown to be right
            self.problem = not_measured(first_line(error))
        else:
            effects = of.match.view.effects
            self.written = {n for n in (*self.site.inputs, *self.site.outputs) if effects.is_written(n)}

    def run(self, site: Isolated, env: Mapping[fx.Node, Any], before: Mapping[fx.Node, Any]) -> None:
        """Measure on the values of a run that is just past the site. ``before`` has those that may be written since."""
        values = [env[n] for n in site.inputs]
        eager = [before.get(n, env[n]) for n in site.outputs]
        try:
            self.measured += measure(site, values, eager, [before.get(n, env[n]) for n in site.inputs])
        except NotMeasured as why:
            self.problem = self.problem or not_measured(str(why))
        except KernelError as error:
            self.problem = broken(self.of.kernel.name, error)
        except Exception as error:
            self.problem = self.problem or not_measured(first_line(error))

    def verdict(self, tol: float | None) -> Verdict:
        if self.problem is not None:
            return self.problem
        if not self.measured:
            return not_measured("the call did not come to this place")
        return judge(self.measured, self.of.kernel.name, INPUTS, tol)


class _Watched(fx.Interpreter):
    """Runs a captured graph, and measures each site of it, and of the bodies in it, as soon as the site has run."""

    def __init__(self, gm: fx.GraphModule, checks: Sequence[_Check]) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self._checks = checks
        self._starts: dict[fx.Node, list[_Check]] = {}
        self._ends: dict[fx.Node, list[_Check]] = {}
        self._before: dict[_Check, dict[fx.Node, Any]] = {}
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        last: dict[fx.Node, fx.Node] = {}
        for check in checks:
            if check.of.editor.gm is gm and check.site is not None:
                needed = (*check.site.inputs, *check.site.outputs)
                end = max(needed, key=order.__getitem__)
                self._starts.setdefault(check.site.nodes[0], []).append(check)
                self._ends.setdefault(end, []).append(check)
                for node in needed:
                    last[node] = max(last.get(node, end), end, key=order.__getitem__)
        uses: dict[fx.Node, list[fx.Node]] = {}
        for user, dying in self.user_to_last_uses.items():
            for node in dying:
                uses.setdefault(max(last.get(node, user), user, key=order.__getitem__), []).append(node)
        self.user_to_last_uses = uses

    def run_node(self, n: fx.Node) -> Any:
        for check in self._starts.get(n, ()):
            self._before[check] = {m: _cloned(self.env[m]) for m in check.written if m in self.env}
        result = self._result(n)
        for check, before in self._before.items():
            if n in check.written:
                before[n] = _cloned(result)
        ends = self._ends.get(n, ())
        if ends:
            env = {**self.env, n: result}
            for check in ends:
                assert check.site is not None
                check.run(check.site, env, self._before.pop(check))
        return result

    def _result(self, n: fx.Node) -> Any:
        """The node's value. A body with sites in it is run here, in place of the higher-order op around it."""
        body = body_of(n)
        inside = set(map(id, body.modules())) if body is not None else set()
        if body is None or not any(id(check.of.editor.gm) in inside for check in self._checks):
            return super().run_node(n)
        operands, _ = self.fetch_args_kwargs_from_env(n)
        return _Watched(body, self._checks).run(*operands[1:])


def _cloned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _with_verdict(site: Site, of: Rewritten, verdict: Verdict) -> Site:
    if verdict.problem is None:
        return replace(site, numbers=verdict.numbers)
    failure = Failure("VERIFY", verdict.problem, operand=of.match.root)
    return replace(
        site,
        outcome="kept",
        code=failure.code,
        reason=failure.sentence(),
        detail=reason_record(failure),
        kernel="",
        why_kernel="",
        weights="",
        extra_bytes=0,
        shared_bytes=0,
        new_nodes=(),
        numbers=verdict.numbers,
    )
