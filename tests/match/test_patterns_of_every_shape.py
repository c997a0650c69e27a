"""Patterns with several outputs, several roots, siblings, kept values, related sizes, absent operands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fxfuse import Dim, Input, Param, Pattern, PatternError, Scalar, keep, many, one_of, ordered, pattern
from fxfuse.authoring.trace import RESERVED
from fxfuse.match import Found, find_sites, select
from fxfuse.view import View
from tests.support import HIDDEN, INTER, Net, capture, rms, rows

D, N, OUT, K = Dim("hidden"), Dim("intermediate"), Dim("out"), Dim("kv")


def view_of(body: Any, *args: Any, **more: Any) -> View:
    gm, examples = capture(Net(body, **more), *(args or (rows(),)))
    return View(gm.graph, examples)


def sites(some: Pattern, body: Any, *args: Any, **more: Any) -> list[Found]:
    return select(find_sites(view_of(body, *args, **more), some))


def codes(some: Pattern, body: Any, *args: Any, **more: Any) -> list[str]:
    """The outcome of each near site: '' for a match, else the code."""
    return ["" if f.reason is None else f.reason.code for f in sites(some, body, *args, **more) if f.is_near]


def norm(x: Any, weight: Any, eps: Any) -> Any:
    h = x.float()
    return weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


# --- several outputs and roots --------------------------------------------------------------------------------------


@pattern("norm_and_two")
def norm_and_two(
    x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), a: Any = Param(N, D), b: Any = Param(K, D)
) -> Any:
    h = norm(x, weight, eps)
    return F.linear(h, a), F.linear(h, b)


def test_two_roots_under_one_norm() -> None:
    def body(m: Any, x: Any) -> Any:
        h = rms(m, x)
        k, q = F.linear(h, m.router), F.linear(h, m.gate)
        return torch.atan(q), torch.atan(k)

    (site,) = sites(norm_and_two, body)
    assert site.match is not None
    assert [v.node.name for v in site.match.outputs] == [
        site.match.bound[t].node.name for t in norm_and_two.forms[0].outputs
    ]
    assert {site.match.sizes[N], site.match.sizes[K]} == {4, INTER}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (lambda m, x: (F.linear(rms(m, x), m.gate),), "OP"),
        (lambda m, x: (F.linear(h := rms(m, x), m.gate), F.linear(h, m.router), h), "GRAPH_OUTPUT"),
        (lambda m, x: (F.linear(h := rms(m, x), m.gate), F.linear(h, m.router), torch.atan(h)), "EXTERNAL_USE"),
        (lambda m, x: (F.linear(rms(m, x), m.gate), F.linear(rms(m, x + 1), m.router)), "OP"),
    ],
    ids=["one root", "norm returned", "norm read", "two norms"],
)
def test_two_roots_refused(body: Any, code: str) -> None:
    found = codes(norm_and_two, body)
    assert found
    assert "" not in found
    assert code in found


@pattern("add_norm")
def add_norm(
    x: Any = Input(..., D), residual: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float)
) -> Any:
    h = x + residual
    return norm(h, weight, eps), h


def test_an_output_that_is_also_inside_may_be_read_by_anyone() -> None:
    def body(m: Any, x: Any) -> Any:
        h = x + x.sin()
        return h + F.linear(rms(m, h), m.square), torch.atan(h), h

    (site,) = sites(add_norm, body, square=torch.nn.Parameter(torch.eye(HIDDEN)))
    assert site.match is not None
    assert [v.op for v in site.match.outputs] == ["mul", "add"]


def test_a_site_that_reads_its_own_result_is_a_cycle() -> None:
    def two_products(x: Any = Input(..., D), a: Any = Param(N, D), y: Any = Input(..., D), b: Any = Param(N, D)) -> Any:
        return F.silu(F.linear(x, a)), torch.tanh(F.linear(y, b))

    with pytest.raises(PatternError, match="nothing leads from silu"):  # what they share below is the parameter
        pattern("two_products")(two_products)

    @pattern("shared_weight")
    def shared_weight(x: Any = Input(..., D), a: Any = Param(N, D), y: Any = Input(..., D)) -> Any:
        return F.silu(F.linear(x, a)), torch.tanh(F.linear(y, a))

    def beside(m: Any, x: Any) -> Any:
        return F.silu(F.linear(x, m.gate)), torch.tanh(F.linear(x + 1, m.gate))

    def after(m: Any, x: Any) -> Any:
        first = F.silu(F.linear(x, m.gate))
        return first, torch.tanh(F.linear(first[..., :HIDDEN] + x, m.gate))

    assert codes(shared_weight, beside) == [""]
    assert codes(shared_weight, after) == ["CYCLE"]


def test_outputs_are_distinct_values() -> None:
    @pattern("two_of_one")
    def two_of_one(x: Any = Input(..., D), a: Any = Param(N, D), b: Any = Param(N, D)) -> Any:
        return F.linear(x, a), F.linear(x, b)

    assert codes(two_of_one, lambda m, x: F.linear(x, m.gate)) != [""]
    assert codes(two_of_one, lambda m, x: (F.linear(x, m.gate), F.linear(x, m.up))) == [""]


def test_of_four_siblings_in_pairs_both_pairs_are_found() -> None:
    @pattern("pair")
    def pair(x: Any = Input(..., D), a: Any = Param(N, D), b: Any = Param(N, D)) -> Any:
        return F.linear(x, a), F.linear(x, b)

    def body(m: Any, x: Any) -> Any:
        return [torch.atan(F.linear(x, w)) for w in (m.gate, m.up, m.third, m.fourth)]

    more = {n: torch.nn.Parameter(torch.randn(INTER, HIDDEN)) for n in ("third", "fourth")}
    found = sites(pair, body, **more)
    assert [f.reason for f in found if f.match is not None] == [None, None]
    assert not set(found[0].nodes) & set(found[1].nodes)


# --- any number of siblings -----------------------------------------------------------------------------------------


@pattern("siblings")
def siblings(
    x: Any = Input(..., D), weights: Any = Param(OUT, D, many=True), biases: Any = Param(OUT, optional=True, many=True)
) -> Any:
    return many(lambda w, b: F.linear(x, w, b), weights, biases)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_number_of_siblings_in_graph_order(count: int) -> None:
    names = [f"w{i}" for i in range(count)]
    more = {n: torch.nn.Parameter(torch.randn(3 + i, HIDDEN)) for i, n in enumerate(names)}

    def body(m: Any, x: Any) -> Any:
        return [torch.atan(F.linear(x, getattr(m, n))) for n in names]

    (site,) = sites(siblings, body, **more)
    assert site.match is not None
    assert len(site.match.outputs) == count
    assert [w.shape[0] for w in site.match.weights] == [3 + i for i in range(count)]
    assert site.match.biases is None


def test_siblings_with_and_without_bias() -> None:
    def body(m: Any, x: Any) -> Any:
        return F.linear(x, m.gate, m.gate_bias), F.linear(x, m.router), F.linear(x.sin(), m.up)

    (site,) = [s for s in sites(siblings, body) if s.match is not None]
    assert site.match is not None
    assert [b is None for b in site.match.biases] == [False, True]


def test_a_sibling_that_is_a_product_and_a_sum_is_one() -> None:
    def body(m: Any, x: Any) -> Any:
        return F.linear(x, m.gate, m.gate_bias), x @ m.up.t() + m.gate_bias, F.linear(x, m.router)

    (site,) = [s for s in sites(siblings, body) if s.match is not None]
    assert site.match is not None
    assert [b is None for b in site.match.biases] == [False, False, True]


def test_one_is_no_group_of_siblings() -> None:
    (site,) = sites(siblings, lambda m, x: F.linear(x, m.gate))
    assert site.reason is not None
    assert (site.reason.code, site.reason.sentence()) == ("ARITY", "expected at least 2 siblings, found 1")


def test_siblings_below_a_shared_norm() -> None:
    @pattern("norm_siblings")
    def norm_siblings(
        x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), ws: Any = Param(OUT, D, many=True)
    ) -> Any:
        h = norm(x, weight, eps)
        return many(lambda w: F.linear(h, w), ws)

    def body(m: Any, x: Any) -> Any:
        h = rms(m, x)
        return F.linear(h, m.gate), F.linear(h, m.up), F.linear(h, m.router)

    assert codes(norm_siblings, body) == [""]
    assert codes(norm_siblings, lambda m, x: (*body(m, x), rms(m, x).sum())) != []
    assert codes(norm_siblings, lambda m, x: (F.linear(h := rms(m, x), m.gate), F.linear(h, m.up), h.sin())) == [
        "EXTERNAL_USE"
    ]


def test_siblings_of_one_value_are_several_groups_where_a_number_or_a_choice_tells_them_apart() -> None:
    @pattern("scaled_siblings")
    def scaled_siblings(
        x: Any = Input(..., D),
        weight: Any = Param(D),
        eps: Any = Scalar(float),
        s: Any = Scalar(float),
        ws: Any = Param(OUT, D, many=True),
    ) -> Any:
        h = keep(norm(x, weight, eps))
        return many(lambda w: F.linear(h, w) * s, ws)

    @pattern("activated_siblings")
    def activated_siblings(x: Any = Input(..., D), ws: Any = Param(OUT, D, many=True)) -> Any:
        def one(w: Any) -> Any:
            y = F.linear(x, w)
            return one_of("act", silu=lambda: F.silu(y), gelu=lambda: F.gelu(y))

        return many(one, ws)

    def scaled(m: Any, x: Any) -> Any:
        h = rms(m, x)
        return [F.linear(h, w) * s for w, s in zip((m.gate, m.up, m.router, m.gate), (2.0, 3.0, 3.0, 2.0), strict=True)]

    def activated(m: Any, x: Any) -> Any:
        acts = (F.silu, F.gelu, F.gelu, F.silu)
        return [act(F.linear(x, w)) for w, act in zip((m.gate, m.up, m.router, m.gate), acts, strict=True)]

    for asked, body in ((scaled_siblings, scaled), (activated_siblings, activated)):
        groups = [s.match for s in sites(asked, body)]
        assert [len(g.outputs) for g in groups if g is not None] == [2, 2]


# --- values that others may read ------------------------------------------------------------------------------------


@pattern("kept_norm")
def kept_norm(x: Any = Input(..., D), weight: Any = Param(D), eps: Any = Scalar(float), w: Any = Param(N, D)) -> Any:
    return F.linear(keep(norm(x, weight, eps)), w)


def test_a_kept_value_may_be_read_and_every_reader_is_a_site() -> None:
    def body(m: Any, x: Any) -> Any:
        h = rms(m, x)
        return torch.atan(F.linear(h, m.gate)), torch.atan(F.linear(h, m.up)), h

    found = sites(kept_norm, body)
    assert [f.reason for f in found] == [None, None]
    for site in found:
        assert site.match is not None
        assert {n.target for n in site.match.owned} == {F.linear} or len(site.match.owned) == 1


def test_only_what_is_kept_may_be_read() -> None:
    def body(m: Any, x: Any) -> Any:
        v = x.pow(2).mean(-1, keepdim=True) + 1e-6
        h = m.weight * (x * torch.rsqrt(v))
        return F.linear(h, m.gate), v

    (site,) = sites(kept_norm, body)
    assert site.reason is None  # v feeds only the kept value, and is made for its other reader as before


# --- order ----------------------------------------------------------------------------------------------------------


def test_ordered_switches_commutativity_off() -> None:
    @pattern("any_order")
    def any_order(x: Any = Input(..., D), w: Any = Param(D)) -> Any:
        return torch.tanh(x) * w

    @pattern("this_order")
    def this_order(x: Any = Input(..., D), w: Any = Param(D)) -> Any:
        return ordered(torch.tanh(x) * w)

    assert codes(any_order, lambda m, x: torch.tanh(x) * m.weight) == [""]
    assert codes(any_order, lambda m, x: m.weight * torch.tanh(x)) == [""]
    assert codes(this_order, lambda m, x: torch.tanh(x) * m.weight) == [""]
    assert "" not in codes(this_order, lambda m, x: m.weight * torch.tanh(x))


# --- choices --------------------------------------------------------------------------------------------------------


def act(h: Any, choose: Any) -> Any:
    return choose("act", silu=lambda: F.silu(h), tanh=lambda: torch.tanh(h))


@pattern("one_choice")
def one_choice(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
    return act(x, one_of) + act(y, one_of)


@pattern("two_choices")
def two_choices(x: Any = Input(..., D), y: Any = Input(..., D)) -> Any:
    return act(x, one_of.each) + act(y, one_of.each)


def test_one_name_is_one_choice_and_each_is_one_a_place() -> None:
    alike, apart = lambda m, x: F.silu(x) + F.silu(x + 1), lambda m, x: F.silu(x) + torch.tanh(x + 1)
    assert [s.variant for s in sites(one_choice, alike) if s.match] == [{"act": "silu"}]
    assert "" not in codes(one_choice, apart)
    assert [s.variant for s in sites(two_choices, alike) if s.match] == [{"act_1": "silu", "act_2": "silu"}]
    (site,) = [s for s in sites(two_choices, apart) if s.match]
    assert sorted(site.variant.values()) == ["silu", "tanh"]  # type: ignore[union-attr]  # of a match
    x, y = torch.randn(3), torch.randn(3)
    assert torch.equal(
        two_choices.reference({"x": x, "y": y}, {"act_1": "silu", "act_2": "tanh"}), F.silu(x) + torch.tanh(y)
    )


def test_nested_choices() -> None:
    @pattern("nested")
    def nested(x: Any = Input(..., D), w: Any = Param(D)) -> Any:
        return one_of(
            "kind",
            plain=lambda: torch.tanh(x),
            scaled=lambda: one_of("by", weight=lambda: torch.tanh(x) * w, two=lambda: torch.tanh(x * w) * 2),
        )

    assert [s.variant for s in sites(nested, lambda m, x: torch.tanh(x) * m.weight) if not s.reason] == [
        {"kind": "scaled", "by": "weight"}
    ]
    assert [s.variant for s in sites(nested, lambda m, x: 2 * torch.tanh(x * m.weight)) if not s.reason] == [
        {"kind": "scaled", "by": "two"}
    ]


# --- sizes, dtypes, literals ----------------------------------------------------------------------------------------


def test_sizes_that_are_related() -> None:
    @pattern("packed")
    def packed(x: Any = Input(..., D), w: Any = Param(2 * N, D), scale: Any = Param(N)) -> Any:
        a, b = F.linear(x, w).chunk(2, -1)
        return F.silu(a) * b * scale

    def body(m: Any, x: Any) -> Any:
        a, b = F.linear(x, m.gate_up).chunk(2, -1)
        return F.silu(a) * b * m.gate_bias

    (site,) = sites(packed, body)
    assert site.match is not None
    assert site.match.sizes == {D: HIDDEN, N: INTER}

    @pattern("odd")
    def odd(x: Any = Input(..., D), w: Any = Param(2 * N + 1, D)) -> Any:
        return F.silu(F.linear(x, w))

    assert codes(odd, lambda m, x: F.silu(F.linear(x, m.gate))) == ["SHAPE"]
    thirteen = torch.nn.Parameter(torch.randn(13, HIDDEN))
    (site,) = sites(odd, lambda m, x: F.silu(F.linear(x, m.w)), w=thirteen)
    assert site.match is not None
    assert site.match.sizes[N] == 6


def test_dtype_sets() -> None:
    @pattern("low")
    def low(x: Any = Input(..., D, dtype=(torch.bfloat16, torch.float16))) -> Any:
        return F.silu(x)

    assert codes(low, lambda m, x: F.silu(x), rows(dtype=torch.bfloat16)) == [""]
    (site,) = sites(low, lambda m, x: F.silu(x), rows())
    assert site.reason is not None
    assert site.reason.sentence() == "expected x in bf16 or f16, found f32"


def test_wildcards_of_every_kind_and_their_defaults() -> None:
    @pattern("wild")
    def wild(x: Any = Input(...), dim: Any = Scalar(int), how: Any = Scalar(str)) -> Any:
        return F.gelu(torch.softmax(x, dim=dim), approximate=how)

    (site,) = sites(wild, lambda m, x: F.gelu(x.softmax(-1), approximate="tanh"))
    assert site.match is not None
    assert (site.match.dim, site.match.how) == (-1, "tanh")
    (site,) = sites(wild, lambda m, x: F.gelu(x.softmax(-1)))
    assert site.match is not None
    assert site.match.how == "none"


# --- operands that may be absent ------------------------------------------------------------------------------------


@pattern("maybe_scaled")
def maybe_scaled(x: Any = Input(..., D), scale: Any = Param(D, optional=True)) -> Any:
    y = torch.tanh(x)
    if scale is not None:
        y = y * scale
    return y.sin() if scale is None else y.cos()


def test_a_reference_that_asks_whether_an_operand_is_there() -> None:
    assert len(maybe_scaled.forms) == 2
    (site,) = sites(maybe_scaled, lambda m, x: (torch.tanh(x) * m.weight).cos())
    assert site.match is not None
    assert site.match.scale is not None
    (site,) = sites(maybe_scaled, lambda m, x: torch.tanh(x).sin())
    assert site.match is not None
    assert site.match.scale is None
    assert "" not in codes(maybe_scaled, lambda m, x: torch.tanh(x).cos())
    assert "" not in codes(maybe_scaled, lambda m, x: (torch.tanh(x) * m.weight).sin())


def test_the_larger_form_is_the_site_where_both_fit() -> None:
    @pattern("tail")
    def tail(x: Any = Input(..., D), scale: Any = Param(D, optional=True)) -> Any:
        y = torch.tanh(x)
        return y if scale is None else y * scale

    (site,) = sites(tail, lambda m, x: torch.tanh(x) * m.weight)
    assert site.match is not None
    assert site.match.scale is not None


# --- the size of the search -----------------------------------------------------------------------------------------


def tower(depth: int, tail: Any, combine: Any) -> Any:
    def build(x: Any, y: Any) -> Any:
        h = torch.tanh(x)
        for i in range(depth):
            h = combine(combine(h, y), h + i)
        return tail(h)

    return build


@pytest.mark.parametrize("tail", [F.silu, F.relu], ids=["match", "near miss"])
def test_commutative_operations_do_not_explode(tail: Any) -> None:
    """Twelve commutative operations cost a small factor of what the same without commutativity costs."""
    free = pattern("free")(lambda x=Input(..., D), y=Input(..., D): tower(4, F.silu, torch.mul)(x, y))
    fixed = pattern("fixed")(
        lambda x=Input(..., D), y=Input(..., D): tower(4, F.silu, lambda a, b: ordered(a * b))(x, y)
    )

    from fxfuse.match.feasible import Feasible
    from fxfuse.match.gates import gate
    from fxfuse.match.search import Search

    gm, examples = capture(Net(lambda m, x: tower(4, tail, torch.mul)(x, x.sin())), rows())
    steps = {}
    for some in (free, fixed):
        view = View(gm.graph, examples)
        form = some.forms[0]
        steps[some.name] = 0
        for seed in (v for op in {s.op for s in form.seeds} for v in view.find(op)):
            search = Search(view, some, form, Feasible(view), gate)
            assert bool(search.run(seed)) == (tail is F.silu)
            steps[some.name] += search.steps
    assert steps["free"] <= 4 * max(steps["fixed"], 10)


def test_no_capture_hides_behind_an_attribute_of_a_match() -> None:
    (site,) = sites(siblings, lambda m, x: (F.linear(x, m.gate), F.linear(x, m.up)))
    own = {name for name in dir(site.match) if not name.startswith("_")}
    assert own == RESERVED
    with pytest.raises(PatternError, match="a capture cannot be called 'nodes'"):
        pattern("p")(lambda nodes=Input(..., D): F.silu(nodes))


# --- what is one op in fp32, and not in bf16 ------------------------------------------------------------------------


def test_a_formula_is_one_op_where_it_is_one_function() -> None:
    """In bf16 ``x * sigmoid(x)`` rounds the sigmoid and silu does not: two functions there, and one in fp32."""

    @pattern("by_hand")
    def by_hand(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
        h = F.linear(x, w)
        return h * torch.sigmoid(h)

    @pattern("by_name")
    def by_name(x: Any = Input(..., D), w: Any = Param(N, D)) -> Any:
        return F.silu(F.linear(x, w))

    def formula(m: Any, x: Any) -> Any:
        h = F.linear(x, m.gate)
        return torch.sigmoid(h) * h

    def op(m: Any, x: Any) -> Any:
        return F.silu(F.linear(x, m.gate))

    low = torch.bfloat16
    assert by_hand.choices == {}
    for some in (by_hand, by_name):
        assert codes(some, formula) == [""]
        assert codes(some, op) == [""]
    assert codes(by_hand, formula, rows(dtype=low), dtype=low) == [""]
    assert codes(by_name, op, rows(dtype=low), dtype=low) == [""]
    assert "" not in codes(by_hand, op, rows(dtype=low), dtype=low)
    assert "" not in codes(by_name, formula, rows(dtype=low), dtype=low)


def test_a_cast_that_promotion_makes_is_left_out_only_where_it_does() -> None:
    """A tensor of no dimensions promotes no other: beside it ``w.float() + s`` is fp32, and ``w + s`` is not."""

    @pattern("scaled")
    def scaled(x: Any = Input(..., D), w: Any = Param(D), s: Any = Input()) -> Any:
        return torch.tanh(x.float() * (w.float() + s.float()))

    low = torch.bfloat16
    row, scalar = torch.randn(8), torch.randn(())

    def written(m: Any, x: Any, s: Any) -> Any:
        return torch.tanh(x.float() * (m.weight.float() + s))

    def left_out(m: Any, x: Any, s: Any) -> Any:
        return torch.tanh(x.float() * (m.weight + s))

    assert codes(scaled, written, rows(dtype=low), row, dtype=low) == [""]
    assert codes(scaled, left_out, rows(dtype=low), row, dtype=low) == [""]
    assert "" not in codes(scaled, left_out, rows(dtype=low), scalar, dtype=low)
