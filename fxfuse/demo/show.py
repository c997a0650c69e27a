"""Runs the demo's arms, streams their answers and prints what each brought."""

from __future__ import annotations

import argparse
import contextlib
import platform
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fxfuse
from fxfuse.compat import compile_cache_in
from fxfuse.demo import MAX_NEW_TOKENS, PROMPT
from fxfuse.demo.compare import first_difference
from fxfuse.demo.greedy import Answer, GreedyDecoder, Step, graphs_compiled
from fxfuse.demo.load import DTYPES, DemoError, Loaded, load
from fxfuse.demo.progress import working
from fxfuse.demo.speed import Speed, break_even, take_turns

BUSY = 1.5  # an answer this much slower than the measured speed says that the machine did something else meanwhile


@dataclass
class Arm:
    """One way to run the model, and what it gave."""

    name: str
    forward: Callable[..., Any]
    decoder: GreedyDecoder
    graphs: int = 0
    late_graphs: int = 0  # compiled after the rehearsal
    compile_seconds: float = 0.0
    reports: list[Any] = field(default_factory=list)
    given: Answer | None = None
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        self.rehearsal = self.decoder.rehearse(self.forward)

    def rehearse(self) -> Step | None:
        """The next step of the rehearsal, which compiles what answering will run; None when there is no more."""
        graphs, reports = graphs_compiled(), {id(report) for report in fxfuse.reports()}
        step = next(self.rehearsal, None)
        self.graphs += graphs_compiled() - graphs
        self.reports += [report for report in fxfuse.reports() if id(report) not in reports]
        if step is not None and step.compiled:
            self.compile_seconds += step.seconds
        return step

    def answer(self) -> Iterator[tuple[Answer, int]]:
        """Answer from the start."""
        for answer, token in self.decoder.answer(self.forward):
            self.late_graphs += answer.steps[-1].compiled
            yield answer, token

    def answered(self) -> Answer:
        """The answer that was streamed."""
        assert self.given is not None, f"{self.name} has not answered yet"
        return self.given


def run(args: argparse.Namespace) -> int:
    """The whole demo; returns the exit code."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    with working(console, "loading the model"):
        loaded = load(args.model, DTYPES[args.dtype], device)
        prompt_ids = loaded.encode(args.prompt)
    check_length(loaded, prompt_ids.shape[-1] + args.max_new_tokens)
    print_setting(console, loaded, args, prompt_ids)

    def arm(name: str, forward: Callable[..., Any]) -> Arm:
        return Arm(name, forward, GreedyDecoder(loaded.model, prompt_ids, args.max_new_tokens, loaded.end_tokens()))

    options = None if args.inner == "inductor" else {"inner": args.inner}
    eager = arm("eager", loaded.model)
    compiled = [arm("fxfuse", torch.compile(loaded.model, backend="fxfuse", options=options))]
    if args.compare is not None:
        compiled.append(arm(args.compare, torch.compile(loaded.model, backend=args.compare)))
    arms = [eager, *compiled]

    warm_up(eager)
    stream(console, loaded, eager)
    compile_all(console, compiled, start=args.inner == "inductor")
    for one in compiled:
        stream(console, loaded, one)
    console.print()
    with working(console, "measuring the speeds in turns"):
        rounds = take_turns(arms)

    print_fusions(console, compiled[0].reports)
    print_figures(console, arms, rounds)
    differing = print_tokens(console, loaded, arms)
    if "fxfuse" in differing and is_promised(args):
        console.print("For this model, prompt, dtype and length the token ids must be identical: this is a bug.")
        return 1
    return 0


def is_promised(args: argparse.Namespace) -> bool:
    """Whether this run is one for which identical tokens are promised."""
    shipped = args.model is None and args.prompt == PROMPT and args.max_new_tokens <= MAX_NEW_TOKENS
    return shipped and args.dtype == "fp32"


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
    """Refuse an answer beyond the model's positions."""
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise DemoError(f"prompt and answer need {length} positions, but {loaded.name} has {limit}.")


def warm_up(arm: Arm) -> None:
    """The first calls of an arm that compiles nothing, so that they do not count."""
    while arm.rehearse() is not None:
        pass


def compile_all(console: Console, arms: list[Arm], *, start: bool) -> None:
    """Compile every arm under a progress display: prefill of each, then decode of each.

    In this order because Dynamo remembers the shapes of a function, not of an arm: a prefill after somebody's decode
    would be compiled for dynamic shapes, and the arms would not be alike. Inductor starts before the first clock does
    (``start``), and arms that are compared each begin with empty caches: the second would find the first's code.
    """
    console.print("\ncompiling", style="bold")
    if start:
        begun = time.perf_counter()
        with working(console, "starting Inductor"):
            torch.compile(torch.sin)(torch.ones(8))
        console.print(f"  starting Inductor, once for all arms: {time.perf_counter() - begun:.1f} s")
    with contextlib.ExitStack() as folders:
        caches: dict[str, Callable[[], AbstractContextManager[None]]] = {}
        for arm in arms:
            folder = folders.enter_context(tempfile.TemporaryDirectory()) if len(arms) > 1 else None
            caches[arm.name] = partial(compile_cache_in, folder) if folder is not None else contextlib.nullcontext
        if len(arms) > 1:
            console.print("  each arm with empty caches, so that none finds another's code")
        for arm in arms:
            with caches[arm.name]():
                rehearse_shown(console, arm, "prefill")
        for arm in arms:
            with caches[arm.name]():
                while rehearse_shown(console, arm, "decode"):
                    pass


def rehearse_shown(console: Console, arm: Arm, what: str) -> bool:
    """One step of an arm's rehearsal, with a spinner while it runs and a line if it compiled; False after the last."""
    with working(console, f"{arm.name}, {what}"):
        step = arm.rehearse()
    if step is not None and step.compiled:
        console.print(f"  {arm.name}, {what}: {step.seconds:.1f} s")
    return step is not None


def stream(console: Console, loaded: Loaded, arm: Arm) -> None:
    """Print the arm's answer, each word as soon as it is complete, and keep it."""
    from transformers import TextStreamer

    class ConsoleStreamer(TextStreamer):
        """Writes to the demo's console instead of to sys.stdout."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            console.print(text, end="\n" if stream_end else "")
            console.file.flush()

    console.print(f"\n{arm.name}", style="bold")
    streamer = ConsoleStreamer(loaded.tokenizer, skip_special_tokens=True)
    for answer, token in arm.answer():
        streamer.put(torch.tensor([token]))
        arm.given = answer
    streamer.end()


def print_setting(console: Console, loaded: Loaded, args: argparse.Namespace, prompt_ids: torch.Tensor) -> None:
    """What ran where: the versions and sizes without which figures say nothing."""
    import transformers

    device = prompt_ids.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else plural(torch.get_num_threads(), "thread")
    console.print(
        f"{loaded.name}, {args.dtype}, {device.type}, {where}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )
    console.print(f"prompt ({plural(prompt_ids.shape[-1], 'token')}): {args.prompt}")


def print_fusions(console: Console, reports: list[Any]) -> None:
    """What was fused where, graph by graph, in the reports' own words."""
    if not reports:
        console.print("fxfuse compiled no graph; nothing was fused.\n")
    for index, report in enumerate(reports, start=1):
        console.print(f"fxfuse, graph {index} of {len(reports)}", style="bold")
        console.print(textwrap.indent(str(report).strip(), "  ") + "\n")


def print_figures(console: Console, arms: list[Arm], rounds: int) -> None:
    """Steady speeds, and what the answers took with compiling counted in."""
    eager = arms[0]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    table.add_row("compiling, s", *(f"{arm.compile_seconds:.1f}" if arm.graphs else "-" for arm in arms))
    table.add_row("graphs", *(str(arm.graphs + arm.late_graphs) if arm.graphs else "-" for arm in arms))
    table.add_row("prefill, tokens/s", *(rate(arm.answered().prompt_tokens, arm.speed.prefill) for arm in arms))
    table.add_row("decode, tokens/s", *(rate(1, arm.speed.decode) for arm in arms))
    table.add_row("time to the answer above, s", *(f"{arm.answered().seconds:.2f}" for arm in arms))
    table.add_row("  with compiling, s", *(f"{arm.compile_seconds + arm.answered().seconds:.2f}" for arm in arms))
    table.add_row("compiling has paid after", "-", *(paid_after(arm, eager) for arm in arms[1:]))
    console.print(table)
    console.print(f"\ntokens/s: medians of {plural(rounds, 'round')} in which the arms took turns", style="dim")
    for arm in arms:
        print_caveats(console, arm)
    console.print()


def print_caveats(console: Console, arm: Arm) -> None:
    """What a reader of the figures must know: late compiles, and answers during which the machine was busy."""
    if arm.late_graphs:
        console.print(f"{arm.name} still compiled in {plural(arm.late_graphs, 'call')} after the first ones.")
    seconds, steady = arm.answered().seconds, arm.speed.answer_seconds(len(arm.answered().steps))
    if steady is not None and seconds > BUSY * steady:
        console.print(
            f"{arm.name}'s answer took {seconds:.2f} s, at its measured speed it takes {steady:.2f} s: "
            "the machine was busy with something else."
        )


def paid_after(arm: Arm, eager: Arm) -> str:
    """The break-even point in words."""
    if arm.speed.decode is None or eager.speed.decode is None:
        return "not measured: no decode step"
    tokens = break_even(arm.compile_seconds, arm.speed, eager.speed)
    return "never at this rate" if tokens is None else plural(tokens, "token")


def print_tokens(console: Console, loaded: Loaded, arms: list[Arm]) -> set[str]:
    """Say of each compiled arm whether it gave eager's token ids; returns the names of those that did not."""
    eager = arms[0]
    differing = set()
    for arm in arms[1:]:
        difference = first_difference(arm.answered(), eager.answered())
        if difference is None:
            console.print(f"token ids, {arm.name} against eager: identical, {len(arm.answered().steps)} of them")
            continue
        differing.add(arm.name)
        ours, theirs = (repr(loaded.tokenizer.decode([token])) for token in (difference.ours, difference.theirs))
        console.print(f"token ids, {arm.name} against eager: {difference} ({ours} and {theirs})")
    return differing


def rate(tokens: int, seconds: float | None) -> str:
    return "-" if seconds is None else f"{tokens / seconds:.1f}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
