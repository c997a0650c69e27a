"""Answer a prompt with a language model, in eager and compiled by fxfuse, and say truthfully what that brought."""

from __future__ import annotations

import argparse

SUMMARY = "answer a prompt with a language model, eager and compiled, and compare"

# At every step of this answer the chosen token leads by 0.09 or more in fp32, so that rounding cannot change it.
PROMPT = "What is a compiler?"
MAX_NEW_TOKENS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `fxfuse demo`."""
    add = parser.add_argument
    add("--prompt", default=PROMPT, help=f"goes through the model's chat template (default: {PROMPT!r})")
    add("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="dtype of the weights (default: fp32)")
    add(
        "--max-new-tokens",
        type=positive,
        default=MAX_NEW_TOKENS,
        metavar="N",
        help=f"longest answer (default: {MAX_NEW_TOKENS})",
    )
    add("--compare", choices=("inductor",), help="add a third arm, compiled by this backend alone")
    add(
        "--model",
        metavar="PATH_OR_NAME",
        help="a folder, a .gguf file, or a name in the local Hugging Face cache (default: the shipped SmolLM2)",
    )
    add(
        "--inner",
        choices=("inductor", "aot_eager", "eager"),
        default="inductor",
        help="what compiles the graphs after fxfuse (default: inductor)",
    )
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's own choice)")
    add("--device", help="where to run (default: cuda where there is one, else cpu)")


def positive(text: str) -> int:
    """An argument that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the demo; imports late, because transformers takes seconds and is no core dependency."""
    from fxfuse.demo.show import run

    return run(args)
