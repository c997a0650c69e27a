"""Where two greedy answers to one prompt part, and how close the choice was there."""

from __future__ import annotations

from dataclasses import dataclass

from fxfuse.demo.greedy import Answer, Step


@dataclass(frozen=True)
class Difference:
    """The first step at which two greedy answers part; before it, both saw the same tokens."""

    index: int
    ours: int
    theirs: int
    our_gap: float | None  # our top logit minus our logit of their token; None: not among the logits kept
    their_gap: float | None

    def __str__(self) -> str:
        gaps = f"logit gap {show_gap(self.our_gap)} here, {show_gap(self.their_gap)} in the other"
        return f"first difference at token {self.index + 1}: id {self.ours}, the other has {self.theirs}; {gaps}"


def first_difference(ours: Answer, theirs: Answer) -> Difference | None:
    """Where our answer leaves theirs; None where the token ids are identical."""
    for index, (a, b) in enumerate(zip(ours.steps, theirs.steps, strict=False)):
        if a.token != b.token:
            return Difference(index, a.token, b.token, logit_gap(a, b.token), logit_gap(b, a.token))
    # Greedy answers of equal tokens also end at the same one, so the lengths agree too.
    assert len(ours.steps) == len(theirs.steps), "equal tokens, but one answer went on"
    return None


def logit_gap(step: Step, other_token: int) -> float | None:
    """How much the chosen token's logit stood above another's; None where that one was not kept."""
    other = step.top.get(other_token)
    return None if other is None else step.top[step.token] - other


def show_gap(gap: float | None) -> str:
    return "beyond the logits kept" if gap is None else f"{gap:.3g}"
