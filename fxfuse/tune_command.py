"""Time every kernel of a pattern beside the site left alone, on this machine, and keep the results: later compiles
choose kernels by them. `fxfuse doctor --results` shows them, and `fxfuse doctor --reset-results` forgets them."""

from __future__ import annotations

import argparse

SUMMARY = "measure kernels on this machine, so that compiles choose by it"

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

WIDTHS = {
    "qwen3-0.6b": {"hidden": 1024, "intermediate": 3072, "out": 1024},
    "llama-3-8b": {"hidden": 4096, "intermediate": 14336, "out": 4096},
    "qwen3-8b": {"hidden": 4096, "intermediate": 12288, "out": 4096},
    "llama-70b": {"hidden": 8192, "intermediate": 28672, "out": 8192},
}
"""Sizes of known models, by the dimensions' names in the standard library."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `fxfuse tune`."""
    add = parser.add_argument
    add("--pattern", action="append", metavar="NAME", help="only this pattern; may be given several times")
    add("--device", help="where to measure (default: cuda where there is one, else cpu)")
    known = f"sizes as hidden=1024,intermediate=3072,out=1024, or one of {', '.join(WIDTHS)} (default: qwen3-0.6b)"
    add("--shapes", nargs="+", type=shape, metavar="SIZES", default=["qwen3-0.6b"], help=known)
    add("--rows", nargs="+", type=positive, metavar="N", default=[1, 8, 64, 512], help="rows (default: 1 8 64 512)")
    add("--dtypes", nargs="+", choices=DTYPES, default=["bf16"], help="of inputs and weights (default: bf16)")
    add("--variant", type=labels, default={}, metavar="CHOICES", help="such as act=gelu_tanh,norm=offset")
    add("--operands", nargs="+", default=[], metavar="NAME", help="the optional operands that are there")
    add("--seconds", type=float, default=3.0, help="for all arms of one shape (default: 3)")
    add("--inner", choices=("inductor", "aot_eager", "eager"), default="inductor", help="what compiles every arm")
    add("--mode", help="Inductor's mode, such as max-autotune")
    add("--cache-mib", type=positive, metavar="N", help="the last-level cache (default: as the machine tells)")
    add("--dry-run", action="store_true", help="measure and show, and keep nothing")


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def labels(text: str) -> dict[str, str]:
    """``a=b,c=d`` as a dict."""
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(name and equals and value for name, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value,name=value")
    return {name: value for name, _, value in pairs}


def shape(text: str) -> str:
    """The name of a known model, or sizes by name."""
    if text not in WIDTHS:
        try:
            sizes(text)
        except (ValueError, argparse.ArgumentTypeError):
            known = ", ".join(WIDTHS)
            raise argparse.ArgumentTypeError(f"{text!r} is neither name=size,name=size nor one of {known}") from None
    return text


def sizes(text: str) -> dict[str, int]:
    """The sizes that a shape means."""
    return WIDTHS.get(text) or {name: int(size) for name, size in labels(text).items()}


def run(args: argparse.Namespace) -> int:
    """Measure; imports late, because torch takes seconds."""
    from fxfuse.tuning.command import run

    return run(args)
