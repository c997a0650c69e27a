"""`fxfuse explain`: what is asked, where the reports come from, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import fx

from fxfuse import library
from fxfuse.capture import capture, merge
from fxfuse.errors import OptionError
from fxfuse.explaining import explain_pattern
from fxfuse.explanation.models import model_named
from fxfuse.explanation.scripts import run_script
from fxfuse.explanation.show import filtered, show
from fxfuse.options import parse
from fxfuse.report import Report, Site


def run(args: argparse.Namespace) -> int:
    """Explain a script or a model; the exit code is the script's."""
    if (args.script is None) == (args.hf is None):
        raise OptionError("fxfuse explain takes a script, or a model by --hf: one of the two.")
    if args.pattern is not None:
        args.pattern = library.lookup(args.pattern, "--pattern").name
    console = Console(highlight=False)
    code = 0
    if args.hf is not None:
        report = _of_model(args, console)
    else:
        ran = run_script(args.script, args.arguments)
        code = ran.code
        if ran.others:
            console.print(f"not looked at: {len(ran.others)} compiles by {', '.join(sorted(set(ran.others)))}")
        if ran.replaced:
            console.print(f"{ran.replaced} compiles by Inductor were compiled by fxfuse and Inductor")
        if not ran.reports:
            raise OptionError(
                f"{args.script} compiled nothing that fxfuse could see: nothing was called that torch.compile had "
                "compiled, or Dynamo captured no graph."
            )
        report = merge(ran.reports, parse())
    report.name = args.hf or args.script
    for path in filter(None, (args.html, args.json)):
        report.save(path)
    shown = filtered(report, at=args.at, pattern=args.pattern, only=args.only)
    if args.at is not None and not shown.sites and args.only is None:
        where = "module" if not report.sites else "site"
        raise OptionError(f"--at {args.at!r} is no {where} of this report; there are: {_places(report.sites)}.")
    show(shown, console, whole=report, code=args.code)
    missed = next((s for s in shown.sites if s.outcome == "missed"), None)
    if missed is not None and args.at is None:
        again = f"--hf {args.hf}" if args.hf is not None else str(args.script)
        where = next((m for m in missed.modules if m), "")
        one = f"fxfuse explain --at {where} --code {again}" if where else f"fxfuse explain --code {again}"
        console.print(f"\n{one}  shows the lines; --html FILE all of it", markup=False, soft_wrap=True)
        console.print("what each code means and what to do: docs/reasons.md, docs/debugging.md", markup=False)
    for path in filter(None, (args.html, args.json)):
        console.print(f"written: {path}", markup=False)
    return code


def _of_model(args: argparse.Namespace, console: Console) -> Report:
    model, call, keywords, says = model_named(args.hf, args.layers)
    console.print(f"{args.hf}: {says}", markup=False, soft_wrap=True)
    parsed = parse({"patterns": [args.pattern], "on_miss": "silent"} if args.pattern else None)
    graphs: list[fx.GraphModule] = []
    near: list[Site] = []

    def runner(gm: fx.GraphModule, fused: Any) -> Any:
        graphs.append(gm)
        if args.at is not None and not filtered(fused.report, at=args.at, pattern=None, only=None).sites:
            for pattern in parsed.patterns:  # nothing is near, so say how far each pattern gets there
                try:
                    near.extend(explain_pattern(pattern, gm, args.at).sites)
                except OptionError:
                    continue
        return gm.forward

    with torch.no_grad():
        report = merge(capture(model, call, keywords, parsed, runner), parsed)
    report.sites = (*report.sites, *near)
    return report


def _places(sites: Sequence[Site]) -> str:
    return ", ".join(list(dict.fromkeys(m for s in sites for m in s.modules if m))[:8]) or "none"
