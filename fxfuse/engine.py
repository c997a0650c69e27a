"""The engine: one captured graph in, one rewritten copy and its report out.

match -> select -> choose a kernel and a placement -> rewrite. It compiles nothing and changes no parameter.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx

import fxfuse
from fxfuse import fuel, paths, results
from fxfuse.authoring import Pattern, Region
from fxfuse.errors import OptionError, first_line, warn_once
from fxfuse.kernels import Kernel, Loss, SiteFacts, choose, facts_of, fastest, granted, named, reference, why_none
from fxfuse.match import Failure, Found, Match, find_sites, select, sites_of
from fxfuse.options import Options
from fxfuse.params import COPIES_ARE_WATCHED, Budget, Derived, NotShareable, Transform, copies, unwatchable
from fxfuse.params.budget import bytes_of
from fxfuse.params.share import find, require_shareable
from fxfuse.recording import Recorder, modules_of
from fxfuse.report import Numbers, Report
from fxfuse.report.later import Later
from fxfuse.rewriting import Dialect, Editor, RewriteError
from fxfuse.view import Leaf, Value, View
from fxfuse.view.effects import body_of
from fxfuse.view.leaves import LeafKind, classify, stack_path

_KEPT = {"DISABLED", "NO_KERNEL", "COST", "REQUIRES_GRAD", "REWRITE_ERROR", "VERIFY"}
"""Why a match may be left to the inner compiler on purpose."""


@dataclass
class Plan:
    """What will be done with one match."""

    found: Found
    kernel: Kernel | None
    placement: str
    why: str
    failure: Failure | None = None
    notes: tuple[str, ...] = ()
    numbers: Numbers | None = None


@dataclass
class Body:
    """The graph inside a higher-order op, held by the module around it as ``attribute``."""

    attribute: str
    gm: fx.GraphModule
    plans: list[Plan]
    bodies: list[Body]

    def all_plans(self) -> list[Plan]:
        return [*self.plans, *(p for body in self.bodies for p in body.all_plans())]


@dataclass(frozen=True)
class Rewritten:
    """A match that was rewritten: by which editor and kernel, and its place among the report's sites."""

    editor: Editor
    match: Match
    kernel: Kernel
    placement: str
    site: int
    made: tuple[fx.Node, ...] = ()


@dataclass
class Fused:
    """A rewritten copy of a graph. ``derived`` are the inputs it has beyond the captured graph's."""

    gm: fx.GraphModule
    report: Report
    derived: tuple[Derived, ...] = ()
    changed: bool = False
    editors: tuple[Editor, ...] = ()
    rewritten: tuple[Rewritten, ...] = ()

    @property
    def new_nodes(self) -> frozenset[fx.Node]:
        """What the rewrites put into the graph."""
        return frozenset(node for one in self.rewritten for node in one.made)

    def commit(self) -> None:
        """Make the captured graph (and the bodies inside it) what the rewritten copy is, in place."""
        for editor in self.editors:
            editor.commit()


def fuse(
    gm: fx.GraphModule,
    examples: Sequence[Any],
    options: Options,
    *,
    names: Mapping[int, Sequence[str]] | None = None,
    may_add_inputs: bool = True,
    leaves: Sequence[Leaf] | None = None,
    dialect: Dialect | None = None,
    record: bool = False,
) -> Fused:
    """Match ``options.patterns`` in ``gm`` and rewrite a copy of it.

    Args:
        examples: the live arguments of this graph, in order (may be empty: then what is a parameter is told by meta).
        names: ``id`` of a parameter -> its full paths, where the caller knows the model.
        may_add_inputs: whether the caller can feed derived weights to the graph as further arguments.
        leaves: what each placeholder is, where the caller knows.
        dialect: what operations the graph is written in; told from the graph where the caller does not know.
        record: whether somebody will read the report, so that it holds whole graphs, and not only what is at sites.

    Raises:
        OptionError: a kernel that the options name cannot run at a site.
    """
    versions = {"fxfuse": fxfuse.__version__, "torch": torch.__version__}
    report = Report(nodes=len(gm.graph.nodes), options=options.describe(), versions=versions)
    work = _Work(gm, examples, options, names or {}, report, may_add_inputs, leaves, dialect, record)
    return work.run()


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """While a graph is read nothing becomes garbage in cycles, and each collection would look at all that was made:
    30 % of the time at 100,000 nodes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Work:
    def __init__(
        self,
        gm: fx.GraphModule,
        examples: Sequence[Any],
        options: Options,
        names: Mapping[int, Sequence[str]],
        report: Report,
        may_add_inputs: bool,
        leaves: Sequence[Leaf] | None,
        dialect: Dialect | None,
        record: bool,
    ) -> None:
        self.gm = gm
        self.examples = examples
        self.options = options
        self.names = names
        self.report = report
        self.may_add_inputs = may_add_inputs
        self.leaves = leaves
        self.dialect = dialect
        self.editors: list[Editor] = []
        self.ambient_grad = torch.is_grad_enabled()
        self.rewritten: list[Rewritten] = []
        self.recorder = Recorder(record, self._known)
        self.results = results.current()  # as of now, for every site of this graph
        self.budget = Budget(options.extra_memory, copies())

    def run(self) -> Fused:
        clock = time.perf_counter
        start = clock()
        self.recorder.begin(self.gm.graph)
        with _without_collections():
            view = View(self.gm.graph, self.examples, leaves=self.leaves)
            plans = self._plans(view, in_body=not self.may_add_inputs)
            bodies = self._bodies(self.gm, view)
        self.report.seconds["match"] = clock() - start
        start = clock()
        every = [*plans, *(p for body in bodies for p in body.all_plans())]
        wanted = any(p.kernel for p in every)
        gm = self.gm
        derived: tuple[Derived, ...] = ()
        if wanted:
            editor = self._editor(self.gm)
            self._apply(plans, editor)
            new_bodies = {body.attribute: self._rewrite_body(body) for body in bodies}
            gm = editor.finish(new_bodies)
            derived = tuple(editor.derived)
        else:
            for plan in every:
                self._site(plan, ())
        self.report.seconds["rewrite"] = clock() - start
        self.report.sites = self.recorder.sites()
        if any(plan.kernel is not None and plan.placement == "copy" for plan in every):
            self.report.notes = (*self.report.notes, COPIES_ARE_WATCHED)
        self._take_down(bodies)
        self.report.patterns = self.recorder.totals()
        self.report.captured = self.recorder.records()
        return Fused(gm, self.report, derived, wanted, tuple(self.editors), tuple(self.rewritten))

    def _take_down(self, bodies: Sequence[Body]) -> None:
        """Have the recorder keep what the report says of each graph."""
        editors = {editor.gm.graph: editor for editor in self.editors}
        pending = [self.gm.graph, *(body.gm.graph for body in bodies)]
        below = list(bodies)
        while below:
            inner = below.pop().bodies
            pending += [body.gm.graph for body in inner]
            below += inner
        for graph in pending:
            editor = editors.get(graph)
            here = [(r.match, r.made) for r in self.rewritten if r.editor is editor]
            self.recorder.take(graph, editor, here)

    def _editor(self, gm: fx.GraphModule) -> Editor:
        editor = Editor(gm, self.dialect)
        self.editors.append(editor)
        return editor

    # --- what to do with each match ---------------------------------------------------------------------------------

    def _plans(self, view: View, *, in_body: bool) -> list[Plan]:
        by_pattern: dict[Pattern, list[Found]] = {}
        taken: set[fx.Node] = set()
        for pattern in sorted(self.options.patterns, key=lambda p: -p.size):
            asked = pattern.name in self.options.named
            start = time.perf_counter()
            sites = sites_of(view, pattern, self._absolute, taken=() if asked else taken)
            by_pattern[pattern] = [s for s in sites if asked or s.is_near]
            self.recorder.searched(view, pattern, by_pattern[pattern], time.perf_counter() - start)
            taken.update(n for s in sites if s.match is not None and s.reason is None for n in s.nodes)
        found = [site for pattern in self.options.patterns for site in by_pattern[pattern]]
        for site in found:
            if (
                site.match is not None
                and self.options.paths
                and not paths.selected(self._modules(site), self.options.paths)
            ):
                site.reason = Failure("DISABLED", f"outside paths={list(self.options.paths)}", operand=site.seed)
        found = select(found)
        return [self._guarded_plan(site, in_body) for site in found]

    def _absolute(self, path: str) -> str:
        return paths.absolute(path, list(self._known.values()))

    def _guarded_plan(self, site: Found, in_body: bool) -> Plan:
        """The plan, where no requirement of a kernel fails on the way: one faulty kernel may not cost other sites."""
        try:
            return self._plan(site, in_body)
        except OptionError:
            raise
        except Exception as error:
            if self.options.on_error == "raise":
                raise
            what = first_line(error)
            warn_once(f"fxfuse leaves a site as it is (REWRITE_ERROR): {what}")
            return Plan(site, None, "", "", Failure("REWRITE_ERROR", what, operand=site.seed))

    def _bodies(self, gm: fx.GraphModule, view: View) -> list[Body]:
        """The graphs inside higher-order ops, whose inputs are what the operands are; those inside them, too."""
        found = []
        for node in gm.graph.nodes:
            body = body_of(node)
            holders = len(body.graph.find_nodes(op="placeholder")) if body is not None else 0
            if body is None or len(node.args[0].users) != 1 or holders != len(node.args) - 1:
                found += self._closed_bodies(gm, node)
                continue
            leaves = []
            for operand in node.args[1:]:
                value = view.value(operand) if isinstance(operand, fx.Node) else None
                leaf = value.leaf if value is not None else None
                leaves.append(leaf or Leaf(LeafKind.INPUT, str(operand)))
            inner = View(body.graph, leaves=leaves)
            self.recorder.begin(body.graph, str(node.args[0].target))
            plans = self._plans(inner, in_body=True)
            if view.effects.under_autocast(node):
                for plan in plans:
                    if plan.kernel is not None:
                        plan.kernel = None
                        what = "an autocast region of the graph is open at the site"
                        plan.failure = Failure("REGION", what, operand=plan.found.seed)
            found.append(Body(str(node.args[0].target), body, plans, self._bodies(body, inner)))
        return found

    def _closed_bodies(self, gm: fx.GraphModule, node: fx.Node, outer: str = "") -> list[Body]:
        """Bodies that are only looked at: what matches in them is a row with a reason, and stays as it is."""
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            return []
        found = []
        for operand in node.all_input_nodes:
            body = getattr(gm, str(operand.target), None) if operand.op == "get_attr" else None
            if not isinstance(body, fx.GraphModule):
                continue
            holders = sum(n.op == "placeholder" for n in body.graph.nodes)
            view = View(body.graph, leaves=[Leaf(LeafKind.PARAMETER, "")] * holders)
            self.recorder.begin(body.graph, str(operand.target))
            patterns = [p for p in self.options.patterns if not isinstance(p, Region)]
            sites = [s for pattern in patterns for s in find_sites(view, pattern) if s.match is not None]
            for site in sites:
                what = f"inside the body of {outer or node.target.name()}, which fxfuse does not open"
                site.reason = Failure("REGION", what, operand=site.seed)
            name = outer or node.target.name()
            inner = [b for n in body.graph.nodes for b in self._closed_bodies(body, n, name)]
            found.append(Body(str(operand.target), body, [self._plan(s, True) for s in sites], inner))
        return found

    def _rewrite_body(self, body: Body) -> fx.GraphModule:
        if not any(plan.kernel for plan in body.all_plans()):
            for plan in body.all_plans():
                self._site(plan, ())
            return body.gm
        editor = self._editor(body.gm)
        self._apply(body.plans, editor)
        return editor.finish({inner.attribute: self._rewrite_body(inner) for inner in body.bodies})

    def _plan(self, site: Found, in_body: bool) -> Plan:
        match, pattern = site.match, site.pattern
        if match is None or site.reason is not None:
            return Plan(site, None, "", "", site.reason)
        wished = self.options.kernels_named(pattern.name)
        if wished == ("off",):
            return Plan(
                site, None, "", "", Failure("DISABLED", f"kernels={{{pattern.name!r}: 'off'}}", operand=match.root)
            )
        placement = self.options.weights_for(pattern.name)
        facts = self._facts(match, placement)
        if wished:
            kernel, why = named(pattern, wished, facts)
            if kernel is None:
                where = ", ".join(self._modules(site))
                raise OptionError(f"kernels[{pattern.name!r}] cannot run at {where}: {why}.")
            return self._place(site, kernel, why, placement, facts, in_body)
        free = placement == "auto" and not facts.needs_grad and not in_body
        derived = placement in {"share", "copy", "inline"} or (free and facts.device == "cuda")
        if free and self.options.extra_memory:
            kernel, why = granted(pattern, facts)
            if kernel is not None:
                return self._place(site, kernel, why, "copy", facts, in_body)
        lives = ("share" if placement == "auto" else placement) if derived else None
        kernel, why = choose(pattern, facts, derived=derived, either=free, placement=lives)
        if kernel is None and derived:
            plain, other = choose(pattern, facts, derived=False, either=free)
            if plain is not None:
                notes = () if placement == "auto" else (f"weights={placement!r} does not apply: {why}",)
                return Plan(site, plain, "separate", other, notes=notes)
        if kernel is None and pattern.name in self.options.named:
            able, chosen = fastest(pattern, facts)
            if able is not None:
                kernel, why = able, chosen
            elif not isinstance(pattern, Region):
                asked = f"the pattern was named, and no other kernel can run: {why}"
                return Plan(site, reference(pattern), "separate", asked)
        if kernel is None:
            return Plan(site, None, "", "", Failure(*why_none(pattern, facts, why), operand=match.root))
        return self._place(site, kernel, why, placement, facts, in_body)

    def _facts(self, match: Match, placement: str) -> SiteFacts:
        """The facts; kernels are measured with their weights at hand, which says nothing of ``inline``."""
        return facts_of(
            match,
            ambient_grad=self.ambient_grad,
            examples=self.examples,
            inner=results.compiler(self.options.inner, self.options.mode),
            results=self.results if placement != "inline" else None,
        )

    def _place(
        self,
        site: Found,
        kernel: Kernel,
        why: str,
        placement: str,
        facts: SiteFacts,
        in_body: bool,
        refused: tuple[str, ...] = (),
    ) -> Plan:
        """Where the kernel finds its weights; a placement that cannot be had becomes `separate`, with a note.

        Args:
            refused: kernels whose copies were too large, so that this is the next one.
        """
        if not kernel.derive:
            notes: tuple[str, ...] = ()
            if placement not in {"auto", "separate"}:
                notes = (
                    f"weights={placement!r} does not apply: kernel {kernel.name} reads the parameters as they are",
                )
            return Plan(site, kernel, "separate", why, notes=notes)
        shareable, inlinable = "share" in kernel.placements, "inline" in kernel.placements
        if placement == "inline" and inlinable:
            return Plan(site, kernel, "inline", why)
        wanted = placement if placement != "auto" else "share" if shareable else "copy"
        problem = "weights='separate' allows no derived weight" if wanted == "separate" else None
        problem = problem or self._refusal(site, kernel, wanted, facts, in_body)
        if problem is None:
            if wanted == "copy":
                self.budget.plan(self._wanted(site, kernel) or ())
            return Plan(site, kernel, wanted, why)
        note = f"weights are not placed by {wanted!r}: {problem}"
        asked = bool(self.options.kernels_named(site.pattern.name))
        if self.options.weights_for(site.pattern.name) == "copy" and not asked:
            refused = (*refused, kernel.name)
            smaller, said = choose(site.pattern, facts, derived=True, placement="copy", without=refused)
            if smaller is not None:
                plan = self._place(site, smaller, said, "copy", facts, in_body, refused)
                return replace(plan, notes=(f"not {kernel.name}: {problem}", *plan.notes))
        plain, other = choose(site.pattern, facts, derived=False)
        if plain is None and site.pattern.name in self.options.named:
            plain, other = fastest(site.pattern, facts, may_derive=False)
        if isinstance(other, Loss) and not asked:
            return Plan(site, None, "", "", Failure("COST", other, operand=site.seed), notes=(note,))
        if plain is None and not asked and not inlinable:
            return Plan(site, None, "", "", Failure("NO_KERNEL", problem, operand=site.seed), notes=(note,))
        if asked or plain is None:
            if wanted == "separate" or not inlinable:
                raise OptionError(f"kernels[{site.pattern.name!r}]={kernel.name!r} derives a weight, and {problem}.")
            return Plan(site, kernel, "inline", why, notes=(note,))
        return Plan(site, plain, "separate", other, notes=(note,))

    def _refusal(self, site: Found, kernel: Kernel, placement: str, facts: SiteFacts, in_body: bool) -> str | None:
        """Why the kernel's derived weights cannot be placed so, or None."""
        assert site.match is not None
        if facts.needs_grad:
            return "REQUIRES_GRAD: the sources must stay differentiable operands"
        if in_body:
            return "its graph cannot be given another input (the body of a higher-order op, or a rewrite in place)"
        wanted = self._wanted(site, kernel)
        if wanted is None:
            return "the live parameters are not at hand"
        if placement == "copy":
            problem = next((p for one in wanted if (p := unwatchable(*one)) is not None), None)
            return problem or self.budget.refusal(wanted)
        for transform, sources in wanted:
            if placement == "inline":
                return f"{transform.describe()} is not computed anew on each call"
            if not transform.shareable:
                return f"{transform.describe()} cannot hold its sources"
            try:
                if find(sources, transform) is None:
                    require_shareable(sources, transform, take_mapped=False)
            except NotShareable as refused:
                return str(refused)
        return None

    def _wanted(self, site: Found, kernel: Kernel) -> list[tuple[Transform, list[torch.Tensor]]] | None:
        """The kernel's derived weights at this site with their live sources, where these are at hand."""
        assert site.match is not None
        found = []
        for _, declared in kernel.derive:
            transform, captured = declared.settle(site.match.captures)
            sources = self._sources(captured)
            if sources is None:
                return None
            found.append((transform, sources))
        return found

    def _sources(self, captured: Sequence[Any]) -> list[torch.Tensor] | None:
        out = []
        for value in captured:
            position = value.leaf.position if isinstance(value, Value) and value.leaf is not None else None
            example = self.examples[position] if position is not None and position < len(self.examples) else None
            if not isinstance(example, torch.Tensor) or isinstance(example, torch._subclasses.FakeTensor):
                return None
            out.append(example)
        return out

    # --- doing it ---------------------------------------------------------------------------------------------------

    def _apply(self, plans: Sequence[Plan], editor: Editor) -> None:
        for plan in plans:
            by_path = isinstance(plan.found.pattern, Region)  # whose kernel no reference vouches for
            if plan.kernel is not None and (self.options.verify or by_path or is_foreign(plan.kernel)):
                self._try(plan, editor)
            spent = fuel.current().take() if plan.kernel is not None else None
            if spent is not None:
                plan.kernel, plan.failure = None, Failure("DISABLED", spent, operand=plan.found.seed)
            if plan.kernel is None:
                self._site(plan, ())
                continue
            assert plan.found.match is not None
            try:
                made = editor.replace(plan.found.match, plan.kernel, plan.placement)
            except Exception as error:
                if self.options.on_error == "raise":
                    raise
                what = first_line(error)
                warn_once(f"fxfuse leaves a site as it is (REWRITE_ERROR): {what}")
                code = error.code if isinstance(error, RewriteError) else "REWRITE_ERROR"
                plan.failure = Failure(code, what, operand=plan.found.match.root)
                plan.kernel = None
                self._site(plan, ())
                continue
            site = self._site(plan, made)
            self.rewritten.append(Rewritten(editor, plan.found.match, plan.kernel, plan.placement, site, made))

    def _try(self, plan: Plan, editor: Editor) -> None:
        """Measure the site on random inputs, and leave it as it is where it cannot be trusted."""
        from fxfuse.numerics.trial import trial  # only where sites are tried

        match, kernel = plan.found.match, plan.kernel
        assert match is not None
        assert kernel is not None
        verdict = trial(editor, match, kernel, plan.placement, self.examples)
        plan.numbers = verdict.numbers
        if verdict.problem is not None:
            plan.kernel, plan.failure = None, Failure("VERIFY", verdict.problem, operand=match.root)

    def _site(self, plan: Plan, made: Sequence[fx.Node]) -> int:
        """Have the site taken down; its place among the report's."""
        found, failure = plan.found, plan.failure
        outcome = "rewritten"
        if failure is not None:
            outcome = "kept" if found.match is not None and failure.code in _KEPT else "missed"
        match = found.match
        shared = extra = 0
        if plan.kernel is not None and match is not None and plan.placement in {"share", "copy"}:
            for _, transform in plan.kernel.derive:
                settled, sources = transform.settle(match.captures)
                metas = [v.meta for v in sources if isinstance(v, Value)]
                shared += sum(m.nbytes for m in metas) if plan.placement == "share" else 0
                extra += bytes_of(settled, metas) if plan.placement == "copy" else 0
        return self.recorder.site(
            found,
            failure,
            outcome,
            self._positions(found),
            plan.kernel,
            plan.placement,
            made,
            why_kernel=plan.why if plan.kernel is not None else "",
            extra_bytes=extra,
            shared_bytes=shared,
            notes=plan.notes,
            numbers=plan.numbers,
        )

    def _modules(self, found: Found) -> tuple[str, ...]:
        return modules_of(map(stack_path, found.nodes), self._positions(found), self._known)

    def _positions(self, found: Found) -> list[int]:
        """Those of the inputs of the graph that a match captures, and of which the caller knows the path."""
        if found.match is None or not self._known:
            return []
        own = {v.leaf.position for v in found.match.captured_values() if v.leaf is not None}
        return [position for position in self._known if position in own]

    @cached_property
    def _known(self) -> dict[int, tuple[str, Sequence[str]]]:
        """Parameters' paths in this graph, which may be relative, with their full paths in the model, by position."""
        known = {}
        holders = self.gm.graph.find_nodes(op="placeholder")
        for position, (node, example) in enumerate(zip(holders, self.examples, strict=False)):
            full = self.names.get(id(example))
            if full:
                known[position] = (classify(node, position, example).path, full)
        return known


def is_foreign(kernel: Kernel) -> bool:
    """Whether a kernel was written for another registry: whoever adapted it only says what it computes."""
    return getattr(kernel.function, "is_foreign", False)


def with_graph_number(report: Report, number: int) -> Report:
    """The report with its sites numbered as those of one graph among several."""
    report.sites = tuple(replace(site, graph=number) for site in report.sites)
    captured = report.captured
    report.captured = Later(lambda: [replace(graph, number=number) for graph in captured])
    return report
