"""Where an RMSNorm feeds a gated MLP, by family: what is a site of the headline pattern, and why the rest is none.

The oracle sees two of the groups in the data flow. `NOT_IT` has the families with both whose source says that neither
is so; `NO_SOURCE` those that run the model of another family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

PATTERN = "rms_norm_gated_mlp"
SHARED = "RMSNorm before a gated MLP, read by others, too"

NOT_IT = {
    "bitnet": "a norm between the product and the down projection",
    "deepseek_v4": "gate and up are clamped, and the router reads the norm, too",
    "exaone4": "the norm comes after the MLP",
    "falcon_h1": "factors on the gate and on the result of the down projection",
    "flex_olmo": "the norm comes after the experts; no layer is dense",
    "hrm_text": "the norm has no weight",
    "minimax_m3_vl": "gate and up are clamped, the activation is `gate * sigmoid(alpha * gate)`, and up has 1 added",
    "olmo2": "the norm comes after the MLP",
    "olmo3": "the norm comes after the MLP",
    "qwen4_exp": "a gated sum of several streams lies between",
    "zamba2": "an adapter is added to the projection to gate and up",
}
"""Family -> what is in place of the pattern."""

NO_SOURCE = {"got_ocr2", "internlm3", "iquestcoder", "moss_transcribe_diarize"}
"""Families whose model is Llama's or Qwen's."""


def groups(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Group -> family -> places, and how many of them are rewritten."""
    sums: dict[str, list[int]] = {}
    for r in rows:
        row = r["patterns"].get(PATTERN) or {"present": 0, "rewritten": 0}
        found = (row["present"] or 0, row["rewritten"], r["beside"].get(SHARED, 0))
        sums[r["family"]] = [a + b for a, b in zip(sums.get(r["family"], [0, 0, 0]), found, strict=True)]
    return {
        "alone": {f: (alone, done) for f, (alone, done, _) in sorted(sums.items()) if alone},
        "shared only": {f: (shared, 0) for f, (alone, _, shared) in sorted(sums.items()) if shared and not alone},
        "not it": {f: (0, 0) for f in sorted(NOT_IT) if f in sums},
    }


def section(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The page's section."""
    found = groups(rows)
    alone, shared, others = (found[g] for g in ("alone", "shared only", "not it"))
    covered = sum(done >= there for there, done in alone.values())
    own = sorted(alone.keys() - NO_SOURCE)
    yield (
        f"In {len(alone)} families an RMSNorm feeds a gated MLP and nothing else; in {covered} of them all such places "
        f"are rewritten. {len(own)} have a model of their own; {', '.join(sorted(alone.keys() & NO_SOURCE))} run "
        f"Llama's or Qwen's. In {len(shared)} more the norm always has other readers, a router or the experts, which "
        f"the contract of the pattern refuses: there `gated_mlp` and `rms_norm` are rewritten. In {len(others)} there "
        "are an RMSNorm and a gated MLP, and one does not feed the other, or either is another function."
    )
    yield ""
    yield (
        "A count by the source alone, of decoder layers that call an RMSNorm and then a gated MLP, differs: it "
        "cannot see who else reads the norm nor what an MLP does besides, and leaves out families whose two calls "
        "stand apart "
        "in the text. The families with a model of their own that it can have taken them from are these "
        f"{len(own) + len(shared) + len(others)}: the {len(own)}, and the {len(shared)} and {len(others)} here."
    )
    yield ""
    yield "| family | what is there |"
    yield "|---|---|"
    for family, (places, _) in shared.items():
        yield f"| {family} | the norm is read by a router or experts, too ({places} places) |"
    for family in others:
        yield f"| {family} | {NOT_IT[family]} |"
