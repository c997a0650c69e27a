"""`fxfuse tune`: measures what was asked for, shows it, and answers with an exit code."""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console

from fxfuse import library, results
from fxfuse.authoring import Pattern
from fxfuse.diagnosis.show import show_results
from fxfuse.errors import OptionError
from fxfuse.kernels import kernels_for
from fxfuse.results import Entry, Results
from fxfuse.tune_command import DTYPES, sizes
from fxfuse.tuning.run import tune_pattern
from fxfuse.tuning.timing import Bench, TuningError


def run(args: argparse.Namespace) -> int:
    """Measure each pattern at each shape; 1 where a shape could not be measured."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(seconds=args.seconds, cache=args.cache_mib << 20 if args.cache_mib else None)
    found: list[Entry] = []
    failed = 0
    for chosen in _patterns(args.pattern):
        for text in args.shapes:
            with console.status(f"{chosen.name}, {text}") as status:
                try:
                    found += tune_pattern(
                        chosen,
                        sizes(text),
                        rows=args.rows,
                        dtypes=[getattr(torch, DTYPES[name]) for name in args.dtypes],
                        device=device,
                        variant=args.variant,
                        operands=args.operands,
                        inner=args.inner,
                        mode=args.mode,
                        bench=bench,
                        keep=not args.dry_run,
                        progress=status.update,
                    )
                except (TuningError, OptionError) as error:
                    failed += 1
                    console.print(f"{chosen.name}, {text}: {error}", style="red", markup=False, highlight=False)
    show_results(Results(tuple(found)), console)
    skipped = {(e.shape.pattern, kernel, why) for e in found for kernel, why in e.skipped.items()}
    for pattern, kernel, why in sorted(skipped):
        console.print(f"{pattern}: {kernel} was not measured: it {why}", style="dim", markup=False, highlight=False)
    if found and not args.dry_run:
        console.print(f"kept in {results.folder()}")
    return 1 if failed else 0


def _patterns(names: list[str] | None) -> list[Pattern]:
    """Those named, else those of the standard library that have kernels."""
    if names:
        return [library.lookup(name, "--pattern") for name in names]
    return [p for full, p in library.all_patterns().items() if full.startswith("fxfuse::") and kernels_for(p)]
