"""Runs the demo's arms one after the other, streams their answers and prints the comparison."""

from __future__ import annotations

import argparse
import platform
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fxfuse
from fxfuse.demo import MAX_NEW_TOKENS, PROMPT
from fxfuse.demo.compare import break_even, first_difference
from fxfuse.demo.greedy import Answer, GreedyDecoder, graphs_compiled
from fxfuse.demo.load import DTYPES, DemoError, Loaded, load
from fxfuse.demo.progress import working


@dataclass
class Arm:
    """One way to run the model, and what it gave."""

    name: str
    answer: Answer
    compile_seconds: float = 0.0
    graphs: int = 0
    late_graphs: int = 0  # compiled while answering, after the rehearsal
    reports: list[Any] = field(default_factory=list)

    @property
    def total_seconds(self) -> float:
        return self.compile_seconds + self.answer.seconds


def run(args: argparse.Namespace) -> int:
    """The whole demo; returns the exit code."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    with working(console, "loading the model", phases=False):
        loaded = load(args.model, DTYPES[args.dtype], device)
        prompt_ids = loaded.encode(args.prompt)
    check_length(loaded, prompt_ids.shape[-1] + args.max_new_tokens)
    print_setting(console, loaded, args, prompt_ids)

    decoder = GreedyDecoder(loaded.model, prompt_ids, args.max_new_tokens, loaded.end_tokens())
    arms = [run_arm(console, "eager", loaded, decoder, lambda model: model)]
    options = None if args.inner == "inductor" else {"inner": args.inner}
    arms.append(
        run_arm(
            console, "fxfuse", loaded, decoder, lambda model: torch.compile(model, backend="fxfuse", options=options)
        )
    )
    if args.compare is not None:
        arms.append(
            run_arm(console, args.compare, loaded, decoder, lambda model: torch.compile(model, backend=args.compare))
        )

    console.print()
    print_fusions(console, arms[1].reports)
    print_figures(console, arms)
    differing = print_tokens(console, loaded, arms)
    if "fxfuse" in differing and is_promised(args):
        console.print("For this model, prompt, dtype and length the token ids must be identical: this is a bug.")
        return 1
    return 0


def is_promised(args: argparse.Namespace) -> bool:
    """Whether this run is the one for which identical tokens are promised."""
    return (
        args.model is None and args.prompt == PROMPT and args.dtype == "fp32" and args.max_new_tokens <= MAX_NEW_TOKENS
    )


def choose_device(device: str | None) -> str:
    """The device asked for, checked; else the accelerator where there is one."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DemoError(f"--device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def check_length(loaded: Loaded, length: int) -> None:
    """Refuse an answer beyond what the model's positions can say."""
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise DemoError(f"prompt and answer need {length} positions, but {loaded.name} has {limit}.")


def run_arm(
    console: Console, name: str, loaded: Loaded, decoder: GreedyDecoder, wrap: Callable[[Any], Callable[..., Any]]
) -> Arm:
    """Compile (if it compiles) under a progress display, then answer while streaming."""
    # Arms share the model's code, and Dynamo's memory of one arm's shapes would make the next one's graphs dynamic.
    torch.compiler.reset()
    forward = wrap(loaded.model)
    before, reports_before = graphs_compiled(), {id(report) for report in fxfuse.reports()}

    console.print(f"\n{name}", style="bold")
    rehearsal = Answer(prompt_tokens=decoder.prompt_ids.shape[-1])
    # Closing the generators on Ctrl-C is left to the interpreter; nothing in them needs cleaning up.
    steps = decoder.rehearse(forward)
    while True:
        what = "warming up" if name == "eager" else f"compiling {'decode' if rehearsal.steps else 'prefill'}"
        with working(console, what):
            newest = next(steps, None)
        if newest is None:
            break
        rehearsal = newest
    compiling = [step.seconds for step in rehearsal.steps if step.compiled]
    graphs = graphs_compiled() - before
    if graphs:
        parts = ", ".join(f"{seconds:.1f}" for seconds in compiling)
        console.print(f"  {plural(graphs, 'graph')} compiled in {sum(compiling):.1f} s ({parts})", style="dim")

    answer = stream(console, loaded, decoder.answer(forward))
    return Arm(
        name=name,
        answer=answer,
        compile_seconds=sum(compiling),
        graphs=graphs,
        late_graphs=graphs_compiled() - before - graphs,
        reports=[report for report in fxfuse.reports() if id(report) not in reports_before],
    )


def stream(console: Console, loaded: Loaded, answers: Iterable[tuple[Answer, int]]) -> Answer:
    """Print each word as soon as it is complete; returns the finished answer."""
    from transformers import TextStreamer

    class ConsoleStreamer(TextStreamer):
        """Writes to the demo's console instead of to sys.stdout."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            console.print(text, end="\n" if stream_end else "")
            console.file.flush()

    streamer = ConsoleStreamer(loaded.tokenizer, skip_special_tokens=True)
    finished: Answer | None = None
    for answer, token in answers:
        streamer.put(torch.tensor([token]))
        finished = answer
    streamer.end()
    assert finished is not None, "an answer has at least one token"
    return finished


def print_setting(console: Console, loaded: Loaded, args: argparse.Namespace, prompt_ids: torch.Tensor) -> None:
    """What ran where: the versions and sizes without which figures say nothing."""
    import transformers

    device = prompt_ids.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    console.print(
        f"{loaded.name}, {args.dtype}, {where}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )
    console.print(f"prompt ({plural(prompt_ids.shape[-1], 'token')}): {args.prompt}")


def print_fusions(console: Console, reports: list[Any]) -> None:
    """What was fused where, graph by graph, in the reports' own words."""
    if not reports:
        console.print("fxfuse compiled no graph; nothing was fused.\n")
    for index, report in enumerate(reports, start=1):
        console.print(f"fxfuse, graph {index} of {len(reports)}", style="bold")
        console.print(textwrap.indent(str(report).strip(), "  ") + "\n")


def print_figures(console: Console, arms: list[Arm]) -> None:
    """Speeds of steady calls, and what the whole answer took with compiling counted in."""
    eager = arms[0]
    table = Table(title="one run of each", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    table.add_row("compiling, s", *(f"{arm.compile_seconds:.1f}" if arm.graphs else "-" for arm in arms))
    table.add_row("graphs", *(str(arm.graphs + arm.late_graphs) if arm.graphs else "-" for arm in arms))
    table.add_row("prefill, tokens/s", *(speed(a.answer.prompt_tokens, a.answer.prefill_seconds) for a in arms))
    table.add_row("decode, tokens/s", *(speed(1, arm.answer.decode_seconds) for arm in arms))
    table.add_row("time to the answer, s", *(f"{arm.answer.seconds:.2f}" for arm in arms))
    table.add_row("  with compiling, s", *(f"{arm.total_seconds:.2f}" for arm in arms))
    table.add_row("compiling has paid after", "-", *(paid_after(arm, eager) for arm in arms[1:]))
    console.print(table)
    for arm in arms:
        if arm.late_graphs:
            console.print(
                f"{arm.name} compiled {plural(arm.late_graphs, 'more graph')} while answering; those calls count in "
                "the time to the answer, not in tokens/s."
            )
    console.print()


def paid_after(arm: Arm, eager: Arm) -> str:
    """The break-even point in words."""
    if arm.answer.decode_seconds is None or eager.answer.decode_seconds is None:
        return "not measured: no decode step"
    tokens = break_even(arm.compile_seconds, arm.answer, eager.answer)
    return "never at this rate" if tokens is None else plural(tokens, "token")


def print_tokens(console: Console, loaded: Loaded, arms: list[Arm]) -> set[str]:
    """Say of each compiled arm whether it gave eager's token ids; returns the names of those that did not."""
    eager = arms[0]
    differing = set()
    for arm in arms[1:]:
        difference = first_difference(arm.answer, eager.answer)
        if difference is None:
            console.print(f"token ids, {arm.name} against eager: identical, {len(arm.answer.steps)} of them")
            continue
        differing.add(arm.name)
        ours, theirs = (repr(loaded.tokenizer.decode([token])) for token in (difference.ours, difference.theirs))
        console.print(f"token ids, {arm.name} against eager: {difference} ({ours} and {theirs})")
    return differing


def speed(tokens: int, seconds: float | None) -> str:
    return "-" if seconds is None else f"{tokens / seconds:.1f}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
