"""Whether the graph of an example is found, once, as the very way that it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxfuse.authoring import Pattern
from fxfuse.authoring.captures import is_optional
from fxfuse.authoring.terms import OpTerm
from fxfuse.checking.examples import Captured, Example
from fxfuse.checking.failures import Failure
from fxfuse.checking.judging import Look, look, rewrite, same_function
from fxfuse.checking.repro import repro
from fxfuse.checking.respell import respell
from fxfuse.checking.ways import Way
from fxfuse.match import Match
from fxfuse.rewriting import RewriteError
from fxfuse.view.ops import SPECS

EXCLUDED = "excluded"
FOUND = "found"
COINCIDES = "coincides"
WRONG = "wrong"


@dataclass
class Positives:
    """What became of each way.

    Attributes:
        own: ways that were found as what they are, at least once.
        coincided: way -> the variant that was found in its place, because it is the same function.
        excluded: way -> the constraint that refuses it.
    """

    tried: int = 0
    right: int = 0
    respelled: int = 0
    respelled_right: int = 0
    own: dict[str, Way] = field(default_factory=dict)
    coincided: dict[str, tuple[Way, str]] = field(default_factory=dict)
    excluded: dict[str, tuple[Way, str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def try_one(self, example: Example, captured: Captured, seed: int) -> bool:
        """Search the example's own graph; whether something was found there that may be."""
        seen = look(captured.gm, captured.live, example.pattern)
        status, what = judge(example, captured, captured.gm, seen, seed)
        way = str(example.way)
        if status == EXCLUDED:
            self.excluded.setdefault(way, (example.way, what))
            return False
        self.tried += 1
        if status == WRONG:
            script = repro(example.pattern, captured.gm, captured)
            self.failures.append(Failure("positive", str(example), what, seed, script))
            return False
        self.right += 1
        if status == FOUND:
            self.own.setdefault(way, example.way)
        else:
            self.coincided.setdefault(way, (example.way, what))
        return True

    def try_spellings(self, example: Example, captured: Captured, seeds: Sequence[int]) -> None:
        """Search the example's graph in other words."""
        for seed in seeds:
            gm, steps = respell(captured.gm, captured.live, seed, ordered=ordered_ops(example.pattern))
            if not steps:
                continue
            self.respelled += 1
            seen = look(gm, captured.live, example.pattern)
            status, what = judge(example, captured, gm, seen, seed)
            if status in (FOUND, COINCIDES):
                self.respelled_right += 1
                continue
            sentence = f"not found when it is spelled otherwise ({'; '.join(steps)}): {what}"
            self.failures.append(
                Failure("respelling", str(example), sentence, seed, repro(example.pattern, gm, captured))
            )

    def unreachable(self) -> list[Failure]:
        """Labels that no example was found as: an alternative declared earlier takes their place, or a constraint."""
        labels: dict[tuple[str, str], list[str]] = {}
        found = {(name, label) for way in self.own.values() for name, label in way.variant.items()}
        for way, instead in self.coincided.values():
            for item in way.variant.items():
                labels.setdefault(item, []).append(f"{instead} is reported in its place, which computes the same")
        for way, message in self.excluded.values():
            for item in way.variant.items():
                labels.setdefault(item, []).append(f"a constraint refuses it ({message})")
        return [
            Failure("variant", f"{name}={label}", f"{name}={label} is never found: {why[0]}", 0)
            for (name, label), why in labels.items()
            if (name, label) not in found
        ]


def judge(example: Example, captured: Captured, gm: fx.GraphModule, seen: Look, seed: int) -> tuple[str, str]:
    """Whether what was seen in a graph of this example is right, and what is wrong with it."""
    if not seen.matches:
        if seen.code == "CONSTRAINT" and " failed: " not in seen.reason:
            return EXCLUDED, seen.reason.partition(": ")[2]
        return WRONG, f"nothing is found. {seen.reason}"
    if len(seen.matches) > 1:
        return WRONG, f"{len(seen.matches)} sites are found, not one"
    (match,) = seen.matches
    missing = [n.name for n in gm.graph.output_node().all_input_nodes if not _covers(match, n)]
    if missing:
        return WRONG, f"the site that is found does not compute the result {missing[0]}"
    if is_own(example, match):
        return FOUND, ""
    found = " ".join(
        [*(f"{n}={label}" for n, label in match.variant.items()), *(f"+{n}" for n in sorted(given(match)))]
    )
    try:
        fused = rewrite(gm, captured.live, example.pattern)
    except Exception as error:
        if isinstance(error, RewriteError) and "strides" in str(error):
            return FOUND, ""  # spelled so that the result lies otherwise in memory: the site stays as it is
        return WRONG, f"found as {found}, and the reference cannot be put in its place: {error}"
    sets = [captured.arguments(example.tensors(seed + i, outliers=i == 2)) for i in range(3)]
    difference = same_function(fused.gm, gm, sets)
    if difference is not None:
        return WRONG, f"found as {found}, which is another function: {difference}"
    if not _is_earlier(example, match):
        return WRONG, f"found as {found}, although the alternative declared first is the one to report"
    return COINCIDES, found


def is_own(example: Example, match: Match) -> bool:
    """Whether a match is of the very way that the example is."""
    variant = all(example.variant.get(name) == label for name, label in match.variant.items())
    return variant and given(match) == example.way.given


def given(match: Match) -> frozenset[str]:
    """The optional operands that a match has."""
    captures = match.pattern.captures
    return frozenset(n for n, captured in match.captures.items() if is_optional(captures[n]) and captured is not None)


def ordered_ops(pattern: Pattern) -> frozenset[str]:
    """The commutative ops that a pattern says are `ordered`."""
    ops = (term for form in pattern.forms for term in form.order if isinstance(term, OpTerm))
    return frozenset(op.op for op in ops if SPECS[op.op].commutative and not op.commutative)


def _covers(match: Match, node: fx.Node) -> bool:
    value: Any = match.view.value(node)
    return any(value is output for output in match.outputs)


def _is_earlier(example: Example, match: Match) -> bool:
    """Whether the first label in which they differ is declared before the example's."""
    for name, labels in match.pattern.choices.items():
        wanted, found = example.variant.get(name), match.variant.get(name)
        if wanted is not None and found is not None and wanted != found:
            return labels.index(found) < labels.index(wanted)
    return True
