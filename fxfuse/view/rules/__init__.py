"""Directed equalities: the few rewrites under which two spellings are one canonical op.

Each rule reads one value and answers with another spelling of it, or None. Two kinds exist. A rule in `SEE_THROUGH`
says that a node *is* an earlier value. A rule in `RULES` gives the value another op. All are exact equalities of the
function computed (a cast that changes values is never one of them); where rounding may differ in the last place of
fp32, as between ``1/sqrt(v)`` and ``rsqrt(v)``, the rule says so. The rules of one op are tried in the order of the
families below. Conditions on which an equality rests are safeguards, so that a test can show what each prevents.
"""

from fxfuse.view.rules import casts, identities, roots, activations, arithmetic  # isort: skip
from fxfuse.view.rules import norms, projections, shapes, splitting  # isort: skip
from fxfuse.view.rules.casts import cast_of
from fxfuse.view.rules.registry import PREPARED, RULES, SEE_THROUGH, SETTLED, WITHOUT_METADATA, rule, see_through

FAMILIES = (casts, identities, roots, activations, arithmetic, norms, projections, shapes, splitting)

__all__ = [
    "FAMILIES",
    "PREPARED",
    "RULES",
    "SEE_THROUGH",
    "SETTLED",
    "WITHOUT_METADATA",
    "cast_of",
    "rule",
    "see_through",
]
