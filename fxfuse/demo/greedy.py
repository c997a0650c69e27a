"""Greedy decoding over a static cache, so that prefill is one graph and decode is one graph.

transformers' `generate` compiles only decode, and on a CPU nothing at all; its cache also grows, or is created inside
the first call. Here the cache is allocated before anything is compiled and keeps its shape and address, so that each
step but the first sees the same shapes. The eager arm runs through the same loop and the same kind of cache.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._dynamo.utils import counters

TOP = 16  # logits kept per step, enough to say how close a differing choice was
REHEARSAL_STEPS = 6


@dataclass(frozen=True)
class Step:
    """One call of the model."""

    token: int
    seconds: float  # the model's call and the choice of the token
    compiled: bool  # this call compiled something, so its time is no throughput
    top: dict[int, float]  # the largest logits, by token id


@dataclass
class Answer:
    """Every step of one answer; the first is prefill."""

    prompt_tokens: int
    steps: list[Step] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [step.token for step in self.steps]

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)


class GreedyDecoder:
    """Answers one prompt with one callable; `rehearse` first compiles what `answer` will run."""

    def __init__(self, model: Any, prompt_ids: torch.Tensor, max_new_tokens: int, end_tokens: frozenset[int]) -> None:
        self.prompt_ids = prompt_ids
        self.max_new_tokens = max_new_tokens
        self.end_tokens = end_tokens
        self.extra_arguments = supported_arguments(model)
        self.cache = allocated_cache(model, prompt_ids.shape[-1] + max_new_tokens)

    def answer(self, forward: Callable[..., Any]) -> Iterator[tuple[Answer, int]]:
        """Yield the answer so far and its newest token, from an empty cache."""
        answer = Answer(prompt_tokens=self.prompt_ids.shape[-1])
        self.cache.reset()
        ids, position = self.prompt_ids, 0
        for _ in range(self.max_new_tokens):
            step = self.step(forward, ids, position)
            answer.steps.append(step)
            yield answer, step.token
            if step.token in self.end_tokens:
                return
            position += ids.shape[-1]
            ids = torch.tensor([[step.token]], device=self.prompt_ids.device)

    def rehearse(self, forward: Callable[..., Any]) -> Iterator[Step]:
        """Run the first steps, until one after the first decode step compiles nothing; yields each."""
        for answer, _ in self.answer(forward):
            newest = answer.steps[-1]
            yield newest
            if len(answer.steps) > REHEARSAL_STEPS or (len(answer.steps) > 2 and not newest.compiled):
                return

    @torch.no_grad()
    def step(self, forward: Callable[..., Any], ids: torch.Tensor, position: int) -> Step:
        """One call and the greedy choice; `.item()` waits for the device, so the clock is honest."""
        arguments: dict[str, Any] = {"input_ids": ids, "past_key_values": self.cache, "use_cache": True}
        if "position_ids" in self.extra_arguments:
            arguments["position_ids"] = torch.arange(position, position + ids.shape[-1], device=ids.device)[None]
        if "logits_to_keep" in self.extra_arguments:
            arguments["logits_to_keep"] = 1
        graphs = graphs_compiled()
        start = time.perf_counter()
        logits = forward(**arguments).logits[0, -1]
        token = int(logits.argmax().item())
        seconds = time.perf_counter() - start
        values, indices = logits.float().topk(min(TOP, logits.shape[-1]))
        top = dict(zip(indices.tolist(), values.tolist(), strict=True))
        return Step(token, seconds, graphs_compiled() > graphs, top)


def graphs_compiled() -> int:
    """How many graphs Dynamo has handed to a backend in this process."""
    return counters["stats"]["unique_graphs"]


def supported_arguments(model: Any) -> frozenset[str]:
    """Which of the optional arguments this architecture's forward takes."""
    parameters = inspect.signature(model.forward).parameters
    return frozenset({"position_ids", "logits_to_keep"} & parameters.keys())


def allocated_cache(model: Any, length: int) -> Any:
    """A static cache whose tensors exist before anything is compiled.

    The layers allocate at their first update. Under Dynamo that would make the first call a graph of its own, and the
    tensors would not be marked as static. One eager token does it for every architecture; its traces are wiped.
    """
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=length)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    cache.reset()
    return cache
