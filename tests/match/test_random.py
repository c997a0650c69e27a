"""Random spellings always match; random one-edit mutants are never rewritten to something that is not eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support import Net, compiled, rows

SETTINGS = settings(
    max_examples=40, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
)
ROOTS = {
    "rsqrt": lambda v: torch.rsqrt(v),
    "method": lambda v: v.rsqrt(),
    "power": lambda v: v**-0.5,
    "over one": lambda v: 1 / torch.sqrt(v),
    "reciprocal": lambda v: v.sqrt().reciprocal(),
}
SQUARES = {
    "pow": lambda x: x.pow(2), "**": lambda x: x**2.0, "x*x": lambda x: x * x, "square": lambda x: torch.square(x),
}  # fmt: skip
MEANS = {
    "method": lambda s: s.mean(-1, keepdim=True),
    "function": lambda s: torch.mean(s, [-1], True),
    "sum": lambda s: s.sum(-1, keepdim=True) / s.shape[-1],
}
PROJECTIONS = {
    "linear": lambda h, w: F.linear(h, w), "t": lambda h, w: h @ w.t(),
    "transpose": lambda h, w: torch.matmul(h, w.transpose(0, 1)),
}  # fmt: skip
SILUS = {"silu": lambda g: F.silu(g), "sigmoid": lambda g: g * torch.sigmoid(g), "swapped": lambda g: g.sigmoid() * g}
PRODUCTS = {
    "a*b": lambda a, b: a * b, "b*a": lambda a, b: b * a, "mul": lambda a, b: torch.mul(b, a),
    "method": lambda a, b: a.mul(other=b),
}  # fmt: skip
CASTS = {"none": lambda x: x, "float": lambda x: x.float(), "to": lambda x: x.to(dtype=torch.float32)}


def spelled(
    root: str, square: str, mean: str, projection: str, silu: str, products: tuple[str, str, str], cast: str, eps: float
) -> Any:
    def body(m: Any, x: Any, edit: str = "") -> Any:
        wide = CASTS[cast](x)
        source = wide + 1 if edit == "statistics" else wide
        s = SQUARES[square](source).abs() if edit == "abs" else SQUARES[square](source)
        v = MEANS[mean](s)
        v = v * 2 if edit == "scale" else v
        factor = ROOTS[root]((eps + v) if edit != "no eps" else v)
        h = PRODUCTS[products[0]](wide, factor)
        h = h.bfloat16().float() if edit == "round" else h
        h = PRODUCTS[products[1]](m.weight, h)
        h = -h if edit == "negate" else h
        g, u = PROJECTIONS[projection](h, m.gate), PROJECTIONS[projection](x if edit == "up" else h, m.up)
        g = g.clamp(max=0.5) if edit == "clamp" else g
        a = torch.sigmoid(g) * u if edit == "sigmoid" else SILUS[silu](u if edit == "branch" else g)
        product = PRODUCTS[products[2]](a, u.transpose(0, 1).transpose(0, 1) if edit == "alias" else u)
        if edit == "write":
            x.mul_(2)
        y = PROJECTIONS[projection](product, m.down)
        extra = {"read norm": h, "read product": product, "read factor": factor, "read gate": g}.get(edit)
        if edit == "write norm":
            h.mul_(3)
        return y if extra is None else (y, extra + 0)

    return body


SPELLING = st.builds(
    spelled,
    root=st.sampled_from(sorted(ROOTS)),
    square=st.sampled_from(sorted(SQUARES)),
    mean=st.sampled_from(sorted(MEANS)),
    projection=st.sampled_from(sorted(PROJECTIONS)),
    silu=st.sampled_from(sorted(SILUS)),
    products=st.tuples(*[st.sampled_from(sorted(PRODUCTS))] * 3),
    cast=st.sampled_from(sorted(CASTS)),
    eps=st.sampled_from([1e-6, 1e-5, 0.25, 1]),
)
CHANGING = [
    "statistics", "scale", "negate", "clamp", "round", "up", "sigmoid", "read norm", "read product", "read factor",
    "read gate",
]  # fmt: skip
OTHER = ["abs", "no eps", "branch", "alias", "write", "write norm"]


@pytest.mark.timeout(120)
@seed(20)
@SETTINGS
@given(body=SPELLING)
def test_every_spelling_matches(body: Any) -> None:
    report = compiled(Net(body), rows())
    assert [s.outcome for s in report.sites if s.outcome == "rewritten"] == ["rewritten"], str(report)


@pytest.mark.timeout(120)
@seed(21)
@SETTINGS
@given(body=SPELLING, edit=st.sampled_from(CHANGING + OTHER))
def test_no_mutant_is_wrong(body: Any, edit: str) -> None:
    """``compiled`` compares with eager, whatever the outcome; an edit inside the site must leave it unfused."""
    report = compiled(Net(lambda m, x: body(m, x, edit)), rows())
    if edit in CHANGING:
        assert not report.rewritten, f"{edit}: {report}"
