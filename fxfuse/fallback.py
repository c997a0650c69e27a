"""What a failure inside fxfuse leaves behind: the original graph, and a report that says why."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxfuse.engine import Fused
from fxfuse.errors import first_line, warn_once
from fxfuse.options import Options
from fxfuse.report import ReasonRecord, Report, Site


def unchanged(gm: fx.GraphModule, options: Options, error: Exception, so: str, sites: Sequence[Site] = ()) -> Fused:
    """The original graph, with a report of REWRITE_ERROR; one warning for each kind of failure.

    Args:
        so: what fxfuse does now, for the warning.
        sites: those of the rewrite that failed afterwards.
    """
    what = first_line(error)
    warn_once(f"fxfuse failed and {so} (REWRITE_ERROR): {what}")
    detail = ReasonRecord("REWRITE_ERROR", what)
    lost = [s for s in sites if s.outcome == "rewritten"] or [
        Site(p.name, {}, (), "missed") for p in options.patterns
    ]  # fmt: skip
    rest = [s for s in sites if s.outcome != "rewritten"]
    failed = [
        Site(
            s.pattern, s.variant, s.modules, "kept" if sites else "missed", "REWRITE_ERROR", what,
            matched_nodes=s.matched_nodes, pattern_nodes=s.pattern_nodes, root=s.root, nodes=s.nodes, detail=detail,
        )
        for s in lost
    ]  # fmt: skip
    report = Report((*failed, *rest), nodes=len(gm.graph.nodes), options=options.describe())
    return Fused(gm, report)
